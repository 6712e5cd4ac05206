"""Traces in Parquet: the columns are the fields of a `Trace`. Those of an evaluation are lines of JSON, as they end.

    traces = list(read_traces("runs/latest"))                                  # a training run, or an evaluation
    frame = load_frame("runs/latest")                                          # pandas
    load_dataset("parquet", data_files="runs/latest/**/*.parquet")             # Hugging Face

Invariant: a file is complete or not there, and what is read from it is what was written: None stays None, and an empty
list an empty list.
"""

import contextlib
import itertools
import json
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, List, Value

from mmedagent_graph.state import NodeUsage
from rl.traces import NodeCall, Trace

if TYPE_CHECKING:
    import pandas as pd

TEXT, COUNT, TOKEN, NUMBER = Value("string"), Value("int64"), Value("int32"), Value("float64")
REFERRAL = {"specialty": TEXT, "reasoning": TEXT}
OPINION = {"specialty": TEXT, "doctor": TOKEN, "answer": TEXT, "index": TOKEN, "reasoning": TEXT, "error": TEXT}
DECISION = {
    "answer": TEXT,
    "index": TOKEN,
    "reasoning": TEXT,
    "agreement": NUMBER,
    "entropy": NUMBER,
    "opinions": TOKEN,
    "votes": TOKEN,
    "tally": List({"answer": TEXT, "index": TOKEN, "votes": TOKEN}),
    "confidence": NUMBER,
    "abstained": Value("bool"),
    "review": TEXT,
}
SAID = {"text": TEXT, "prompt_ids": List(TOKEN), "completion_ids": List(TOKEN), "logprobs": List(NUMBER)}
CALL = {
    **{"node": TEXT, "specialty": TEXT, "doctor": TOKEN, "vote": TOKEN, "model": TEXT, **SAID, "finish": TEXT},
    **{"input_tokens": COUNT, "output_tokens": COUNT, "seconds": NUMBER, "cached": Value("bool")},
}
USAGE = {"node": TEXT, "calls": COUNT, "cached": COUNT, "input_tokens": COUNT, "output_tokens": COUNT}
FEATURES = Features(
    {
        "case": TEXT,
        "question": TEXT,
        "options": List(TEXT),
        "images": List(TEXT),
        "context": TEXT,
        "answer": TEXT,
        "specialty": TEXT,
        "groups": List({"name": TEXT, "value": TEXT}),
        "referral": REFERRAL,
        "opinions": List(OPINION),
        "decision": DECISION,
        "usage": List(USAGE),
        "calls": List(CALL),
        "node": TEXT,
        "perspective": TEXT,
        **SAID,
        "finish": TEXT,
        "policy": TEXT,
        "step": COUNT,
        "tier": TEXT,
        "rewards": List({"grader": TEXT, "value": NUMBER}),
        "reward": NUMBER,
    }
)
"""What `datasets` and every other reader of Parquet sees. Runs have graders of their own, so `rewards` is a list."""
SCHEMA: pa.Schema = FEATURES.arrow_schema
SUFFIX = ".parquet"
LINES = "traces*.jsonl"
"""An evaluation's files (`rl.trials`)."""
PART = re.compile(r"step-(\d+)-rank\d+\.parquet")
WRITTEN = {"compression": "zstd", "use_dictionary": False}
"""Token ids hardly repeat: dictionaries of them take time and room."""
STEPS = 10
"""A part is of at most so many optimizer steps: a run that is killed, and never resumed, loses no more."""
TOGETHER = 8
"""Parts of every process that become one row group: small ones make a file slow to open."""
ROWS = 256
"""Rows that are turned into Python values at a time."""


def write_traces(path: Path, traces: Iterable[Trace]) -> None:
    """Write traces to a Parquet file, over the one that may be there."""
    table = pa.Table.from_pylist([row_of(trace) for trace in traces], schema=SCHEMA)
    with _writing(path) as unfinished:
        pq.write_table(table, unfinished, **WRITTEN)


def trace_files(path: str | Path) -> list[Path]:
    """A file of traces, or all below a folder in the order of their names: Parquet, and lines of evaluations.

    Raises:
        ValueError: if there is none.
    """
    path = Path(path)
    files = [path] if path.is_file() else sorted([*path.rglob(f"*{SUFFIX}"), *path.rglob(LINES)])
    if not files:
        raise ValueError(
            f"traces: no {SUFFIX} file and no {LINES} at {str(path)!r}; give a file of traces, or a folder with some"
        )
    return files


def read_traces(path: str | Path) -> Iterator[Trace]:
    """The traces of a file, or of all below a folder in the order of their names.

    Raises:
        ValueError: naming the file, if there is none, or its columns are not those of traces.
    """
    files = trace_files(path)
    for file in files:  # all are looked at before the first trace is handed over
        if file.suffix != ".jsonl":
            _opened(file).close()
    return (trace for file in files for trace in _read(file))


def load_frame(path: str | Path) -> "pd.DataFrame":
    """Traces as a pandas table, one row a trace, for people.

    The columns are those of `FEATURES`, but `referral` is the specialty alone, `groups` is a column `group/<name>` for
    each, and `rewards` a column `reward/<grader>`. Two more: `decided`, the decision's answer, and `right`, whether
    that is the key.

    Raises:
        ValueError: as `read_traces`.
    """
    import pandas as pd

    frame = pd.DataFrame([_flat(trace) for trace in read_traces(path)])
    # pandas averages what has gaps, or nothing but gaps, only where it is told the type
    types = {name: "float64" for name in map(str, frame) if name.startswith("reward")}
    return frame.astype({**types, "right": "boolean"} if len(frame) else types)


class Rollouts:
    """The rollouts of one stage as they are made: part files of each process, of some steps each; one file in the end.

    What a killed run leaves does no harm: a part is complete or not there, no part lies on both sides of a checkpoint,
    and a resumed run forgets what came after its own. A file of Parquet costs as much for one step as for several.

    Args:
        folder: where the parts are kept; nothing else is.
        rank: the process's number. Only process 0 forgets and closes.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.folder, self.rank = folder, rank
        self._step, self._steps, self._traces = 0, 0, list[Trace]()

    def add(self, step: int, traces: Iterable[Trace]) -> None:
        """Keep the traces of an optimizer step, to be written with those of the steps around it."""
        if step != self._step:
            if self._steps in (0, STEPS):  # 0: what was added to the last step after it had been written
                self.flush()
            self._step, self._steps = step, self._steps + 1
        self._traces += traces

    def flush(self) -> None:
        """Write what has been added: by every process, before a checkpoint and before the end."""
        if self._traces:
            part = self.folder / f"step-{self._step:06}-rank{self.rank}{SUFFIX}"
            already = list(read_traces(part)) if part.exists() else []  # the same step was added to again
            write_traces(part, already + self._traces)
        self._steps, self._traces = 0, []

    def forget_after(self, step: int) -> None:
        """Delete what came after a checkpoint's step, of all processes: they are to wait until it is done."""
        for part in self._parts() if self.rank == 0 else []:
            if _step_of(part) > step:
                part.unlink()

    def close(self, path: Path) -> None:
        """Make one file of the parts of all processes, by steps, and remove them.

        Killed at any point, it can be called again.

        Every other process must have written its last traces. Without any part nothing is written.
        """
        self.flush()
        if self.rank != 0:
            return
        merged = self.folder.with_name(f"{self.folder.name}.merged")
        if parts := [list(group) for _, group in itertools.groupby(self._parts(), _step_of)]:
            with _writing(path) as unfinished, pq.ParquetWriter(unfinished, SCHEMA, **WRITTEN) as writer:
                for start in range(0, len(parts), TOGETHER):
                    files = itertools.chain(*parts[start : start + TOGETHER])
                    writer.write_table(pa.concat_tables(map(_whole, files)).sort_by("step"))  # which is stable
            shutil.rmtree(merged, ignore_errors=True)
            self.folder.rename(merged)  # at once: what a kill left of the parts would be taken for all of them
        shutil.rmtree(merged, ignore_errors=True)

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob(f"step-*{SUFFIX}"), key=lambda part: (_step_of(part), part.name))


def _step_of(part: Path) -> int:
    match = PART.fullmatch(part.name)
    if match is None:
        raise ValueError(f"{part}: not a part of this run's rollouts; their names are like step-000012-rank0{SUFFIX}")
    return int(match[1])


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """A path beside a file, to write to; the file takes its place in the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.part")
    yield unfinished
    unfinished.replace(path)


def _opened(file: Path) -> pq.ParquetFile:
    try:
        parquet = pq.ParquetFile(file)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{file}: not a Parquet file ({error})") from error
    found = {field.name: field.type for field in parquet.schema_arrow}
    expected = {field.name: field.type for field in SCHEMA}
    if found != expected:
        wrong = sorted(name for name in found | expected if found.get(name) != expected.get(name))
        raise ValueError(
            f"{file}: these columns are not as in a file of traces: {', '.join(wrong)}; see rl.store.FEATURES"
        )
    return parquet


def _whole(file: Path) -> pa.Table:
    with _opened(file) as parquet:
        return parquet.read()


def _read(file: Path) -> Iterator[Trace]:
    if file.suffix == ".jsonl":
        yield from (trace_of(row) for row in read_lines(file) if "error" not in row)
        return
    with _opened(file) as parquet:  # a stage has more parts than a process may have open files
        for batch in parquet.iter_batches(ROWS):
            yield from map(trace_of, batch.to_pylist())


def read_lines(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of an evaluation's file, of failed cases an `id` and an `error`; a line that is being written is none.

    Raises:
        ValueError: naming the file and the line, if that is no trace.
    """
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.endswith(b"\n"):
                row = json.loads(line)
                if "error" not in row and (missing := [name for name in FEATURES if name not in row]):
                    raise ValueError(f"{file}:{number}: no trace of an evaluation; it lacks {', '.join(missing)}")
                yield row


def row_of(trace: Trace) -> dict[str, Any]:
    """A trace as a row: plain JSON, in the columns of `FEATURES`."""
    return {
        **vars(trace),
        "groups": [{"name": name, "value": value} for name, value in trace.groups.items()],
        "usage": [{"node": node, **spent} for node, spent in trace.usage.items()],
        "calls": [vars(call) for call in trace.calls],
        "rewards": [{"grader": grader, "value": value} for grader, value in trace.rewards.items()],
    }


def trace_of(row: dict[str, Any]) -> Trace:
    """The trace of a row, which is used up."""
    row.pop("id", None)  # of a line of an evaluation: the case
    groups = {said["name"]: said["value"] for said in row.pop("groups")}
    usage = {spent.pop("node"): cast(NodeUsage, spent) for spent in row.pop("usage")}
    calls = [NodeCall(**call) for call in row.pop("calls")]
    rewards = {graded["grader"]: graded["value"] for graded in row.pop("rewards")}
    return Trace(**row, groups=groups, usage=usage, calls=calls, rewards=rewards)


def _flat(trace: Trace) -> dict[str, Any]:
    row = row_of(trace)
    del row["groups"], row["rewards"]
    groups = {f"group/{name}": value for name, value in trace.groups.items()}
    referral = trace.referral["specialty"] if trace.referral else None
    rewards = {f"reward/{grader}": value for grader, value in trace.rewards.items()}
    return {**row, "referral": referral, "decided": trace.decided, "right": trace.right, **groups, **rewards}
