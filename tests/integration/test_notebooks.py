"""Every example notebook runs on the embedded clinic, and what is kept in it is what it does.

    python -m tests.integration.test_notebooks [examples/1_first_consultation.ipynb ...]    # keep the outputs anew

A notebook runs from a copy in an empty folder. The facts that it tells are asserted in it; here its kept outputs are
compared in their shape (numbers and pictures may differ from machine to machine).
"""

import contextlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "PYTHONWARNINGS": "ignore:IProgress not found",
}
"""One core, nothing from outside, and no progress bars: a kept output is text to read."""
SECONDS = 1800
"""No cell may take longer."""
LARGEST = 150_000
"""Bytes of a notebook with its outputs."""
PATH = re.compile(r"(?<![\w.:/])(?:/(?:home|root|tmp|work|usr|var|opt|mnt|srv|data|private|Users)/|[A-Z]:\\)\S*")

every_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def execute(notebook: Path) -> Any:
    """The notebook as it comes out of a run."""
    book = nbformat.read(notebook, as_version=4)
    with tempfile.TemporaryDirectory(prefix="mmedagent-notebook-") as folder, wanted(book) as given:
        shutil.copy(notebook, folder)
        client = nbclient.NotebookClient(
            book,
            timeout=SECONDS,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
            record_timing=False,
        )
        client.execute(env=ENVIRONMENT | given)
    for cell in code(book):
        cell.outputs = joined(cell.outputs)
    return book


@contextlib.contextmanager
def wanted(book: Any) -> Iterator[dict[str, str]]:
    """The variables that a notebook wants in its environment: a PostgreSQL, if any."""
    if not any("DATABASE_URL" in cell.source for cell in code(book)):
        yield {}
        return
    pytest.importorskip("psycopg")
    from tests.integration.postgres import MISSING, postgres, programs

    if programs() is None:
        pytest.skip(MISSING)
    with postgres() as server:
        yield {"DATABASE_URL": f"{server}/postgres"}


def joined(outputs: list[Any]) -> list[Any]:
    """Text that was printed in one go as one output, however the kernel happened to send it."""
    whole: list[Any] = []
    for output in outputs:
        if output.output_type == "stream" and whole and whole[-1].get("name") == output.name:
            whole[-1].text += output.text
        else:
            whole.append(output)
    return whole


def code(book: Any) -> list[Any]:
    return [cell for cell in book.cells if cell.cell_type == "code"]


def shape(cell: Any) -> list[tuple[str, ...]]:
    """Of which kinds a cell's outputs are."""
    return [(output.output_type, *sorted(output.get("data", [output.get("name", "")]))) for output in cell.outputs]


def texts(book: Any) -> Iterator[str]:
    """Everything in a notebook that is to be read."""
    for cell in book.cells:
        yield cell.source
        for output in cell.get("outputs", []):
            yield output.get("text", "")
            yield from (text for kind, text in output.get("data", {}).items() if kind.startswith("text/"))


def test_there_are_notebooks():
    assert len(NOTEBOOKS) == 6


@pytest.mark.timeout(900)  # one of them trains
@every_notebook
def test_a_notebook_runs_and_does_what_it_shows(notebook: Path):
    kept, fresh = nbformat.read(notebook, as_version=4), execute(notebook)
    assert [shape(cell) for cell in code(fresh)] == [shape(cell) for cell in code(kept)]


@every_notebook
def test_a_notebook_was_kept_whole(notebook: Path):
    book = nbformat.read(notebook, as_version=4)
    nbformat.validate(book)
    assert [cell.execution_count for cell in code(book)] == list(range(1, len(code(book)) + 1))
    assert book.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert notebook.stat().st_size < LARGEST


@every_notebook
def test_a_notebook_has_no_litter(notebook: Path):
    book = nbformat.read(notebook, as_version=4)
    kinds = {kind for cell in code(book) for kind in shape(cell)}
    assert not {kind for kind in kinds if kind[0] == "error" or "stderr" in kind}
    text = "\n".join(texts(book))
    assert not PATH.findall(text)
    assert not re.findall(r"\w*Warning\b.*|Traceback.*|\x1b\[.*|.*it/s\].*", text)


@every_notebook
def test_a_notebook_says_what_it_is(notebook: Path):
    opening = nbformat.read(notebook, as_version=4).cells[0].source
    assert "You learn" in opening
    assert "pip install 'mmedagent-graph[" in opening
    assert "no medical device" in opening


def keep(notebook: Path) -> None:
    """Run a notebook and write it with its outputs, the same on every machine but for what it found."""
    book = execute(notebook)
    book.metadata = nbformat.read(notebook, as_version=4).metadata
    nbformat.write(book, notebook)


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:] or NOTEBOOKS):
        keep(path)
