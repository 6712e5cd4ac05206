"""One stage of the curriculum: a GRPO run in an environment, from one model folder to the next.

Invariant: a stage is a function of its start folder, its prompts and its settings. Killed inside, it goes on from its
last checkpoint; finished, its model folder is complete (it is renamed into place).
"""

import gc
import json
import shutil
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import PrinterCallback, ProgressCallback
from trl import GRPOConfig

from rl.environment import Environment
from rl.models import Start, load_processor
from rl.trainer import ConsultationTrainer, SharedVLLM
from rl.watch import StageProgress, tensorboard_in


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end: its last file is the trainer's state."""
    whole = [path for path in folder.glob("checkpoint-*") if _is_json(path / "trainer_state.json")]
    return max(whole, key=step_of, default=None)


def step_of(checkpoint: Path | None) -> int:
    """The optimizer steps that a checkpoint has done; 0 without one."""
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0


def _is_json(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_text()))
    except (OSError, ValueError):
        return False


def forget_log_after(metrics: Path, step: int) -> None:
    """Drop the logged lines beyond a checkpoint's step: the resumed run will write them again."""
    if metrics.exists():
        lines = metrics.read_text().splitlines(keepends=True)
        metrics.write_text("".join(line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step))


def train_stage(environment: Environment, start: Start, out: Path, settings: GRPOConfig) -> None:
    """Train one stage.

    Args:
        environment: its prompts, and where their completions go.
        start: the policy to start from; also the reference of the KL term.
        out: folder of the stage: `model/` when it is finished, and what it needs while it runs.
        settings: GRPO's, for this stage.
    """
    state = PartialState()
    last = last_checkpoint(out / "checkpoints")
    state.wait_for_everyone()  # all have seen the same checkpoint before any can write the next
    if state.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        forget_log_after(out / "metrics.jsonl", step_of(last))
    environment.forget_after(step_of(last))
    state.wait_for_everyone()
    model, peft_config = start.trainable(settings)
    with tensorboard_in(out / "tensorboard"):
        trainer = ConsultationTrainer(
            environment=environment,
            model=model,
            peft_config=peft_config,
            args=settings,
            processing_class=load_processor(start.name),
            callbacks=[StageProgress(out / "metrics.jsonl", environment.stage.name)],
            freeze_vision=start.freeze_vision,
        )
    for callback in (ProgressCallback, PrinterCallback):  # one bar is enough
        trainer.remove_callback(callback)
    try:
        trainer.train(resume_from_checkpoint=str(last) if last else None)
        environment.flush()
    finally:  # also of one that is interrupted
        environment.record.flush()
    unfinished = out / "model.part"
    trainer.save_model(str(unfinished))
    state.wait_for_everyone()
    del trainer  # its weights and optimizer make room for the next stage's
    SharedVLLM.let_go()
    gc.collect()
    torch.cuda.empty_cache()
    if state.is_main_process:
        shutil.rmtree(unfinished / "ref", ignore_errors=True)  # TRL's copy of the adapter that the stage began with
        unfinished.rename(out / "model")
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
    state.wait_for_everyone()
