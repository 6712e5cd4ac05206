"""Who answers for a node: what the graph was given for it, or whom a run's context names instead."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from langchain_core.runnables import Runnable, RunnableConfig

from mmedagent_graph.context import Context, run_context
from mmedagent_graph.frozen import FrozenAnswers
from mmedagent_graph.models import ChatModel, Loader, sampled
from mmedagent_graph.nodes.base import Answering, ByModel, ByOwn, Node, Swappable, Update, is_chat_model
from mmedagent_graph.state import SpecialistInput

Panel = Swappable | Sequence[Swappable]
"""The specialists: one thing for all doctors, or a list with one for each."""


@dataclasses.dataclass(frozen=True)
class Staff:
    """Who answers in a graph.

    Args:
        changeable: whether a run's context may name others.
        frozen: as in `ByModel`.
        load: loads the models of model strings.
    """

    changeable: bool
    frozen: FrozenAnswers | None
    load: Loader

    def member(self, node: Node, given: Swappable, argument: str, samples: bool = False) -> Answering:
        """Who answers for a node; as `answering`."""

        def member(given: Swappable) -> Answering:
            return answering(node, given, argument, self.frozen, samples, self.load)

        return ByContext(member(given), _choice(node.name), member) if self.changeable else member(given)

    def doctors(
        self, node: Node, given: Panel | Mapping[str, Panel], specialties: Sequence[str], number: int
    ) -> "ByDoctor":
        """The specialists: for every specialty as many as its list says, or else the number."""

        def panel(given: Panel) -> list[Answering]:
            if isinstance(given, Sequence) and not isinstance(given, str):
                if not given:
                    raise ValueError("specialists: the list is empty; give one entry for each doctor")
                return [self.member(node, doctor, f"specialists[{i}]") for i, doctor in enumerate(given)]
            if not isinstance(number, int) or number < 1:
                raise ValueError(f"doctors: {number} is not a number of doctors; give 1 or more")
            return [self.member(node, given, "specialists")] * number

        if not isinstance(given, Mapping):
            return ByDoctor(dict.fromkeys(specialties, panel(given)), self.changeable)
        if set(given) != set(specialties):
            wrong = ", ".join(sorted(set(given) ^ set(specialties)))
            names = ", ".join(specialties)
            raise ValueError(f"specialists: unknown or missing {wrong}; there must be one entry for each of {names}")
        return ByDoctor({specialty: panel(given[specialty]) for specialty in specialties}, self.changeable)


class ByDoctor:
    """The specialists: hands the case to the doctor that the `Send` names.

    A specialty with fewer doctors than the number says (further ones are heard after the first) begins again.

    Args:
        panels: who answers as the doctors of each specialty.
        changeable: whether a run's context may name others.
    """

    def __init__(self, panels: Mapping[str, Sequence[Answering]], changeable: bool = False) -> None:
        self.panels, self.changeable = panels, changeable

    def count(self, specialty: str) -> int:
        """How many doctors a specialty has in this run."""
        context = run_context() if self.changeable else None
        named = context.specialists if context else None
        return len(named) if isinstance(named, list) else len(self.panels[specialty])

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
        context = run_context()
        name = self.choice(context, state) if context else None
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
    load: Loader | None = None,
) -> Answering:
    """The node with what was given for it: its two functions around a model, or somebody's own in its place.

    Args:
        node: the node.
        given: who answers for it.
        argument: what errors call it.
        frozen: as in `ByModel`.
        samples: whether a model must answer anew each time, though its own temperature is 0.
        load: loads the model of a model string. Default: for this one alone.

    Raises:
        ValueError: naming `argument`, if it can be neither.
    """
    if isinstance(given, str):
        given = (load or Loader())(given, argument)
    if is_chat_model(given):
        model = cast(ChatModel, given)
        return ByModel(node, sampled(model) if samples else model, frozen)
    if isinstance(given, Runnable) or callable(given):
        return ByOwn(node, given)
    raise ValueError(
        f"{argument}: cannot use a {type(given).__name__}; "
        "give a model string, a chat model, or a callable, Runnable or graph of your own"
    )


def _choice(node: str) -> Callable[[Context, Any], str | None]:
    """Whom a context names for a node."""
    if node != "specialist":
        return lambda context, _: getattr(context, node)

    def doctor(context: Context, state: SpecialistInput) -> str | None:
        named = context.specialists
        return named[(state["doctor"] - 1) % len(named)] if isinstance(named, list) else named

    return doctor
