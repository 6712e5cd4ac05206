"""One stage of the curriculum: a GRPO run over upstream traces, from one model folder to the next.

Invariant: a stage is a function of its start folder, its cases and its settings. Killed inside, it goes on from its
last checkpoint; finished, its model folder is complete (it is renamed into place).
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from datasets import Dataset, Features, Image, List, Value
from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from trl import GRPOConfig

from rl.chat import to_chat
from rl.curriculum import TIERS, Stage
from rl.grading import grade
from rl.models import folder_of, load_processor
from rl.rollout import AttendingRollout
from rl.traces import Completion, Trace, append_completions, forget_after
from rl.trainer import GAMMA, StagedEntropyTrainer

SHOWN = {"reward": "reward", "accuracy": "rewards/accuracy", "entropy": "entropy", "unparsed": "unparsed"}
"""What the progress bar shows, by the trainer's names."""


def dataset_of(traces: Sequence[Trace], rollout: AttendingRollout, gammas: Mapping[str, float]) -> Dataset:
    """The rows that GRPO trains on: the node's whole prompt, its images, the sample's gamma, and which trace it is."""
    rows = {
        "prompt": [_text_turns(to_chat(rollout.prompt(trace))[0]) for trace in traces],
        "images": [[str(rollout.images.path(ref)) for ref in trace.images] for trace in traces],
        GAMMA: [gammas[str(trace.tier)] for trace in traces],
        "trace": list(range(len(traces))),
    }
    features = Features(
        {
            "prompt": List({"role": Value("string"), "content": Value("string")}),
            "images": List(Image()),
            GAMMA: Value("float32"),
            "trace": Value("int32"),
        }
    )
    return Dataset.from_dict(rows, features=features)


def _text_turns(chat: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Turns with text alone: TRL puts a row's images where our prompts have them, in front of the user's words."""
    texts = ["".join(block.get("text", "") for block in turn["content"]) for turn in chat]
    return [{"role": turn["role"], "content": text} for turn, text in zip(chat, texts, strict=True)]


def reward_of(traces: Sequence[Trace], rollout: AttendingRollout, record: Path) -> Callable[..., Any]:
    """TRL's reward function: each completion goes on through the graph, is graded as a whole trace, and recorded."""

    async def reward(
        completions: list[Any], trace: list[int], trainer_state: Any, log_metric: Callable[[str, float], None], **_: Any
    ) -> list[float]:
        texts = [completion[0]["content"] for completion in completions]
        finished = [grade(await rollout.finish(traces[i], text)) for i, text in zip(trace, texts, strict=True)]
        append_completions(record, (Completion.of(done, trainer_state.global_step + 1) for done in finished))
        for name in ("format", "accuracy"):
            log_metric(f"rewards/{name}", sum(done.rewards[name] for done in finished) / len(finished))
        unread = sum(done.decision is None or done.decision["answer"] is None for done in finished)
        log_metric("unparsed", unread / len(finished))
        return [sum(done.rewards.values()) for done in finished]

    return reward


class StageProgress(TrainerCallback):  # type: ignore[misc]
    """A progress bar with the figures that matter, and every logged figure in `metrics.jsonl`."""

    def __init__(self, path: Path, stage: str) -> None:
        self.path, self.stage = path, stage
        self.bar: tqdm[NoReturn] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar, where a resumed stage left off."""
        if state.is_world_process_zero:
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=f"stage {self.stage}", unit="step")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One step more."""
        if self.bar is not None:
            self.bar.update()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """One line for each logging step."""
        if self.bar is not None and logs and "reward" in logs and "train_runtime" not in logs:
            self.bar.set_postfix({name: f"{logs[key]:.3f}" for name, key in SHOWN.items() if key in logs})
            with self.path.open("a") as file:
                file.write(json.dumps({"stage": self.stage, "step": state.global_step, **logs}) + "\n")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end: its last file is the trainer's state."""
    whole = [path for path in folder.glob("checkpoint-*") if _is_json(path / "trainer_state.json")]
    return max(whole, key=_step_of, default=None)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _is_json(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_text()))
    except (OSError, ValueError):
        return False


def train_stage(
    stage: Stage,
    start: str,
    out: Path,
    traces: Sequence[Trace],
    rollout: AttendingRollout,
    settings: GRPOConfig,
    gammas: Sequence[float],
) -> None:
    """Train one stage.

    Args:
        stage: its name, steps, KL weight and shares.
        start: folder or hub id of the policy to start from; also the reference of the KL term.
        out: folder of the stage: `model/` when it is finished, `checkpoints/` and `completions.jsonl` while it runs.
        traces: the stage's upstream traces in training order, `steps` x prompts a step of them.
        rollout: what finishes a trace.
        settings: GRPO's, for this stage.
        gammas: entropy weight of easy, medium and hard cases.
    """
    checkpoints, record, metrics = out / "checkpoints", out / "completions.jsonl", out / "metrics.jsonl"
    last = last_checkpoint(checkpoints)
    step = _step_of(last) if last else 0
    out.mkdir(parents=True, exist_ok=True)
    forget_after(record, step)
    forget_after(metrics, step)
    trainer = StagedEntropyTrainer(
        model=folder_of(start),
        reward_funcs=reward_of(traces, rollout, record),
        args=settings,
        train_dataset=dataset_of(traces, rollout, dict(zip(TIERS, gammas, strict=True))),
        processing_class=load_processor(start),
        callbacks=[StageProgress(metrics, stage.name)],
    )
    for callback in (ProgressCallback, PrinterCallback):  # one bar is enough
        trainer.remove_callback(callback)
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    unfinished = out / "model.part"
    trainer.save_model(str(unfinished))
    unfinished.rename(out / "model")
    shutil.rmtree(checkpoints, ignore_errors=True)
