"""Stored traces are graded again: nothing is generated, nothing is written over, and the same graders say the same."""

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import says

from mmedagent_graph import models
from mmedagent_graph.nodes import Attending, Triage
from mmedagent_graph.prompts import SPECIALTIES
from rl import regrade as module
from rl.grading import PAPER, Grading
from rl.regrade import main, regrade
from rl.store import read_traces, write_traces

ROOT = Path(__file__).parents[3]
TEXTS = [
    "<think>a ring</think><answer>B</answer>",
    "<think>a ring</think><answer>scar</answer>",
    "<answer>cyst</answer>",
    "<think>a ring</think><answer>B",
]


@pytest.fixture
def decided(images, trace, opinions):
    """Traces of the attending, as a run stores them."""

    def make(**fields):
        gradings = Grading.parse(PAPER["attending"])
        traces = [trace(case=str(i), text=text, opinions=opinions("cyst"), **fields) for i, text in enumerate(TEXTS)]
        for one in traces:
            one.decision = Attending(images).read(one.text, one.given())["decision"]
        return asyncio.run(gradings.grade_all(traces))

    return make


@pytest.fixture
def referred(images, trace, opinions):
    """A trace of triage, run on to the decision, as a run stores it."""

    def make(text="<think>x</think><answer>Radiologist</answer>", **fields):
        one = trace(node="triage", text=text, specialty="Radiologist", opinions=opinions("cyst"), tier="easy", **fields)
        one.referral = Triage(tuple(SPECIALTIES), images).read(text, one.fields())["referral"]
        one.decision = Attending(images).read("<answer>B</answer>", one.given())["decision"]
        return asyncio.run(Grading.parse(PAPER["triage"]).grade(one))

    return make


@pytest.fixture
def stored(tmp_path, decided, referred):
    """A run's traces, in a folder with two files."""
    write_traces(tmp_path / "run" / "1.parquet", decided())
    write_traces(tmp_path / "run" / "2.parquet", [referred()])
    return tmp_path / "run"


def gradings(**entries):
    return {node: Grading.parse(named) for node, named in entries.items()}


def again(traces, **entries):
    return asyncio.run(regrade(traces, gradings(**entries)))


def printed(capsys):
    """The titles and rows of the tables."""
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip() and line.strip()[0] not in "┏┃┡├└"]
    return [[cell.strip() for cell in line.split("│")[1:-1]] if "│" in line else line.strip() for line in lines]


# From Python


def test_the_same_graders_say_the_same(decided, referred):
    traces = [*decided(), referred(), *decided(context="Fever."), referred(text="nobody")]
    assert again(traces, **PAPER) == traces
    assert [one.reward for one in traces[:5]] == [1.5, 0.5, 1.0, 0.0, 1.5]


def test_what_was_stored_is_left_alone(decided):
    traces = decided()
    rewards = [dict(one.rewards) for one in traces]
    again(traces, attending=["token_f1"])
    assert [one.rewards for one in traces] == rewards


@pytest.mark.parametrize("node", ["attending", "specialist"])
def test_a_better_reader_reads_the_text_again(decided, monkeypatch, node):
    class Better(Attending):
        def read(self, text, state):
            return super().read(
                text.replace("<answer>B", "<answer>B</answer>").replace("</answer></answer>", "</answer>"), state
            )

    traces = decided(node=node)
    monkeypatch.setattr(module, "Attending", Better)
    assert [one.rewards["accuracy"] for one in traces] == [1, 0, 1, 0]
    assert [one.rewards["accuracy"] for one in again(traces, **PAPER)] == [1, 0, 1, 1]


def test_without_a_text_the_decision_stands(trace):
    own = trace(decision={"answer": "cyst"})
    assert again([own], attending=["accuracy"])[0].reward == 1


def test_what_followed_another_referral_is_dropped(referred):
    """As if the reader of today, but not that of the run, could read whom triage named."""
    changed = referred()
    changed.text = "<think>x</think><answer>Surgeon</answer>"
    (done,) = again([changed], triage=["specialty", "outcome"])
    assert done.referral["specialty"] == "Surgeon"
    assert (done.decision, done.opinions, done.tier) == (None, [], None)
    assert (done.rewards, done.reward) == ({"specialty": 0.0, "outcome": None}, None)


def test_what_followed_the_same_referral_is_kept(referred):
    (done,) = again([referred()], triage=["specialty", "outcome"])
    assert done.rewards == {"specialty": 1.0, "outcome": 1.0}


def test_specialties_of_ones_own_must_be_told(referred):
    cardiologist = referred()
    cardiologist.text, cardiologist.specialty = "<answer>Cardiologist</answer>", "Cardiologist"
    cardiologist.referral = {"specialty": "Cardiologist", "reasoning": ""}
    with pytest.raises(ValueError, match="specialties: case 'case-1' was referred to 'Cardiologist'; it must be among"):
        again([cardiologist], triage=["specialty"])
    done = asyncio.run(regrade([cardiologist], gradings(triage=["specialty"]), ["Cardiologist"]))
    assert done[0].reward == 1


# From the command line


def test_a_new_file_and_a_table(stored, tmp_path, capsys):
    before = list(read_traces(stored))
    main(["regrade", str(stored), "--graders", "format=0.5", "token_f1=2", "--out", str(tmp_path / "new.parquet")])
    after = list(read_traces(tmp_path / "new.parquet"))
    assert list(read_traces(stored)) == before
    assert [one.rewards for one in after[:2]] == [{"format": 1.0, "token_f1": 1.0}, {"format": 1.0, "token_f1": 0.0}]
    assert [one.reward for one in after] == [2.5, 0.5, 2.0, 0.0, 2.5]
    assert printed(capsys) == [
        "1.parquet: 4 traces",
        ["attending", "format", "0.5", "0.500", "0.500", "0"],
        ["attending", "token_f1", "2", "-", "0.500", "0"],
        ["attending", "reward", "", "0.750", "1.250", "0"],
        "2.parquet: 1 traces",
        ["triage", "format", "0.5", "1.000", "1.000", "0"],
        ["triage", "token_f1", "2", "-", "1.000", "0"],
        ["triage", "reward", "", "1.500", "2.500", "0"],
    ]


def test_the_papers_graders_are_those_of_each_node(stored, tmp_path, capsys):
    main(["regrade", str(stored), "--out", str(tmp_path / "new.parquet")])
    assert list(read_traces(tmp_path / "new.parquet")) == list(read_traces(stored))
    assert [row[:2] for row in printed(capsys) if isinstance(row, list)] == [
        ["attending", "format"],
        ["attending", "accuracy"],
        ["attending", "reward"],
        ["triage", "format"],
        ["triage", "specialty"],
        ["triage", "reward"],
    ]


def test_without_a_file_to_write_the_table_is_all(stored, tmp_path, capsys):
    main(["regrade", str(stored)])
    assert len(printed(capsys)) == 8
    assert [path.name for path in tmp_path.rglob("*.parquet")] == ["1.parquet", "2.parquet"]


def test_the_table_tells_what_could_not_be_graded_and_why(tmp_path, decided, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")  # or the last column would be folded
    write_traces(tmp_path / "run.parquet", [*decided(), *decided(answer=None)[:1]])
    main(["regrade", str(tmp_path / "run.parquet")])
    assert printed(capsys)[2:] == [
        ["attending", "accuracy", "1", "0.500", "0.500", "1 (needs a key and a decision)"],
        ["attending", "reward", "", "0.750", "0.750", "1"],
    ]


def test_the_files_of_a_run_are_told_apart_and_what_was_never_to_be_graded_is_left_out(
    tmp_path, trace, decided, capsys
):
    run, (right, wrong, *_) = tmp_path / "run", decided()
    gold = trace(text="<think></think><answer>cyst</answer>")  # of an older run, which did not grade it
    write_traces(run / "after.parquet", [right, right])
    write_traces(run / "before.parquet", [right, wrong])
    write_traces(run / "upstream-train.parquet", [trace(), trace()])
    write_traces(run / "stages" / "1-easy" / "rollouts.parquet", [wrong, trace(), gold])
    main(["regrade", str(run), "--graders", "accuracy", "--out", str(tmp_path / "new.parquet")])
    assert printed(capsys) == [
        "after.parquet: 2 traces",
        ["attending", "accuracy", "1", "1.000", "1.000", "0"],
        ["attending", "reward", "", "1.500", "1.000", "0"],
        "before.parquet: 2 traces",
        ["attending", "accuracy", "1", "0.500", "0.500", "0"],
        ["attending", "reward", "", "1.000", "0.500", "0"],
        "stages/1-easy/rollouts.parquet: 2 traces",
        ["attending", "accuracy", "1", "0.000", "0.500", "0"],
        ["attending", "reward", "", "0.500", "0.500", "0"],
    ]
    assert len(list(read_traces(tmp_path / "new.parquet"))) == 6


def test_where_nothing_was_answered_there_is_nothing_to_grade(tmp_path, trace, capsys):
    write_traces(tmp_path / "upstream-train.parquet", [trace()])
    with pytest.raises(SystemExit):
        main(["regrade", str(tmp_path)])
    assert "has a text or a decision; give rollouts, or decided cases" in capsys.readouterr().err


def test_a_judge_and_a_length_are_flags(stored, tmp_path, monkeypatch):
    judge = says("<answer>correct</answer>")
    monkeypatch.setitem(models.BUILT_IN, "fake", lambda _: judge)
    flags = ["--graders", "judge", "overlong=0", "--judge", "fake:judge", "--max_completion_length", "10"]
    main(["regrade", str(stored / "1.parquet"), *flags, "--out", str(tmp_path / "new.parquet")])
    after = list(read_traces(tmp_path / "new.parquet"))
    assert [one.reward for one in after] == [1, 1, 1, 0]
    assert {one.rewards["overlong"] for one in after} == {None}  # no tokens were stored
    assert len(judge.seen) == 1  # two were the key, one was unreadable


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--out", "run"], "--out: .* is what is read, or inside it"),
        (["--out", "run/deep/new.parquet"], "--out: .* is what is read, or inside it"),
        (["--graders", "acuracy"], "unknown grader 'acuracy'"),
        (["--graders", "judge"], "'judge' needs a model that judges"),
        (["--judge", "openai"], "judge: model: 'openai' is not of the form"),
        (["--max_completion_length", "9"], "what 'overlong' needs was given, but it is not among them; add overlong=1"),
    ],
)
def test_flags_that_cannot_work_are_refused_before_anything_is_graded(stored, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(stored.parent)
    before = {path: path.read_bytes() for path in stored.rglob("*.parquet")}
    with pytest.raises(SystemExit):
        main(["regrade", "run", *flags])
    assert re.search(message, capsys.readouterr().err)
    assert {path: path.read_bytes() for path in stored.rglob("*.parquet")} == before


def test_the_input_cannot_be_the_output_by_another_name(stored, monkeypatch, capsys):
    (stored.parent / "link.parquet").symlink_to(stored / "1.parquet")
    with pytest.raises(SystemExit):
        main(["regrade", str(stored / "1.parquet"), "--out", str(stored.parent / "link.parquet")])
    assert "is what is read" in capsys.readouterr().err


def test_a_node_for_which_the_paper_has_no_graders_needs_some(tmp_path, trace, capsys):
    write_traces(tmp_path / "run.parquet", [trace(node="", text="x")])
    with pytest.raises(SystemExit):
        main(["regrade", str(tmp_path / "run.parquet")])
    assert "the paper has none for node '', only for attending, triage" in capsys.readouterr().err


def test_it_runs_as_the_readme_says(stored, tmp_path):
    """As `python -m rl.grading`, with a grader of one's own that lies in the working folder."""
    (tmp_path / "mine.py").write_text("def words(trace):\n    return len(trace.text.split())\n")
    done = subprocess.run(
        [sys.executable, "-m", "rl.grading", "regrade", "run", "--graders", "mine:words=0.1", "--out", "new.parquet"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert [one.rewards for one in read_traces(tmp_path / "new.parquet")][:2] == [{"mine:words": 2.0}] * 2
    assert "mine:words" in done.stdout
