"""How a node stands in the graph: where it gets its input, who answers for it in this run, and what is said of it.

Invariant: no failure is lost. LangGraph (1.2.22) knows the exceptions that an error handler has dealt with by their
`id()`, for a whole run, and swallows the same object where another node raises it: a run would end without a decision
and without an error. So what another node has raised and was dealt with is raised as another object.
"""

import contextlib
import copy
import logging
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.errors import GraphBubbleUp, NodeError
from langgraph.types import Command

from mmedagent_graph.events import announce, events
from mmedagent_graph.nodes.base import Answering, Update

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
        _announce(update, given)
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


def says_so(failed: Callable[[Any, BaseException], Update], goto: str = "attending") -> Callable[..., Command[Any]]:
    """An error handler that lets the attending go on with what a failure amounts to.

    Args:
        failed: makes the update of the node's input and the failure.
        goto: who goes on, where it is not the attending.
    """

    def handle(state: Any, error: NodeError) -> Command[Any]:
        update = failed(state, error.error)
        _announce(update, state)
        return Command(update=update, goto=goto)

    return handle


def _announce(update: Update, given: Any) -> None:
    for event in events(update, given):
        announce(event)


def _another(error: Exception) -> Exception:
    """The same exception as another object; where it cannot be copied, one that says what it was."""
    try:
        return copy.copy(error)
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def _says_nothing_of_a_case(record: logging.LogRecord) -> bool:
    """LangGraph logs a retry with the exception's text, in which a provider may quote the case; its kind is enough."""
    error = record.exc_info[1] if record.exc_info else None
    if error and any(frame.f_code.co_filename == __file__ for frame, _ in traceback.walk_tb(error.__traceback__)):
        record.msg, record.args, record.exc_info = f"a node is tried again after {type(error).__name__}", None, None
    return True


logging.getLogger("langgraph.pregel._retry").addFilter(_says_nothing_of_a_case)
