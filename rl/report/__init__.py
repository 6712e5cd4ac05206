"""One page of what was measured: the table in the papers' layout, plots, and a browser for traces.

Invariant: the page is one file that asks nobody for anything. What models said, and whatever else was not written here,
reaches it as text only: Jinja escapes it, the traces are JSON whose `<` is escaped, the script that shows them makes no
markup of them, and the page's own policy forbids every script, style and address but its own.
"""

from rl.report.page import Written, write_report
from rl.report.runs import Evaluation, Study, Training, read_runs, studies_of

__all__ = ["Evaluation", "Study", "Training", "Written", "read_runs", "studies_of", "write_report"]
