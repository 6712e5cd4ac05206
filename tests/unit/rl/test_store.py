"""Traces in Parquet: what is read is what was written, whoever reads it and whatever was killed."""

import dataclasses
import itertools
import json
import math
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from hypothesis import given
from hypothesis import strategies as st
from strategies import a_trace, quiet

from rl import store
from rl.store import FEATURES, Rollouts, load_frame, read_traces, write_traces
from rl.traces import NodeCall, Trace

CALL = NodeCall("specialist", "Radiologist", 1, None, "m", "scar", [1, 2], [3], [-0.25], "stop", 2, 1, 0.5, True)
DECISION = {
    "answer": "cyst",
    "index": 1,
    "reasoning": "a ring",
    "agreement": 0.5,
    "entropy": 1.0,
    "opinions": 2,
    "votes": 1,
    "tally": [{"answer": "cyst", "index": 1, "votes": 1}],
    "confidence": None,
    "abstained": False,
    "review": None,
}


@pytest.fixture(scope="session")
def new_folder(tmp_path_factory):
    folder, number = tmp_path_factory.mktemp("traces"), itertools.count()
    return lambda: folder / f"{next(number)}"


@pytest.fixture
def whole(trace, opinions):
    """A trace with something in every field."""
    filled = trace(
        images=["sha256:ab"],
        context="Fever.",
        specialty="Radiologist",
        groups={"modality": "CT"},
        opinions=opinions("cyst", "scar"),
        decision=DECISION,
        usage={"triage": {"calls": 1, "cached": 0, "input_tokens": 2, "output_tokens": 3}},
        calls=[CALL],
        text="<answer>B</answer>",
        prompt_ids=[7, 8],
        completion_ids=[9],
        logprobs=[-0.5],
        perspective="analytical",
        finish="stop",
        policy="2-medium@37",
        step=38,
        tier="medium",
        rewards={"format": 0.0, "accuracy": 1.0, "judge": None},
        reward=1.0,
    )
    assert all(getattr(filled, field.name) not in (None, [], {}, "") for field in dataclasses.fields(Trace))
    return filled


def steps_of(path):
    return [trace.step for trace in read_traces(path)]


# Files


def test_every_field_of_a_trace_has_a_column():
    assert set(FEATURES) == {field.name for field in dataclasses.fields(Trace)}


@quiet
@given(traces=st.lists(a_trace, max_size=3))
def test_traces_come_back_as_they_were_written(new_folder, traces):
    path = new_folder() / "deep" / "traces.parquet"
    write_traces(path, traces)
    assert list(read_traces(path)) == traces


def test_a_file_is_written_over(tmp_path, trace):
    for step in (1, 2):
        write_traces(tmp_path / "traces.parquet", [trace(step=step)])
    assert steps_of(tmp_path) == [2]
    assert [path.name for path in tmp_path.iterdir()] == ["traces.parquet"]


def test_more_rows_than_are_read_at_a_time(tmp_path, trace):
    write_traces(tmp_path / "traces.parquet", (trace(step=step) for step in range(2 * store.ROWS + 1)))
    assert steps_of(tmp_path) == list(range(2 * store.ROWS + 1))


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path, trace):
    for step, name in enumerate(["a.parquet", "b/x.parquet", "c.parquet"]):
        write_traces(tmp_path / name, [trace(step=step)])
    (tmp_path / "c.txt").touch()
    assert steps_of(tmp_path) == [0, 1, 2]


def test_a_write_that_fails_leaves_what_was_there(tmp_path, trace):
    path = tmp_path / "traces.parquet"
    write_traces(path, [trace(step=1)])
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
        write_traces(path, [trace(step="no number")])
    assert steps_of(tmp_path) == [1]


def test_a_kill_in_the_middle_of_a_write_leaves_what_was_there(tmp_path, trace, monkeypatch):
    def killed(table, where, **_):
        where.write_bytes(b"PAR1 and no more")
        raise KeyboardInterrupt

    path = tmp_path / "traces.parquet"
    write_traces(path, [trace(step=1)])
    with monkeypatch.context() as patched:
        patched.setattr(store.pq, "write_table", killed)
        with pytest.raises(KeyboardInterrupt):
            write_traces(path, [trace(step=2)])
    assert steps_of(tmp_path) == [1]
    write_traces(path, [trace(step=3)])
    assert steps_of(tmp_path) == [3]


@pytest.mark.parametrize("name", ["", "none.parquet", "none"])
def test_where_nothing_is_reading_says_so(tmp_path, name):
    with pytest.raises(ValueError, match=r"traces: no \.parquet file and no traces\*\.jsonl at '.*'; give a file"):
        read_traces(tmp_path / name)


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "traces.parquet"
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"traces\.parquet: not a Parquet file"):
        read_traces(path)


def test_lines_of_something_else_are_refused(tmp_path):
    path = tmp_path / "cases.jsonl"
    path.write_text(json.dumps({name: None for name in FEATURES if name not in ("calls", "usage")}) + "\n")
    with pytest.raises(ValueError, match=r"cases\.jsonl:1: no trace of an evaluation; it lacks usage, calls"):
        list(read_traces(path))


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (lambda table: table.append_column("colour", pa.array(["red"])), "colour"),
        (lambda table: table.drop_columns(["policy", "reward"]), "policy, reward"),
        (lambda table: table.set_column(0, "case", pa.array([1])), "case"),
    ],
    ids=["one too many", "two missing", "of another type"],
)
def test_other_columns_are_refused_by_name(tmp_path, trace, change, wrong):
    path = tmp_path / "traces.parquet"
    write_traces(path, [trace()])
    pq.write_table(change(pq.ParquetFile(path).read()), path)
    with pytest.raises(ValueError, match=rf"traces\.parquet: these columns .*: {wrong}; see"):
        read_traces(path)


# Other readers


def test_datasets_gives_the_features_back(tmp_path, whole, trace):
    write_traces(tmp_path / "traces.parquet", [whole, trace(answer=None)])
    files = str(tmp_path / "traces.parquet")
    rows = load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))["train"]
    assert rows.features == FEATURES
    assert rows[0]["calls"] == [dataclasses.asdict(CALL)]
    assert rows[0]["decision"] == DECISION
    assert rows[0]["rewards"][2] == {"grader": "judge", "value": None}
    assert (rows[1]["answer"], rows[1]["decision"], rows[1]["calls"], rows[1]["prompt_ids"]) == (None, None, [], None)


def test_pandas_gets_a_flat_table(tmp_path, whole, trace):
    wrong = trace(decision={**DECISION, "answer": "scar"}, rewards={"accuracy": 0.0}, reward=0.0)
    unlabelled = trace(answer=None, decision=DECISION, referral=None)
    write_traces(tmp_path / "traces.parquet", [whole, wrong, unlabelled])
    frame = load_frame(tmp_path)
    assert frame["decided"].tolist() == ["cyst", "scar", "cyst"]
    assert frame["right"].tolist() == [True, False, pd.NA]
    assert frame["right"].mean() == 0.5
    assert frame["referral"].isna().tolist() == [False, False, True]
    assert math.isnan(frame["reward/judge"].mean())
    assert frame["reward/accuracy"].tolist()[:2] == [1.0, 0.0]
    assert math.isnan(frame["reward/accuracy"][2])
    assert (frame["completion_ids"][0], frame["calls"][0][0]["text"]) == ([9], "scar")
    assert frame["group/modality"].tolist()[0] == "CT"
    assert set(frame) == set(FEATURES) - {"rewards", "groups"} | {
        "group/modality",
        "decided",
        "right",
        "reward/format",
        "reward/accuracy",
        "reward/judge",
    }
    assert frame.groupby("tier", dropna=False)["reward"].mean()["medium"] == 1.0


def test_pandas_gets_an_empty_table_of_no_traces(tmp_path):
    write_traces(tmp_path / "traces.parquet", [])
    assert len(load_frame(tmp_path)) == 0


def test_pandas_reads_a_file_by_itself(tmp_path, whole):
    write_traces(tmp_path / "traces.parquet", [whole])
    assert pd.read_parquet(tmp_path / "traces.parquet")["completion_ids"][0].tolist() == [9]


# A stage's rollouts


@pytest.fixture
def rollouts(tmp_path):
    return Rollouts(tmp_path / "rollouts")


def test_rollouts_are_parts_and_in_the_end_one_file(tmp_path, rollouts, trace):
    for step in (1, 2, 10, 1_000_001):
        for process in (rollouts, Rollouts(rollouts.folder, rank=1)):
            process.add(step, [trace(step=step, case=f"{process.rank}-{i}") for i in range(2)])
            process.flush()
    assert sorted(path.name for path in rollouts.folder.iterdir())[:2] == [
        "step-000001-rank0.parquet",
        "step-000001-rank1.parquet",
    ]
    parts = list(read_traces(rollouts.folder))
    Rollouts(rollouts.folder, rank=1).close(tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()  # that is for process 0 to do
    rollouts.close(tmp_path / "out.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]
    assert sorted(map(repr, read_traces(tmp_path))) == sorted(map(repr, parts))
    assert steps_of(tmp_path) == [1] * 4 + [2] * 4 + [10] * 4 + [1_000_001] * 4


def test_the_file_is_by_steps_whatever_the_parts_were(tmp_path, rollouts, trace):
    processes = [rollouts, *(Rollouts(rollouts.folder, rank) for rank in (1, 2))]
    for process in processes:
        for step in range(1, 26):
            process.add(step, [trace(step=step, case=f"{step}-{process.rank}-{i}") for i in range(2)])
        process.flush()
    rollouts.close(tmp_path / "out.parquet")
    told = [one.case for one in read_traces(tmp_path / "out.parquet")]
    assert told == [f"{step}-{rank}-{i}" for step in range(1, 26) for rank in range(3) for i in range(2)]


def test_many_parts_become_few_row_groups(tmp_path, rollouts, trace, monkeypatch):
    monkeypatch.setattr(store, "TOGETHER", 4)
    for step in range(1, 10):
        rollouts.add(step, [trace(step=step)])
        rollouts.flush()
    rollouts.close(tmp_path / "out.parquet")
    assert steps_of(tmp_path) == list(range(1, 10))
    assert pq.ParquetFile(tmp_path / "out.parquet").num_row_groups == 3


def test_there_may_be_more_parts_than_files_that_can_be_open(tmp_path, rollouts, trace):
    resource = pytest.importorskip("resource")
    for step in range(1, 41):
        rollouts.add(step, [trace(step=step)])
        rollouts.flush()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 20, hard))
    try:
        assert steps_of(rollouts.folder) == list(range(1, 41))
        rollouts.close(tmp_path / "out.parquet")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert steps_of(tmp_path) == list(range(1, 41))


def test_what_is_added_to_a_step_again_joins_it(rollouts, trace):
    rollouts.add(1, [trace(case="a")])
    rollouts.add(2, [trace(case="b")])
    rollouts.add(2, iter([trace(case="c")]))
    rollouts.flush()
    rollouts.add(2, [trace(case="d")])
    rollouts.flush()
    assert [path.name for path in rollouts.folder.iterdir()] == ["step-000002-rank0.parquet"]
    assert [one.case for one in read_traces(rollouts.folder)] == ["a", "b", "c", "d"]


@quiet
@given(st.lists(st.integers(1, 3), max_size=40), st.sets(st.integers(0, 39), max_size=3))
def test_parts_are_of_some_steps_and_nothing_is_lost_or_doubled(new_folder, jumps, checkpoints):
    rollouts, step, expected = Rollouts(new_folder()), 0, []
    for place, jump in enumerate(jumps):
        step += jump - 1  # the same step again, the next, or one that is further on
        rollouts.add(step, [Trace(str(place), "q", [], [], None, None, step=step)])
        expected.append((step, str(place)))
        if place in checkpoints:
            rollouts.flush()
        on_disk = [(one.step, one.case) for one in read_traces(rollouts.folder)] if rollouts.folder.exists() else []
        assert on_disk == expected[: len(on_disk)]
        assert len({step for step, _ in expected[len(on_disk) :]}) <= store.STEPS
    rollouts.flush()
    parts = [[one.step for one in read_traces(part)] for part in sorted(rollouts.folder.glob("*"))]
    assert [step for part in parts for step in part] == [step for step, _ in expected]
    assert all(max(one) < min(other) for one, other in itertools.pairwise(parts))


@quiet
@given(steps=st.lists(st.integers(1, 9), max_size=4, unique=True), last=st.integers(0, 9))
def test_a_resumed_stage_writes_again_what_came_after_its_checkpoint(new_folder, steps, last):
    folder = new_folder()
    for rank in (0, 1):
        for step in steps:
            old = Rollouts(folder, rank)
            old.add(step, [Trace(f"old-{rank}", "q", [], [], None, None, step=step)])
            old.flush()
    Rollouts(folder, rank=1).forget_after(last)
    assert len(list(folder.glob("*"))) == 2 * len(steps)  # that is for process 0 to do
    resumed = Rollouts(folder)
    resumed.forget_after(last)
    resumed.add(last + 1, [Trace("new", "q", [], [], None, None, step=last + 1)])
    resumed.flush()
    assert sorted((trace.step, trace.case) for trace in read_traces(folder)) == sorted(
        [(step, f"old-{rank}") for step in steps for rank in (0, 1) if step <= last] + [(last + 1, "new")]
    )


def test_there_may_be_nothing_to_forget_and_nothing_to_close(tmp_path, rollouts):
    rollouts.forget_after(3)
    rollouts.close(tmp_path / "out.parquet")
    assert list(tmp_path.iterdir()) == []


def test_half_a_part_of_a_killed_run_does_no_harm(tmp_path, rollouts, trace):
    rollouts.add(1, [trace(step=1)])
    rollouts.flush()
    whole = (rollouts.folder / "step-000001-rank0.parquet").read_bytes()
    for rank in (0, 1):
        (rollouts.folder / f"step-000002-rank{rank}.parquet.part").write_bytes(whole[: len(whole) // 2])
    resumed = Rollouts(rollouts.folder)
    resumed.forget_after(1)
    assert steps_of(rollouts.folder) == [1]
    resumed.add(2, [trace(step=2)])
    resumed.flush()
    resumed.close(tmp_path / "out.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]
    assert steps_of(tmp_path) == [1, 2]


KILLED = {
    "while it merges": (store.pq.ParquetWriter, "write_table"),
    "before the file is in place": (store.Path, "replace"),
    "before the parts are put aside": (store.Path, "rename"),
    "before it tidies up": (store.shutil, "rmtree"),
}


@pytest.mark.parametrize("at", KILLED.values(), ids=KILLED)
def test_closing_can_be_killed_at_any_point(tmp_path, rollouts, trace, monkeypatch, at):
    def killed(*_, **__):
        raise KeyboardInterrupt

    for step in (1, 2):
        rollouts.add(step, [trace(step=step)])
        rollouts.flush()
    with monkeypatch.context() as patched:
        patched.setattr(*at, killed)
        with pytest.raises(KeyboardInterrupt):
            rollouts.close(tmp_path / "out.parquet")
    Rollouts(rollouts.folder).close(tmp_path / "out.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]
    assert steps_of(tmp_path) == [1, 2]


def test_a_close_that_was_killed_among_the_parts_is_only_tidied_up(tmp_path, rollouts, trace):
    """The parts that are left must not be taken for all of them."""
    for step in (1, 2):
        rollouts.add(step, [trace(step=step)])
        rollouts.flush()
    parts = {path.name: path.read_bytes() for path in rollouts.folder.iterdir()}
    rollouts.close(tmp_path / "out.parquet")
    left = tmp_path / "rollouts.merged"
    left.mkdir()
    (left / "step-000002-rank0.parquet").write_bytes(parts["step-000002-rank0.parquet"])
    Rollouts(rollouts.folder).close(tmp_path / "out.parquet")
    assert not left.exists()
    assert steps_of(tmp_path) == [1, 2]


def test_a_strange_part_is_named(rollouts, trace):
    write_traces(rollouts.folder / "step-one.parquet", [trace()])
    with pytest.raises(ValueError, match=r"step-one\.parquet: not a part"):
        rollouts.forget_after(0)
