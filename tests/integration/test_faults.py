"""A model server that fails, at each node and in each way: every consultation ends with a decision or with a clear
error, none hangs, and no finished answer is lost.
"""

import asyncio
import time
from typing import Any

import pytest
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import RetryPolicy

from mmedagent_graph import build_graph
from mmedagent_graph.models import async_client
from tests.stub_server import FAULTS, StubServer

CASE = {"question": "Is the heart enlarged?", "options": ["yes", "no"]}
SAID = {"triage": "Radiologist", "attending": "yes", **dict.fromkeys(["doctor-1", "doctor-2", "doctor-3"], "yes")}
DOCTORS = ["doctor-1", "doctor-2", "doctor-3"]
THREAD: Any = {"configurable": {"thread_id": "1"}}
PATIENCE = 2.0
"""Seconds that a node may take: long beside a stub's answer, short beside a test."""
RETRY = RetryPolicy(initial_interval=0.01, max_attempts=2, retry_on=Exception)
ASYNC, SYNC = "ainvoke", "invoke"
# A server that drips keeps every read alive: only the async callers' timeout of a whole node ends that.
FAULTS_OF = {ASYNC: sorted(FAULTS), SYNC: sorted(set(FAULTS) - {"drip"})}
EVERY = [(way, fault) for way, faults in FAULTS_OF.items() for fault in faults]


def consultation(server: StubServer, way: str, **given: Any) -> Any:
    """A graph whose every node asks the server; async nodes are timed by the graph, sync ones by their model."""

    def model(name: str) -> ChatOpenAI:
        timeout = PATIENCE if way == SYNC else None
        more = {"max_retries": 0, "timeout": timeout, "http_async_client": async_client()}
        return ChatOpenAI(model=name, base_url=server.url, api_key="x", **more)

    return build_graph(
        triage=model("triage"),
        specialists=[model(name) for name in DOCTORS],
        attending=model("attending"),
        checkpointer=InMemorySaver(),
        **({"timeout": PATIENCE} if way == ASYNC else {}) | given,
    )


def run(graph: Any, way: str, given: Any = CASE) -> dict[str, Any]:
    """The consultation, which must end soon, one way or the other."""
    start = time.monotonic()
    try:
        return graph.invoke(given, THREAD) if way == SYNC else asyncio.run(graph.ainvoke(given, THREAD))
    finally:
        assert time.monotonic() - start < 10 * PATIENCE


@pytest.mark.parametrize("failing", [1, 2, 3])
@pytest.mark.parametrize(("way", "fault"), EVERY)
def test_specialists_that_fail_are_opinions_that_say_so(way: str, fault: str, failing: int):
    with StubServer(SAID, faults=dict.fromkeys(DOCTORS[:failing], fault)) as server:
        result = run(consultation(server, way), way)
    assert result["decision"]["answer"] == "yes"
    assert result["decision"]["opinions"] == 3 - failing
    assert [bool(opinion["error"]) for opinion in result["opinions"]] == [i < failing for i in range(3)]
    assert [opinion["answer"] for opinion in result["opinions"][failing:]] == ["yes"] * (3 - failing)


@pytest.mark.parametrize(("way", "fault"), EVERY)
def test_a_fault_that_passes_is_survived_by_retrying(way: str, fault: str):
    with StubServer(SAID, faults={name: [fault] for name in SAID}) as server:
        result = run(consultation(server, way, retry_policy=RETRY), way)
    assert [opinion["error"] for opinion in result["opinions"]] == [None] * 3
    assert result["decision"]["answer"] == "yes"
    assert server.calls == dict.fromkeys(SAID, 2)


@pytest.mark.parametrize("node", ["triage", "attending"])
@pytest.mark.parametrize(("way", "fault"), EVERY)
def test_a_gp_that_fails_is_an_error_from_which_the_run_goes_on(way: str, fault: str, node: str):
    with StubServer(SAID, faults={node: [fault]}) as server:
        graph = consultation(server, way)
        with pytest.raises(Exception) as raised:
            run(graph, way)
        assert str(raised.value)
        result = run(graph, way, None)
    assert result["decision"]["answer"] == "yes"
    assert result["decision"]["opinions"] == 3
    assert server.calls == {**dict.fromkeys(SAID, 1), node: 2}  # what was finished is not asked again


@pytest.mark.parametrize(("way", "fault"), EVERY)
def test_votes_that_fail_are_not_counted(way: str, fault: str):
    with StubServer(SAID, faults={"attending": [fault, None, fault]}) as server:
        result = run(consultation(server, way, votes=5), way)
    assert result["decision"]["answer"] == "yes"
    assert result["decision"]["confidence"] == 3 / 5
    assert server.calls["attending"] == 5


@pytest.mark.parametrize(("way", "fault"), EVERY)
def test_where_every_vote_fails_the_run_can_go_on(way: str, fault: str):
    with StubServer(SAID, faults={"attending": [fault] * 4}) as server:
        graph = consultation(server, way, votes=3)
        with pytest.raises(Exception) as raised:
            run(graph, way)
        assert str(raised.value)
        result = run(graph, way, None)
    assert result["decision"]["answer"] == "yes"
    assert server.calls == {**dict.fromkeys(SAID, 1), "attending": 5}


@pytest.mark.parametrize("way", [ASYNC, SYNC])
def test_everything_fails(way: str):
    with StubServer(SAID, faults=dict.fromkeys(DOCTORS, "500") | {"attending": "hang"}) as server:
        graph = consultation(server, way)
        with pytest.raises(Exception, match=r"(?i)time"):
            run(graph, way)
    assert [bool(opinion["error"]) for opinion in graph.get_state(THREAD).values["opinions"]] == [True] * 3


def test_a_fault_of_one_consultation_is_none_of_the_others():
    """30 at a time, each specialist failing now and then: each decides on the opinions that it has."""
    faults = {name: [None, "500", None, "hang", None, "cut", "malformed", None, "429"] * 4 for name in DOCTORS}

    async def everybody(graph: Any) -> list[dict[str, Any]]:
        threads = [{"configurable": {"thread_id": str(i)}} for i in range(30)]
        return await asyncio.gather(*(graph.ainvoke(CASE, thread) for thread in threads))

    with StubServer(SAID, faults=faults) as server:
        results = asyncio.run(everybody(consultation(server, ASYNC, timeout=5)))
    heard = [result["decision"]["opinions"] for result in results]
    failed = [sum(bool(opinion["error"]) for opinion in result["opinions"]) for result in results]
    assert [h + f for h, f in zip(heard, failed, strict=True)] == [3] * 30
    assert sum(failed) == sum(bool(request.fault) for request in server.requests)
    assert all(result["decision"]["answer"] == "yes" for result in results)
