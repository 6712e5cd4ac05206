"""Train the triage doctor: by the paper's label reward, and if one likes by what becomes of the consultation.

    python -m rl.train_triage                                               # the clinic, on any two cores
    python -m rl.train_triage --outcome_weight 0.5                          # paid for the final answer, too
    python -m rl.train_triage --cases cases.jsonl --split train             # cases of one's own, with `specialty`
    python -m rl.train_triage --resume                                      # go on with the last run

The reward is format 0.5 + specialty 1.0 (MMedAgent-RL, section 3). With `--outcome_weight` the rest of the graph
answers for the chosen specialty, and its being right is part of the reward; what lies behind a referral is asked once
for each case and specialty. Writes `runs/<name>/`, as `rl.train_attending` does; `summary.json` has triage's accuracy
and confusion matrix, before and after.
"""

from collections.abc import Sequence
from typing import Any

from trl import GRPOConfig

from rl.recipe import Recipe
from rl.settings import CONFIGS, Command
from rl.train import train

COMMAND = Command("rl.train_triage", CONFIGS / "clinic_triage.yaml", Recipe, GRPOConfig)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line; returns the summary."""
    return train(COMMAND, arguments)


if __name__ == "__main__":
    main()
