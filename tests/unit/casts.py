"""The models of the baselines' tests: one fake that plays every role, by a script."""

import collections
from collections.abc import Callable, Sequence
from typing import Any

from fakes import FakeModel, words
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.messages import BaseMessage
from pydantic import Field

Line = Callable[[dict[str, Any]], str]
"""What is said, by the metadata of the call."""


class Cast(FakeModel):
    """Plays every role of a baseline: what it says depends on the node that asks."""

    answer: Callable[[Sequence[BaseMessage]], str] = str
    script: dict[str, Any]
    """By node: a text, or what makes one of the call's metadata."""
    calls: list[tuple[str, dict[str, Any], list[BaseMessage]]] = Field(default_factory=list)
    """Every call: its node, its metadata, its messages."""

    def _said(self, messages: list[BaseMessage], run_manager: CallbackManagerForLLMRun | None) -> str:
        told = dict(run_manager.metadata or {}) if run_manager else {}
        node = told["langgraph_node"]
        self.calls.append((node, told, messages))
        line = self.script[node]
        return line if isinstance(line, str) else line(told)

    def counted(self) -> dict[str, int]:
        """How often each node asked."""
        return dict(collections.Counter(node for node, _, _ in self.calls))

    def asked(self, node: str, **told: Any) -> list[str]:
        """The words that a node put to it, in the order of votes and doctors; of the calls with this metadata."""
        calls = [call for call in self.calls if call[0] == node and told.items() <= call[1].items()]
        in_order = sorted(calls, key=lambda call: (call[1].get("vote", 0), call[1].get("doctor", 0)))
        return [words(messages) for _, _, messages in in_order]

    def failing(self, node: str, *doctors: int) -> "Cast":
        """The same cast, which fails at a node: for these doctors, or always."""
        line = self.script[node]

        def fail(told: dict[str, Any]) -> str:
            if not doctors or told["doctor"] in doctors:
                raise TimeoutError("away")
            return str(line if isinstance(line, str) else line(told))

        self.script[node] = fail
        return self


# MedAgents

MED_FIELDS = ["Cardiology", "Radiology", "Surgery", "Oncology", "Dermatology", "Pathology", "Genetics"]
"""The five of the question and the two of the options."""


def med_agents_cast(objecting: Callable[[dict[str, Any]], bool] = lambda _: False, **script: Any) -> Cast:
    """The model of MedAgents; experts vote no where they are `objecting`."""
    plain = {
        "question_domains": "<answer>" + "\n".join(MED_FIELDS[:5]) + "</answer>",
        "option_domains": "<answer>" + "\n".join(MED_FIELDS[5:]) + "</answer>",
        "question_analysis": lambda told: f"<think>Hm.</think>Analysis {told['doctor']}.",
        "option_analysis": lambda told: f"Analysis {told['doctor']}.",
        "synthesis": "Key knowledge: bone is white.\nTotal analysis: report 1.",
        "voting": lambda told: f"<think>Hm.</think><answer>{'no' if objecting(told) else 'yes'}</answer>",
        "advice": lambda told: f"Advice {told['doctor']} of round {told['vote']}.",
        "revision": lambda told: "Another report.",
        "decision_maker": "<think>By the report.</think><answer>MRI</answer>",
    }
    return Cast(script={**plain, **script})


# MDAgents

MD_FIELDS = ["Cardiology", "Radiology", "Surgery", "Oncology", "Dermatology"]
TEAMS = ["Initial Assessment Team", "Diagnostic Evidence Team", "Final Review and Decision Team"]
MEMBERS = [
    ["Emergency", "Nursing", "Imaging"],
    ["Radiology", "Pathology", "Genetics"],
    ["Surgery", "Ethics", "Oncology"],
]


def answering(*said: str) -> Line:
    """What each doctor answers, over and over."""
    return lambda told: (
        f"<think>As {told['specialty']}.</think><answer>{said[(told['doctor'] - 1) % len(said)]}</answer>"
    )


AGREED, DIVIDED = answering("CT"), answering("CT", "MRI")


def md_agents_cast(complexity: str = "moderate", **script: Any) -> Cast:
    """The model of MDAgents; by default doctors are divided, and all speak whenever they may."""
    plain = {
        "checker": f"<think>Hm.</think><answer>{complexity}</answer>",
        "clinician": "<think>Plain.</think><answer>CT</answer>",
        "recruiter": "<answer>" + "\n".join(MD_FIELDS) + "</answer>",
        "opinion": DIVIDED,
        "talk": lambda told: (
            f"<answer>To {told['doctor'] % 5 + 1}: Remark {told['doctor']} of turn {told['vote']}.</answer>"
        ),
        "feedback": lambda told: f"Feedback after turn {told['vote']}.",
        "final_answer": answering("PET"),
        "moderator": "<think>All told.</think><answer>PET</answer>",
        "team_recruiter": "\n".join(f"{i}: {'; '.join(fields)}" for i, fields in enumerate(MEMBERS, 1)),
        "request": lambda told: f"Request of {told['doctor']}.",
        "findings": lambda told: f"<think>Hm.</think>Findings of {told['doctor']}.",
        "team_report": lambda told: f"Report by {told['doctor']}.",
        "decision_maker": "<answer>MRI</answer>",
    }
    return Cast(script={**plain, **script})
