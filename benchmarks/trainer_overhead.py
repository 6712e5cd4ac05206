"""What training on consultations costs beside plain GRPO: a step of ours against one of TRL's `GRPOTrainer`.

    python benchmarks/trainer_overhead.py                 # about five minutes on one core
    python benchmarks/trainer_overhead.py --check         # exit 1 above 1.05

Both train the clinic's base on the same prompts with the same seed and a learning rate of 0, so that both write the
very same completions, which is checked. Plain TRL's reward is the shortest one: a regular expression and a comparison.
Ours takes every completion through the graph, grades the trace, weighs the entropy and records the rollout with its
log-probabilities; it logs, makes one file of the rollouts in the end, and looks now and then whether the images
matter. All of that counts. The two take turns, a few steps each; what is compared is processor time a step, since the
machine may have other work.
"""

import argparse
import contextlib
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from mmedagent_graph.images import ImageStore
from rl.cohort import TRAIN, clinic_cohort, panel
from rl.curriculum import TIERS, Stage, draw_prompts
from rl.environment import Environment
from rl.models import folder_of, load_processor
from rl.recipe import prompts_of, stage_settings
from rl.rollout import Rollout, roll_upstream
from rl.store import Rollouts, read_traces
from rl.train_attending import COMMAND
from rl.trainer import SWAP_EVERY, ConsultationTrainer
from rl.watch import StageProgress

LIMIT = 1.05
ANSWER = re.compile(r"<think>.*</think>\s*<answer>(.*)</answer>", re.DOTALL)


Said = list[tuple[str, tuple[int, ...]]]
"""Case and tokens of each completion."""


class Stopwatch(TrainerCallback):
    """Processor time since the second step began: the first warms up."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            self.began = time.process_time()

    def seconds(self) -> float:
        return time.process_time() - self.began


class Probed(ConsultationTrainer):
    """Tells what each look at whether the images matter has cost."""

    def _note_image_effect(self, *args: Any) -> None:
        began = time.process_time()
        super()._note_image_effect(*args)
        self.probes = [*getattr(self, "probes", []), time.process_time() - began]


def plain_reward(prompts: list[Any], said: Said) -> Callable[..., list[float]]:
    """Format 0.5 and accuracy 1, as a script would have it; what the completions were is added to `said`."""

    def reward(
        completions: list[Any], completion_ids: list[list[int]], trace: list[int], answer: list[str], **_: Any
    ) -> list[float]:
        said.extend((prompts[i].case, tuple(ids)) for i, ids in zip(trace, completion_ids, strict=True))
        found = [ANSWER.fullmatch(completion[0]["content"]) for completion in completions]
        return [0.5 + (match[1] == key) if match else 0.0 for match, key in zip(found, answer, strict=True)]

    return reward


def settings_of(folder: Path, steps: int, batch: int) -> GRPOConfig:
    """The clinic's settings, without a checkpoint on the way, and with weights that stay as they are."""
    flags = ["--learning_rate=0", "--save_strategy=no", f"--per_device_train_batch_size={batch}"]
    stage = Stage("1-mixed", steps, 1e-3, {})
    return stage_settings(COMMAND, flags, stage, folder)


def run(ours: bool, prompts: list[Any], rollout: Rollout, stage: Stage, folder: Path, batch: int) -> tuple[float, Said]:
    """The seconds of a step of a training run, and what was said in it."""
    stopwatch, said = Stopwatch(), Said()
    environment = Environment(
        stage, prompts, rollout, COMMAND.recipe().gradings(16), Rollouts(folder / "rollouts"), folder
    )
    shared = {
        "model": folder_of("clinic:base"),
        "args": settings_of(folder, stage.steps, batch),
        "processing_class": load_processor("clinic:base"),
    }
    if ours:
        callbacks = [stopwatch, StageProgress(folder / "metrics.jsonl", stage.name)]
        trainer = Probed(environment=environment, callbacks=callbacks, **shared)
    else:
        dataset = environment.dataset().add_column("answer", [trace.answer for trace in prompts])
        rewards = plain_reward(prompts, said)
        trainer = GRPOTrainer(reward_funcs=rewards, train_dataset=dataset, callbacks=[stopwatch], **shared)
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stderr(nowhere),
        contextlib.redirect_stdout(nowhere),
    ):
        trainer.train()
    if not ours:
        return stopwatch.seconds() / (stage.steps - 1), said
    environment.flush()
    environment.record.close(folder / "rollouts.parquet")
    timed = stopwatch.seconds() - sum(trainer.probes[1:])  # the first was in the step that is not counted
    said += [(trace.case, tuple(trace.completion_ids or ())) for trace in read_traces(folder / "rollouts.parquet")]
    return timed / (stage.steps - 1) + statistics.mean(trainer.probes) / SWAP_EVERY, said


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=8, help="how often each of the two takes its turn")
    parser.add_argument("--steps", type=int, default=11, help="optimizer steps a turn; the first is not counted")
    parser.add_argument("--batch", type=int, default=64, help="completions a step")
    parser.add_argument("--check", action="store_true", help=f"exit 1 above {LIMIT}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    stage = Stage("1-mixed", arguments.steps, 1e-3, {}, gammas=dict.fromkeys(TIERS, 1e-3))
    with tempfile.TemporaryDirectory() as folder:
        ratios, times = measure(stage, Path(folder), arguments)
    ratio = statistics.median(ratios)
    print(f"plain TRL {1000 * times[0]:.0f} ms a step, ours {1000 * times[1]:.0f} ms (medians of {len(ratios)} turns)")
    print(f"ratio {ratio:.3f} (turns: {min(ratios):.3f} to {max(ratios):.3f}); at most {LIMIT} is wanted")
    if arguments.check and ratio > LIMIT:
        sys.exit(1)


def measure(stage: Stage, folder: Path, arguments: argparse.Namespace) -> tuple[list[float], list[float]]:
    """The ratio of ours to plain TRL for each turn, and the median seconds of both."""
    images = ImageStore(folder / "images")
    rollout = Rollout(triage="clinic:base", specialists=panel(None, None, "clinic:base"), images=images)
    import asyncio

    cases = clinic_cohort(400, TRAIN, images).cases
    upstream = {"attending": asyncio.run(roll_upstream(rollout, cases))}
    prompts = draw_prompts(upstream, stage, prompts_of(stage, settings_of(folder, stage.steps, arguments.batch)), 0)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    said: dict[bool, Said] = {}
    for turn in tqdm(range(arguments.turns), "turns"):
        for ours in (False, True) if turn % 2 else (True, False):
            taken, said[ours] = run(ours, prompts, rollout, stage, folder / f"{turn}-{ours}", arguments.batch)
            seconds[ours].append(taken)
        if said[False] != said[True]:
            raise RuntimeError("the two did not write the same completions: their times cannot be compared")
    ratios = [ours / plain for plain, ours in zip(seconds[False], seconds[True], strict=True)]
    return ratios, [statistics.median(seconds[False]), statistics.median(seconds[True])]


if __name__ == "__main__":
    main()
