"""The main job, from its command line, on a handful of cases."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest

import rl.policy
from mmedagent_graph.hospital import open_hospital, slug
from rl import train_triage
from rl.evaluate import main as evaluate_main
from rl.models import folder_of
from rl.policy import PolicyChatModel, forget_policies
from rl.store import load_frame, read_traces
from rl.train_attending import main
from tests.integration.grpo import Killed

SHARED = Path(__file__).parents[3] / "shared" / "data"
SMALL = ["--per_device_train_batch_size", "8", "--num_generations", "4", "--logging_steps", "1", "--save_steps", "2"]
CLINIC = ["--train_size", "40", "--eval_size", "24", *SMALL]
BOTH = ["--nodes", "triage", "attending", "--reroll_steps", "2"]
TIERS = ("easy", "medium", "hard")
FIGURE = {"accuracy", "low", "high", "n"}
SUMMARY = {
    *("before", "after", "ideal", "gap_closed", "confusion", "unparsed", "cases", "tiers", "tokens"),
    *("seconds", "seed", "recipe", "arguments", "versions", "commit"),
}


def test_the_clinic_from_end_to_end(tmp_path: Path):
    summary = main(["--runs", str(tmp_path), "--name", "one", "--max_steps", "6", *CLINIC])
    run = tmp_path / "one"
    assert json.loads((run / "summary.json").read_text()) == summary
    assert set(summary) == SUMMARY
    for when in ("before", "after", "ideal"):
        assert set(summary[when]) == {"overall", *TIERS} | ({"triage"} if when != "ideal" else set())
        assert all(set(figure) == FIGURE for figure in summary[when].values())
        assert summary[when]["overall"]["n"] == 24
    assert summary["before"]["triage"] == summary["after"]["triage"]  # which is frozen
    assert summary["cases"] == {"train": 40, "held_out": 24, "skipped": 0}
    assert sum(summary["tiers"].values()) == 40
    assert set(summary["unparsed"]) == {"before", "after"}
    assert set(summary["seconds"]) >= {"rollout", "before", "ideal", "1-easy", "2-medium", "3-hard", "after"}
    assert (summary["seed"], summary["recipe"]) == (0, "clinic")
    assert {"torch", "trl", "transformers"} <= set(summary["versions"])
    assert (tmp_path / "latest").resolve() == run.resolve()
    assert (run / "curves.png").stat().st_size > 10_000
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {row["stage"] for row in rows} == {"1-easy", "2-medium", "3-hard"}
    assert {"reward", "entropy", "kl"} <= set(rows[0])
    assert len(list(read_traces(run / "after.parquet"))) == 24
    tokens = 0
    for stage in ("1-easy", "2-medium", "3-hard"):
        rollouts = list(read_traces(run / "stages" / stage / "rollouts.parquet"))
        steps = {rollout.step for rollout in rollouts}
        assert steps == set(range(1, len(steps) + 1))
        assert len(rollouts) == 8 * len(steps)
        assert all(len(rollout.logprobs) == len(rollout.completion_ids) for rollout in rollouts)
        tokens += sum(len(rollout.completion_ids) for rollout in rollouts)
    assert summary["tokens"]["trained"] == tokens
    frame = load_frame(run)
    assert set(frame.node) == {"attending"}
    assert len(frame) == 40 + 24 + 24 + 24 + 8 * 6


def test_both_nodes_as_one_policy(tmp_path: Path):
    summary = main(["--runs", str(tmp_path), "--name", "both", "--max_steps", "6", *BOTH, *CLINIC])
    run = tmp_path / "both"
    assert set(summary) == SUMMARY
    assert summary["before"]["triage"]["n"] == summary["after"]["triage"]["n"] == 24
    for when in ("before", "after"):
        rows = summary["confusion"][when]
        assert sum(n for row in rows.values() for n in row.values()) == 24
        right = sum(row.get(label, 0) for label, row in rows.items())
        assert summary[when]["triage"]["accuracy"] == right / 24
    for stage in ("1-easy", "2-medium", "3-hard"):
        folder = run / "stages" / stage
        rollouts = list(read_traces(folder / "rollouts.parquet"))
        assert {rollout.node for rollout in rollouts} == {"triage", "attending"}
        for rollout in rollouts:
            assert set(rollout.rewards) == {"format", "specialty" if rollout.node == "triage" else "accuracy"}
        assert sorted(path.name for path in folder.glob("upstream-*.parquet")) == ["upstream-000000.parquet"]
    assert summary["tokens"]["upstream"] > 0
    # each measurement and each stage has the upstream of its own triage
    names = {path.stem for path in run.glob("upstream-*.parquet")}
    assert names == {
        *("upstream-train-start", "upstream-train-1-easy", "upstream-train-2-medium"),
        *("upstream-before", "upstream-after"),
    }
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"unparsed/triage", "rewards/specialty", "rewards/accuracy", "no_variance/triage"} <= set(rows[0])
    assert not list(run.glob("model-*"))  # there is one model


def test_both_nodes_in_turn(tmp_path: Path):
    tiers = ("easy", "hard")
    weights = ["--stage_steps", "4", "4", "--betas", "0.01", "0", "--rehearsal", "0.3", "--rate_scales", "1"]
    flags = ["--nodes", "triage", "attending", "--alternate", "--stages", *tiers, *weights]
    summary = main(["--runs", str(tmp_path), "--name", "turns", *flags, *CLINIC])
    run = tmp_path / "turns"
    stages = [f"{place}-{tier}-{node}" for place, tier in enumerate(tiers, 1) for node in ("triage", "attending")]
    assert sorted(path.name for path in (run / "stages").iterdir()) == sorted(stages)
    assert set(summary["seconds"]) >= set(stages)
    for stage in stages:
        nodes = {rollout.node for rollout in read_traces(run / "stages" / stage / "rollouts.parquet")}
        assert nodes == {stage.rpartition("-")[2]}
    # each node's next stage starts from its own last one; two models remain
    for node in ("triage", "attending"):
        assert (run / f"model-{node}").resolve() == (run / "stages" / f"2-hard-{node}" / "model").resolve()
    # the attending's prompts of a stage come from the triage that was trained just before it
    assert {path.stem for path in run.glob("upstream-train-*.parquet")} == {
        "upstream-train-start",
        *(f"upstream-train-{place}-{tier}-triage" for place, tier in enumerate(tiers, 1)),
    }


def test_both_nodes_in_turn_with_an_adapter_each(tmp_path: Path):
    lora = ["--use_peft", "true", "--lora_r", "2", "--stages", "mixed", "mixed", "--stage_steps", "2", "2"]
    weights = ["--betas", "0.01", "0.01", "--rehearsal", "0", "--rate_scales", "1", "--output", "adapter"]
    flags = ["--nodes", "triage", "attending", "--alternate", *lora, *weights]
    main(["--runs", str(tmp_path), "--name", "turns", *flags, *CLINIC])
    for node in ("triage", "attending"):
        config = json.loads((tmp_path / "turns" / f"model-{node}" / "adapter_config.json").read_text())
        assert config["r"] == 2
        assert "clinic/base" in config["base_model_name_or_path"]


def test_the_attending_learns_beside_a_hospitals_own_specialists(hospital: Path, tmp_path: Path):
    few = ["--stages", "mixed", "--stage_steps", "2", "--betas", "0", "--rehearsal", "0", "--rate_scales", "1"]
    who = ["--specialists", str(hospital), "--cases", "faint"]
    summary = main(["--runs", str(tmp_path), "--name", "house", *who, *few, *CLINIC])
    assert summary["after"]["overall"]["n"] == 24
    assert summary["ideal"] is None  # nobody knows how they err
    doctors = open_hospital(hospital).doctors
    traces = list(read_traces(tmp_path / "house" / "before.parquet"))
    assert all(trace.case.startswith("faint") for trace in traces)
    asked = set()
    for trace in traces:
        heard = {call.model for call in trace.calls if call.node == "specialist"}
        assert {folder_of(name) for name in heard} == {folder_of(doctors[slug(trace.referral["specialty"])])}
        assert len(trace.opinions) == 3
        asked |= heard
    assert len(asked) > 2


def test_an_adapter_is_merged_in_the_end(tmp_path: Path):
    flags = ["--use_peft", "true", "--lora_r", "2", "--max_steps", "2"]
    summary = main(["--runs", str(tmp_path), "--name", "merged", *flags, *CLINIC])
    model = tmp_path / "merged" / "model"
    assert not (model / "adapter_config.json").exists()
    assert (model / "model.safetensors").is_file()
    assert (model / "processor_config.json").is_file()
    assert summary["after"]["overall"]["n"] == 24


def test_tiers_without_a_key(tmp_path: Path):
    """The policy is asked alone instead; its doubts and its doctors' make more than one tier."""
    flags = ["--tiers", "disagreement", "--max_steps", "2"]
    summary = main(["--runs", str(tmp_path), "--name", "one", *flags, *CLINIC])
    assert sum(summary["tiers"].values()) == 40
    assert sum(count > 0 for count in summary["tiers"].values()) > 1


def test_the_trained_model_opens_everywhere(tmp_path: Path, cases, images):
    main(["--runs", str(tmp_path), "--name", "one", "--max_steps", "2", *CLINIC])
    model = tmp_path / "one" / "model"
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    from mmedagent_graph import build_graph

    assert AutoModelForImageTextToText.from_pretrained(model).config.model_type == "qwen2_5_vl"
    assert AutoTokenizer.from_pretrained(model).eos_token == "<|im_end|>"
    config = json.loads((model / "processor_config.json").read_text())
    assert config["processor_class"] == "Qwen2_5_VLProcessor"
    assert config["video_processor"]["video_processor_type"] == "Qwen2VLVideoProcessor"
    for name in (f"clinic:{model}", f"transformers:{model}"):
        graph = build_graph(triage="clinic:base", specialists="clinic:doctor-1", attending=name, images=images)
        given = {"question": cases[0].question, "options": cases[0].options, "images": cases[0].images}
        assert graph.invoke(given)["decision"]["answer"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_goes_on_in_the_right_stage(tmp_path: Path, how: signal.Signals):
    flags = ["--runs", str(tmp_path), "--name", "killed", "--stage_steps", "4", "6", "2", *CLINIC]
    command = [sys.executable, "-m", "rl.train_attending", *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    checkpoint = tmp_path / "killed" / "stages" / "2-medium" / "checkpoints" / "checkpoint-2"
    deadline = time.monotonic() + 240
    while not checkpoint.is_dir() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(how)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL), output
    if how == signal.SIGINT:
        assert "go on with: python -m rl.train_attending --resume" in output
    first = tmp_path / "killed" / "stages" / "1-easy" / "model" / "model.safetensors"
    finished = first.stat().st_mtime_ns
    summary = main(["--resume", "--runs", str(tmp_path), "--name", "killed"])
    assert first.stat().st_mtime_ns == finished  # the first stage was not trained again
    settings = [json.loads(line) for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    medium = [row["step"] for row in settings if row["stage"] == "2-medium" and "reward" in row]
    assert medium == [1, 2, 3, 4, 5, 6]
    assert summary["after"]["overall"]["n"] == 24


def test_resuming_a_finished_run_repeats_nothing(tmp_path: Path):
    first = main(["--runs", str(tmp_path), "--name", "one", "--max_steps", "2", *CLINIC])
    written = (tmp_path / "one" / "after.parquet").stat().st_mtime_ns
    again = main(["--runs", str(tmp_path), "--resume"])
    assert (tmp_path / "one" / "after.parquet").stat().st_mtime_ns == written
    assert again["after"] == first["after"]


def test_the_readmes_line_from_triage_to_the_attending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`latest` is the triage's run when the line is read, and the attending's own when it is gone on with."""
    line = "python -m rl.train_attending --triage clinic:runs/latest/model"
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert f"\n{line}  #" in readme
    monkeypatch.chdir(tmp_path)
    triage = train_triage.main(["--max_steps", "2", *CLINIC])
    trained = (tmp_path / "runs" / "latest" / "model").resolve()
    summary = main([*shlex.split(line)[3:], "--max_steps", "2", *CLINIC])
    assert summary["before"]["triage"] == triage["after"]["triage"]
    run = tmp_path / "runs" / "clinic-seed0"
    assert (tmp_path / "runs" / "latest").resolve() == run
    (run / "after.parquet").unlink()  # to be made again
    assert main(["--resume"])["after"] == summary["after"]
    told = json.loads((run / "arguments.json").read_text())
    assert told["flags"][-2:] == ["--triage", f"clinic:{trained}"]


def test_a_model_that_is_not_there_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"runs/latest/model"):
        main(["--triage", "clinic:runs/latest/model", "--name", "one", *CLINIC])
    assert not (tmp_path / "runs" / "one").exists()
    assert not (tmp_path / "runs" / "latest").is_symlink()


@pytest.fixture
def own_cases(tmp_path: Path, cases, images) -> Path:
    """Cases of one's own: the format of a user's JSONL, with images of no clinic."""
    from PIL import Image

    rows = []
    for i in range(24):
        Image.new("RGB", (80, 60), (10 * i, 90, 120)).save(tmp_path / f"{i}.jpg")
        options = ["yes", "no"] if i % 3 else None
        row = {"id": f"own-{i}", "split": "train" if i < 18 else "test", "image": f"{i}.jpg", "answer": "yes"}
        rows.append(row | {"question": f"Is there a mass, {i}?", "options": options})
    path = tmp_path / "cases.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_cases_of_ones_own(tmp_path: Path, own_cases: Path):
    flags = ["--cases", str(own_cases), "--split", "train", "--max_steps", "2", *SMALL]
    summary = main(["--runs", str(tmp_path / "runs"), *flags])
    assert summary["ideal"] is None
    assert summary["gap_closed"] is None
    assert summary["cases"]["skipped"] == 6
    assert summary["cases"]["train"] + summary["cases"]["held_out"] == 12
    flags = ["--model", str(tmp_path / "runs/latest/model"), "--cases", str(own_cases), "--split", "test"]
    report = evaluate_main(flags)
    ((name, about),) = report["cases"].items()
    assert (about["cases"], about["skipped"]) == (4, 2)
    assert report["results"][name]["mmedagent"]["done"] == 4
    assert 0 <= report["results"][name]["mmedagent"]["unparsed"]["value"] <= 1


@pytest.fixture
def loaded(monkeypatch) -> list[weakref.ref]:
    """The models that are loaded to be asked, from here on."""
    forget_policies()
    models: list[weakref.ref] = []
    plain = rl.policy.load_model

    def noting(*arguments):
        model = plain(*arguments)
        models.append(weakref.ref(model))
        return model

    monkeypatch.setattr("rl.policy.load_model", noting)
    return models


def test_whoever_was_asked_is_gone_before_anything_is_trained(tmp_path, own_cases, loaded, monkeypatch):
    """Triage, attending and the three samples that stand in for specialists are the policy itself."""

    def train_stage(*_):
        assert loaded
        assert [model() for model in loaded] == [None] * len(loaded)
        raise Killed

    monkeypatch.setattr("rl.train.train_stage", train_stage)
    flags = ["--cases", str(own_cases), "--split", "train", "--max_steps", "2", *SMALL]
    with pytest.raises(Killed):
        main(["--runs", str(tmp_path / "runs"), *flags])


def test_who_learns_is_measured_with_as_much_room_as_in_training(tmp_path: Path, monkeypatch):
    """Triage as well as the attending; who is frozen has its own."""
    rooms: dict[str, set] = {"triage": set(), "attending": set()}
    plain = PolicyChatModel.answer

    def noting(self, prompts):
        for prompt in prompts:
            rooms["triage" if "Opinions:" not in str(prompt[-1].content) else "attending"].add(self.max_tokens)
        return plain(self, prompts)

    monkeypatch.setattr(PolicyChatModel, "answer", noting)
    monkeypatch.setattr("rl.train.train_stage", _killed)
    for name, flags, wanted in (
        ("both", ["--nodes", "triage", "attending"], {"triage": {15}, "attending": {15}}),
        ("one", [], {"triage": {None}, "attending": {15}}),
    ):
        few = ["--train_size", "8", "--eval_size", "4", "--max_completion_length", "15", "--stages", "mixed"]
        few += ["--stage_steps", "2", "--betas", "0", "--rehearsal", "0", "--rate_scales", "1"]
        with pytest.raises(Killed):
            main(["--runs", str(tmp_path / name), *few, *flags, *SMALL])
        assert rooms == wanted
        rooms = {"triage": set(), "attending": set()}


def _killed(*_):
    raise Killed


def test_rows_without_options_can_be_graded_as_they_are(tmp_path: Path, own_cases: Path):
    flags = ["--cases", str(own_cases), "--split", "train", "--eval_split", "test", "--free_text", "grade"]
    summary = main(["--runs", str(tmp_path / "runs"), "--max_steps", "2", *flags, *SMALL])
    assert summary["cases"]["skipped"] == 0
    assert summary["cases"]["train"] == 18
    assert summary["cases"]["held_out"] == 6


def test_real_questions_and_images(tmp_path: Path):
    """VQA-RAD: a small part of it goes through training and evaluation without failure."""
    source = SHARED / "vqa_rad" / "cases.jsonl"
    if not source.is_file():
        pytest.skip(f"no real data: {source} is not there")
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    part = [row for row in rows if row["split"] == "train"][:30] + [row for row in rows if row["split"] == "test"][:15]
    for row in part:
        row["image"] = str(source.parent / row["image"])
    (tmp_path / "cases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    flags = ["--cases", str(tmp_path / "cases.jsonl"), "--split", "train", "--max_steps", "2", *SMALL]
    main(["--runs", str(tmp_path / "runs"), *flags])
    flags = ["--model", str(tmp_path / "runs/latest/model"), "--cases", str(tmp_path / "cases.jsonl")]
    report = evaluate_main([*flags, "--split", "test"])
    assert report["results"]["cases"]["mmedagent"]["done"] == report["cases"]["cases"]["cases"] > 0
