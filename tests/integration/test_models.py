"""Models of a server, and their connections."""

import asyncio
import gc
import threading
import time
import warnings
import weakref

import openai
import pytest
from langchain_core.language_models import BaseChatModel

from mmedagent_graph.models import load_model
from tests.stub_server import StubServer


@pytest.fixture
def server(monkeypatch):
    with StubServer("yes") as server:
        monkeypatch.setenv("VLLM_BASE_URL", server.url)
        yield server


async def ask(model: BaseChatModel, count: int) -> list[str]:
    return [answer.text for answer in await asyncio.gather(*(model.ainvoke("hello") for _ in range(count)))]


def nobody_is_connected(server: StubServer) -> bool:
    deadline = time.monotonic() + 5
    while server.connections and time.monotonic() < deadline:
        time.sleep(0.01)
    return not server.connections


def test_connections_end_with_their_event_loop(server, caplog):
    model = load_model("vllm:gp")
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        for _ in range(3):
            assert asyncio.run(ask(model, 5)) == ["yes"] * 5
            gc.collect()
            assert nobody_is_connected(server)
    assert caplog.records == []


def test_event_loops_in_threads_have_connections_of_their_own(server):
    model, answers = load_model("vllm:gp"), []
    threads = [threading.Thread(target=lambda: answers.extend(asyncio.run(ask(model, 5)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == ["yes"] * 20
    assert nobody_is_connected(server)


async def test_a_connection_serves_again(server):
    model = load_model("vllm:gp")
    for _ in range(5):
        assert await ask(model, 2) == ["yes"] * 2
    assert len(server.connections) == 2


async def test_a_call_that_is_cancelled_leaves_the_others_alone(server):
    server.latency = 0.2
    model = load_model("vllm:gp")
    calls = [asyncio.create_task(model.ainvoke("hello")) for _ in range(4)]
    await asyncio.sleep(0.1)
    calls[0].cancel()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert [answer.text for answer in answers[1:]] == ["yes"] * 3


def test_a_server_that_is_not_there_is_no_timeout(monkeypatch):
    with StubServer("yes") as gone:
        monkeypatch.setenv("VLLM_BASE_URL", gone.url)
    model = load_model("vllm:gp")
    for call in (lambda: model.invoke("hello"), lambda: asyncio.run(model.ainvoke("hello"))):
        with pytest.raises(openai.APIConnectionError) as raised:
            call()
        assert not isinstance(raised.value, openai.APITimeoutError)


@pytest.mark.parametrize("way", ["sync", "async"])
def test_the_proxies_of_the_environment_are_used(way, server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", server.url.rpartition(":")[0] + ":" + server.url.split(":")[2].split("/")[0])
    monkeypatch.setenv("VLLM_BASE_URL", "http://models.invalid/v1")
    model = load_model("vllm:gp")
    assert (model.invoke("hello") if way == "sync" else asyncio.run(model.ainvoke("hello"))).text == "yes"


def test_event_loops_that_were_closed_without_an_end_are_let_go(server):
    model = load_model("vllm:gp")
    loops = []
    for _ in range(5):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(ask(model, 1))
        loop.close()
        loops.append(weakref.ref(loop))
    del loop
    asyncio.run(ask(model, 1))
    gc.collect()
    assert [loop() for loop in loops] == [None] * 5
