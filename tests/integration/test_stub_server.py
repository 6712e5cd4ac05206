"""The stub server says and fails what it is told to, as the real client sees it."""

import asyncio
import json
import time
import urllib.request
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import openai
import pytest
from langchain_core.messages import AIMessageChunk
from langchain_openai import ChatOpenAI

from tests.stub_server import FAULTS, INPUT_TOKENS, OUTPUT_TOKENS, RETRY_AFTER, StubServer

Way = Callable[[ChatOpenAI], Awaitable[str]]


def model(server: StubServer, name: str = "gp", timeout: float = 5, **settings) -> ChatOpenAI:
    return ChatOpenAI(model=name, base_url=server.url, api_key="x", max_retries=0, timeout=timeout, **settings)


async def invoke(chat: ChatOpenAI) -> str:
    return (await asyncio.to_thread(chat.invoke, "hello")).text


async def ainvoke(chat: ChatOpenAI) -> str:
    return (await chat.ainvoke("hello")).text


async def stream(chat: ChatOpenAI) -> str:
    return "".join(chunk.text for chunk in await asyncio.to_thread(lambda: list(chat.stream("hello"))))


async def astream(chat: ChatOpenAI) -> str:
    return "".join([chunk.text async for chunk in chat.astream("hello")])


ways = pytest.mark.parametrize("way", [invoke, ainvoke, stream, astream])


async def settled(server: StubServer) -> None:
    """Wait until the server has seen its clients hang up."""
    async with asyncio.timeout(5):
        while server.in_flight:
            await asyncio.sleep(0.01)


@ways
async def test_an_answer(way: Way):
    with StubServer("a longer answer, in many chunks: ä 肺") as server:
        assert await way(model(server)) == "a longer answer, in many chunks: ä 肺"
    (request,) = server.requests
    assert (request.model, request.fault, request.stream) == ("gp", None, "stream" in way.__name__)
    assert request.messages == [{"role": "user", "content": "hello"}]
    assert request.finished is not None


ERRORS = {
    "429": openai.RateLimitError,
    "500": openai.InternalServerError,
    "hang": openai.APITimeoutError,
    "cut": openai.APIConnectionError,
    "malformed": json.JSONDecodeError,
    "html": ValueError,
    "empty": TypeError,
}


def test_every_fault_is_tested():
    assert {*ERRORS, "drip"} == {*FAULTS}


@ways
@pytest.mark.parametrize("fault", ERRORS)
async def test_a_fault_and_then_an_answer(way: Way, fault: str):
    with StubServer(faults={"gp": [fault, None], "other": "500"}) as server:
        chat = model(server, timeout=0.5 if fault == "hang" else 5)
        if fault == "empty" and "stream" in way.__name__:
            assert await way(chat) == ""  # the client takes a stream without choices for an empty answer
        else:
            with pytest.raises(ERRORS[fault]) as caught:
                await way(chat)
            assert isinstance(caught.value, openai.APITimeoutError) == (fault == "hang")
            if fault == "429":
                assert caught.value.response.headers["retry-after"] == str(RETRY_AFTER)
        assert await way(chat) == "yes"
        assert await way(chat) == "yes"  # beyond the list's end
        await settled(server)
    assert server.calls == {"gp": 3}
    assert [request.fault for request in server.requests] == [fault, None, None]
    assert all(request.finished for request in server.requests)


async def test_half_of_a_stream_has_come_when_it_is_cut():
    text = "a longer answer, in many chunks"
    with StubServer(text, faults={"gp": "cut"}) as server:
        chunks = model(server).astream("hello")
        come = [(await anext(chunks)).text for _ in range(2)]  # the role, and the first words
        with pytest.raises(openai.APIConnectionError):
            come += [chunk.text async for chunk in chunks]
    assert come[1]
    assert len("".join(come)) < len(text)


async def test_a_fault_for_ever():
    with StubServer(faults={"gp": "500"}) as server:
        for _ in range(3):
            with pytest.raises(openai.InternalServerError):
                await ainvoke(model(server))
        assert await ainvoke(model(server, "other")) == "yes"
    assert server.calls == {"gp": 3, "other": 1}


@pytest.mark.parametrize("way", [ainvoke, astream])
async def test_a_drip_outlasts_the_timeout_of_every_read(way: Way):
    with StubServer(faults={"gp": "drip"}) as server:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(way(model(server, timeout=0.2)), 1)
        await settled(server)
    (request,) = server.requests
    assert request.finished is not None
    assert request.finished - request.started > 0.9


def test_an_unknown_fault_is_refused():
    with pytest.raises(ValueError, match=r"'gp'.*503.*429"):
        StubServer(faults={"gp": ["500", "503"]})
    with pytest.raises(ValueError, match="bang"):
        StubServer(faults={"gp": "bang"})


async def test_answers_by_model():
    with StubServer({"gp": "yes", "specialist": "no"}) as server:
        assert [await ainvoke(model(server, name)) for name in ("gp", "specialist")] == ["yes", "no"]
        with pytest.raises(openai.NotFoundError):
            await ainvoke(model(server, "nobody"))
        with urllib.request.urlopen(f"{server.url}/models") as response:
            assert [one["id"] for one in json.load(response)["data"]] == ["gp", "specialist"]


async def test_answers_by_a_function():
    with StubServer(lambda messages, name: f"{name}: {messages[-1]['content'].upper()}") as server:
        assert await ainvoke(model(server)) == "gp: HELLO"


async def test_a_mistake_in_the_function_is_seen():
    with StubServer(lambda messages, _: messages[7]) as server:
        with pytest.raises(openai.InternalServerError, match="IndexError"):
            await ainvoke(model(server))
        with pytest.raises(openai.InternalServerError, match="IndexError"):
            await ainvoke(model(server))


async def test_usage():
    with StubServer() as server:
        whole = await model(server).ainvoke("hello")
        assert whole.usage_metadata["input_tokens"] == INPUT_TOKENS
        assert whole.usage_metadata["output_tokens"] == OUTPUT_TOKENS
        chunks = AIMessageChunk("")
        async for chunk in model(server, stream_usage=True).astream("hello"):
            chunks += chunk
        assert chunks.usage_metadata["total_tokens"] == INPUT_TOKENS + OUTPUT_TOKENS
        assert not [chunk async for chunk in model(server).astream("hello") if chunk.usage_metadata]  # not asked for


async def test_latency_by_model():
    with StubServer(latency={"slow": 0.5}) as server:
        await asyncio.gather(ainvoke(model(server, "slow")), ainvoke(model(server, "fast")))
    seconds = {request.model: request.finished - request.started for request in server.requests}
    assert 0.5 <= seconds["slow"] < 0.9
    assert seconds["fast"] < 0.4


def asked(name: str, text: str = "hello") -> bytes:
    """A request on the wire."""
    body = json.dumps({"model": name, "messages": [{"role": "user", "content": text}]}).encode()
    return b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


async def read(reader: asyncio.StreamReader) -> str:
    """The text of the next response."""
    head = await reader.readuntil(b"\r\n\r\n")
    size = int(head.lower().partition(b"content-length: ")[2].split()[0])
    return json.loads(await reader.readexactly(size))["choices"][0]["message"]["content"]


@pytest.mark.parametrize("process", [False, True])
async def test_hundreds_at_a_time(process: bool):
    with StubServer(latency=1.5, process=process) as server:
        port = urlsplit(server.url).port
        connections = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for _ in range(300)))
        start = time.monotonic()
        for _, writer in connections:
            writer.write(asked("gp"))
        assert {await read(reader) for reader, _ in connections} == {"yes"}
        assert 1.5 <= time.monotonic() - start < 2.5
        for _, writer in connections:
            writer.close()
    assert server.calls == {"gp": 300}
    assert server.most_in_flight == 300
    assert [request.in_flight for request in server.requests] == [*range(1, 301)]


async def test_a_connection_is_kept_and_its_requests_answered_in_order():
    said = {"first": "1", "second": "2", "large": "3"}
    with StubServer(said, latency={"first": 0.1}) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(server.url).port)
        writer.write(asked("first") + asked("second") + asked("large", "x" * 3_000_000)[:-5])
        assert [await read(reader) for _ in range(2)] == ["1", "2"]
        writer.write(b'x"}]}')
        assert await read(reader) == "3"
        writer.close()
    assert [request.in_flight for request in server.requests] == [1, 1, 1]
    assert len(server.requests[2].messages[0]["content"]) == 3_000_000


async def test_the_end_does_not_wait_for_who_hangs():
    with StubServer(faults={"gp": "hang"}) as server:
        waiting = asyncio.create_task(ainvoke(model(server, timeout=60)))
        while not server.requests:
            await asyncio.sleep(0.01)
    with pytest.raises(openai.APIConnectionError):
        await asyncio.wait_for(waiting, 5)
    assert server.requests[0].finished is not None


@ways
async def test_in_a_process_of_its_own(way: Way):
    with StubServer({"gp": "no"}, latency=0.1, faults={"gp": ["500"]}, process=True) as server:
        with pytest.raises(openai.InternalServerError):
            await way(model(server))
        assert await way(model(server)) == "no"
    assert [request.fault for request in server.requests] == ["500", None]
    assert all(0.1 <= request.finished - request.started < 1 for request in server.requests)
    with pytest.raises(openai.APIConnectionError):
        await way(model(server))


def test_a_process_of_its_own_takes_no_function():
    with pytest.raises(TypeError), StubServer(lambda *_: "yes", process=True):
        pass
