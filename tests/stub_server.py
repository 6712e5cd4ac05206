"""A chat server that speaks OpenAI's protocol and says what a test tells it to, or fails as a test tells it to.

    with StubServer({"gp": "yes"}, latency=0.2, faults={"gp": ["429", None, "cut"]}) as server:
        ChatOpenAI(model="gp", base_url=server.url, api_key="x")

Everything depends on the request alone, by its model's name. Standard library only, one thread and no coroutine for
each request: 32 clients at a time must cost a benchmark next to nothing. `python stub_server.py FD` is the child of
`process=True`.
"""

import asyncio
import dataclasses
import functools
import itertools
import json
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

FAULTS = {
    "429": "too many requests, with Retry-After",
    "500": "an internal error",
    "hang": "accepts the request and never answers",
    "drip": "sends blanks (in streams, comments) for ever, so that no read ever times out",
    "cut": "sends half of the response and closes the connection",
    "malformed": "200 with half a JSON document",
    "html": "200 with a web page, as a proxy sends it",
    "empty": "200 with JSON that has no choices",
}
RETRY_AFTER = 1
INPUT_TOKENS, OUTPUT_TOKENS = 7, 3
DRIP_SECONDS = 0.05
_NUMBERS = itertools.count()

Answer = str | Mapping[str, str] | Callable[[list[dict[str, Any]], str], str]
"""What is said: always the same, by model, or what a function makes of messages and model (it must not block)."""


@dataclasses.dataclass
class Request:
    """What is known of one request."""

    model: str
    messages: list[dict[str, Any]]
    stream: bool
    fault: str | None
    in_flight: int
    """Requests under way when this one came, with this one."""
    started: float
    """By `time.monotonic`, as is `finished`."""
    finished: float | None = None
    """None while it is under way; a request that hangs is finished when its client hangs up."""


class StubServer:
    """A server on a free port of this machine, from `with` to the block's end.

    Args:
        answer: what the models say. With a mapping, a model that is not in it is unknown (404).
        latency: seconds until an answer or a fault; a mapping says it by model (others: none).
        faults: by model, a list of what happens to its first, second, ... request (None: nothing), or the name of the
            fault of all of them. The names are `FAULTS`.
        process: run in a process of its own, for benchmarks: then `answer` cannot be a function, and `requests` is
            filled when the block ends.
    """

    def __init__(
        self,
        answer: Answer = "yes",
        *,
        latency: float | Mapping[str, float] = 0.0,
        faults: Mapping[str, str | Sequence[str | None]] | None = None,
        process: bool = False,
    ):
        self.answer, self.latency, self.process = answer, latency, process
        self.faults: dict[str, str | list[str | None]] = {}
        for name, given in (faults or {}).items():
            self.faults[name] = given if isinstance(given, str) else list(given)
            if unknown := {given} - {*FAULTS} if isinstance(given, str) else {*given} - {None, *FAULTS}:
                raise ValueError(f"faults[{name!r}]: {unknown} is unknown; there are {', '.join(FAULTS)}")
        self.requests: list[Request] = []
        """All chat requests, in the order of arrival."""
        self.in_flight = 0
        self.connections: set[_Connection] = set()

    @property
    def most_in_flight(self) -> int:
        """The largest number of requests that were under way at a time."""
        return max((request.in_flight for request in self.requests), default=0)

    @property
    def calls(self) -> Counter[str]:
        """How many requests each model got."""
        return Counter(request.model for request in self.requests)

    def __enter__(self) -> "StubServer":
        # The kernel queues connections from here on, so there is no start to wait for.
        listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
        # ChatOpenAI keeps its connections by URL, beyond the test and its event loop; a port may come again, a URL not.
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}/{next(_NUMBERS)}/v1"
        if self.process:
            command = [sys.executable, __file__, str(listening.fileno())]
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            settings = {"answer": self.answer, "latency": self.latency, "faults": self.faults}
            given = json.dumps(settings).encode() + b"\n"  # raises on a function before there is a child
            with listening:
                self._child = subprocess.Popen(command, pass_fds=[listening.fileno()], **pipes)
            assert self._child.stdin
            self._child.stdin.write(given)
            self._child.stdin.flush()
        else:
            self._loop = asyncio.new_event_loop()
            self._stop = asyncio.Event()
            serving = self.serve(listening, self._stop)
            self._thread = threading.Thread(target=self._loop.run_until_complete, args=[serving], daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process:
            said, _ = self._child.communicate()  # closes its stdin, which tells it to end
            self.requests = [Request(**fields) for fields in json.loads(said)]
        else:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
            self._loop.close()

    async def serve(self, listening: socket.socket, stop: asyncio.Event) -> None:
        """Serve until `stop`, then hang up on everybody."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Connection(self, loop), sock=listening)
        await stop.wait()
        server.close()
        for connection in list(self.connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # lets the connections see their end

    def next_fault(self, model: str) -> str | None:
        """What is to happen to the request of this model that has just come."""
        given = self.faults.get(model)
        return given if isinstance(given, str) else given.pop(0) if given else None

    def text(self, messages: list[dict[str, Any]], model: str) -> str | None:
        """What the model says; None if there is no such model."""
        if callable(self.answer):
            return self.answer(messages, model)
        return self.answer if isinstance(self.answer, str) else self.answer.get(model)

    def seconds(self, model: str) -> float:
        """How long the model thinks."""
        return self.latency.get(model, 0.0) if isinstance(self.latency, Mapping) else self.latency


class _Connection(asyncio.Protocol):
    """HTTP/1.1 with keep-alive, as far as HTTP clients of Python use it."""

    transport: asyncio.Transport

    def __init__(self, server: StubServer, loop: asyncio.AbstractEventLoop):
        self.server, self.loop = server, loop
        self.received = bytearray()
        self.request: Request | None = None
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.server.connections.add(self)

    def connection_lost(self, _: Exception | None) -> None:
        self.server.connections.discard(self)
        self.finish()

    def data_received(self, data: bytes) -> None:
        self.received += data
        if self.request is None:  # else it waits for its turn
            self.read()

    def read(self) -> None:
        """Take the next request, if all of it is there."""
        end = self.received.find(b"\r\n\r\n")
        if end < 0:
            return
        first, *lines = self.received[:end].decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        size = int(headers.get("content-length", 0))
        if len(self.received) < end + 4 + size:
            return
        body = bytes(self.received[end + 4 : end + 4 + size])
        del self.received[: end + 4 + size]
        method, path, _ = first.split(" ")
        if method == "POST" and path.endswith("/v1/chat/completions"):
            self.chat(json.loads(body))
        elif method == "GET" and path.endswith("/v1/models"):
            names = self.server.answer if isinstance(self.server.answer, Mapping) else ["stub"]
            self.send("200 OK", {"object": "list", "data": [{"id": name, "object": "model"} for name in names]})
        else:
            self.send("404 Not Found", _error(f"there is no {method} {path}"))

    def chat(self, asked: dict[str, Any]) -> None:
        server, model = self.server, asked["model"]
        server.in_flight += 1
        stream, fault = bool(asked.get("stream")), server.next_fault(model)
        self.request = Request(model, asked["messages"], stream, fault, server.in_flight, time.monotonic())
        server.requests.append(self.request)
        usage = bool((asked.get("stream_options") or {}).get("include_usage"))
        # call_later even for no latency at all: a fast client must not starve the others
        self.timer = self.loop.call_later(server.seconds(model), self.reply, self.request, usage)

    def reply(self, request: Request, usage: bool) -> None:
        fault = request.fault
        if fault == "429":
            self.send("429 Too Many Requests", _error("slow down"), f"Retry-After: {RETRY_AFTER}\r\n")
        elif fault == "500":
            self.send("500 Internal Server Error", _error("out of order"))
        elif fault == "drip":
            kind, drop = ("text/event-stream", b": wait\n\n") if request.stream else ("application/json", b" ")
            self.transport.write(_head("200 OK", kind, "Content-Length: 1000000000\r\n"))
            self.drip(drop)
        elif fault == "html":
            self.send_bytes(_response("200 OK", b"<html>Bad gateway</html>", "text/html"))
        elif fault != "hang":
            self.say(request, usage)

    def say(self, request: Request, usage: bool) -> None:
        try:
            text = self.server.text(request.messages, request.model)
        except Exception as error:  # a mistake in a test, which shall see it
            self.send("500 Internal Server Error", _error(f"the test's answer raised {error!r}"))
            return
        if text is None:
            self.send("404 Not Found", _error(f"The model `{request.model}` does not exist"))
            return
        complete = _stream if request.stream else _completion
        response = complete(text, request.model, usage, request.fault)
        if request.fault == "cut":
            self.finish()
            self.transport.write(response[: len(response) // 2])
            self.transport.close()
        else:
            self.send_bytes(response)

    def drip(self, drop: bytes) -> None:
        self.transport.write(drop)
        self.timer = self.loop.call_later(DRIP_SECONDS, self.drip, drop)

    def send(self, status: str, body: Any, headers: str = "") -> None:
        self.send_bytes(_response(status, json.dumps(body).encode(), headers=headers))

    def send_bytes(self, response: bytes) -> None:
        self.finish()  # first: who has the answer may ask again, or count
        self.transport.write(response)
        if self.received:
            self.read()

    def finish(self) -> None:
        if self.timer:
            self.timer.cancel()
        if self.request:
            self.request.finished = time.monotonic()
            self.server.in_flight -= 1
            self.request = None


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "stub", "param": None, "code": None}}


def _head(status: str, kind: str, headers: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{headers}\r\n".encode()


def _response(status: str, body: bytes, kind: str = "application/json", headers: str = "") -> bytes:
    return _head(status, kind, f"Content-Length: {len(body)}\r\n{headers}") + body


@functools.lru_cache(1000)  # a benchmark's stub says the same again and again
def _completion(text: str, model: str, _: bool, fault: str | None) -> bytes:
    """The response to a request without streaming."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", "logprobs": None}
    envelope = {"id": "chatcmpl-stub", "object": "chat.completion", "created": 0, "model": model}
    body = json.dumps(envelope if fault == "empty" else envelope | {"choices": [choice], "usage": _USAGE}).encode()
    return _response("200 OK", body[: len(body) // 2] if fault == "malformed" else body)


@functools.lru_cache(1000)
def _stream(text: str, model: str, usage: bool, fault: str | None) -> bytes:
    """The same as server-sent events: a role, the text in pieces, an end, and the usage if it was asked for."""
    envelope = {"id": "chatcmpl-stub", "object": "chat.completion.chunk", "created": 0, "model": model}

    def chunk(delta: dict[str, str], reason: str | None = None) -> dict[str, Any]:
        return envelope | {"choices": [{"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}]}

    pieces = [text[i : i + 8] for i in range(0, len(text), 8)]
    chunks = [chunk({"role": "assistant", "content": ""}), *(chunk({"content": piece}) for piece in pieces)]
    chunks.append(chunk({}, "stop"))
    if usage:
        chunks.append(envelope | {"choices": [], "usage": _USAGE})
    if fault == "empty":
        chunks = [envelope]
    events = [json.dumps(one) for one in chunks]
    if fault == "malformed":
        events = [event[: len(event) // 2] for event in events]
    encoded = [f"data: {event}\n\n".encode() for event in [*events, "[DONE]"]]
    body = b"".join(b"%x\r\n%s\r\n" % (len(event), event) for event in [*encoded, b""])
    return _head("200 OK", "text/event-stream", "Transfer-Encoding: chunked\r\n") + body


_USAGE = {
    "prompt_tokens": INPUT_TOKENS,
    "completion_tokens": OUTPUT_TOKENS,
    "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS,
}


async def _child(descriptor: int) -> None:
    server = StubServer(**json.loads(sys.stdin.buffer.readline()))
    stop = asyncio.Event()
    # The end of its input is the end of the block, or of a parent that was killed.
    asyncio.get_running_loop().add_reader(sys.stdin, stop.set)
    await server.serve(socket.socket(fileno=descriptor), stop)
    print(json.dumps([dataclasses.asdict(request) for request in server.requests]))


if __name__ == "__main__":
    asyncio.run(_child(int(sys.argv[1])))
