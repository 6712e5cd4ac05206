"""What every node is: two pure functions with a model between them.

Invariant: `render` and `read` are the only way from a state to a prompt and from a text to an update. Inference puts a
chat model between the two, training puts the trainer between them; so prompt and parser cannot drift apart.
"""

import asyncio
import operator
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, cast

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langchain_core.runnables.base import coerce_to_runnable

from mmedagent_graph.answers import read_answer, read_free_text
from mmedagent_graph.state import NodeUsage

Update = dict[str, Any]
"""What a node writes into the state."""


class Node(Protocol):
    """A learnable node: the words before the model and the reading after it."""

    @property
    def name(self) -> str:
        """`triage`, `specialist` or `attending`."""

    def render(self, state: Any) -> list[BaseMessage]:
        """The messages to put to the model."""

    def read(self, text: str, state: Any) -> Update:
        """The update that the model's text amounts to. Never raises on a text, however malformed."""

    def accept(self, output: Mapping[str, Any], state: Any) -> Update:
        """The update that a swapped-in node's output amounts to.

        Raises:
            ValueError: naming the field and the valid choices.
        """


Swappable = str | BaseChatModel | Runnable[Any, Any] | Callable[..., Any]
"""What may be given for a node: a model string, a chat model, or a callable, Runnable or compiled graph of one's
own."""


def with_model(node: Node, model: BaseChatModel) -> Runnable[Any, Update]:
    """The node with a chat model between its two functions, for sync and async callers."""

    def call(state: Any, config: RunnableConfig) -> Update:
        return _answered(node, model.invoke(node.render(state), config), state)

    async def acall(state: Any, config: RunnableConfig) -> Update:
        messages = await asyncio.to_thread(node.render, state)  # reads images from disk
        return _answered(node, await model.ainvoke(messages, config), state)

    return RunnableLambda(call, afunc=acall, name=node.name)


def with_own(node: Node, own: Runnable[Any, Any] | Callable[..., Any]) -> Runnable[Any, Update]:
    """Somebody's own callable, Runnable or compiled graph in the node's place: the same input, the same update.

    It is given the node's state and returns either the node's fields as a mapping (`{"answer": ...}`, or the update
    itself), or a text or message, which is read as a model's answer would be.
    """
    runnable = coerce_to_runnable(cast(Any, own))

    def update(output: Any, state: Any) -> Update:
        if isinstance(output, AIMessage):
            return _answered(node, output, state)
        if isinstance(output, str):
            return node.read(output, state)
        if isinstance(output, Mapping):
            return node.accept(output, state)
        wrong = type(output).__name__
        raise ValueError(f"{node.name}: the node returned a {wrong}; it must return a mapping, a text or a message")

    def call(state: Any, config: RunnableConfig) -> Update:
        if isinstance(runnable, RunnableLambda) and not hasattr(runnable, "func"):  # async only: a loop of its own
            with ThreadPoolExecutor(1) as thread:
                return update(thread.submit(lambda: asyncio.run(runnable.ainvoke(state, config))).result(), state)
        return update(runnable.invoke(state, config), state)

    async def acall(state: Any, config: RunnableConfig) -> Update:
        return update(await runnable.ainvoke(state, config), state)

    return RunnableLambda(call, afunc=acall, name=node.name)


def _answered(node: Node, message: BaseMessage, state: Any) -> Update:
    used = getattr(message, "usage_metadata", None) or {}
    usage = NodeUsage(calls=1, input_tokens=used.get("input_tokens", 0), output_tokens=used.get("output_tokens", 0))
    return {**node.read(str(message.text), state), "usage": {node.name: usage}}


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
