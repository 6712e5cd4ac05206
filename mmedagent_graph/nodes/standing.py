"""How a node stands in the graph: where it gets its input, who answers for it in this run, and what is said of it.

Invariant: no failure is lost. LangGraph (1.2.22) knows the exceptions that an error handler has dealt with by their
`id()`, for a whole run, and swallows the same object where another node raises it: a run would end without a decision
and without an error. So what another node has raised and was dealt with is raised as another object.
"""

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.errors import GraphBubbleUp
from langgraph.runtime import get_runtime

from mmedagent_graph.context import Context
from mmedagent_graph.events import announce, events
from mmedagent_graph.frozen import FrozenAnswers
from mmedagent_graph.models import ChatModel, load_model, sampled
from mmedagent_graph.nodes.base import Answering, ByModel, ByOwn, Node, Swappable, Update, is_chat_model
from mmedagent_graph.state import SpecialistInput

HANDLED = "mmedagent_graph_handled"
"""Where a run's config carries the exceptions that are dealt with."""


class Standing(Runnable[Any, Any]):
    """A node of the LangGraph graph, for sync and async callers.

    Args:
        who: who answers.
        name: the graph node's name.
        enter: makes the node's input of the graph's state. Default: it is the state (what a `Send` carries).
        leave: makes what the node writes of its update and its input. Default: it is the update.
        handled: whether an error handler deals with its failures.
    """

    def __init__(
        self,
        who: Answering,
        name: str,
        enter: Callable[[Any], Any] | None = None,
        leave: Callable[[Update, Any], Any] | None = None,
        handled: bool = False,
    ) -> None:
        self.who, self.name, self.enter, self.leave, self.handled = who, name, enter, leave, handled

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Run the node."""
        given = self.enter(input) if self.enter else input
        with self._failing(config):
            return self._left(self.who.call(given, config), given)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Run the node."""
        given = self.enter(input) if self.enter else input
        with self._failing(config):
            return self._left(await self.who.acall(given, config), given)

    def _left(self, update: Update, given: Any) -> Any:
        for event in events(update, given):
            announce(event)
        return self.leave(update, given) if self.leave else update

    @contextlib.contextmanager
    def _failing(self, config: RunnableConfig | None) -> Iterator[None]:
        try:
            yield
        except GraphBubbleUp:  # an interrupt
            raise
        except Exception as error:
            handled: list[Exception] = (config or {}).get("configurable", {}).get(HANDLED, [])
            if self.handled:
                handled.append(error)
            elif any(error is one for one in handled):
                raise _another(error) from error
            raise


def _another(error: Exception) -> Exception:
    """The same exception as another object; where it cannot be copied, one that says what it was."""
    try:
        return copy.copy(error)
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


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
        """The node's update."""
        return await self._who(state).acall(state, config)


def answering(
    node: Node,
    given: Swappable,
    argument: str,
    frozen: FrozenAnswers | None = None,
    samples: bool = False,
    load: Callable[[str], BaseChatModel] = load_model,
) -> Answering:
    """The node with what was given for it: its two functions around a model, or somebody's own in its place.

    Args:
        node: the node.
        given: who answers for it.
        argument: what errors call it.
        frozen: as in `ByModel`.
        samples: whether a model must answer anew each time, though its own temperature is 0.
        load: makes a model of a model string.

    Raises:
        ValueError: naming `argument`, if it can be neither.
    """
    if isinstance(given, str):
        try:
            given = load(given)
        except ValueError as error:
            raise ValueError(f"{argument}: {error}") from error
    if is_chat_model(given):
        model = cast(ChatModel, given)
        return ByModel(node, sampled(model) if samples else model, frozen)
    if isinstance(given, Runnable) or callable(given):
        return ByOwn(node, given)
    raise ValueError(
        f"{argument}: cannot use a {type(given).__name__}; "
        "give a model string, a chat model, or a callable, Runnable or graph of your own"
    )
