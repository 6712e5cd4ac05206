"""What happened in one consultation, stored so that it can be graded again without generating again.

Invariant: a trace is plain values. Images are references, and the answer key stands beside what was said, never in a
prompt. What nobody measured is None, never 0.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult

from mmedagent_graph.answers import same_text
from mmedagent_graph.nodes.attending import attending_input
from mmedagent_graph.state import (
    AttendingInput,
    CaseFields,
    ConsultationState,
    Decision,
    NodeUsage,
    Opinion,
    Referral,
)
from rl.datasets import LabeledCase


def is_right(answer: str | None, key: str) -> bool:
    """Whether an answer, as the reader gave it, is the key: the same text after normalisation (exact match)."""
    return answer is not None and same_text(answer, key)


@dataclasses.dataclass
class NodeCall:
    """One answer of one model."""

    node: str
    """The graph's node: `triage`, `specialist`, `attending`, `vote`."""
    specialty: str | None
    """Of a specialist."""
    doctor: int | None
    """1-based number of a specialist."""
    vote: int | None
    """1-based number of an attending's vote."""
    model: str | None
    """The model's name, as its answer tells it, or else LangChain."""
    text: str
    prompt_ids: list[int] | None
    """The tokens of the prompt, and of the completion, where the model gives them."""
    completion_ids: list[int] | None
    logprobs: list[float] | None
    """Of the completion's tokens."""
    finish: str | None
    """Why it ended: `stop`, or `length` where it was cut off."""
    input_tokens: int | None = None
    """What it cost, or had cost when it was first asked: an answer out of a cache is told with its price."""
    output_tokens: int | None = None
    seconds: float | None = None
    cached: bool = False
    """Whether it came out of a cache."""


@dataclasses.dataclass
class Trace:
    """One consultation, up to a node (upstream) or to its end."""

    case: str
    """The case's id."""
    question: str
    options: list[str]
    images: list[str]
    """References into the run's image store: hashes of their bytes."""
    context: str | None
    answer: str | None
    """The key: the right option's text, or the right free text; None where the case has no key."""
    specialty: str | None = None
    """The triage label."""
    groups: dict[str, str] = dataclasses.field(default_factory=dict)
    """What the data set says of the case (`LabeledCase.groups`)."""
    referral: Referral | None = None
    opinions: list[Opinion] = dataclasses.field(default_factory=list)
    decision: Decision | None = None
    usage: dict[str, NodeUsage] = dataclasses.field(default_factory=dict)
    calls: list[NodeCall] = dataclasses.field(default_factory=list)
    """What the frozen nodes' models said, in the order in which they ended."""
    node: str = ""
    """The node under training, whose completion follows."""
    perspective: str | None = None
    """The clinical reasoning perspective that its prompt asked for (`rl.perspectives`)."""
    text: str | None = None
    """That node's completion, as the model wrote it."""
    prompt_ids: list[int] | None = None
    """The tokens of its prompt, and of the completion, exactly as the policy saw them."""
    completion_ids: list[int] | None = None
    logprobs: list[float] | None = None
    """Of the completion's tokens, under the policy that wrote them."""
    finish: str | None = None
    """Why it ended: `stop`, or `length` where it was cut off."""
    policy: str | None = None
    """Which version of the policy wrote it, such as `2-medium@37`."""
    step: int | None = None
    """The stage's optimizer step, from 1, that it was sampled for."""
    tier: str | None = None
    rewards: dict[str, float | None] = dataclasses.field(default_factory=dict)
    """What each grader gave, without its weight; None: it could not grade the trace."""
    reward: float | None = None
    """The weighted sum; None: not graded, or it cannot be."""

    @classmethod
    def of(
        cls,
        case: LabeledCase,
        state: Mapping[str, Any],
        node: str = "",
        text: str | None = None,
        calls: Iterable[NodeCall] = (),
    ) -> "Trace":
        """The trace of a case from the state that its consultation has reached."""
        return cls(
            case=case.id,
            **state["case"],
            answer=case.answer,
            specialty=case.specialty,
            groups=dict(case.groups),
            referral=state.get("referral"),
            opinions=list(state.get("opinions", [])),
            decision=state.get("decision"),
            usage=dict(state.get("usage", {})),
            calls=list(calls),
            node=node,
            text=text,
        )

    def fields(self) -> CaseFields:
        """The case as every node sees it; the answer key is not in it."""
        return CaseFields(question=self.question, options=self.options, images=self.images, context=self.context)

    def state(self) -> ConsultationState:
        """The graph's state that this trace ends in: what a rollout goes on from."""
        return ConsultationState(
            case=self.fields(),
            referral=self.referral,
            opinions=self.opinions,
            decision=self.decision,
            usage=self.usage,
        )

    def given(self) -> AttendingInput:
        """What the attending was given."""
        return attending_input(self.state())

    @property
    def kind(self) -> str:
        """What figures of training are told apart by: the tier where it is the attending that learns, else the node."""
        return str(self.tier) if self.node == "attending" else self.node

    @property
    def decided(self) -> str | None:
        """The consultation's answer; None where it was unreadable, or there is no decision yet."""
        return self.decision["answer"] if self.decision else None

    @property
    def right(self) -> bool | None:
        """Whether that is the key; None where there is no key or no decision."""
        if self.answer is None or self.decision is None:
            return None
        return is_right(self.decided, self.answer)

    @property
    def ungraded(self) -> list[str]:
        """The graders that could not grade it."""
        return [grader for grader, value in self.rewards.items() if value is None]


class CallRecorder(BaseCallbackHandler):
    """Collects what the models of a consultation say: `graph.ainvoke(case, {"callbacks": [recorder]})`.

    Args:
        ended: told of each call as it ends. Default: nobody is.

    Attributes:
        calls: in the order in which they ended. A call that failed is none.
        failed: who was asked last without an answer.
    """

    run_inline = True  # an async graph would hand each event to a thread, and lose their order

    def __init__(self, ended: Callable[[NodeCall], None] | None = None) -> None:
        self.calls: list[NodeCall] = []
        self._ended = ended
        self._begun: dict[UUID, tuple[float, Mapping[str, Any]]] = {}
        self._unanswered: set[str] = set()

    @property
    def failed(self) -> list[str]:
        """Who was asked last without an answer, as `specialist Radiologist 2`; a retry that succeeds is an answer."""
        return sorted(self._unanswered)

    def on_chat_model_start(
        self,
        serialized: dict[str, Any],
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        metadata: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """A call begins: who asks stands in its metadata."""
        self._begun[run_id] = time.perf_counter(), metadata or {}
        self._unanswered.add(_who(metadata or {}))

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **_: Any) -> None:
        """A call has ended."""
        begun, asked = self._begun.pop(run_id)
        said = response.generations[0][0]
        if isinstance(said, ChatGeneration):
            self._unanswered.discard(_who(asked))
            self.calls.append(_call(asked, said.message, time.perf_counter() - begun))
            if self._ended is not None:
                self._ended(self.calls[-1])

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        """A call has failed."""
        self._begun.pop(run_id, None)


def _who(asked: Mapping[str, Any]) -> str:
    names = (asked.get(name) for name in ("langgraph_node", "specialty", "doctor", "vote"))
    return " ".join(str(name) for name in names if name is not None)


def _call(asked: Mapping[str, Any], message: BaseMessage, seconds: float) -> NodeCall:
    told = message.response_metadata
    cached = bool(asked.get("cached"))
    spent = (told.get("spent") if cached else getattr(message, "usage_metadata", None)) or {}
    return NodeCall(
        node=asked.get("langgraph_node", ""),
        specialty=asked.get("specialty"),
        doctor=asked.get("doctor"),
        vote=asked.get("vote"),
        model=told.get("model_name") or asked.get("ls_model_name"),
        text=str(message.text),
        prompt_ids=told.get("prompt_token_ids"),
        completion_ids=told.get("token_ids"),
        logprobs=_logprobs(told.get("logprobs")),
        finish=told.get("finish_reason"),
        input_tokens=spent.get("input_tokens"),
        output_tokens=spent.get("output_tokens"),
        seconds=told.get("seconds") if cached else seconds,
        cached=cached,
    )


def _logprobs(told: Any) -> list[float] | None:
    """Log-probabilities as a list; OpenAI's API has them inside one mapping for each token."""
    if isinstance(told, Mapping):
        return [token["logprob"] for token in told.get("content") or []]
    return None if told is None else list(told)
