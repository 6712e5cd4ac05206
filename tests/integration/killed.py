"""A consultation that is killed on its way, life after life: `python -m tests.integration.killed '{...}'`.

Each life is a process of its own. Everything that happens is a line of the plan's log, on disk before anything else
happens: `start X` and `end X` where node X is called and where it returns, `kept X` where its answer has been saved.
"""

import asyncio
import base64
import contextlib
import functools
import hashlib
import itertools
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from langchain_core.messages import HumanMessage
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from PIL import Image
from typing_extensions import TypedDict

from mmedagent_graph import build_graph
from mmedagent_graph.images import ImageStore

SAVERS = ["SqliteSaver", "AsyncSqliteSaver", "PostgresSaver", "AsyncPostgresSaver"]
CASE = {"question": "Is the heart enlarged?", "options": ["yes", "no", "a little", "cannot tell"], "context": "Age 63."}
GRAPH_NODE = {"triage": "triage", "doctor": "specialist", "vote": "vote", "attending": "attending"}
FORMS = ["path", "bytes", "PIL", "data URL", "chat"]


class Within(TypedDict):
    """Die in a node, once it can be seen on another connection that exactly these doctors' answers have been saved."""

    node: str
    kept: list[int]


class At(TypedDict):
    """Die just before or after the checkpointer's n-th operation of this life."""

    operation: int
    when: str


Death = Within | At | None
"""None: live on to the end."""


class Plan(TypedDict):
    """What is consulted about, and how it is killed."""

    saver: str
    where: str
    """The checkpointer's file or URL."""
    images: str
    """The folder of the image store."""
    log: str
    image: str
    """The case's image, needed for the first life only."""
    forms: list[str]
    """How the image is given, round by round."""
    votes: int
    options: dict[str, Any]
    """Of `invoke`."""
    rounds: list[list[Death]]
    """Each round is a consultation of its own, on a thread of its own; each entry is a life."""


@contextlib.asynccontextmanager
async def opened(saver: str, where: str) -> AsyncIterator[BaseCheckpointSaver[Any]]:
    """One of the checkpointers, as their documentation opens them."""
    match saver:
        case "InMemorySaver":
            yield InMemorySaver()
        case "SqliteSaver":
            with SqliteSaver.from_conn_string(where) as sqlite:
                yield sqlite
        case "AsyncSqliteSaver":
            async with AsyncSqliteSaver.from_conn_string(where) as sqlite:
                yield sqlite
        case "PostgresSaver":
            with PostgresSaver.from_conn_string(where) as postgres:
                postgres.setup()
                yield postgres
        case "AsyncPostgresSaver":
            async with AsyncPostgresSaver.from_conn_string(where) as postgres:
                await postgres.setup()
                yield postgres


def given(form: str, image: Path) -> dict[str, Any]:
    """The case with its image as a path, bytes, a PIL image, a data URL, or the whole as a chat."""
    encoded = base64.b64encode(image.read_bytes()).decode() if form in ("data URL", "chat") else ""
    if form == "chat":
        options = (f"{letter}. {option}" for letter, option in zip("ABCD", CASE["options"], strict=True))
        text = {"type": "text", "text": "\n".join([CASE["question"], *options])}
        block = {"type": "image", "base64": encoded, "mime_type": "image/png"}
        return {"messages": [HumanMessage([text, block])], "context": CASE["context"]}
    match form:
        case "path":
            picture: Any = str(image)
        case "bytes":
            picture = image.read_bytes()
        case "PIL":
            with Image.open(image) as opened_image:
                picture = opened_image.copy()
        case "data URL":
            picture = f"data:image/png;base64,{encoded}"
    return {**CASE, "images": [picture]}


def is_sync(saver: Any) -> bool:
    return isinstance(saver, SqliteSaver | PostgresSaver)


async def consult(graph: Any, case: Any, config: Any = None, **options: Any) -> dict[str, Any]:
    """Sync with the sync checkpointers, async with the others."""
    if is_sync(graph.checkpointer):
        return await asyncio.to_thread(graph.invoke, case, config, **options)
    return await graph.ainvoke(case, config, **options)


async def state_of(graph: Any, config: Any) -> Any:
    if is_sync(graph.checkpointer):
        return graph.get_state(config)
    return await graph.aget_state(config)


def plain(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result whose messages can be compared: without their random ids."""
    return {**result, "messages": [[message.type, message.text] for message in result["messages"]]}


def ward(
    store: ImageStore,
    checkpointer: BaseCheckpointSaver[Any] | None = None,
    *,
    votes: int = 1,
    begun: Callable[[str], None] = lambda node: None,
    ended: Callable[[str], None] = lambda node: None,
) -> Any:
    """A consultation of one's own callables, who say what they were shown."""

    def node(answer: Callable[[Any], dict[str, Any]], name: Callable[[Any], str]) -> Any:
        def call(case: Any) -> dict[str, Any]:
            begun(name(case))
            pixels = b"".join(store.open(ref).tobytes() for ref in case["images"])
            said = answer(case)
            ended(name(case))
            return {**said, "reasoning": f"{name(case)} saw {hashlib.sha256(pixels).hexdigest()[:8]}"}

        async def acall(case: Any) -> dict[str, Any]:
            return await asyncio.to_thread(call, case)

        sync = checkpointer is None or is_sync(checkpointer)
        return call if sync else acall

    def decide(case: Any) -> dict[str, Any]:
        assert [opinion["answer"] for opinion in case["opinions"]] == case["options"][:3], case["opinions"]
        return {"answer": case["options"][0]}

    return build_graph(
        triage=node(lambda case: {"specialty": "Radiologist"}, lambda case: "triage"),
        specialists=[
            node(lambda case: {"answer": case["options"][case["doctor"] - 1]}, lambda case: f"doctor {case['doctor']}")
        ]
        * 3,
        attending=node(decide, lambda case: f"vote {case['vote']}" if "vote" in case else "attending"),
        votes=votes,
        images=store,
        checkpointer=checkpointer,
    )


def note(plan: Plan, line: str) -> None:
    log = os.open(plan["log"], os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    os.write(log, f"{line}\n".encode())
    os.fsync(log)
    os.close(log)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()


async def die_when_seen(plan: Plan, thread: Any, death: Within) -> None:
    saver = plan["saver"].removeprefix("Async")
    while True:
        async with opened(saver, plan["where"]) as second:
            state = ward(ImageStore(plan["images"]), second).get_state(thread)
        kept = [opinion["doctor"] for opinion in state.values.get("opinions", [])]
        if GRAPH_NODE[death["node"].split()[0]] in state.next and kept == death["kept"]:
            die()
        await asyncio.sleep(0.02)


def begin(plan: Plan, thread: Any, death: Death, node: str) -> None:
    note(plan, f"start {node}")
    if not death or "node" not in death:
        return
    if node == death["node"]:
        asyncio.run(die_when_seen(plan, thread, death))
    if node.startswith("doctor") and int(node.split()[1]) not in death["kept"]:
        threading.Event().wait()  # this doctor is still thinking when the other dies


def saved(writes: Any) -> Iterator[str]:
    """Whose answers these are."""
    update = {channel: value for channel, value in writes or [] if value}
    if "referral" in update:
        yield "triage"
    yield from (f"doctor {opinion['doctor']}" for opinion in update.get("opinions", []))
    yield from (f"vote {vote['vote']}" for vote in update.get("votes", []))
    if update.get("decision", {}).get("votes") == 1:
        yield "attending"


def watched(saver: BaseCheckpointSaver[Any], plan: Plan, death: Death) -> None:
    """Note what the checkpointer has saved, and die at the operation that the plan names."""
    count = itertools.count(1)

    @contextlib.contextmanager
    def operation(writes: Any) -> Iterator[None]:
        number = next(count)
        at = death["when"] if death and "operation" in death and death["operation"] == number else None
        if at == "before":
            die()
        yield
        for node in saved(writes):
            note(plan, f"kept {node}")
        if at == "after":
            die()

    def around(method: Any, has_writes: bool) -> Any:
        @functools.wraps(method)
        def sync(config: Any, second: Any, *rest: Any, **named: Any) -> Any:
            with operation(second if has_writes else None):
                return method(config, second, *rest, **named)

        @functools.wraps(method)
        async def asynchronous(config: Any, second: Any, *rest: Any, **named: Any) -> Any:
            with operation(second if has_writes else None):
                return await method(config, second, *rest, **named)

        return asynchronous if asyncio.iscoroutinefunction(method) else sync

    for name in ("aput", "aput_writes") if type(saver).__name__.startswith("Async") else ("put", "put_writes"):
        setattr(saver, name, around(getattr(saver, name), "writes" in name))


async def live(plan: Plan, number: int, death: Death) -> dict[str, Any]:
    """One life of a consultation: it begins, or goes on where the life before it ended."""
    store = ImageStore(plan["images"])
    thread = {"configurable": {"thread_id": f"round {number}"}}
    async with opened(plan["saver"], plan["where"]) as saver:
        watched(saver, plan, death)
        graph = ward(
            store,
            saver,
            votes=plan["votes"],
            begun=lambda node: begin(plan, thread, death, node),
            ended=lambda node: note(plan, f"end {node}"),
        )
        saved = await state_of(graph, thread)
        case = None if saved.created_at else given(plan["forms"][number % len(plan["forms"])], Path(plan["image"]))
        result = await consult(graph, case, thread, **plan["options"])
        state = await state_of(graph, thread)
    assert state.next == ()
    assert {key: state.values[key] for key in result} == result
    return plain(result)


def main(plan: Plan) -> None:
    for number, deaths in enumerate(plan["rounds"]):
        note(plan, f"round {number}")
        for life, death in enumerate(deaths):
            code = in_a_process_of_its_own(plan, number, death)
            note(plan, {0: "done", -signal.SIGKILL: "killed"}.get(code, f"failed {code}"))
            if code not in (0, -signal.SIGKILL):
                return
            if code == 0 and life == 0 and death:
                return  # no operation is left to die at
            if code == 0:
                break


def in_a_process_of_its_own(plan: Plan, number: int, death: Death) -> int:
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    signal.alarm(60)  # whatever goes wrong, nothing waits for ever
    try:
        print(json.dumps(asyncio.run(live(plan, number, death))), flush=True)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
