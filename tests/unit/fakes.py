"""What the unit tests put in place of real models and real images."""

import asyncio
import base64
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langgraph.checkpoint.memory import InMemorySaver
from PIL import Image
from pydantic import Field

from mmedagent_graph import Consultation, build_graph
from mmedagent_graph.nodes.standing import Standing

INPUT_TOKENS, OUTPUT_TOKENS = 7, 3
QUESTION = {"question": "Which scan is it?", "options": ["CT", "MRI", "PET"]}
THREAD = {"configurable": {"thread_id": "bed 7"}}
Consult = Callable[..., dict[str, Any]]

# Models


class FakeModel(BaseChatModel):
    """Keeps the messages it is given and says what `answer` makes of them."""

    answer: Callable[[Sequence[BaseMessage]], str]
    label: str = ""
    """What tells two fakes apart, where answers are frozen."""
    temperature: float | None = None
    seen: list[list[BaseMessage]] = Field(default_factory=list)
    told: list[dict[str, Any]] = Field(default_factory=list)
    """The metadata of every call."""
    warmth: list[float | None] = Field(default_factory=list)
    """The temperature of every call; as the other lists it is shared with the copies that `sampled` makes."""

    @property
    def _llm_type(self) -> str:
        return "fake"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"label": self.label, "temperature": self.temperature}

    def _said(self, messages: list[BaseMessage], run_manager: CallbackManagerForLLMRun | None) -> str:
        self.seen.append(messages)
        self.told.append(dict(run_manager.metadata or {}) if run_manager else {})
        self.warmth.append(self.temperature)
        return self.answer(messages)

    def _generate(self, messages: list[BaseMessage], _: Any = None, run_manager: Any = None, **__: Any) -> ChatResult:
        usage = UsageMetadata(
            input_tokens=INPUT_TOKENS, output_tokens=OUTPUT_TOKENS, total_tokens=INPUT_TOKENS + OUTPUT_TOKENS
        )
        message = AIMessage(self._said(messages, run_manager), usage_metadata=usage)
        return ChatResult(generations=[ChatGeneration(message=message)])


class StreamingModel(FakeModel):
    """A fake that streams, word by word."""

    def _stream(
        self, messages: list[BaseMessage], _: Any = None, run_manager: Any = None, **__: Any
    ) -> Iterator[ChatGenerationChunk]:
        for word in self._said(messages, run_manager).split(" "):
            yield ChatGenerationChunk(message=AIMessageChunk(word))


def says(text: str, **fields: Any) -> FakeModel:
    """A model that always says the same."""
    return FakeModel(answer=lambda _: text, **fields)


def answers(answer: str, because: str = "", **fields: Any) -> FakeModel:
    """A model that always gives the same answer, well formed."""
    return says(f"<think>{because}</think><answer>{answer}</answer>", **fields)


def refers(specialty: str = "Radiologist") -> FakeModel:
    """A triage doctor who always refers to the same specialty."""
    return answers(specialty, because="By the image.")


def breaks(error: Exception) -> FakeModel:
    """A model whose every call fails."""

    def fail(_: Sequence[BaseMessage]) -> str:
        raise error

    return FakeModel(answer=fail)


# Nodes of one's own


def voting(*said: Any) -> Callable[[dict[str, Any]], Any]:
    """An attending that casts these votes by their numbers, over and over: texts, mappings, or exceptions to raise."""

    def vote(state: dict[str, Any]) -> Any:
        one = said[(state.get("vote", 1) - 1) % len(said)]
        if isinstance(one, Exception):
            raise one
        return one

    return vote


# Somebody who answers for a node


class Named:
    """Somebody who answers with a name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def call(self, state: Any, config: Any) -> dict[str, Any]:
        return {"said": f"{self.name} to {state}"}

    async def acall(self, state: Any, config: Any) -> dict[str, Any]:
        await asyncio.sleep(0)
        return self.call(state, config)


async def both(who: Any, state: Any) -> dict[str, Any]:
    """What it answers, the same for sync and async callers."""
    call, acall = (who.invoke, who.ainvoke) if isinstance(who, Standing) else (who.call, who.acall)
    sync, asynchronous = call(state, None), await acall(state, None)
    assert sync == asynchronous
    return sync


# Consultations


def graph(**given: Any) -> Consultation:
    """A graph whose every node is a fake model, but for those that are given."""
    return build_graph(
        **{"triage": refers(), "specialists": answers("CT"), "attending": answers("CT", because="Seen."), **given}
    )


def consulting(how: str) -> Consult:
    """Runs a graph to its end, by `invoke` or by `ainvoke`."""

    def consult(graph: Any, case: Any, config: Any = None, **more: Any) -> dict[str, Any]:
        if how == "invoke":
            return graph.invoke(case, config, **more)
        return asyncio.run(graph.ainvoke(case, config, **more))

    return consult


def streaming(how: str) -> Callable[..., list[Any]]:
    """All that a graph streams, by `stream` or by `astream`."""

    def listen(graph: Any, case: Any, config: Any = None, **more: Any) -> list[Any]:
        async def everything() -> list[Any]:
            return [chunk async for chunk in graph.astream(case, config, **more)]

        return list(graph.stream(case, config, **more)) if how == "stream" else asyncio.run(everything())

    return listen


def thread(name: Any) -> dict[str, Any]:
    """The config of a thread."""
    return {"configurable": {"thread_id": str(name)}}


def said(result: dict[str, Any]) -> list[str | None]:
    """What the specialists answered."""
    return [opinion["answer"] for opinion in result["opinions"]]


def opinion(doctor: int, answer: str | None, **fields: Any) -> dict[str, Any]:
    """The opinion of a radiologist on `QUESTION`."""
    index = QUESTION["options"].index(answer) if answer in QUESTION["options"] else None
    plain = {"specialty": "Radiologist", "doctor": doctor, "answer": answer, "index": index}
    return {**plain, "reasoning": "", "error": None, **fields}


def usage(**calls: int) -> dict[str, dict[str, int]]:
    """What so many calls of fakes cost, by node."""
    return {
        node: {"calls": n, "cached": 0, "input_tokens": INPUT_TOKENS * n, "output_tokens": OUTPUT_TOKENS * n}
        for node, n in calls.items()
    }


def untagged(result: dict[str, Any]) -> dict[str, Any]:
    """A result with its messages as type and text: their ids are random."""
    return {**result, "messages": [(message.type, message.text) for message in result["messages"]]}


# Checkpoints


def everything(kept: InMemorySaver) -> bytes:
    """Every byte that the checkpointer holds."""

    def held(value: Any) -> Iterator[bytes]:
        if isinstance(value, bytes):
            yield value
        elif isinstance(value, dict | list | tuple):
            for part in value.values() if isinstance(value, dict) else value:
                yield from held(part)

    return b"".join(held([dict(kept.storage), dict(kept.writes), dict(kept.blobs)]))


def plain(value: Any) -> bool:
    """Whether it is made of plain values and LangChain's messages."""
    if isinstance(value, dict):
        return all(type(key) is str and plain(part) for key, part in value.items())
    if type(value) is list:
        return all(map(plain, value))
    return type(value) in (str, int, float, bool, type(None)) or isinstance(value, BaseMessage)


# Words and images


def words(messages: Sequence[BaseMessage]) -> str:
    """All text of the messages."""
    return "\n".join(str(message.text) for message in messages)


def pictures(messages: Sequence[BaseMessage]) -> list[bytes]:
    """The bytes of all images in the messages, in order."""
    blocks = [block for message in messages if isinstance(message.content, list) for block in message.content]
    return [
        base64.b64decode(block["base64"]) for block in blocks if isinstance(block, dict) and block["type"] == "image"
    ]


def image(color: str = "red", mode: str = "RGB") -> Image.Image:
    """A small image of one colour."""
    return Image.new("RGB", (8, 6), color).convert(mode)


def encoded(picture: Image.Image, form: str = "PNG") -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    picture.save(buffer, form)
    return buffer.getvalue()


def data_url(data: bytes, mime: str = "image/png") -> str:
    """The bytes as a data URL."""
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"
