"""Tests of how a node stands in the graph: what it can reach, what becomes of its failures."""

from contextvars import ContextVar
from typing import Any

import pytest
from fakes import QUESTION, THREAD, Consult, Named, both, breaks, consulting, graph, opinion, said
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_config, get_store
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import get_runtime
from langgraph.store.memory import InMemoryStore
from typing_extensions import TypedDict

from mmedagent_graph.nodes.standing import Standing


@pytest.fixture(params=["invoke", "ainvoke"])
def consult(request: pytest.FixtureRequest) -> Consult:
    return consulting(request.param)


# Entering and leaving


async def test_a_node_is_given_what_enter_makes_of_the_state() -> None:
    assert await both(Standing(Named("Anna"), "n"), "the state") == {"said": "Anna to the state"}
    entered = Standing(Named("Anna"), "n", enter=lambda state: state["case"])
    assert await both(entered, {"case": "a case", "more": 1}) == {"said": "Anna to a case"}


async def test_leave_makes_what_is_written_of_update_and_input() -> None:
    left = Standing(Named("Anna"), "n", leave=lambda update, given: {"messages": [update["said"].upper(), given]})
    assert await both(left, "me") == {"messages": ["ANNA TO ME", "me"]}
    assert left.name == "n"


# What a node of one's own can reach


class Visit(TypedDict, total=False):
    question: str
    answer: str


def own(kind: str, answer: Any) -> Any:
    """A node of one's own that answers what `answer` returns, called inside it."""

    def sync(state: Any) -> dict[str, Any]:
        return {"answer": answer()}

    async def asynchronous(state: Any) -> dict[str, Any]:
        return {"answer": answer()}

    if kind == "compiled graph":
        builder = StateGraph(Visit)
        builder.add_node("only", sync)
        builder.add_edge(START, "only")
        builder.add_edge("only", END)
        return builder.compile()
    return {"sync": sync, "async": asynchronous, "both": RunnableLambda(sync, afunc=asynchronous)}[kind]


KINDS = pytest.mark.parametrize("kind", ["sync", "async", "both", "compiled graph"])


@KINDS
@pytest.mark.parametrize("more", [{}, {"votes": 2}], ids=str)
def test_the_store_is_reached(kind: str, more: dict[str, Any], consult: Consult) -> None:
    store = InMemoryStore()
    store.put(("ward",), "scan", {"is": "MRI"})
    node = own(kind, lambda: get_runtime().store.get(("ward",), "scan").value["is"])  # type: ignore[union-attr]
    result = consult(graph(specialists=node, attending=node, store=store, **more), QUESTION)
    assert (said(result), result["decision"]["answer"]) == (["MRI"] * 3, "MRI")
    node = own(kind, lambda: get_store().get(("ward",), "scan").value["is"])  # type: ignore[union-attr]
    assert said(consult(graph(specialists=node, store=store), QUESTION)) == ["MRI"] * 3


@KINDS
def test_the_config_is_reached(kind: str, consult: Consult) -> None:
    node = own(kind, lambda: get_config()["configurable"]["scan"])
    result = consult(graph(specialists=node), QUESTION, {"configurable": {"scan": "PET"}})
    assert said(result) == ["PET"] * 3


def test_a_node_may_take_its_config_as_an_argument(consult: Consult) -> None:
    def sync(state: Any, config: RunnableConfig) -> Any:
        return {"answer": config["configurable"]["scan"]}

    async def asynchronous(state: Any, config: RunnableConfig) -> Any:
        return sync(state, config)

    result = consult(graph(specialists=[sync, asynchronous]), QUESTION, {"configurable": {"scan": "PET"}})
    assert result["opinions"] == [opinion(1, "PET"), opinion(2, "PET")]


WARD: ContextVar[str] = ContextVar("ward", default="none")


@pytest.mark.parametrize("kind", ["sync", "async", "both"])
def test_the_callers_context_variables_are_reached(kind: str, consult: Consult) -> None:
    token = WARD.set("W7")
    try:
        result = consult(graph(specialists=own(kind, WARD.get)), {"question": "Which ward?"})
    finally:
        WARD.reset(token)
    assert said(result) == ["W7"] * 3


def test_a_node_may_remember_from_case_to_case(consult: Consult) -> None:
    def counts(_: Any) -> dict[str, Any]:
        store = get_runtime().store
        assert store is not None
        seen = store.get(("ward",), "cases")
        number = seen.value["count"] + 1 if seen else 0
        store.put(("ward",), "cases", {"count": number})
        return {"index": number}

    given = graph(attending=counts, store=InMemoryStore(), checkpointer=InMemorySaver())
    assert [consult(given, QUESTION, THREAD)["decision"]["answer"] for _ in range(3)] == ["CT", "MRI", "PET"]


# Failures, which LangGraph knows by their id


class RefusedError(Exception):
    """One that cannot be copied, as those of API clients."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


def test_a_failure_that_was_dealt_with_is_raised_again_as_another_object(consult: Consult) -> None:
    missing, refused = FileNotFoundError(2, "no such file", "scan.png"), RefusedError("slow down", status=429)
    with pytest.raises(FileNotFoundError) as raised:
        consult(graph(specialists=breaks(missing), attending=breaks(missing)), QUESTION)
    assert raised.value is not missing
    assert (str(raised.value), raised.value.__cause__) == (str(missing), missing)
    with pytest.raises(RuntimeError, match="RefusedError: slow down") as raised:
        consult(graph(specialists=breaks(refused), attending=breaks(refused)), QUESTION)
    assert raised.value.__cause__ is refused
