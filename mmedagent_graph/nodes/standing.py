"""How a node stands in the graph: where it gets its input, who answers for it in this run, and what is said of it."""

import asyncio
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.runtime import get_runtime

from mmedagent_graph.context import Context
from mmedagent_graph.events import announce, events
from mmedagent_graph.frozen import FrozenAnswers
from mmedagent_graph.models import load_model, sampled
from mmedagent_graph.nodes.base import Answering, ByModel, ByOwn, ChatModel, Node, Swappable, Update, is_chat_model
from mmedagent_graph.state import SpecialistInput


class Standing(Runnable[Any, Update]):
    """A node of the LangGraph graph, for sync and async callers.

    Args:
        who: who answers.
        name: the graph node's name.
        enter: makes the node's input of the graph's state. Default: it is the state (what a `Send` carries).
        leave: what is added to the node's update. Default: nothing.
    """

    def __init__(
        self,
        who: Answering,
        name: str,
        enter: Callable[[Any], Any] | None = None,
        leave: Callable[[Update], Update] | None = None,
    ) -> None:
        self.who, self.name, self.enter, self.leave = who, name, enter, leave

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Update:
        """Run the node."""
        given = self.enter(input) if self.enter else input
        return self._left(self.who.call(given, config), given)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Update:
        """Run the node."""
        given = self.enter(input) if self.enter else input
        return self._left(await self.who.acall(given, config), given)

    def _left(self, update: Update, given: Any) -> Update:
        for event in events(update, given):
            announce(event)
        return {**update, **self.leave(update)} if self.leave else update


class ByDoctor:
    """The specialists: hands the case to the doctor that the `Send` names.

    A specialty with fewer doctors than the number says (further ones are heard after the first) begins again.
    """

    def __init__(self, panels: Mapping[str, Sequence[Answering]]) -> None:
        self.panels = panels

    def _doctor(self, state: SpecialistInput) -> Answering:
        panel = self.panels[state["specialty"]]
        return panel[(state["doctor"] - 1) % len(panel)]

    def call(self, state: SpecialistInput, config: RunnableConfig | None) -> Update:
        """The doctor's opinion."""
        return self._doctor(state).call(state, config)

    async def acall(self, state: SpecialistInput, config: RunnableConfig | None) -> Update:
        """The doctor's opinion."""
        return await self._doctor(state).acall(state, config)


class ByContext:
    """The node with the model that the run's context names, or as the graph was built.

    Args:
        built: who answers where the context names nobody.
        choice: the model string of a context, for a state; None: nobody is named.
        answering: makes of a model string somebody who answers for the node.
    """

    def __init__(
        self, built: Answering, choice: Callable[[Context, Any], str | None], answering: Callable[[str], Answering]
    ) -> None:
        self.built, self.choice, self.answering = built, choice, functools.cache(answering)

    def _who(self, state: Any) -> Answering:
        context = get_runtime().context
        name = self.choice(context, state) if isinstance(context, Context) else None
        return self.answering(name) if name else self.built

    def call(self, state: Any, config: RunnableConfig | None) -> Update:
        """The node's update."""
        return self._who(state).call(state, config)

    async def acall(self, state: Any, config: RunnableConfig | None) -> Update:
        """The node's update; a model that is loaded first does not hold up the event loop."""
        return await (await asyncio.to_thread(self._who, state)).acall(state, config)


def answering(
    node: Node, given: Swappable, argument: str, frozen: FrozenAnswers | None = None, samples: bool = False
) -> Answering:
    """The node with what was given for it: its two functions around a model, or somebody's own in its place.

    Args:
        node: the node.
        given: who answers for it.
        argument: what errors call it.
        frozen: as in `ByModel`.
        samples: whether a model must answer anew each time, though its own temperature is 0.

    Raises:
        ValueError: naming `argument`, if it can be neither.
    """
    if isinstance(given, str):
        try:
            given = load_model(given)
        except ValueError as error:
            raise ValueError(f"{argument}: {error}") from error
    if is_chat_model(given):
        model = cast(ChatModel, given)
        return ByModel(node, sampled(model) if samples and isinstance(model, BaseChatModel) else model, frozen)
    if isinstance(given, Runnable) or callable(given):
        return ByOwn(node, given)
    raise ValueError(
        f"{argument}: cannot use a {type(given).__name__}; "
        "give a model string, a chat model, or a callable, Runnable or graph of your own"
    )
