"""Triage's training from its command line; what lies behind a referral is asked once, however often it is chosen."""

import json
from collections import Counter
from pathlib import Path

import pytest

from rl.clinic.doctors import ClinicDoctor
from rl.store import read_traces
from rl.train_triage import main
from tests.integration.grpo import assert_same_weights, dying

SMALL = ["--per_device_train_batch_size", "8", "--num_generations", "4", "--logging_steps", "1", "--save_steps", "2"]
CLINIC = ["--train_size", "40", "--eval_size", "24", *SMALL]


@pytest.fixture
def asked(monkeypatch) -> Counter:
    """How often which doctor was asked about which prompt, from here on."""
    calls: Counter = Counter()
    plain = ClinicDoctor._generate

    def counting(self, messages, *args, **kwargs):
        calls[self.doctor, messages[0].text, str(messages[-1].content)] += 1
        return plain(self, messages, *args, **kwargs)

    monkeypatch.setattr(ClinicDoctor, "_generate", counting)
    return calls


def test_triage_from_end_to_end(tmp_path: Path, asked: Counter):
    summary = main(["--runs", str(tmp_path), "--name", "one", "--max_steps", "4", *CLINIC])
    run = tmp_path / "one"
    assert json.loads((run / "summary.json").read_text()) == summary
    assert summary["recipe"] == "clinic_triage"
    assert summary["tiers"] is None  # nobody was heard
    for when in ("before", "after"):
        assert summary[when]["triage"]["n"] == summary[when]["overall"]["n"] == 24
        assert sum(n for row in summary["confusion"][when].values() for n in row.values()) == 24
    assert (run / "curves.png").stat().st_size > 10_000
    rollouts = list(read_traces(run / "stages" / "1-mixed" / "rollouts.parquet"))
    assert len(rollouts) == 4 * 8
    for rollout in rollouts:
        assert (rollout.node, rollout.tier, rollout.opinions) == ("triage", None, [])
        assert set(rollout.rewards) == {"format", "specialty"}
        assert rollout.reward == 0.5 * rollout.rewards["format"] + rollout.rewards["specialty"]
        assert rollout.rewards["specialty"] == (rollout.referral["specialty"] == rollout.specialty)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"rewards/specialty", "unparsed/triage", "no_variance/triage", "image_effect"} <= set(rows[0])
    assert (run / "model").resolve() == (run / "stages" / "1-mixed" / "model").resolve()
    # the label is the reward: doctors are asked where consultations are measured, and nowhere else
    assert len(asked) <= 2 * 24 * 3
    assert set(asked.values()) == {1}


def test_a_specialist_is_asked_once_however_often_its_case_is_drawn(tmp_path: Path, asked: Counter):
    """Four cases, drawn three times each; eight completions each time, paid for the outcome."""
    few = ["--train_size", "4", "--eval_size", "4"]
    flags = ["--outcome_weight", "0.5", "--max_steps", "6", "--temperature", "2", *few]
    main(["--runs", str(tmp_path), "--name", "one", *flags, *SMALL])
    rollouts = list(read_traces(tmp_path / "one" / "stages" / "1-mixed" / "rollouts.parquet"))
    drawn = Counter((rollout.case, rollout.step) for rollout in rollouts)
    assert Counter(case for case, _ in drawn) == dict.fromkeys({rollout.case for rollout in rollouts}, 3)
    referred = {(r.case, r.referral["specialty"]) for r in rollouts if r.referral["specialty"]}
    assert len(referred) > 4  # some cases have been sent to more than one specialty
    assert set(asked.values()) == {1}
    measured = [trace for when in ("before", "after") for trace in read_traces(tmp_path / "one" / f"{when}.parquet")]
    seen = {(t.case, t.referral["specialty"]) for t in measured if t.referral["specialty"]}
    assert len(asked) == 3 * len(referred | seen)
    for rollout in rollouts:
        assert set(rollout.rewards) == {"format", "specialty", "outcome"}
        assert rollout.decision is not None
        assert rollout.rewards["outcome"] == rollout.right


def test_a_second_run_asks_nobody_again(tmp_path: Path, asked: Counter):
    """Answers of frozen models are kept beside the runs, for all of them."""
    flags = ["--outcome_weight", "0.5", "--train_size", "4", "--eval_size", "4", "--max_steps", "2", *SMALL]
    main(["--runs", str(tmp_path), "--name", "one", *flags])
    assert asked
    asked.clear()
    main(["--runs", str(tmp_path), "--name", "two", *flags])
    assert asked == {}
    assert_same_weights(tmp_path / "one" / "model", tmp_path / "two" / "model")


def test_a_killed_run_resumes_to_the_same_weights(tmp_path: Path):
    """Beyond a checkpoint, with a further step on record that is made again."""
    few = ["--train_size", "12", "--eval_size", "8", "--max_steps", "6", "--save_steps", "3"]
    flags = ["--runs", str(tmp_path), "--outcome_weight", "0.5", *SMALL, *few]
    main([*flags, "--name", "whole"])
    with dying("training_step", lambda trainer: trainer.state.global_step == 5):
        main([*flags, "--name", "killed"])
    stage = tmp_path / "killed" / "stages" / "1-mixed"
    assert [path.name for path in (stage / "checkpoints").glob("checkpoint-*")] == ["checkpoint-3"]
    assert len((stage / "metrics.jsonl").read_text().splitlines()) == 5
    main(["--runs", str(tmp_path), "--resume", "--name", "killed"])
    assert_same_weights(tmp_path / "whole" / "model", tmp_path / "killed" / "model")
    records = [
        [(r.step, r.case, r.text, r.reward, r.logprobs) for r in read_traces(tmp_path / name / "stages")]
        for name in ("whole", "killed")
    ]
    assert records[0] == records[1]
    assert len((stage / "metrics.jsonl").read_text().splitlines()) == 6


def test_cases_without_a_label_are_refused_where_the_label_is_the_reward(tmp_path: Path):
    """Or every reward would be None, and the run would teach nothing."""
    from PIL import Image

    rows = []
    for i in range(8):
        Image.new("RGB", (80, 60), (10 * i, 90, 120)).save(tmp_path / f"{i}.jpg")
        rows.append({"question": f"Which, {i}?", "options": ["yes", "no"], "answer": "yes", "image": f"{i}.jpg"})
    path = tmp_path / "cases.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--runs", str(tmp_path / "runs"), "--cases", str(path), "--max_steps", "2", *SMALL]
    with pytest.raises(ValueError, match=r"cases: no row of '.*' has a specialty.*--outcome_weight"):
        main(flags)
    assert not (tmp_path / "runs" / "clinic_triage-seed0").exists()
    summary = main([*flags, "--outcome_weight", "1", "--triage_graders", "format=0.5"])
    assert summary["before"]["triage"]["n"] == 0
    rollouts = list(read_traces(tmp_path / "runs" / "latest" / "stages"))
    assert {frozenset(rollout.rewards) for rollout in rollouts} == {frozenset({"format", "outcome"})}
    assert None not in {rollout.reward for rollout in rollouts}


def test_cases_without_an_answer_key_will_do_where_the_label_is_the_reward(tmp_path: Path):
    from PIL import Image

    rows = []
    for i in range(8):
        Image.new("RGB", (80, 60), (10 * i, 90, 120)).save(tmp_path / f"{i}.jpg")
        row = {"question": f"Which, {i}?", "options": ["yes", "no"], "answer": None, "image": f"{i}.jpg"}
        rows.append(row | {"specialty": "Radiologist"})
    path = tmp_path / "cases.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = main(["--runs", str(tmp_path / "runs"), "--cases", str(path), "--max_steps", "2", *SMALL])
    assert summary["after"]["triage"]["n"] == 1
    assert summary["after"]["overall"] == {"accuracy": None, "low": None, "high": None, "n": 0}
    rollouts = list(read_traces(tmp_path / "runs" / "latest" / "stages"))
    assert None not in {rollout.reward for rollout in rollouts}
