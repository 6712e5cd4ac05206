"""Tests of who answers for a node."""

from typing import Any

import pytest
from fakes import QUESTION, Named, answers, both, graph
from langchain_core.runnables import RunnableLambda
from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict

from mmedagent_graph.context import Context
from mmedagent_graph.images import default_store
from mmedagent_graph.nodes import Attending, Specialist, Voter
from mmedagent_graph.nodes.base import ByModel, ByOwn
from mmedagent_graph.nodes.staff import ByContext, ByDoctor, answering

SPECIALIST = Specialist(default_store())


# Who answers


@pytest.mark.parametrize(
    ("specialty", "doctor", "name"),
    [
        ("Surgeon", 1, "s1"),
        ("Surgeon", 2, "s2"),
        ("Surgeon", 3, "s3"),
        ("Surgeon", 4, "s1"),  # further ones begin again
        ("Surgeon", 8, "s2"),
        ("Radiologist", 1, "r1"),
        ("Radiologist", 5, "r1"),
    ],
)
async def test_a_case_goes_to_the_doctor_that_is_named(specialty: str, doctor: int, name: str) -> None:
    by_doctor = ByDoctor({"Surgeon": [Named("s1"), Named("s2"), Named("s3")], "Radiologist": [Named("r1")]})
    state = {"specialty": specialty, "doctor": doctor}
    assert await both(by_doctor, state) == {"said": f"{name} to {state}"}


@pytest.mark.parametrize(
    ("context", "who"),
    [
        (None, "built"),
        ({"attending": "Bert"}, "built"),  # which is no Context
        (Context(), "built"),
        (Context(attending=""), "built"),
        (Context(triage="Bert"), "built"),
        (Context(attending="Bert"), "Bert"),
    ],
    ids=str,
)
async def test_a_context_names_who_answers(context: Any, who: str) -> None:
    made: list[str] = []

    def make(name: str) -> Named:
        made.append(name)
        return Named(name)

    by_context = ByContext(Named("built"), lambda context, _: context.attending, make)

    async def node(_: Any) -> dict[str, Any]:
        return {"out": (await both(by_context, "me"))["said"]}

    class State(TypedDict, total=False):
        out: str

    builder = StateGraph(State)
    builder.add_node("node", node)
    builder.add_edge(START, "node")
    result = await builder.compile().ainvoke({}, context=context)
    assert result["out"] == f"{who} to me"
    assert made == (["Bert"] if who == "Bert" else [])  # once for both calls


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (answers("CT"), ByModel),
        (answers("CT").bind(stop=["x"]), ByModel),
        (lambda _: "CT", ByOwn),
        (RunnableLambda(lambda _: "CT"), ByOwn),
        (graph(), ByOwn),
        (graph().with_config(tags=["x"]), ByOwn),
    ],
)
async def test_what_answers_for_a_node(given: Any, kind: type) -> None:
    assert type(answering(SPECIALIST, given, "specialists")) is kind


@pytest.mark.parametrize(
    ("given", "said_"),
    [
        (3, "specialists: cannot use a int; give a model string, a chat model, or a callable, Runnable or graph"),
        (None, "specialists: cannot use a NoneType"),
        ("gpt-4o", "specialists: model: 'gpt-4o' is not of the form 'provider:model'"),
    ],
)
def test_what_cannot_answer_is_named(given: Any, said_: str) -> None:
    with pytest.raises(ValueError, match=said_):
        answering(SPECIALIST, given, "specialists")


@pytest.mark.parametrize(("samples", "warmth"), [(True, 1.0), (False, 0.0)])
async def test_a_model_samples_where_it_must(samples: bool, warmth: float) -> None:
    model = answers("CT", temperature=0.0)
    state = {**QUESTION, "images": [], "context": None, "opinions": [], "vote": 1, "may_refer": []}
    await both(answering(Voter(default_store()), model, "attending", samples=samples), state)
    assert model.warmth == [warmth] * 2
    await both(answering(Attending(default_store()), model, "attending"), state)
    assert model.warmth[2:] == [0.0] * 2
