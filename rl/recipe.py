"""A training recipe: what a run of `rl.train_attending` is made of, read from YAML and flags by TRL's parser.

Invariant: what cannot work is refused here, when the settings are read, and not an hour later.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from trl import GRPOConfig, ModelConfig, TrlParser

from rl.curriculum import TIERS, Stage
from rl.models import model_string

SEEDS = 10_000
"""Seeds lie below it: `rl.cohort` and `rl.clinic.build` keep their draws of cases that far apart."""
CONFIGS = Path(__file__).parent / "configs"
DEFAULT = CONFIGS / "clinic.yaml"


def _setting(default: Any, text: str) -> Any:
    """A field of the recipe with what `--help` says of it."""
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata={"help": text})
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass
class Recipe:
    """What is particular to training on consultations; everything else is a field of TRL's `GRPOConfig`."""

    model: str = _setting("clinic:base", "The policy: `clinic:base`, a folder or a hub id.")
    triage: str | None = _setting(
        None, "Model string of the frozen triage doctor. Default: clinic:base for the clinic's cases, else the policy."
    )
    specialists: list[str] = _setting(
        [],
        "Model strings of the frozen specialists, one for each doctor. Default: the clinic's doctors for the clinic's "
        "cases, and three samples of the policy for cases of one's own.",
    )
    cases: str | None = _setting(None, "JSONL file of cases; default: the clinic's own.")
    split: str | None = _setting(None, "Rows of `cases` to train on, by their `split`.")
    eval_split: str | None = _setting(
        None, "Rows of `cases` to measure on. Default: `holdout` of the training rows, held out by image."
    )
    holdout: float = _setting(0.1, "Share of the training rows held out for measuring.")
    free_text: str = _setting("skip", "Rows without options: `skip` them, or grade them by `exact_match`.")
    train_size: int = _setting(2000, "Clinic cases to train on.")
    eval_size: int = _setting(1000, "Clinic cases to measure on.")
    stages: list[str] = _setting(list(TIERS), "The stages in their order, each named by its main tier.")
    stage_steps: list[int] = _setting([100, 100, 100], "Optimizer steps of each stage.")
    gammas: list[float] = _setting(
        [1e-4, 5e-3, 3e-2], "Entropy weight of easy, medium and hard cases (paper: 1e-4, 5e-3, 3e-2)."
    )
    betas: list[float] = _setting([1e-3, 4e-3, 1e-2], "KL weight of each stage (paper: 1e-3, 4e-3, 1e-2).")
    rehearsal: list[float] = _setting(
        [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
        "Shares of easy, medium and hard cases in each stage, three numbers a stage (paper: pure stages).",
    )
    runs: str = _setting("runs", "Folder of all runs.")
    name: str | None = _setting(None, "The run's folder. Default: made of recipe and seed.")
    resume: bool = _setting(False, "Go on with the run of this name (or the latest).")
    accelerate: str | None = _setting(
        None, "Accelerate's file for this recipe's processes, beside the recipe. Default: one process."
    )
    gpu_memory: int | None = _setting(None, "GiB of each GPU that the recipe is made for; the dry run compares.")

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        known = ", ".join(TIERS)
        if not self.stages:
            raise ValueError(f"stages: none is given; name at least one of {known}")
        for stage in self.stages:
            if stage not in TIERS:
                raise ValueError(f"stages: {stage!r} is unknown; stages are named by their main tier: {known}")
        for field, each in (("stage_steps", 1), ("betas", 1), ("rehearsal", 3)):
            given = len(getattr(self, field))
            if given != each * len(self.stages):
                raise ValueError(f"{field}: {given} values for {len(self.stages)} stages; give {each} for each stage")
        if not all(beta >= 0 for beta in self.betas):
            raise ValueError(f"betas: {self.betas}; a KL weight is 0 or more")
        if min(self.stage_steps) < 0 or not sum(self.stage_steps):
            raise ValueError(f"stage_steps: {self.stage_steps}; steps are 0 or more, with at least one in all")
        if len(self.gammas) != len(TIERS) or not all(gamma >= 0 for gamma in self.gammas):
            raise ValueError(f"gammas: {self.gammas}; give one weight, 0 or more, for each of {known}")
        shares = [self.rehearsal[i : i + 3] for i in range(0, len(self.rehearsal), 3)]
        if min(self.rehearsal) < 0 or any(sum(stage) <= 0 for stage in shares):
            raise ValueError(f"rehearsal: {self.rehearsal}; shares are 0 or more, with a positive sum in each stage")
        if self.free_text not in ("skip", "exact_match"):
            raise ValueError(f"free_text: {self.free_text!r} is unknown; choose skip or exact_match")
        if not 0 < self.holdout < 1:
            raise ValueError(f"holdout: {self.holdout} is not a share between 0 and 1")
        for field in ("split", "eval_split"):
            if self.cases is None and (value := getattr(self, field)):
                raise ValueError(f"{field}: {value!r}, but the clinic's cases have no splits; give --cases FILE.jsonl")
        for field in ("train_size", "eval_size"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}: {getattr(self, field)} is not a number of cases; give 1 or more")

    def curriculum(self, max_steps: int) -> list[Stage]:
        """The stages. `max_steps` above 0 caps their sum, each stage keeping its share of the steps."""
        total = sum(self.stage_steps)
        steps = self.stage_steps
        if 0 < max_steps < total:
            ends = [round(sum(self.stage_steps[: i + 1]) * max_steps / total) for i in range(len(self.stages))]
            steps = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        return [
            Stage(f"{i + 1}-{tier}", steps[i], self.betas[i], dict(zip(TIERS, self.rehearsal[3 * i :], strict=False)))
            for i, tier in enumerate(self.stages)
            if steps[i] > 0
        ]


def read_recipe(arguments: Sequence[str]) -> tuple[Recipe, GRPOConfig]:
    """Recipe and GRPO settings from `--config FILE.yaml` (default: the clinic's recipe) and flags.

    Raises:
        ValueError: naming the field, its value and the valid choices.
    """
    config = _config(arguments)
    if not config.is_file():
        known = ", ".join(sorted(path.name for path in CONFIGS.glob("*.yaml")))
        raise ValueError(f"config: no file {str(config)!r}; recipes in {CONFIGS} are {known}")
    recipe, settings = _parse(arguments)
    if not 0 <= settings.seed < SEEDS:
        raise ValueError(f"seed: {settings.seed}; give 0 to {SEEDS - 1}, or draws of the clinic's cases would overlap")
    for field, ours in (("beta", "betas"), ("entropy_coef", "gammas"), ("use_adaptive_entropy", "gammas")):
        if value := getattr(settings, field, 0):
            raise ValueError(f"{field}: {value} would be overridden in every stage; set {ours} instead")
    return recipe, settings


def frozen_triage(recipe: Recipe) -> str:
    """Model string of the frozen triage doctor."""
    return recipe.triage or ("clinic:base" if recipe.cases is None else model_string(recipe.model))


def recipe_name(arguments: Sequence[str]) -> str:
    """The recipe file's name, without its ending."""
    return _config(arguments).stem


def stage_settings(arguments: Sequence[str], stage: Stage, out: Path) -> GRPOConfig:
    """The run's GRPO settings for one stage, whose cases have an order of their own that TRL must not shuffle."""
    own = {"beta": stage.beta, "max_steps": stage.steps, "shuffle_dataset": False, "output_dir": out / "checkpoints"}
    flags = [f"--{name}={value}" for name, value in own.items()]
    return _parse([*arguments, *flags])[1]


def _config(arguments: Sequence[str]) -> Path:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", type=Path, default=DEFAULT)
    try:
        return cast(Path, parser.parse_known_args(arguments)[0].config)
    except argparse.ArgumentError as error:
        raise ValueError(f"config: {error}; give a YAML file") from error


def _parse(arguments: Sequence[str]) -> tuple[Recipe, GRPOConfig]:
    others = [argument for argument in arguments if not argument.startswith("--config=")]
    given = [] if "--config" in others else ["--config", str(_config(arguments))]
    recipe, settings, _ = TrlParser((Recipe, GRPOConfig, ModelConfig)).parse_args_and_config([*given, *others])
    return recipe, settings
