"""What every node is: two pure functions with a model between them.

Invariant: `render` and `read` are the only way from a state to a prompt and from a text to an update. Inference puts a
chat model between the two, training puts the trainer between them; so prompt and parser cannot drift apart.
"""

import asyncio
import contextvars
import operator
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, cast

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda, RunnableWithFallbacks
from langchain_core.runnables.base import RunnableBindingBase, coerce_to_runnable
from langchain_core.runnables.configurable import DynamicRunnable

from mmedagent_graph.answers import read_answer, read_free_text
from mmedagent_graph.frozen import FrozenAnswers, Kept
from mmedagent_graph.models import ChatModel
from mmedagent_graph.state import NodeUsage, add_usage

Update = dict[str, Any]
"""What a node writes into the state."""


class Asked(Protocol):
    """What a model is put into: the words before it and the reading after it."""

    @property
    def name(self) -> str:
        """`triage`, `specialist` or `attending`; in a baseline, one of its roles."""

    def render(self, state: Any) -> list[BaseMessage]:
        """The messages to put to the model."""

    def read(self, text: str, state: Any) -> Update:
        """The update that the model's text amounts to. Never raises on a text, however malformed."""


class Node(Asked, Protocol):
    """A learnable node, in whose place somebody's own may stand."""

    def accept(self, output: Mapping[str, Any], state: Any) -> Update:
        """The update that a swapped-in node's output amounts to.

        Raises:
            ValueError: naming the field and the valid choices.
        """


class Answering(Protocol):
    """A node with whoever answers for it."""

    def call(self, state: Any, config: RunnableConfig | None) -> Update:
        """The node's update."""

    async def acall(self, state: Any, config: RunnableConfig | None) -> Update:
        """The same, for async callers."""


Swappable = str | BaseChatModel | Runnable[Any, Any] | Callable[..., Any]
"""What may be given for a node: a model string, a chat model, or a callable, Runnable or compiled graph of one's
own."""


def is_chat_model(given: Any) -> bool:
    """Whether it is a chat model, maybe in a binding (`bind`, `with_retry`), with fallbacks, or configurable."""
    match given:
        case RunnableBindingBase():
            return is_chat_model(given.bound)
        case RunnableWithFallbacks():
            return is_chat_model(given.runnable)
        case DynamicRunnable():
            return is_chat_model(given.default)
    return isinstance(given, BaseChatModel)


class ByModel:
    """The node with a chat model between its two functions.

    Args:
        node: the node.
        model: who answers.
        frozen: where answers are kept, and looked up before the model is asked. Default: nowhere.
    """

    def __init__(self, node: Asked, model: ChatModel, frozen: FrozenAnswers | None = None) -> None:
        self.node, self.model, self.frozen = node, model, frozen

    def call(self, state: Any, config: RunnableConfig | None = None) -> Update:
        """Render, ask, read."""
        messages, named = self.node.render(state), _named(config, self.node.name, state)
        if self.frozen is None:
            return self._update(self.model.invoke(messages, named), state)
        key = self.frozen.key(self.node.name, self.model, messages, state)
        if known := self.frozen.get(key):
            return self._update(Kept(answer=known).invoke(messages, _as_cached(named)), state, cached=True)
        begun = time.perf_counter()
        answer = _timed(self.model.invoke(messages, named), begun)
        self.frozen.keep(key, answer)
        return self._update(answer, state)

    async def acall(self, state: Any, config: RunnableConfig | None = None) -> Update:
        """Render, ask, read; the event loop is not held up by images that are read from disk."""
        messages = await asyncio.to_thread(self.node.render, state) if state["images"] else self.node.render(state)
        named = _named(config, self.node.name, state)
        if self.frozen is None:
            return self._update(await self.model.ainvoke(messages, named), state)
        key = self.frozen.key(self.node.name, self.model, messages, state)
        if known := await self.frozen.aget(key):
            return self._update(await Kept(answer=known).ainvoke(messages, _as_cached(named)), state, cached=True)
        begun = time.perf_counter()
        answer = _timed(await self.model.ainvoke(messages, named), begun)
        await self.frozen.akeep(key, answer)
        return self._update(answer, state)

    def _update(self, message: BaseMessage, state: Any, cached: bool = False) -> Update:
        return {**self.node.read(str(message.text), state), "usage": {self.node.name: _usage(message, cached)}}


class ByOwn:
    """Somebody's own callable, Runnable or compiled graph in the node's place: the same input, the same update.

    It is given the node's state and returns either the node's fields as a mapping (`{"answer": ...}`, or the update
    itself), or a text or message, which is read as a model's answer would be.
    """

    def __init__(self, node: Node, own: Runnable[Any, Any] | Callable[..., Any]) -> None:
        self.node, self.own = node, coerce_to_runnable(cast(Any, own))

    def call(self, state: Any, config: RunnableConfig | None = None) -> Update:
        """Ask it; one that is async only gets a loop of its own."""
        if isinstance(self.own, RunnableLambda) and not hasattr(self.own, "func"):
            context = contextvars.copy_context()
            with ThreadPoolExecutor(1) as thread:
                answer = thread.submit(context.run, asyncio.run, self.own.ainvoke(state, config))
                return self._update(answer.result(), state)
        return self._update(self.own.invoke(state, config), state)

    async def acall(self, state: Any, config: RunnableConfig | None = None) -> Update:
        """Ask it."""
        return self._update(await self.own.ainvoke(state, config), state)

    def _update(self, output: Any, state: Any) -> Update:
        if isinstance(output, AIMessage):
            return {**self.node.read(str(output.text), state), "usage": {self.node.name: _usage(output, cached=False)}}
        if isinstance(output, str):
            return self.node.read(output, state)
        if isinstance(output, Mapping):
            return {**self.node.accept(output, state), **self._spent(output)}
        wrong = type(output).__name__
        raise ValueError(
            f"{self.node.name}: the node returned a {wrong}; it must return a mapping, a text or a message"
        )

    def _spent(self, output: Mapping[str, Any]) -> Update:
        """What a whole consultation in the node's place cost."""
        if not {"referral", "opinions", "decision", "usage"} <= output.keys():
            return {}
        total: dict[str, NodeUsage] = {}
        for spent in output["usage"].values():
            total = add_usage(total, {self.node.name: spent})
        return {"usage": total}


def _named(config: RunnableConfig | None, node: str, state: Mapping[str, Any]) -> RunnableConfig:
    """The config of a model call: callbacks and traces say which node it was, which doctor, which vote."""
    metadata = {key: state[key] for key in ("specialty", "doctor", "vote") if key in state}
    name = " ".join([node, *map(str, metadata.values())])
    return {**(config or {}), "run_name": name, "metadata": {**(config or {}).get("metadata", {}), **metadata}}


def _as_cached(named: RunnableConfig) -> RunnableConfig:
    """The config of a call that only says once more what is known: callbacks can tell it by its metadata."""
    return {**named, "metadata": {**named["metadata"], "cached": True}}


def _timed(answer: BaseMessage, begun: float) -> BaseMessage:
    """The answer with how many seconds it took, which is kept with it."""
    told = {**answer.response_metadata, "seconds": time.perf_counter() - begun}
    return answer.model_copy(update={"response_metadata": told})


def _usage(message: BaseMessage, cached: bool) -> NodeUsage:
    if cached:
        return NodeUsage(calls=0, cached=1, input_tokens=0, output_tokens=0)
    used = getattr(message, "usage_metadata", None) or {}
    return NodeUsage(
        calls=1, cached=0, input_tokens=used.get("input_tokens", 0), output_tokens=used.get("output_tokens", 0)
    )


def checked_answer(output: Mapping[str, Any], options: list[str], node: str) -> tuple[str | None, int | None]:
    """The answer and index in a swapped-in node's output, where either may be left out.

    Raises:
        ValueError: if the answer is not one of the options, or the two contradict each other.
    """
    answer, index = output.get("answer"), output.get("index")
    if answer is None and index is None:
        return None, None
    if not options:
        if not isinstance(answer, str):
            raise ValueError(f"{node}.answer: {answer!r} is not a text")
        return answer, None
    if answer is not None and answer not in options:
        raise ValueError(f"{node}.answer: {answer!r} is not an option; options are {options}")
    if index is None:
        index = options.index(cast(str, answer))
    named = operator.index(index) if hasattr(index, "__index__") else -1  # any integer, numpy's too
    if not 0 <= named < len(options) or answer not in (None, options[named]):
        raise ValueError(f"{node}.index: {index!r} does not name {answer!r}; options are {options}")
    return options[named], named


def stated(text: str, options: list[str]) -> tuple[str | None, int | None]:
    """The answer and index that a model's text states; both None where the strict reader reads nothing."""
    if not options:
        return read_free_text(text), None
    index = read_answer(text, options)
    return (None, None) if index is None else (options[index], index)
