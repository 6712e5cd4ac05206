"""Where the scorers disagree on the same outputs, as Markdown tables."""

import dataclasses
from collections.abc import Iterable, Sequence
from statistics import fmean

from mmedagent_graph.answers import read_answer
from rl.printed import markdown
from rl.scorers.lmms_eval import lmms_eval_medevalkit, lmms_eval_mmmu
from rl.scorers.medevalkit import medevalkit, medevalkit_choice
from rl.scorers.medvlthinker import medvlthinker, medvlthinker_regrade
from rl.scorers.open_answers import open_figures
from rl.scorers.reading import Scorer, place
from rl.scorers.vlmevalkit import vlmevalkit
from rl.traces import Trace

EXAMPLES = 3
"""Ids that are named for each difference."""
MARKS = {True: "✓", False: "", None: "-"}
"""Of verdicts."""
SHOWN = 300
"""Characters of a text, from its end, where the answer stands."""


def strict(text: str, options: Sequence[str], key: str) -> bool:
    """Ours, by which rewards and evaluation count: `mmedagent_graph.answers.read_answer`."""
    return read_answer(text, options) == place(options, key)


SCORERS: dict[str, Scorer] = {
    "strict": strict,
    "medvlthinker": medvlthinker,
    "medvlthinker_regrade": medvlthinker_regrade,
    "medevalkit": medevalkit,
    "vlmevalkit": vlmevalkit,
    "lmms_eval_mmmu": lmms_eval_mmmu,
    "lmms_eval_medevalkit": lmms_eval_medevalkit,
}
"""By name. Each is a pure function of text, options and key."""
RULES: dict[tuple[str, str], Scorer | None] = {
    ("medevalkit", "omnimedvqa"): medevalkit_choice,
    ("medevalkit", "slake"): None,
    ("medevalkit", "mmmu_medical"): None,
    ("lmms_eval_medevalkit", "slake"): None,
    ("lmms_eval_medevalkit", "omnimedvqa"): None,
    ("lmms_eval_medevalkit", "mmmu_medical"): None,
    ("lmms_eval_medevalkit", "medxpertqa"): None,
}
"""The rule of a scorer for a benchmark, where the options do not tell it. None: it is not reproduced, or there is none:
a number would have the toolkit's name, but not be its count."""


@dataclasses.dataclass(frozen=True)
class Output:
    """What a model said to a question with options."""

    id: str
    text: str
    """As the model wrote it."""
    options: Sequence[str]
    key: str
    """The right option's text."""
    benchmark: str | None = None
    """Of whose questions it is one; None: of none that is known, and options alone choose the rule."""


@dataclasses.dataclass(frozen=True)
class Disagreement:
    """How a scorer counts, beside the strict one."""

    scorer: str
    right: int
    n: int
    """Outputs on which it has a verdict."""
    gained: list[str]
    """Ids of the outputs that it counts as right, and `strict` does not."""
    lost: list[str]
    """Ids of those that `strict` counts as right, and it does not."""


def disagreements(outputs: Iterable[Output]) -> list[Disagreement]:
    """Each scorer's count, and where it differs from `strict`."""
    outputs = list(outputs)
    counted = [verdicts(output) for output in outputs]
    pairs = list(zip((output.id for output in outputs), counted, strict=True))
    return [
        Disagreement(
            scorer=name,
            right=sum(verdict[name] is True for verdict in counted),
            n=sum(verdict[name] is not None for verdict in counted),
            gained=[id for id, verdict in pairs if verdict[name] and not verdict["strict"]],
            lost=[id for id, verdict in pairs if verdict["strict"] and verdict[name] is False],
        )
        for name in SCORERS
    ]


def verdicts(output: Output) -> dict[str, bool | None]:
    """Whether each scorer counts an output as right; None where it has no verdict on its benchmark."""
    rules = {name: RULES.get((name, output.benchmark or ""), scorer) for name, scorer in SCORERS.items()}
    return {name: rule and rule(output.text, output.options, output.key) for name, rule in rules.items()}


def closed_outputs(traces: Iterable[Trace]) -> list[Output]:
    """What was decided on questions with options and a key, as the attending, or who stands in its place, wrote it."""
    return [
        Output(trace.case, trace.text, trace.options, trace.answer, trace.groups.get("benchmark"))
        for trace in traces
        if trace.node != "triage" and trace.options and trace.text is not None and trace.answer is not None
    ]


def open_decisions(traces: Iterable[Trace]) -> list[Trace]:
    """The consultations on open questions with a key that ended in a decision."""
    return [
        trace
        for trace in traces
        if trace.node != "triage" and not trace.options and trace.decision is not None and trace.answer is not None
    ]


def disagreement_table(outputs: Sequence[Output]) -> str:
    """A row for each scorer: accuracy, and how many outputs it counts otherwise than `strict`, some of them by id."""
    rows = [
        (row.scorer, _accuracy(row, len(outputs)), _some(row.gained), _some(row.lost)) for row in disagreements(outputs)
    ]
    return markdown(
        ("scorer", f"accuracy, % (n={len(outputs)})", "right by it, wrong by strict", "wrong by it, right by strict"),
        rows,
    )


def output_table(outputs: Iterable[Output]) -> str:
    """A row for each output, with what every scorer makes of it."""
    rows = [
        (output.id, output.key, *(MARKS[hit] for hit in verdicts(output).values()), _shown(output.text))
        for output in outputs
    ]
    return markdown(("id", "key", *SCORERS, "output"), rows)


def open_table(opened: Sequence[Trace], verdicts: Sequence[float | None] | None = None) -> str:
    """The mean of each figure of open answers; one that could not be read is empty.

    Args:
        opened: as `open_decisions`.
        verdicts: a judge's on each; None: it gave none.
    """
    figures = [open_figures(trace.decided or "", str(trace.answer)) for trace in opened]
    rows = [(name, f"{fmean(figure[name] for figure in figures):.3f}") for name in figures[0]]
    told = [verdict for verdict in verdicts or [] if verdict is not None]
    if told:
        rows.append((f"judge (n={len(told)})", f"{fmean(told):.3f}"))
    return markdown(("open answers", f"mean (n={len(opened)})"), rows)


def _accuracy(row: Disagreement, outputs: int) -> str:
    if not row.n:
        return "-"
    return f"{100 * row.right / row.n:.1f}" + (f" (n={row.n})" if row.n < outputs else "")


def _some(ids: Sequence[str]) -> str:
    named = ", ".join(ids[:EXAMPLES]) + (", ..." if len(ids) > EXAMPLES else "")
    return f"{len(ids)} ({named})" if ids else "0"


def _shown(text: str) -> str:
    """A text in one line, as code, its end if it is long."""
    tail = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text[-SHOWN:])
    tail = ("..." if len(text) > SHOWN else "") + tail.replace("`", "'")
    return f"`{tail}`" if tail else ""
