"""Two processes train as one does: the same data, the same steps; and one that dies takes the run with it, to resume.

Two real processes on the CPU (gloo), so these tests take their time. They are started as several GPUs are: with `--cpu`
or a file for several CPUs, `accelerate launch --num_processes 2` starts one process alone, and says nothing (1.15).
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rl.store import read_traces
from rl.traces import Trace
from tests.integration.grpo import assert_same_weights, weights_of

pytestmark = pytest.mark.timeout(600)
LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no"]
PROGRAM = ["-m", "tests.integration.scripted_training"]
ROOT = Path(__file__).parents[2]
# one policy in both roles, re-rolled inside each stage; the last stage is killed in what follows
FLAGS = [
    "--nodes",
    "triage",
    "attending",
    "--reroll_steps",
    "3",
    "--stages",
    "easy",
    "mixed",
    "--stage_steps",
    "2",
    "6",
]
FLAGS += ["--rate_scales", "1", "--betas", "0.01", "0.01", "--rehearsal", "0"]
FLAGS += ["--train_size", "24", "--eval_size", "8", "--gammas", "1", "1"]
FLAGS += ["--gamma_by", "stage", "--num_generations", "4", "--logging_steps", "1", "--save_steps", "2"]
FLAGS += ["--learning_rate", "0.0005", "--max_grad_norm", "1000"]


# each process samples for itself, half of every group; at this temperature hardly two completions are equal
WHOLE = [*FLAGS, "--num_generations", "8", "--per_device_train_batch_size", "4", "--temperature", "2"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launched(processes: int, arguments: list[str], **environment: str) -> tuple[int, str]:
    """Exit code and output of a training in so many processes."""
    if processes > 1:
        several = ["--num_processes", str(processes), "--main_process_port", str(free_port())]
        command = [sys.executable, *LAUNCH, *several, *PROGRAM]
    else:
        command = [sys.executable, *PROGRAM]
    process = subprocess.Popen(
        [*command, *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said = process.communicate(timeout=400)[0]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return process.returncode, said[-6000:]


def trained(runs: Path, name: str, processes: int, flags: list[str], **environment: str) -> Path:
    code, said = launched(processes, ["--runs", str(runs), "--name", name, *flags], **environment)
    assert code == 0, said
    return runs / name


def logged(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def rollouts(run: Path) -> list[tuple]:
    stages = sorted((run / "stages").iterdir())
    traces = [trace for stage in stages for trace in read_traces(stage / "rollouts.parquet")]
    return [(t.policy, t.case, t.node, t.tier, t.text, t.reward) for t in traces]


@pytest.mark.parametrize("generations", ["4", "8"], ids=["a group in each process", "a group over both"])
def test_two_processes_do_what_one_does(tmp_path: Path, generations: str):
    """The same global batch of scripted completions: the same prompts, rewards, losses, and nearly the same weights."""
    flags = [*FLAGS, "--num_generations", generations]
    one = trained(tmp_path, "one", 1, [*flags, "--per_device_train_batch_size", "16"], SCRIPTED="1")
    two = trained(tmp_path, "two", 2, [*flags, "--per_device_train_batch_size", "8"], SCRIPTED="1")
    assert rollouts(one) == rollouts(two)
    assert len({reward for *_, reward in rollouts(one)}) > 1  # there is something to learn
    assert len(logged(one)) == len(logged(two)) == 8
    for a, b in zip(logged(one), logged(two), strict=True):
        for row in (a, b):  # each process swaps the images of its own prompts
            row.pop("image_effect", None)
        assert a.keys() == b.keys()
        for name in a.keys() - {"stage", "cache_hits"} - {name for name in a if "time" in name or "seconds" in name}:
            if a[name] is None:
                assert b[name] is None, name
            else:
                assert a[name] == pytest.approx(b[name], rel=2e-3, abs=2e-5), (a["stage"], a["step"], name)
    start, end = (weights_of(one / "stages" / stage / "model") for stage in ("1-easy", "2-mixed"))
    for name, weights in weights_of(two / "model").items():  # Adam makes steps of the rounding of gradients near 0
        assert (end[name] - weights).norm() < 0.05 * (end[name] - start[name]).norm(), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run of two processes that nobody kills; each samples for itself."""
    return trained(tmp_path_factory.mktemp("runs"), "whole", 2, WHOLE)


KILLS = {
    "at a stage's boundary": ("training_step:2-mixed:0:1", None),
    "inside a stage": ("_compute_loss:2-mixed:5:0", "checkpoint-4"),
    "while a checkpoint is written": ("_save_rng_state:2-mixed:4:1", "checkpoint-2"),
}


@pytest.mark.parametrize(("where", "checkpoint"), KILLS.values(), ids=KILLS.keys())
def test_a_process_that_dies_ends_the_run_which_resumes_to_the_same(whole: Path, where: str, checkpoint: str | None):
    name = where.replace(":", "-")
    arguments = ["--runs", str(whole.parent), "--name", name, *WHOLE]
    code, said = launched(2, arguments, KILLED=where)
    ended = time.time()
    assert code != 0
    assert "Signal 9 (SIGKILL)" in said
    run = whole.parent / name
    assert ended - (run / "stages" / "2-mixed" / "killed").stat().st_mtime < 60  # no hang
    assert (run / "stages" / "1-easy" / "model").is_dir()
    assert not (run / "stages" / "2-mixed" / "model").exists()
    written = (run / "stages" / "2-mixed" / "checkpoints").glob("checkpoint-*/trainer_state.json")
    assert [path.parent.name for path in written] == ([checkpoint] if checkpoint else [])
    code, said = launched(2, ["--runs", str(whole.parent), "--resume", "--name", name])
    assert code == 0, said
    for stage in ("1-easy", "2-mixed"):
        assert_same_weights(whole / "stages" / stage / "model", run / "stages" / stage / "model")
    assert rollouts(run) == rollouts(whole)
    assert [row["loss"] for row in logged(run)] == [row["loss"] for row in logged(whole)]


def test_each_process_samples_for_itself(whole: Path):
    """Or half of the completions would be copies: both processes draw from random numbers of their own."""
    by_step: dict[tuple[str, int], list[Trace]] = {}
    for stage in ("1-easy", "2-mixed"):
        for trace in read_traces(whole / "stages" / stage / "rollouts.parquet"):
            by_step.setdefault((stage, trace.step), []).append(trace)
    assert len(by_step) == 8
    for group in by_step.values():
        assert len({(trace.case, trace.node) for trace in group}) == 1  # one group over both processes
        halves = [[trace.completion_ids for trace in half] for half in (group[:4], group[4:])]
        assert [len(half) for half in halves] == [4, 4]
        assert halves[0] != halves[1]
