"""Train the attending physician, alone or together with triage: roll out, stratify, stages of GRPO, measure.

    python -m rl.train_attending                                            # the clinic, on any two cores
    python -m rl.train_attending --nodes triage attending                   # one policy in both roles
    python -m rl.train_attending --cases cases.jsonl --split train          # cases of one's own
    python -m rl.train_attending --config rl/configs/one_24gb.yaml --cases ...    # a real model, on a GPU
    python -m rl.train_attending --resume                                   # go on with the last run

Writes `runs/<name>/`: `summary.json`, `metrics.jsonl`, `curves.png`, `model/`, and the traces (`upstream-*.parquet`,
`before.parquet`, `after.parquet`, `stages/*/rollouts.parquet`). Any field of `rl.recipe.Recipe` and of TRL's
`GRPOConfig` and `ModelConfig` is a flag.
"""

import sys
from collections.abc import Sequence
from typing import Any

from trl import GRPOConfig

from rl.experiment import main as run
from rl.recipe import Recipe
from rl.settings import CONFIGS, Command
from rl.train import DRY_RUN, Training

COMMAND = Command("rl.train_attending", CONFIGS / "clinic.yaml", Recipe, GRPOConfig)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line; returns the summary."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if DRY_RUN in given:
        from rl.dry_run import show  # only then: it reads more of TRL, accelerate and peft than training does

        show(COMMAND, [argument for argument in given if argument != DRY_RUN])
        return {}
    return run(Training, COMMAND, given)


if __name__ == "__main__":
    main()
