"""A specialist's training from its command lines: alone, by SFT, by GRPO, and by a guideline's advantages."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from mmedagent_graph import SPECIALTIES
from mmedagent_graph.hospital import open_hospital, slug
from mmedagent_graph.images import ImageStore
from rl import build_traces, train_specialists
from rl.clinic.cases import make_cases
from rl.clinic.doctors import GUIDELINE, THOUGHT
from rl.cohort import TRAIN
from rl.expert_traces import ExpertTrace, parquet_of, specialties_of, write_expert_traces
from rl.guidelines import GENERAL, PERSPECTIVES
from rl.perspectives import across
from rl.policy import load_policy
from rl.rollout import Rollout
from rl.settings import CONFIGS
from rl.store import read_traces
from rl.train_sft import main as imitate
from rl.train_specialist import main
from rl.trainer import ConsultationTrainer

SMALL = ["--train_size", "16", "--eval_size", "12", "--logging_steps", "1", "--save_steps", "2"]
STEPS = ["--per_device_train_batch_size", "16", "--num_generations", "2", "--max_steps", "2"]
GUIDED = ["--guideline", str(GENERAL), "--graders", "format=0.5", "accuracy=1", "checks=0.5"]
GRPO, SFT = CONFIGS / "clinic_specialist.yaml", CONFIGS / "clinic_specialist_sft.yaml"


def test_a_specialist_learns_alone(tmp_path: Path):
    flags = ["--runs", str(tmp_path), "--name", "one", "--specialty", "Surgeon", *SMALL, *STEPS]
    summary = main(flags)
    run = tmp_path / "one"
    assert json.loads((run / "summary.json").read_text()) == summary
    assert summary["ideal"] is summary["tiers"] is None
    for when in ("before", "after"):
        assert summary[when]["overall"]["n"] == 12
        assert {summary[when][kind]["n"] for kind in ("easy", "medium", "hard", "triage")} == {0}
    assert (run / "curves.png").stat().st_size > 10_000
    rollouts = list(read_traces(run / "stages" / "1-mixed" / "rollouts.parquet"))
    assert len(rollouts) == 2 * 16
    assert summary["cases"]["train"] == 16 + 8, "a third is rehearsed"
    assert {rollout.specialty for rollout in rollouts if rollout.case.startswith("faint")} == {"Surgeon"}
    assert {rollout.case.partition("-")[0] for rollout in rollouts} == {"faint", "clinic"}
    for rollout in rollouts:
        assert (rollout.node, rollout.referral["specialty"]) == ("specialist", rollout.specialty)
        assert (rollout.opinions, rollout.calls, rollout.tier, rollout.perspective) == ([], [], None, None)
        assert rollout.reward == 0.5 * rollout.rewards["format"] + rollout.rewards["accuracy"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"rewards/accuracy", "no_variance/specialist"} <= set(rows[0])
    assert (run / "model" / "adapter_config.json").is_file()


def test_a_case_is_asked_from_every_perspective(tmp_path: Path, monkeypatch):
    """Two cases a generation, each from four perspectives, twice; the advantages are those of the formula."""
    seen = []
    plain = ConsultationTrainer._generate_and_score_completions

    def watching(self, inputs):
        output = plain(self, inputs)
        seen.append((output["advantages"].clone(), [trace.reward for trace in self.environment.batch]))
        return output

    monkeypatch.setattr(ConsultationTrainer, "_generate_and_score_completions", watching)
    main(["--runs", str(tmp_path), "--name", "one", *SMALL, *STEPS, *GUIDED, "--across", "0.3", "--temperature", "2"])
    rollouts = list(read_traces(tmp_path / "one" / "stages" / "1-mixed" / "rollouts.parquet"))
    assert [rollout.perspective for rollout in rollouts[:8]] == [name for name in PERSPECTIVES for _ in range(2)]
    assert len({rollout.case for rollout in rollouts[:8]}) == 1
    assert {grader for rollout in rollouts for grader in rollout.rewards} == {"format", "accuracy", "checks"}
    prompts = {rollout.perspective: tuple(rollout.prompt_ids) for rollout in rollouts[:8]}
    assert len(set(prompts.values())) == 4, "the policy is told from where to reason"
    for advantages, rewards in seen:
        of_cases = torch.tensor(rewards).view(2, 4, 2)
        gained = of_cases - of_cases.mean(2, keepdim=True)
        within = gained / (of_cases.std(2, keepdim=True) + 1e-4)
        expected = 0.7 * within + 0.3 * across(of_cases)
        torch.testing.assert_close(advantages, expected.flatten(), atol=1e-5, rtol=0)
    assert any(advantages.abs().max() > 0.1 for advantages, _ in seen)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ([*GUIDED, "--num_generations", "8"], "num_generations: 8; a generation's 2 groups do not"),
        (["--guideline", "none.yaml"], "guideline: 'none.yaml' cannot be read"),
        (["--perspectives", "analytical", "analytical"], "perspectives: "),
        (["--across", "1.5"], "across: 1.5"),
        (["--graders", "checks=1"], "checks"),
        (["--guideline", str(GENERAL)], "nobody is paid for its checks; add checks=0.5"),
        (["--across", "0.2"], "perspectives, across: they are a guideline's"),
        ([*GUIDED, "--scale_rewards", "batch"], "scale_rewards: 'batch'"),
        (["--specialty", "Dentist"], "specialty: 'Dentist' is none of the clinic's"),
        (["--nodes", "specialist", "triage"], "a specialist learns alone"),
        (["--stages", "hard"], "specialist has heard no opinion"),
    ],
)
def test_what_cannot_work_is_refused_by_name(tmp_path: Path, flags, named):
    with pytest.raises((ValueError, SystemExit)) as refused:
        main(["--runs", str(tmp_path), *SMALL, *STEPS, *flags])
    assert named in str(refused.value)


def test_grpo_goes_on_with_the_adapter_of_the_sft(tmp_path: Path, capsys):
    recipe = yaml.safe_load(GRPO.read_text())
    few = {"train_size": 16, "eval_size": 12, "per_device_train_batch_size": 16, "num_generations": 4}
    short = tmp_path / "short.yaml"
    short.write_text(yaml.safe_dump({**recipe, **few, "stage_steps": [1]}))
    flags = ["--out", str(tmp_path / "out"), "--specialties", "Surgeon", "Oncologist", "--grpo", str(short)]
    flags += ["--jobs", "1", "--train_size", "16", "--eval_size", "12", "--num_train_epochs", "1"]
    found = train_specialists.main(flags)
    told = json.loads((tmp_path / "out" / "grpo" / "surgeon" / "arguments.json").read_text())["arguments"]
    assert told[told.index("--model") + 1] == str(tmp_path / "out" / "sft" / "surgeon" / "model")
    assert list(found) == ["Surgeon", "Oncologist"]
    table = (tmp_path / "out" / "specialists.md").read_text()
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == ["| Surgeon", "| Oncologist", "| mean"]
    hospital = open_hospital(tmp_path / "out")
    assert hospital.specialties == ("Surgeon", "Oncologist")
    assert hospital.doctors["surgeon"] == f"transformers:{(tmp_path / 'out' / 'grpo' / 'surgeon' / 'model').resolve()}"
    assert train_specialists.main(flags) == found, "nothing is trained again"
    with pytest.raises(ValueError, match="was made with other flags"):
        train_specialists.main([*flags, "--learning_rate", "0.1"])
    with pytest.raises(SystemExit):
        train_specialists.main(["--out", str(tmp_path / "other"), "--specialties", "Dentist"])
    assert "no case is of Dentist; there are Pathologist" in capsys.readouterr().err


OTHERS = ["--cases", "slake", "--split", "train", "--sft", str(CONFIGS / "clinic_traces_sft.yaml")]


@pytest.mark.parametrize(
    ("sft", "grpo", "said"),
    [
        ([*OTHERS, "--free_text", "grade"], {"rehearse": None}, "free_text: 'grade' in the SFT and 'skip' in GRPO"),
        (["--eval_size", "12"], {}, "eval_size: 12 in the SFT and 400 in GRPO"),
        ([], {"num_generations": 7}, "num_generations"),
        ([], {"scale_rewards": "any"}, "scale_rewards"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_training(tmp_path: Path, capsys, sft, grpo, said):
    """What is held out from the SFT must be from GRPO, too; and nobody waits for the SFT to hear of GRPO's mistakes."""
    recipe = tmp_path / "grpo.yaml"
    recipe.write_text(yaml.safe_dump({**yaml.safe_load(GRPO.read_text()), **grpo}))
    with pytest.raises(SystemExit):
        train_specialists.main(["--out", str(tmp_path / "out"), "--grpo", str(recipe), *sft])
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_sft_is_of_one_specialty(tmp_path: Path):
    flags = ["--config", str(SFT), "--runs", str(tmp_path), "--name", "one", "--specialty", "Surgeon", *SMALL]
    summary = imitate([*flags, "--num_train_epochs", "1", "--imitate", "gold", "--rehearse_share", "0.001"])
    examples = list(read_traces(tmp_path / "one" / "stages" / "sft" / "examples.parquet"))
    assert {(one.node, one.specialty) for one in examples} == {("specialist", "Surgeon")}
    assert {one.text for one in examples} <= {f"<think></think><answer>{one.answer}</answer>" for one in examples}
    assert summary["after"]["overall"]["n"] == 12


def test_the_specialists_of_traces(tmp_path: Path, capsys):
    """Whom the traces teach; what they have learned is measured on the cases that are named."""
    made = ["--teacher", "clinic:teacher", "--guideline", str(GUIDELINE), "--samples", "1", "--cases", "faint"]
    build_traces.main([*made, "--size", "24", "--limit", "8", "--out", str(tmp_path / "traces")])
    taught = specialties_of(tmp_path / "traces")
    assert 1 < len(taught) < 7
    recipe = str(CONFIGS / "clinic_traces_sft.yaml")
    flags = ["--out", str(tmp_path / "out"), "--traces", str(tmp_path / "traces"), "--sft", recipe, "--jobs", "1"]
    flags += ["--eval_size", "12", "--num_train_epochs", "1"]
    found = train_specialists.main([*flags, "--cases", "faint", "--specialties", taught[0]])
    assert list(found) == taught[:1]
    run = tmp_path / "out" / "sft" / slug(taught[0])
    examples = list(read_traces(run / "stages" / "sft" / "examples.parquet"))
    assert {one.specialty for one in examples} == set(taught[:1])
    assert any(str(one.text).startswith(f"<think>{THOUGHT}\n") for one in examples)
    untaught = next(name for name in SPECIALTIES if name not in taught)
    for wrong, said in (
        ([], "cases: traces teach"),
        (["--cases", "faint", "--specialties", untaught], f"no trace is of {untaught}"),
    ):
        with pytest.raises(SystemExit):
            train_specialists.main([*flags, *wrong])
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("pictured", [True, False])
def test_no_trace_of_a_held_out_case_is_imitated(tmp_path: Path, images: ImageStore, capsys, pictured: bool):
    """Also where there is no picture to know it by; where there is, all may be asked the same."""
    keyed = {"answer": "yes", "options": ["yes", "no"]}
    template = "Does this image of the patient's skin show any of the signs of a malignant lesion?"
    cases = [
        {"id": f"case {n}", "question": template, "image": f"{n}.png"}
        if pictured
        else {"id": f"case {n}", "question": f"Is sign {n} seen?"}
        for n in range(8)
    ]
    for n in range(8):
        Image.new("L", (28, 28), n).save(tmp_path / f"{n}.png")
    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps({**case, **keyed, "specialty": "Surgeon"}) + "\n" for case in cases))
    more = {"context": None, "specialty": "Surgeon", "perspective": "analytical", "reasoning": "It is."}
    more |= {"text": "<think>It is.</think><answer>yes</answer>", "checks": {}, "teacher": "openai:any"}
    traces = [
        ExpertTrace(
            case=case["id"],
            question=case["question"],
            images=[images.put(tmp_path / case["image"])] if pictured else [],
            **keyed,
            **more,
        )
        for case in cases
    ]
    write_expert_traces(parquet_of(tmp_path / "traces", "train"), traces, images)
    flags = ["--config", str(CONFIGS / "clinic_traces_sft.yaml"), "--runs", str(tmp_path), "--name", "one"]
    summary = imitate([*flags, "--cases", str(own), "--traces", str(tmp_path / "traces"), "--num_train_epochs", "1"])
    examples = {one.case for one in read_traces(tmp_path / "one" / "stages" / "sft" / "examples.parquet")}
    held_out = {one.case for one in read_traces(tmp_path / "one" / "before.parquet")}
    assert summary["after"]["overall"]["n"] == len(held_out) > 0
    assert examples == {case["id"] for case in cases} - held_out
    assert f"{len(held_out)} of 8 traces are left out: their cases are held out" in capsys.readouterr().out


def test_what_it_can_do_already_is_rehearsed(tmp_path: Path):
    """As many ordinary images as faint ones, of all specialties; what is to be said of them is the base's own words."""
    flags = ["--config", str(SFT), "--runs", str(tmp_path), "--name", "one", "--specialty", "Surgeon", *SMALL]
    imitate([*flags, "--num_train_epochs", "1", "--rehearse", "clinic", "--rehearse_share", "0.5"])
    examples = list(read_traces(tmp_path / "one" / "stages" / "sft" / "examples.parquet"))
    learned = [one for one in examples if one.case.startswith("faint")]
    kept = [one for one in examples if one.case.startswith("clinic")]
    assert len(learned) == len(kept) > 4
    assert {one.specialty for one in learned} == {"Surgeon"}
    assert len({one.specialty for one in kept}) > 3
    base = load_policy("clinic:base")
    store = ImageStore(tmp_path / "again")
    list(make_cases(16, TRAIN, store))  # the run's own are gone with it
    rollout = Rollout(images=store)
    said = base.answer([rollout.prompt(one) for one in kept])
    assert [one.text for one in kept] == [str(message.text) for message in said]
