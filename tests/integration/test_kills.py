"""A run that is killed at ten random moments goes on each time, and ends as if nothing had happened."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rl.store import read_traces

KILLS = 10


@pytest.mark.timeout(900)
def test_ten_kills_change_nothing(tmp_path: Path):
    """Both nodes train as one policy, whose triage rolls the attending's prompts anew: all that a stage can lose."""
    command = [sys.executable, "-m", "tests.integration.killed_training", str(tmp_path), str(KILLS)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    runs = [json.loads(line) for line in done.stdout.splitlines()]
    print(*runs, sep="\n")  # the moments, should this fail
    assert sum(len(run.get("kills", [])) for run in runs) == KILLS
    whole = tmp_path / "whole"
    for run in runs[1:]:
        killed = tmp_path / run["run"]
        assert _log(killed) == _log(whole)
        assert [trace.text for trace in _rollouts(killed)] == [trace.text for trace in _rollouts(whole)]
        expected, found = (load_file(folder / "model" / "model.safetensors") for folder in (whole, killed))
        for name, weights in expected.items():
            torch.testing.assert_close(found[name], weights, rtol=0, atol=0)


def _log(run: Path) -> list[tuple[str, int, float]]:
    """Stage, step and reward of every logged step."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["stage"], row["step"], row["reward"]) for row in rows]


def _rollouts(run: Path):
    return [trace for stage in sorted((run / "stages").iterdir()) for trace in read_traces(stage / "rollouts.parquet")]
