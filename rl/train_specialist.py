"""Train one specialist by GRPO, and by guideline-based advantages where a guideline is given (MMedExpert-R1).

    python -m rl.train_specialist --specialty Dermatologist                 # the clinic's faint images
    python -m rl.train_specialist --specialty Dermatologist --model runs/derm/model --use_peft true   # after SFT
    python -m rl.train_specialist --guideline rl/guidelines/general.yaml --graders format=0.5 accuracy=1 checks=0.5
    python -m rl.train_specialist --cases cases.jsonl --split train --specialty Radiologist

It is asked as in a consultation, alone, and what it says is the decision. `rl.train_specialists` trains all of them.
Writes `runs/<name>/`, as `rl.train_attending` does.
"""

from collections.abc import Sequence
from typing import Any

from trl import GRPOConfig

from rl.recipe import Recipe
from rl.settings import CONFIGS, Command
from rl.train import train

COMMAND = Command("rl.train_specialist", CONFIGS / "clinic_specialist.yaml", Recipe, GRPOConfig)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line; returns the summary."""
    return train(COMMAND, arguments)


if __name__ == "__main__":
    main()
