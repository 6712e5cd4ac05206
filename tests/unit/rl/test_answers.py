"""One file of frozen answers, made by whoever comes first, shared by all."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from langchain_core.messages import AIMessage

import rl.answers
from rl.answers import answers_file, shared_answers

MAKE = """
import sys, time
from pathlib import Path
from langchain_core.messages import AIMessage
from rl.answers import shared_answers
me, folder, rounds = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
for i in range(rounds):
    (folder / f"ready-{i}-{me}").touch()
    met = time.monotonic()
    while len(list(folder.glob(f"ready-{i}-*"))) < 2:
        assert time.monotonic() < met + 20, "the other one is gone"
    answers = shared_answers(folder / str(i) / "answers.db")
    answers.set({(("test",), me): (AIMessage(me), None)})
"""
ROOT = Path(__file__).parents[3]
ROUNDS = 80


def test_two_processes_may_make_the_file_at_once(tmp_path):
    """They meet before each of many files, and make it in the same moment."""
    command = [sys.executable, "-c", MAKE]
    makers = [
        subprocess.Popen([*command, me, str(tmp_path), str(ROUNDS)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for me in ("a", "b")
    ]
    try:
        said = [maker.communicate(timeout=120)[1] for maker in makers]
        assert [maker.returncode for maker in makers] == [0, 0], said
    finally:
        for maker in makers:
            maker.kill()
            maker.wait()
    for i in range(ROUNDS):
        keys = [(("test",), me) for me in ("a", "b")]
        found = shared_answers(tmp_path / str(i) / "answers.db").get(keys)
        assert {key[1]: message.text for key, message in found.items()} == {"a": "a", "b": "b"}


@pytest.mark.parametrize(
    ("everywhere", "here", "name"),
    [(None, None, "answers.db"), ("8", "8", "answers.db"), ("16", "8", "answers-ward-2.db")],
)
def test_machines_have_a_file_each(tmp_path, monkeypatch, everywhere, here, name):
    for variable, value in (("WORLD_SIZE", everywhere), ("LOCAL_WORLD_SIZE", here)):
        monkeypatch.delenv(variable, raising=False)
        if value:
            monkeypatch.setenv(variable, value)
    monkeypatch.setattr("socket.gethostname", lambda: "ward-2")
    assert answers_file(tmp_path) == tmp_path / name


def test_an_answer_outlives_its_cache(tmp_path):
    path = tmp_path / "runs" / "answers.db"  # in a folder that is not there yet
    key = (("test",), "key")
    shared_answers(path).set({key: (AIMessage("once"), None)})
    assert shared_answers(path).get([key])[key].text == "once"


def test_a_file_that_stays_locked_is_an_error_and_no_hang(tmp_path, monkeypatch):
    tries = []

    def locked(path):
        tries.append(path)
        raise sqlite3.OperationalError("database is locked")

    monkeypatch.setattr(rl.answers, "SqliteCache", locked)
    monkeypatch.setattr(rl.answers, "PATIENCE", 0.3)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        shared_answers(tmp_path / "answers.db")
    assert len(tries) > 1
