"""Watching a stage: its bar, its log, and warnings in plain words when training goes wrong.

Invariant: a warning says what was measured, what it means and what can be done; each comes once a stage.
"""

import contextlib
import json
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm
from transformers import TrainerCallback

SHOWN = {
    "reward": "reward",
    "accuracy": "rewards/accuracy",
    "specialty": "rewards/specialty",
    "entropy": "entropy",
    "unparsed": "unparsed",
    "loss": "loss",
    "token_accuracy": "mean_token_accuracy",
}
"""What the progress bar shows, by the trainer's names."""
BOARD = "TENSORBOARD_LOGGING_DIR"
WINDOW = 20
"""Logged steps that a warning looks back on, where a stage has enough: at most a quarter of them."""
LOST, CUT, UNREAD = 0.9, 0.2, 0.5
"""Shares above which groups without variance, truncated completions and unreadable answers are warned of."""
COLLAPSED, EXPLODED = 0.1, 3.0
"""Factors on the stage's first entropy below and above which it is warned of, with the least nats that count."""
LEAST_ENTROPY, MOST_ENTROPY = 0.005, 0.5
UNSEEN = 1e-4
"""Mean change of a token's log-probability, in nats, below which the images do not matter."""


@contextlib.contextmanager
def tensorboard_in(folder: Path) -> Iterator[None]:
    """Trainers that are made here write for TensorBoard (`--report_to tensorboard`) into a folder.

    By itself it would lie with the checkpoints, which are deleted in the end. Who has named a folder is left to it.
    """
    named = os.environ.get(BOARD)
    os.environ[BOARD] = named or str(folder)
    try:
        yield
    finally:
        os.environ.pop(BOARD)
        if named:
            os.environ[BOARD] = named


class StageProgress(TrainerCallback):  # type: ignore[misc]
    """A progress bar with the figures that matter, every logged figure in `metrics.jsonl`, and warnings.

    Args:
        path: the log, a JSON object a line.
        stage: the stage's name.
    """

    def __init__(self, path: Path, stage: str) -> None:
        self.path, self.stage = path, stage
        self.bar: tqdm[NoReturn] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar, and know what was logged, where a resumed stage left off."""
        if state.is_world_process_zero:
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=f"stage {self.stage}", unit="step")
            self.warnings = Warnings(self.stage, max(1, min(WINDOW, int(state.max_steps / state.logging_steps / 4))))
            for line in self.path.read_text().splitlines() if self.path.exists() else ():
                self.warnings.look(json.loads(line))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One step more."""
        if self.bar is not None:
            self.bar.update()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """One line for each logging step."""
        if self.bar is not None and logs and "loss" in logs and "train_runtime" not in logs:
            self.bar.set_postfix({name: f"{logs[key]:.3f}" for name, key in SHOWN.items() if logs.get(key) is not None})
            with self.path.open("a") as file:
                file.write(json.dumps({"stage": self.stage, "step": state.global_step, **logs}) + "\n")
            for warning in self.warnings.look(logs):
                tqdm.write(f"warning: step {state.global_step} of stage {warning}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()


class Warnings:
    """What a stage's log gives reason to warn of.

    Args:
        stage: the stage's name.
        window: logged steps to look back on.
    """

    def __init__(self, stage: str, window: int = WINDOW) -> None:
        self.stage = stage
        self._logs: deque[dict[str, Any]] = deque(maxlen=window)
        self._first_entropy: float | None = None
        self._said: set[str] = set()

    def look(self, logs: dict[str, Any]) -> list[str]:
        """Take a log; returns the warnings that it gives reason for, each once."""
        self._logs.append(logs)
        if self._first_entropy is None:
            self._first_entropy = logs.get("entropy")
        found = {
            "variance": self._no_variance(),
            "entropy": self._entropy(),
            "cut": self._above(
                "completions/clipped_ratio",
                CUT,
                "of the completions were cut off, and can hardly be right: raise --max_completion_length",
            ),
            "unread": self._above(
                "unparsed", UNREAD, "of the answers could not be read: does the policy know the format? (rl.train_sft)"
            ),
            "ungraded": self._above(
                "ungraded",
                0.0,
                "of the completions could not be graded, and teach nothing: see `rewards` in the traces",
            ),
            "images": self._images(),
        }
        fresh = {kind: text for kind, text in found.items() if text and kind not in self._said}
        self._said.update(fresh)
        return [f"{self.stage}: {text}" for text in fresh.values()]

    def _mean(self, name: str) -> float | None:
        values = [logs[name] for logs in self._logs if logs.get(name) is not None]
        return sum(values) / len(values) if values else None

    def _full(self) -> bool:
        return len(self._logs) == self._logs.maxlen

    def _above(self, name: str, limit: float, text: str) -> str | None:
        share = self._mean(name)
        return f"{share:.0%} {text}" if share is not None and share > limit else None

    def _no_variance(self) -> str | None:
        share = self._mean("no_variance")
        if share is None or share <= LOST or not self._full():
            return None
        kinds = {name.partition("/")[2] for logs in self._logs for name in logs if name.startswith("no_variance/")}
        shares = ", ".join(f"{kind} {self._mean(f'no_variance/{kind}'):.0%}" for kind in sorted(kinds))
        return (
            f"in {share:.0%} of the groups all completions got the same reward, so that they teach nothing ({shares}): "
            "raise the entropy weights or --temperature, take harder or easier cases, or more --num_generations"
        )

    def _entropy(self) -> str | None:
        now, first = self._mean("entropy"), self._first_entropy
        if now is None or not first or not self._full():
            return None
        if now < COLLAPSED * first and now < LEAST_ENTROPY:
            return (
                f"the policy's entropy has fallen from {first:.3f} to {now:.4f} nats a token: it hardly explores any "
                "more. Raise the entropy weights (--gammas) or --epsilon_high"
            )
        if now > EXPLODED * first and now > MOST_ENTROPY:
            return (
                f"the policy's entropy has risen from {first:.3f} to {now:.2f} nats a token: it is turning to noise. "
                "Lower the entropy weights (--gammas) or the learning rate, or raise --betas"
            )
        return None

    def _images(self) -> str | None:
        effect = self._mean("image_effect")
        if effect is None or effect >= UNSEEN:
            return None
        return (
            f"other images change a token's log-probability by {effect:.1e} nats only: the images do not matter to "
            "the policy. Are they in the prompt, and large enough?"
        )
