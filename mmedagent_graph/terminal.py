"""A consultation on a terminal: what happens is printed as it happens, in two columns, and a reviewer is asked.

Invariant: what a model said can only be text here; no control character of it reaches the terminal.
"""

import os
import re
import shutil
import textwrap
from collections.abc import Mapping
from typing import TextIO

from mmedagent_graph.answers import letter, read_answer, read_name
from mmedagent_graph.events import Event
from mmedagent_graph.review import ReviewRequest
from mmedagent_graph.state import Decision, NodeUsage

LABEL = 12
"""Width of the left column."""
WIDEST = 110
"""Longer lines are hard to read, however wide the terminal is."""
STYLES = {"bold": "1", "dim": "2", "good": "1;32", "bad": "31"}
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Those of a terminal, and those that turn the direction of writing around."""


class Terminal:
    """Where a consultation is shown. Colours only if it is a terminal, and `NO_COLOR` is not set.

    Args:
        out: the stream to print to.
    """

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self.colours = out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def show(self, event: Event) -> None:
        """Print what has happened."""
        match event["event"]:
            case "referral":
                by = "" if event["by"] == "triage" else f" (asked for by the {_WHO[event['by']]})"
                specialty = event["referral"]["specialty"]
                self._say("referral", f"{specialty}{by}" if specialty else "unreadable: no specialist is heard")
                self._say("", event["referral"]["reasoning"], "dim")
            case "opinion":
                opinion = event["opinion"]
                self._answer(f"doctor {event['doctor']}", opinion["answer"], opinion["error"])
                self._say("", opinion["reasoning"], "dim")
            case "vote":
                vote = event["vote"]
                wish = f"refer to {vote['refer']}" if vote["refer"] else vote["answer"]
                self._answer(f"vote {vote['vote']}", wish, vote["error"])
            case "votes":
                tally = ", ".join(f"{count['answer']} {count['votes']}" for count in event["tally"]) or "none readable"
                self._say("votes", f"{tally} ({event['cast']} of at most {event['budget']})")
            case "decision":
                self._decided(event["decision"])

    def spent(self, usage: Mapping[str, NodeUsage]) -> None:
        """Print what it cost, all nodes together."""
        calls, cached, asked, said = (
            sum(node[part] for node in usage.values()) for part in ("calls", "cached", "input_tokens", "output_tokens")
        )
        kept = f", {cached} answers from the cache" if cached else ""
        self._say("usage", f"{calls} model calls, {asked} tokens in, {said} out{kept}", "dim")

    def ask(self, request: ReviewRequest) -> dict[str, str]:
        """Ask the reviewer; whether the answer can be used is for the graph to say.

        Raises:
            EOFError: if there is no answer.
        """
        if request["error"]:
            self._say("", request["error"], "bad")
        typed = self._asked("review", "approve, change or hear (a specialist)? ").lower()
        action = next((action for action in request["actions"] if typed and action.startswith(typed)), typed)
        if action == "change":
            options = request["case"]["options"]
            for i, option in enumerate(options):
                self._say("", f"{letter(i)}. {option}")
            answer = self._asked("", "answer: ")
            if options and (index := read_answer(answer, options)) is not None:
                answer = options[index]
            return {"action": action, "answer": answer, "reasoning": self._asked("", "reasoning: ")}
        if action == "hear":
            specialties = request["specialties"]
            self._say("", ", ".join(specialties))
            specialty = self._asked("", "specialty: ")
            index = read_name(specialty, specialties)
            return {"action": action, "specialty": specialty if index is None else specialties[index]}
        return {"action": action}

    def _asked(self, label: str, question: str) -> str:
        return input(f"{label:{LABEL}}{question}").strip()

    def _decided(self, decision: Decision) -> None:
        if decision["review"]:
            self._say("review", decision["review"])
        if decision["review"] == "approved":
            return
        if decision["answer"] is not None:
            self._say("decision", decision["answer"], "good")
        else:
            why = "the majority is too weak" if decision["abstained"] else "the answer could not be read"
            self._say("decision", f"none: {why}, a human must decide", "bad")
        self._say("", decision["reasoning"], "dim")
        if decision["agreement"] is not None:
            self._say("agreement", f"{decision['agreement']:.0%} of {decision['opinions']} readable opinions")
        if decision["confidence"] is not None:
            self._say("confidence", f"{decision['confidence']:.0%} of {decision['votes']} votes")

    def _answer(self, label: str, answer: str | None, error: str | None) -> None:
        if error:
            self._say(label, f"failed: {error}", "bad")
        else:
            self._say(label, "unreadable" if answer is None else answer, "bad" if answer is None else "bold")

    def _say(self, label: str, text: str, style: str = "") -> None:
        """One entry: its label, and its text, wrapped, in the right column; of a text without a word, nothing."""
        width = min(shutil.get_terminal_size().columns, WIDEST) - LABEL
        lines = [part for line in clean(text).splitlines() for part in textwrap.wrap(line, max(20, width))]
        for i, line in enumerate(lines):
            painted = f"\x1b[{STYLES[style]}m{line}\x1b[0m" if style and self.colours else line
            print(f"{'' if i else label:{LABEL}}{painted}", file=self.out, flush=True)


_WHO = {"attending": "attending", "review": "reviewer"}


def clean(text: str) -> str:
    """A text without control characters, but for line breaks and tabs."""
    return CONTROLS.sub("", text.replace("\r\n", "\n"))
