"""The chart as HTML.

Invariant: whatever a model or a user said goes through `text`, and can only be text. So this file alone decides what
is markup.
"""

import base64
import html
import io
from collections.abc import Sequence

from mmedagent_graph.answers import same_text
from mmedagent_graph.app.chart import Chart, Hearing
from mmedagent_graph.images import ImageStore
from mmedagent_graph.state import Decision, Opinion, Vote, VoteCount
from mmedagent_graph.terminal import clean

PREVIEW = 640
"""Pixels of the longer side of a preview."""
ASKED_BY = {"attending": "The attending asks for one more", "review": "You ask for one more"}


def text(said: object) -> str:
    """What somebody said, as text in HTML: no markup, no control characters."""
    return html.escape(clean(str(said)))


def previews_html(refs: Sequence[str], store: ImageStore) -> str:
    """The images of a case as they are kept, as PNGs in the page itself: no file is served."""
    figures = [
        f'<figure><img alt="Image {i} of {len(refs)}" src="{_preview(ref, store)}">'
        f'<button type="button" data-ref="{text(ref)}" aria-label="Remove image {i}">×</button></figure>'
        for i, ref in enumerate(refs, 1)
    ]
    return f'<div class="previews{" one" if len(refs) == 1 else ""}">{"".join(figures)}</div>' if refs else ""


def notice_html(*said: str) -> str:
    """What is wrong with what was given; of nothing, nothing."""
    lines = "".join(f"<p>{text(line)}</p>" for line in said if line)
    return f'<div class="notice" role="alert">{lines}</div>' if lines else ""


def chart_html(chart: Chart) -> str:
    """The consultation so far."""
    parts = [_triage(chart), *(_hearing(hearing, chart) for hearing in chart.hearings), _attending(chart)]
    if chart.failure:
        parts.append(notice_html(chart.failure))
    shown = "".join(parts)
    return f'<div class="chart" aria-live="polite">{shown or EMPTY}</div>'


EMPTY = (
    '<div class="empty"><p>Triage chooses a specialty, three specialists answer independently, '
    "and the attending physician decides.</p><p>What they say appears here as they say it.</p></div>"
)


def _triage(chart: Chart) -> str:
    """Triage at work; its referral is shown with those whom it led to."""
    working = chart.at_work["triage"] and not chart.hearings
    return _section("Triage", '<p class="waiting">Reading the case</p>') if working else ""


def _hearing(hearing: Hearing, chart: Chart) -> str:
    """A referral, and the doctors it led to."""
    if hearing.specialty is None:
        referral = '<p class="referral">No specialty could be read, so the attending decides alone.</p>'
    else:
        referral = f'<p class="referral">{text(hearing.specialty)}</p>'
    referred = _section(ASKED_BY.get(hearing.by, "Triage refers to"), referral + _folded(hearing.reasoning))
    if not hearing.doctors:
        return referred
    rows = "".join(_doctor(number, hearing.doctors[number], chart) for number in sorted(hearing.doctors))
    answered = sum(opinion is not None for opinion in hearing.doctors.values())
    count = "" if answered == len(hearing.doctors) else f"{answered} of {len(hearing.doctors)}"
    return referred + _section("Specialists", f'<ul class="rows">{rows}</ul>', count)


def _doctor(number: int, opinion: Opinion | None, chart: Chart) -> str:
    who = f'<span class="who">Doctor {number}</span>'
    if opinion is None:
        return f'<li class="doctor pending">{who}<span class="waiting">Looking</span></li>'
    if opinion["error"]:
        why = _folded(opinion["error"], "Why")
        return f'<li class="doctor failed">{who}<span class="said">No opinion</span>{why}</li>'
    if opinion["answer"] is None:
        said, stands = "Unreadable", ""
    else:
        said, stands = opinion["answer"], _stands(opinion["answer"], chart.decision)
    state = "failed" if opinion["answer"] is None else "answered"
    return (
        f'<li class="doctor {state}">{who}<span class="said">{text(said)}</span>'
        f"{_folded(opinion['reasoning'])}{stands}</li>"  # what comes later stands last, or Gradio would redraw the rest
    )


def _stands(answer: str, decision: Decision | None) -> str:
    """How an opinion stands to the decision."""
    if decision is None or decision["answer"] is None:
        return ""
    agrees = same_text(answer, decision["answer"]) or answer == decision["answer"]
    return f'<span class="stands {"with" if agrees else "against"}">{"agrees" if agrees else "differs"}</span>'


def _attending(chart: Chart) -> str:
    """The votes and the decision, or that they are awaited."""
    if chart.decision:
        return _votes(chart) + _decision(chart, chart.decision)
    working = chart.at_work["attending"] + chart.at_work["vote"]
    if chart.votes or chart.budget > 1:
        return _votes(chart)
    return _section("Attending", '<p class="waiting">Weighing the opinions</p>') if working else ""


def _votes(chart: Chart) -> str:
    if max(chart.budget, len(chart.votes)) < 2:
        return ""
    cast = list(chart.votes.values())
    budget = max(chart.budget, len(cast))
    bars = "".join(_bar(said, votes, budget, kind) for said, votes, kind in _tally(cast))
    state = f"{len(cast)} of {budget}" if chart.decision is None else f"{len(cast)} cast"
    return _section("Votes of the attending", f'<ul class="bars">{bars}</ul>' if bars else "", state)


def _tally(cast: Sequence[Vote]) -> list[tuple[str, int, str]]:
    """What was voted for, how often, and of which kind it is: an answer, a referral, or nothing."""
    groups: list[tuple[str, int, str]] = []
    for vote in cast:
        if vote["answer"] is not None:
            said, kind = vote["answer"], "answer"
        elif vote["refer"]:
            said, kind = f"refer to {vote['refer']}", "refer"
        else:
            said, kind = ("failed" if vote["error"] else "unreadable"), "none"
        for i, (earlier, votes, same) in enumerate(groups):
            if kind == same and (said == earlier or same_text(said, earlier)):
                groups[i] = (earlier, votes + 1, kind)
                break
        else:
            groups.append((said, 1, kind))
    return sorted(groups, key=lambda group: (group[2] == "none", -group[1]))


def _bar(said: str, votes: int, budget: int, kind: str) -> str:
    share = 100 * votes / budget
    return (
        f'<li class="bar {kind}"><span class="said">{text(said)}</span><span class="count">{votes}</span>'
        f'<span class="track"><span style="width:{share:.1f}%"></span></span></li>'
    )


def _decision(chart: Chart, decision: Decision) -> str:
    if decision["answer"] is not None:
        answer = f'<p class="answer">{text(decision["answer"])}</p>'
    else:
        why = "The majority is too weak" if decision["abstained"] else "The answer could not be read"
        answer = f'<p class="answer none">No decision</p><p class="why">{why}: a human must decide.</p>'
    if decision["abstained"] and decision["tally"]:
        answer += f'<p class="why">{_strongest(decision["tally"][0], decision["votes"])}</p>'
    facts = "".join(
        f'<div><dt>{name}</dt><dd>{value}</dd><dd class="of">{of}</dd></div>' for name, value, of in _facts(decision)
    )
    state, kind = _released(chart, decision)
    return (
        f'<section class="decision {kind}"><header><h2>Decision</h2><span class="state">{state}</span></header>'
        f"{answer}{_folded(decision['reasoning'])}{f'<dl>{facts}</dl>' if facts else ''}</section>"
    )


def _strongest(count: VoteCount, votes: int) -> str:
    return f"Most voted for: {text(count['answer'])}, {count['votes']} of {votes}."


def _released(chart: Chart, decision: Decision) -> tuple[str, str]:
    """How far the decision has come, in words, and as a class."""
    if decision["review"]:
        return f"{decision['review']} by you", "released"
    return ("awaits your review", "proposed") if chart.request else ("", "released")


def _facts(decision: Decision) -> list[tuple[str, str, str]]:
    """What a reader should know before trusting a decision: name, value, and what it is made of."""
    facts = []
    if decision["confidence"] is not None:
        cast = f"{round(decision['confidence'] * decision['votes'])} of {decision['votes']} votes"
        facts.append(("Confidence", f"{decision['confidence']:.0%}", cast))
    if decision["agreement"] is not None and decision["answer"] is not None:
        heard = decision["opinions"]
        agree = round(decision["agreement"] * heard)
        facts.append(("Agreement", f"{agree} of {heard}", "specialists agree"))
    if decision["entropy"] is not None:
        facts.append(("Opinions", *_unity(decision["entropy"], decision["opinions"])))
    elif decision["opinions"] == 0:
        facts.append(("Opinions", "unheard", "no opinion could be read"))
    return facts


def _unity(entropy: float, heard: int) -> tuple[str, str]:
    """The entropy of the opinions, in words."""
    of = f"entropy {entropy:.2f} bits"
    if heard == 1:
        return "one heard", "nothing to compare"
    if entropy == 0:
        return "unanimous", of
    apart = heard > 2 and 2**entropy > heard - 0.001  # every opinion another answer
    return ("all different" if apart else "divided"), of


def _section(title: str, body: str, state: str = "") -> str:
    return f'<section><header><h2>{title}</h2><span class="state">{state}</span></header>{body}</section>'


def _folded(said: str, title: str = "Reasoning") -> str:
    """What somebody said at length, folded; of nothing, nothing."""
    said = said.strip()
    return f"<details><summary>{title}</summary><p>{text(said)}</p></details>" if said else ""


def _preview(ref: str, store: ImageStore) -> str:
    image = store.open(ref)
    image.thumbnail((PREVIEW, PREVIEW))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
