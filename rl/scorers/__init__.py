"""Scorers as published, beside the strict reader: the same outputs, counted as other toolkits would count them.

    SCORERS["medevalkit"](text, options, key)        # whether it counts a model's raw output as right
    disagreements(outputs)                           # each scorer's accuracy, and where it differs from `strict`
    python -m rl.scorers runs/latest                 # the same on stored traces

For comparison only: nothing is rewarded, trained or reported as our accuracy by any of them but `strict`. They are
written anew from what the toolkits do; faults that published numbers have are kept, and named where they are. A toolkit
whose rule for a benchmark is not reproduced has no verdict there, and a "-" in the tables.

Open questions have figures instead (`open_figures`), and a judge: the grader `rl.judge.judge_of`.
"""

from rl.scorers.open_answers import open_figures
from rl.scorers.reading import Scorer
from rl.scorers.table import RULES, SCORERS, Disagreement, Output, disagreements

__all__ = ["RULES", "SCORERS", "Disagreement", "Output", "Scorer", "disagreements", "open_figures"]
