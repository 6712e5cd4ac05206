"""A stage of GRPO on the clinic's base, small enough for a test."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmedagent_graph.images import ImageStore
from rl.clinic.doctors import DOCTORS
from rl.curriculum import Stage, draw_prompts
from rl.environment import Environment
from rl.grading import PAPER, Grading
from rl.models import Start
from rl.recipe import prompts_of, stage_settings
from rl.rollout import Rollout
from rl.settings import read_settings
from rl.stage import train_stage
from rl.store import Rollouts
from rl.traces import Trace
from rl.train_attending import COMMAND
from rl.trainer import ConsultationTrainer

FLAGS = ["--per_device_train_batch_size=8", "--num_generations=4", "--logging_steps=1", "--save_steps=2"]
SHARES = {"easy": 1.0, "medium": 1.0, "hard": 1.0}
BOTH = {"triage": 1.0, "attending": 1.0}


def stage(
    steps: int = 1,
    beta: float = 0.0,
    nodes: Mapping[str, float] | None = None,
    gamma: float = 0.0,
    schedule: str = "constant",
) -> Stage:
    gammas = dict.fromkeys((*SHARES, "triage"), gamma)
    return Stage("1-easy", steps, beta, SHARES, nodes or {"attending": 1.0}, gammas, schedule)


def make_environment(
    stage: Stage,
    upstream: Mapping[str, Sequence[Trace]],
    images: ImageStore,
    out: Path,
    settings: Any,
    reroll: int = 0,
) -> Environment:
    prompts = draw_prompts(upstream, stage, prompts_of(stage, settings), seed=0)
    rollout = Rollout(specialists=DOCTORS, images=images)
    gradings = {node: Grading.parse(PAPER[node]) for node in stage.nodes}
    return Environment(stage, prompts, rollout, gradings, Rollouts(out / "rollouts"), out, reroll, 2)


class Runner:
    """Trains stages in a folder, each as a run would."""

    def __init__(self, upstream: Mapping[str, Sequence[Trace]], images: ImageStore) -> None:
        self.upstream, self.images = upstream, images

    def __call__(
        self,
        out: Path,
        stage: Stage,
        flags: Sequence[str] = (),
        reroll: int = 0,
        model: str = "clinic:base",
        freeze_vision: bool = False,
    ) -> Path:
        """Train a stage (or go on with it); returns its model's folder."""
        arguments = [*FLAGS, *flags]
        settings = stage_settings(COMMAND, arguments, stage, out)
        environment = make_environment(stage, self.upstream, self.images, out, settings, reroll)
        start = Start(model, read_settings(COMMAND, arguments).model, freeze_vision)
        train_stage(environment, start, out, settings)
        environment.record.close(out / "rollouts.parquet")
        return out / "model"


class Killed(BaseException):
    """What a killed process would not live to see."""


@contextmanager
def dying(method: str, when: Any, trainer: type = ConsultationTrainer) -> Iterator[None]:
    """Within it, the trainer dies as it enters `method`, once `when(trainer)` holds."""
    plain = getattr(trainer, method)

    def dies(self: Any, *args: Any, **kwargs: Any) -> Any:
        if when(self):
            raise Killed
        return plain(self, *args, **kwargs)

    hook = pytest.MonkeyPatch()
    hook.setattr(trainer, method, dies)
    try:
        with pytest.raises(Killed):
            yield
    finally:
        hook.undo()


def weights_of(model: Path | str) -> dict[str, torch.Tensor]:
    """What a folder's weight files hold."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(Path(model).glob("*.safetensors")):
        found |= load_file(file)
    return found


def assert_same_weights(one: Path, other: Path) -> None:
    """Bit for bit."""
    a, b = weights_of(one), weights_of(other)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
