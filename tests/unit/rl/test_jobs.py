"""Jobs: what is finished is not done again, other flags are refused, and the first failure stops what has not begun."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from rl import jobs

STARTS = """
import subprocess, sys
from pathlib import Path
from rl import jobs

def run(command, **streams):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], **streams)
    print(child.pid, flush=True)
    child.wait()

jobs.subprocess.run = run
jobs.call(Path(sys.argv[1]), "any", [])
"""


@pytest.fixture
def started(monkeypatch):
    """The commands that were run; each leaves what a training leaves, unless it is to be broken off."""
    commands, broken = [], []

    def run(command, env, **_):
        commands.append((command[3:], env.get("OMP_NUM_THREADS")))
        flags = command[3:]
        folder = jobs.Path(flags[flags.index("--runs") + 1]) / flags[flags.index("--name") + 1]
        folder.mkdir(parents=True, exist_ok=True)
        if "--resume" not in flags:
            (folder / "arguments.json").write_text(json.dumps({"arguments": flags}))
        if not broken:
            (folder / "summary.json").write_text("{}")
        assert command[:3] == [sys.executable, "-m", "rl.train_sft"]
        return subprocess.CompletedProcess(command, len(broken))

    monkeypatch.setattr(jobs.subprocess, "run", run)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return commands, broken


def test_a_training_is_told_its_folder_and_done_once(started, tmp_path):
    for _ in range(2):
        jobs.train(tmp_path / "runs" / "one", "rl.train_sft", ["--seed", "3"], threads=1)
    assert started[0] == [(["--runs", str(tmp_path / "runs"), "--name", "one", "--seed", "3"], "1")]


def test_what_was_broken_off_goes_on(started, tmp_path):
    commands, broken = started
    broken.append("by a kill")
    with pytest.raises(RuntimeError, match=r"rl\.train_sft failed with 1; .*one\.log says why"):
        jobs.train(tmp_path / "one", "rl.train_sft", ["--seed", "3"])
    broken.clear()
    jobs.train(tmp_path / "one", "rl.train_sft", ["--seed", "3"])
    assert commands[1] == (["--runs", str(tmp_path), "--name", "one", "--resume"], None)


def test_other_flags_are_refused(started, tmp_path):
    jobs.train(tmp_path / "one", "rl.train_sft", ["--seed", "3"])
    with pytest.raises(ValueError, match="one was made with other flags"):
        jobs.train(tmp_path / "one", "rl.train_sft", ["--seed", "4"])


def test_other_commands_are_run_once_too(monkeypatch, tmp_path):
    codes, run = [1, 0], []

    def runs(command, **_):
        run.append(command[2:])
        (tmp_path / "one").mkdir(exist_ok=True)
        if not codes[0]:
            (tmp_path / "one" / "model").touch()
        return subprocess.CompletedProcess(command, codes.pop(0))

    monkeypatch.setattr(jobs.subprocess, "run", runs)
    with pytest.raises(RuntimeError, match="failed with 1"):
        jobs.once(tmp_path / "one", "model", "rl.merge", ["--scale", "2"])
    for _ in range(2):
        jobs.once(tmp_path / "one", "model", "rl.merge", ["--scale", "2"])
    assert run == [["rl.merge", "--scale", "2"]] * 2
    with pytest.raises(ValueError, match="one was made with other flags; remove it"):
        jobs.once(tmp_path / "one", "model", "rl.merge", ["--scale", "3"])
    shutil.rmtree(tmp_path / "one")
    codes.append(0)
    jobs.once(tmp_path / "one", "model", "rl.merge", ["--scale", "3"])
    assert run[2:] == [["rl.merge", "--scale", "3"]], "what was removed is made anew"


def test_a_run_of_which_nothing_is_noted_is_refused(started, tmp_path):
    """Made by hand, or copied without its note: nobody knows whether it is what is asked for."""
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "summary.json").write_text("{}")
    with pytest.raises(ValueError, match=r"one is there without one\.arguments\.json, which says how it was made"):
        jobs.train(tmp_path / "one", "rl.train_sft", ["--seed", "3"])
    assert started[0] == []


def test_who_comes_second_notes_nothing(started, tmp_path, monkeypatch):
    """The first is still importing, and has made no folder."""
    run = jobs.subprocess.run

    def slow(*given, **named):
        with pytest.raises(RuntimeError, match="another process is still at work on it"):
            jobs.train(tmp_path / "one", "rl.train_sft", ["--seed", "4"])
        return run(*given, **named)

    monkeypatch.setattr(jobs.subprocess, "run", slow)
    jobs.train(tmp_path / "one", "rl.train_sft", ["--seed", "3"])
    with pytest.raises(ValueError, match="other flags"):
        jobs.train(tmp_path / "one", "rl.train_sft", ["--seed", "4"])
    jobs.train(tmp_path / "one", "rl.train_sft", ["--seed", "3"])


@pytest.mark.parametrize("prefix", ["", "transformers:"])
@pytest.mark.parametrize("place", ["recipe.yaml", "model/adapter_model.safetensors", "traces/data/train.parquet"])
def test_what_the_flags_name_must_be_as_it_was(started, tmp_path, place, prefix):
    """A recipe that was edited, an adapter that was trained anew: what comes of it is something else."""
    file = tmp_path / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("before")
    named = prefix + str(tmp_path / place.split("/")[0])
    for _ in range(2):
        jobs.train(tmp_path / "one", "rl.train_sft", ["--config", named, "--seed", "3"])
    assert len(started[0]) == 1
    file.write_text("after")
    with pytest.raises(ValueError, match=r"one was made when .* had other contents; remove it"):
        jobs.train(tmp_path / "one", "rl.train_sft", ["--config", named, "--seed", "3"])
    shutil.rmtree(tmp_path / "one")
    jobs.train(tmp_path / "one", "rl.train_sft", ["--config", named, "--seed", "3"])
    assert len(started[0]) == 2


def test_one_that_is_still_at_work_is_left_alone(tmp_path):
    """Whoever had started it may have been killed."""
    waits = subprocess.Popen([sys.executable, "-c", STARTS, str(tmp_path / "one")], stdout=subprocess.PIPE, text=True)
    child = int(waits.stdout.readline())
    waits.kill()
    waits.wait()
    try:
        with pytest.raises(RuntimeError, match="another process is still at work on it"):
            jobs.call(tmp_path / "one", "json.tool", ["--help"])
    finally:
        os.kill(child, signal.SIGKILL)
    for last in [False] * 100 + [True]:
        try:
            return jobs.call(tmp_path / "one", "json.tool", ["--help"])
        except RuntimeError:  # it is still ending
            if last:
                raise
            time.sleep(0.05)


def test_a_log_stands_beside_the_folder(tmp_path):
    with pytest.raises(RuntimeError, match=r"json\.tool failed with 2; .*deep\.log says why"):
        jobs.call(tmp_path / "new" / "deep", "json.tool", ["--no-such-flag"])
    assert "no-such-flag" in (tmp_path / "new" / "deep.log").read_text()


def test_the_first_failure_stops_what_has_not_begun():
    begun = threading.Event()

    def work(number):
        if number == 1:
            raise RuntimeError("one")
        begun.wait(10)
        done.append(number)

    done = []
    threading.Timer(0.5, begun.set).start()
    with pytest.raises(RuntimeError, match="one"):
        jobs.at_once(work, [(number,) for number in range(8)], 2, "")
    assert len(done) <= 2  # what was under way
