"""Many consultations: the cases of a JSONL file, so many at a time, and a line of JSON for each as it ends.

Invariant: a case that has ended is on disk, in one line. Whatever stops a run, the same command goes on from there:
it skips the cases that have a result, and tries those again that failed.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
from collections.abc import Awaitable, Callable, Container, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pydantic import ValidationError

from mmedagent_graph.case import Case
from mmedagent_graph.consultation import Consultation

Line = dict[str, Any]
Item = TypeVar("Item")
LISTED = 20
"""So many bad rows are named in full."""
FIRST = b'{"id": '
"""How every line of results begins."""


@dataclasses.dataclass(frozen=True)
class Patient:
    """A case and the name that it has in the file."""

    id: str
    case: Case


def consulted(result: Line) -> Line:
    """What a consultation came to, as plain JSON. Its messages are left out: they say the decision once more."""
    return {name: result[name] for name in ("referral", "opinions", "decision", "usage")}


async def consult_many(
    graph: Consultation, patients: Iterator[Patient], keep: Callable[[Line], None], concurrency: int
) -> None:
    """Consult on every case, `concurrency` at a time; no case is read before its turn.

    Args:
        graph: the consultation.
        patients: the cases.
        keep: called with the line of each case as it ends.
        concurrency: at most so many consultations at a time.
    """

    async def line(patient: Patient) -> Line:
        return {"id": patient.id, **await _outcome(graph, patient.case)}

    await work_off(line, patients, keep, concurrency)


async def work_off(
    work: Callable[[Item], Awaitable[Line]], items: Iterator[Item], keep: Callable[[Line], None], concurrency: int
) -> None:
    """Work items off, `concurrency` at a time: no item is taken before its turn, and each line is kept as it is made.

    What an item raises ends it all, once the others are stopped.
    """

    async def worker() -> None:
        for item in items:  # one iterator for all
            keep(await work(item))

    try:
        async with asyncio.TaskGroup() as workers:
            for _ in range(concurrency):
                workers.create_task(worker())
    except ExceptionGroup as errors:  # the first is why the others were stopped
        raise errors.exceptions[0] from None


async def _outcome(graph: Consultation, case: Any) -> Line:
    try:
        return consulted(await graph.ainvoke(case))
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def check_cases(path: Path, split: str | None = None, limit: int | None = None) -> dict[str, int]:
    """The ids of a file's cases, with their line numbers; nothing of the cases stays in memory.

    Args:
        path: a JSONL file, one case a line. Fields read: id, split, question, options, image or images, context.
            Images are relative to the file's folder. A key (`answer`) may be there, and is not looked at.
        split: only the rows of this split. Default: all.
        limit: only so many of these, from the first. Default: all.

    Raises:
        ValueError: naming every bad row by its line, with the field and what is valid.
    """
    if not path.is_file():
        raise ValueError(f"cases: no file {str(path)!r}; give a JSONL file with one case a line")
    ids: dict[str, int] = {}
    problems: list[str] = []
    splits: set[str] = set()
    for number, row in _selected(path, split, limit, splits):
        try:
            name = _patient(path, number, row).id
        except ValueError as error:
            problems.append(str(error))
            continue
        if name in ids:
            problems.append(f"{path}:{number}: id: {name!r} is there twice, first in line {ids[name]}; ids must differ")
        ids.setdefault(name, number)
    if problems:
        more = [f"and {len(problems) - LISTED} more"] if len(problems) > LISTED else []
        head = f"cases: {len(problems)} rows cannot be used, and nothing was run"
        raise ValueError("\n".join([head, *problems[:LISTED], *more]))
    if not ids and split is not None:
        raise ValueError(f"split: {split!r} is not in {str(path)!r}; it has {', '.join(sorted(splits)) or 'none'}")
    if not ids:
        raise ValueError(f"cases: there is no case in {str(path)!r}; give a JSONL file with one case a line")
    return ids


def read_cases(
    path: Path, split: str | None = None, limit: int | None = None, without: Container[str] = ()
) -> Iterator[Patient]:
    """The cases of a file that was checked, one by one, but for those whose ids are in `without`."""
    for number, row in _selected(path, split, limit, set()):
        patient = _patient(path, number, row)
        if patient.id not in without:
            yield patient


def _selected(
    path: Path, split: str | None, limit: int | None, splits: set[str]
) -> Iterator[tuple[int, Line | ValueError]]:
    """The rows of a split, with their line numbers; the names of all splits on the way are added to `splits`."""
    found = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if found == limit:
                return
            if not line.strip():
                continue
            row = _row(line)
            if isinstance(row, dict):
                splits.add(str(row.get("split")))
                if split is not None and row.get("split") != split:
                    continue
            found += 1
            yield number, row


def _row(line: bytes) -> Line | ValueError:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return ValueError(f"not JSON in UTF-8 ({getattr(error, 'msg', type(error).__name__)})")
    return row if isinstance(row, dict) else ValueError(f"a case is a JSON object, not a {type(row).__name__}")


def _patient(path: Path, number: int, row: Line | ValueError) -> Patient:
    """The case in a row.

    Raises:
        ValueError: naming file, line, field and what is valid, in one line.
    """
    try:
        if isinstance(row, ValueError):
            raise row
        name = f"{path.stem}-{number}" if row.get("id") is None else str(row["id"])
        return Patient(name, Case(**_given(row, path.parent)))
    except ValueError as error:
        said = in_one_line(error) if isinstance(error, ValidationError) else error
        raise ValueError(f"{path}:{number}: {said}") from None


def _given(row: Line, folder: Path) -> Line:
    """What a consultation may know of a row, and nothing else."""
    images = row.get("images")
    if images is None:
        images = [row["image"]] if row.get("image") else []
    if not isinstance(images, list):
        raise ValueError("images: it must be a list of paths, relative to the file's folder")
    given = {name: row[name] for name in ("question", "options", "context") if row.get(name) is not None}
    return {**given, "images": [_image(folder, image) for image in images]}


def _image(folder: Path, image: Any) -> Any:
    """An image as a graph takes it: a path, or a path and a frame."""
    framed = isinstance(image, dict) and image.keys() <= {"image", "frame"}
    name = image.get("image") if framed else image
    if not isinstance(name, str):
        raise ValueError('image: it must be a path, relative to the file\'s folder, or {"image": path, "frame": 0}')
    path = folder / name
    if not os.path.isfile(path):  # noqa: PTH113  what is too long for a path, such as image data, makes pathlib raise
        raise ValueError(f"image: {str(path)!r:.300} is not there; images are relative to the file's folder")
    return {**image, "image": path} if framed else path


def in_one_line(error: ValidationError) -> str:
    """What Pydantic found wrong: the fields, and what is valid."""
    found = [
        (".".join(map(str, problem["loc"])), problem["msg"].removeprefix("Value error, ")) for problem in error.errors()
    ]
    return "; ".join(f"{field}: {message}" if field else message for field, message in found)


class Results:
    """The file of results: what is done, and the place to add to.

    To open it is to make it ready to go on. A last line that a killed run left unfinished is dropped, and so are the
    errors of cases that will be tried again. What is no regular file (a pipe, a terminal, `/dev/null`) is only written
    to: some can be read for ever.

    Args:
        path: the JSONL file; it need not be there.
        wanted: the ids of the cases of this run.

    Raises:
        ValueError: if it is no file of results, or another run is writing to it.
    """

    def __init__(self, path: Path, wanted: Container[str]) -> None:
        self.done: set[str] = set()
        """The ids of the cases of this run that have a result."""
        self.lasting = path.is_file() or not path.exists()
        """Whether a later run can go on from here."""
        self._file: BinaryIO
        if not self.lasting:
            self._file = path.open("wb")
            return
        self.path = path.resolve()  # a link stays a link
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = _locked(self.path)
        try:
            self._make_ready(wanted)
        except BaseException:
            self._file.close()
            raise

    def keep(self, line: Line) -> None:
        """Add a line, and have it out of this process before anything else happens."""
        self._file.write(_encoded(line))
        self._file.flush()

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _make_ready(self, wanted: Container[str]) -> None:
        part = self.path.with_name(f"{self.path.name}.part")
        with contextlib.ExitStack() as stack:
            new = stack.enter_context(_locked(part, afresh=True))  # locked before it takes the other's place
            stack.callback(part.unlink, missing_ok=True)
            whole = True
            self._file.seek(0)
            for number, line in enumerate(self._file, 1):
                result = self._result(number, line)
                if result is None or (result["id"] in wanted and "error" in result):
                    whole = False
                    continue
                if result["id"] in wanted:
                    self.done.add(result["id"])
                whole &= line.endswith(b"\n")
                new.write(line if line.endswith(b"\n") else line + b"\n")
            if not whole:
                new.flush()
                os.fsync(new.fileno())
                part.replace(self.path)
                stack.pop_all()
                self._file.close()
                self._file = new

    def _result(self, number: int, line: bytes) -> Line | None:
        """A line of the file, or None if it is unfinished, or blank."""
        try:
            result = json.loads(line)
        except ValueError:
            unfinished = not line.endswith(b"\n") and (line.startswith(FIRST) or FIRST.startswith(line))
            if unfinished or not line.strip():
                return None
            result = None
        if not (isinstance(result, dict) and isinstance(result.get("id"), str) and result.keys() & {"error", "usage"}):
            where = f"{self.path}:{number}"
            raise ValueError(f"out: {where} is no line of results; give the file of an earlier run, or a new one")
        return result


def _encoded(line: Line) -> bytes:
    """A line of JSON; half a surrogate pair, which UTF-8 does not have, as JSON's own escape."""
    return (json.dumps(line, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def _locked(path: Path, afresh: bool = False) -> BinaryIO:
    """A file to add to, that no other run can have open at the same time (where the system has such locks)."""
    file = path.open("ab+")
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        ours = os.path.samestat(os.fstat(file.fileno()), path.stat())  # or it has been replaced by the run that had it
    except BlockingIOError:
        ours = False
    except (ImportError, OSError):
        ours = True  # Windows, or a file system without locks
    if not ours:
        file.close()
        raise ValueError(f"out: another run is writing to {str(path)!r}; wait for it, or give another file")
    if afresh:
        file.truncate(0)
    return file
