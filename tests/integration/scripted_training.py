"""Both nodes' training, as `rl.train_attending`, for several processes: scripted, or killed at a point.

    python -m tests.integration.scripted_training [--flags of rl.train_attending]

`SCRIPTED=1`: completions are a function of the prompt and of their number in the group, so that they do not depend on
how many processes there are. `KILLED=method:stage:step:rank`: that process is killed as it enters the trainer's method.
"""

import hashlib
import os
import signal
import sys
from typing import Any

from rl.train_attending import main
from rl.trainer import ConsultationTrainer

ANSWERS = ("cyst", "nodule", "normal", "Surgeon", "Radiologist", "Pathologist")


def scripted(
    self: Any, prompt_ids: list[list[int]], images: Any, fields: Any, num_generations: int, *_: Any
) -> tuple[list[list[int]], None]:
    """Stands for `_generate_single_turn`."""
    tokenizer = self._tokenizer
    first = self.accelerator.process_index * len(prompt_ids)  # a group's rows stand in a row, over all processes
    said = []
    for row, ids in enumerate(prompt_ids, first):
        digest = hashlib.sha256(f"{ids} {row % num_generations}".encode()).digest()
        answer = f"<think></think><answer>{ANSWERS[digest[0] % len(ANSWERS)]}</answer>"
        said.append([*tokenizer(answer)["input_ids"], tokenizer.eos_token_id])
    return said, None


def killed(method: str, stage: str, step: str, rank: str) -> None:
    """Let a process die there."""
    plain = getattr(ConsultationTrainer, method)

    def dying(self: Any, *args: Any, **kwargs: Any) -> Any:
        here = (self.environment.stage.name, str(self.state.global_step), str(self.accelerator.process_index))
        if here == (stage, step, rank):
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, *args, **kwargs)

    setattr(ConsultationTrainer, method, dying)


if __name__ == "__main__":
    if os.environ.get("SCRIPTED"):
        ConsultationTrainer._generate_single_turn = scripted
    if where := os.environ.get("KILLED"):
        killed(*where.split(":"))
    main(sys.argv[1:])
