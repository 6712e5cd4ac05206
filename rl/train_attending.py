"""Train the attending physician, alone or together with triage: roll out, stratify, stages of GRPO, measure.

    python -m rl.train_attending                                            # the clinic, on any two cores
    python -m rl.train_attending --nodes triage attending                   # one policy in both roles
    python -m rl.train_attending --cases cases.jsonl --split train          # cases of one's own
    python -m rl.train_attending --cases faint --specialists runs/specialists     # beside a hospital's specialists
    python -m rl.train_attending --config rl/configs/one_24gb.yaml --cases ...    # a real model, on a GPU
    python -m rl.train_attending --resume                                   # go on with the last run

Writes `runs/<name>/`: `summary.json`, `metrics.jsonl`, `curves.png`, `model/`, and the traces (`upstream-*.parquet`,
`before.parquet`, `after.parquet`, `stages/*/rollouts.parquet`). Any field of `rl.recipe.Recipe` and of TRL's
`GRPOConfig` and `ModelConfig` is a flag.
"""

from collections.abc import Sequence
from typing import Any

from trl import GRPOConfig

from rl.recipe import Recipe
from rl.settings import CONFIGS, Command
from rl.train import train

COMMAND = Command("rl.train_attending", CONFIGS / "clinic.yaml", Recipe, GRPOConfig)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line; returns the summary."""
    return train(COMMAND, arguments)


if __name__ == "__main__":
    main()
