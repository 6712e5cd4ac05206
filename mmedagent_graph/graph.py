"""The wiring of a consultation, and nothing else.

    START -> intake -> triage -> specialist (x3, in parallel) -> attending -> END

Invariant: the attending always runs. A specialist that fails is an opinion that says so, and a referral that cannot
be read sends the case straight to the attending.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import Runnable, RunnableLambda
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.errors import NodeError
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Command, Overwrite, Send

from mmedagent_graph.answers import same_text
from mmedagent_graph.case import Case
from mmedagent_graph.images import ImageStore, default_store
from mmedagent_graph.models import load_model
from mmedagent_graph.nodes import Attending, Node, Specialist, Swappable, Triage, Update
from mmedagent_graph.nodes.attending import attending_input
from mmedagent_graph.nodes.base import with_model, with_own
from mmedagent_graph.nodes.specialist import failed
from mmedagent_graph.prompts import SPECIALTIES
from mmedagent_graph.state import (
    ConsultationInput,
    ConsultationOutput,
    ConsultationState,
    SpecialistInput,
    TriageInput,
)

Consultation = CompiledStateGraph[ConsultationState, None, ConsultationInput, ConsultationOutput]
Panel = Swappable | Sequence[Swappable]
"""The specialists: one thing for all doctors, or a list with one for each."""


def build_graph(
    *,
    triage: Swappable,
    specialists: Panel | Mapping[str, Panel],
    attending: Swappable,
    specialties: Sequence[str] = tuple(SPECIALTIES),
    doctors: int = 3,
    images: ImageStore | None = None,
    checkpointer: BaseCheckpointSaver[Any] | None = None,
    name: str = "consultation",
) -> Consultation:
    """A consultation as a compiled LangGraph graph (MMedAgent-RL, section 3).

    `graph.invoke({"question": ..., "options": [...], "images": [...]})` returns `referral`, `opinions`, `decision` and
    `usage`; `ainvoke`, `stream` and `batch` work as they do on any LangGraph graph.

    Args:
        triage: who refers the case. A model string (`openai:gpt-4o`, `clinic:base`), a LangChain chat model, or a node
            of one's own: a callable, Runnable or compiled graph that takes `TriageInput` and returns `{"specialty":
            ...}`.
        specialists: who answers. One of the same for all doctors (it takes `SpecialistInput` and returns
            `{"answer": ...}`), a list with one for each doctor, or a mapping from specialty to either.
        attending: who decides: the same again (it takes `AttendingInput` and returns `{"answer": ...}`).
        specialties: what triage may choose from; the paper's seven.
        doctors: how many specialists are heard; a list says it by its length.
        images: where images are kept; by default a temporary folder of the process.
        checkpointer: as in any LangGraph graph.
        name: the compiled graph's name.

    Raises:
        ValueError: naming the argument and the valid choices.
    """
    specialties = _checked_specialties(specialties)
    store = images or default_store()
    panels = _panels(specialists, specialties, doctors, Specialist(store))

    def intake(state: ConsultationInput) -> Update:
        fields = Case.model_validate(state).fields(store)
        # a thread may be used again: nothing of an earlier consultation may be seen in this one
        fresh = {"referral": None, "decision": None, "opinions": Overwrite([]), "usage": Overwrite({})}
        return {"case": fields, **fresh}

    def refer(state: ConsultationState) -> list[Send] | str:
        specialty = state["referral"]["specialty"] if state["referral"] else None
        if specialty is None:
            return "attending"
        return [
            Send("specialist", SpecialistInput(**state["case"], specialty=specialty, doctor=doctor))
            for doctor in range(1, len(panels[specialty]) + 1)
        ]

    def unheard(state: SpecialistInput, error: NodeError) -> Command[Any]:
        return Command(update=failed(state, error.error), goto="attending")

    builder = StateGraph(
        ConsultationState,
        input_schema=ConsultationInput,
        output_schema=ConsultationOutput,
    )
    builder.add_node("intake", intake, input_schema=ConsultationInput)
    builder.add_node("triage", RunnableLambda(_triage_input) | _node(Triage(specialties, store), triage, "triage"))
    builder.add_node("specialist", _panel_node(panels), input_schema=SpecialistInput, error_handler=unheard)
    builder.add_node("attending", RunnableLambda(attending_input) | _node(Attending(store), attending, "attending"))
    builder.add_edge(START, "intake")
    builder.add_edge("intake", "triage")
    builder.add_conditional_edges("triage", refer, ["specialist", "attending"])
    builder.add_edge("specialist", "attending")
    builder.add_edge("attending", END)
    return builder.compile(checkpointer=checkpointer, name=name)


def _node(node: Node, given: Swappable, argument: str) -> Runnable[Any, Update]:
    """What stands in the graph for a node: its two functions around a model, or somebody's own in its place."""
    if isinstance(given, str):
        try:
            given = load_model(given)
        except ValueError as error:
            raise ValueError(f"{argument}: {error}") from error
    if isinstance(given, BaseChatModel):
        return with_model(node, given)
    if isinstance(given, Runnable) or callable(given):
        return with_own(node, given)
    raise ValueError(
        f"{argument}: cannot use a {type(given).__name__}; "
        "give a model string, a chat model, or a callable, Runnable or graph of your own"
    )


def _panel_node(panels: Mapping[str, Sequence[Runnable[Any, Update]]]) -> Runnable[SpecialistInput, Any]:
    """One graph node for all specialists: it hands the case to the doctor that the `Send` names."""

    def doctor_of(state: SpecialistInput) -> Runnable[Any, Update]:
        return panels[state["specialty"]][state["doctor"] - 1]

    # A RunnableLambda that returns a Runnable is LangChain's own way to dispatch, sync and async alike.
    return RunnableLambda(doctor_of, name="specialist")


def _panels(
    given: Panel | Mapping[str, Panel], specialties: Sequence[str], doctors: int, node: Node
) -> dict[str, list[Runnable[Any, Update]]]:
    """For every specialty, the nodes of its doctors."""
    if not isinstance(given, Mapping):
        panel = _panel(given, doctors, node)
        return dict.fromkeys(specialties, panel)
    if set(given) != set(specialties):
        wrong = ", ".join(sorted(set(given) ^ set(specialties)))
        names = ", ".join(specialties)
        raise ValueError(f"specialists: unknown or missing {wrong}; there must be one entry for each of {names}")
    return {specialty: _panel(given[specialty], doctors, node) for specialty in specialties}


def _panel(given: Panel, doctors: int, node: Node) -> list[Runnable[Any, Update]]:
    if isinstance(given, Sequence) and not isinstance(given, str):
        if not given:
            raise ValueError("specialists: the list is empty; give one entry for each doctor")
        return [_node(node, doctor, f"specialists[{i}]") for i, doctor in enumerate(given)]
    if doctors < 1:
        raise ValueError(f"doctors: {doctors} is not a number of doctors; give 1 or more")
    return [_node(node, given, "specialists")] * doctors


def _checked_specialties(specialties: Sequence[str]) -> tuple[str, ...]:
    if isinstance(specialties, str) or not all(isinstance(name, str) and name.strip() for name in specialties):
        raise ValueError(f"specialties: {specialties!r} is not a list of names, such as {list(SPECIALTIES)}")
    for i, specialty in enumerate(specialties):
        if any(same_text(specialty, earlier) for earlier in specialties[:i]):
            raise ValueError(f"specialties[{i}]: {specialty!r} is there twice; specialties must differ")
    if not specialties:
        raise ValueError(f"specialties: the list is empty; give at least one, such as {', '.join(SPECIALTIES)}")
    return tuple(specialties)


def _triage_input(state: ConsultationState) -> TriageInput:
    return TriageInput(**state["case"])
