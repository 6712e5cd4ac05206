"""Jobs: what is finished is not done again, other flags are refused, and the first failure stops what has not begun."""

import json
import subprocess
import sys
import threading

import pytest

from rl import jobs


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
        return subprocess.CompletedProcess(command, codes.pop(0))

    monkeypatch.setattr(jobs.subprocess, "run", runs)
    with pytest.raises(RuntimeError, match="failed with 1"):
        jobs.once(tmp_path / "one", "rl.merge", ["--scale", "2"])
    for _ in range(2):
        jobs.once(tmp_path / "one", "rl.merge", ["--scale", "2"])
    assert run == [["rl.merge", "--scale", "2"]] * 2
    with pytest.raises(ValueError, match=r"one was made with other flags; remove it and one\.arguments\.json"):
        jobs.once(tmp_path / "one", "rl.merge", ["--scale", "3"])


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
