"""How every baseline is wired: its roles are asked, kept, retried, timed and counted in the same way.

Invariant: whatever a baseline asks of its model goes through a `Role`, that is through `ByModel`. So a call is counted
under its role, cached where there is a cache, and seen by callbacks, as it is in a consultation.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypedDict

from langchain_core.messages import BaseMessage
from langgraph.cache.base import BaseCache
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.types import Send

from mmedagent_graph.consultation import Builder, Consultation, kept_images
from mmedagent_graph.frozen import FrozenAnswers
from mmedagent_graph.graph import Retry, Timeout
from mmedagent_graph.images import ImageStore
from mmedagent_graph.models import ChatModel, Loader, sampled
from mmedagent_graph.nodes.base import Answering, ByModel, Update, is_chat_model
from mmedagent_graph.nodes.standing import Standing
from mmedagent_graph.state import ConsultationOutput, ConsultationState

Model = str | ChatModel
"""A model string or a chat model, maybe with retries or fallbacks around it."""
Words = Callable[[Any, ImageStore], list[BaseMessage]]
"""A prompt, of a role's input."""
Reading = Callable[[str, Any], Update]
"""The update that a model's text and a role's input amount to."""
Ahead = str | list[Send]
"""Who is next: a node, or several calls in parallel."""


class Common(TypedDict, total=False):
    """What every baseline takes beside its own arguments: each as in `mmedagent_graph.build_graph`."""

    images: ImageStore | None
    cache: BaseCache[Any] | None
    retry_policy: Retry | None
    """Of every call."""
    timeout: Timeout | None
    """Of every call."""
    checkpointer: BaseCheckpointSaver[Any] | None
    name: str


@dataclasses.dataclass(frozen=True)
class Role:
    """One thing that a baseline asks of its model: the words before it, and the reading after it."""

    name: str
    store: ImageStore
    words: Words
    reading: Reading

    def render(self, state: Any) -> list[BaseMessage]:
        """The messages to put to the model."""
        return self.words(state, self.store)

    def read(self, text: str, state: Any) -> Update:
        """The update that the model's text amounts to."""
        return self.reading(text, state)


class Wiring:
    """A baseline in the making.

    Args:
        state: of the graph.
        common: what the baseline was given.
        name: the graph's, where it was given none.

    Raises:
        ValueError: if checkpoints would outlive the images.
        TypeError: if the baseline was given what none takes.
    """

    def __init__(self, state: type[ConsultationState], common: Common, name: str) -> None:
        if unknown := sorted(set(common) - set(Common.__annotations__)):
            takes = ", ".join(Common.__annotations__)
            raise TypeError(f"{name}: unknown argument {', '.join(unknown)}; beside its own it takes {takes}")
        self.common, self.name = common, common.get("name", name)
        self.images = kept_images(common.get("images"), common.get("checkpointer"))
        self.frozen = FrozenAnswers(cache) if (cache := common.get("cache")) is not None else None
        self.builder = Builder(state, output_schema=ConsultationOutput)
        self.builder.images, self.builder.contexts = self.images, None

    def add(
        self,
        name: str,
        who: Answering,
        enter: Callable[[Any], Any] | None = None,
        leave: Callable[[Update, Any], Any] | None = None,
        error_handler: Callable[..., Any] | None = None,
        **given: Any,
    ) -> None:
        """Add a node where somebody answers; without an error handler its failures are the run's."""
        self.builder.add_node(
            name,
            Standing(who, name, enter, leave, handled=error_handler is not None),
            retry_policy=self.common.get("retry_policy"),
            timeout=self.common.get("timeout"),
            error_handler=error_handler,
            **given,
        )

    def join(self, name: str, ahead: Callable[[Any], Ahead], following: Sequence[str]) -> None:
        """Add a node where parallel calls come together, and nobody is asked.

        Without it the way ahead would be looked for once by each of the calls.

        Args:
            name: the node's.
            ahead: who is next.
            following: all nodes that may be next.
        """
        self.builder.add_node(name, _nothing)
        self.builder.add_conditional_edges(name, ahead, list(following))

    def compile(self) -> Consultation:
        """The graph."""
        return self.builder.compile(checkpointer=self.common.get("checkpointer"), name=self.name)


class Play(Wiring):
    """A baseline in the making whose roles are all played by one model.

    Args:
        model: who plays them.
        state: as in `Wiring`, as are the others.
        common: what the baseline was given.
        name: the graph's.

    Raises:
        ValueError, TypeError: as `Wiring` and `chat_model`.
    """

    def __init__(self, model: Model, state: type[ConsultationState], common: Common, name: str) -> None:
        super().__init__(state, common, name)
        self.model = chat_model(model)

    def role(self, name: str, words: Words, reading: Reading, samples: bool = False) -> ByModel:
        """The model in a role.

        Args:
            name: the role's, under which its calls are counted.
            words: the prompt.
            reading: of what it is answered.
            samples: whether the model must answer anew each time, though its own temperature is 0.
        """
        model = sampled(self.model) if samples else self.model
        return ByModel(Role(name, self.images, words, reading), model, self.frozen)

    def ask(self, name: str, words: Words, reading: Reading, **given: Any) -> None:
        """Add a node where the model plays the role of this name; `given` is as in `add`."""
        self.add(name, self.role(name, words, reading), **given)


def _nothing(state: Any) -> None:
    """What a node writes where nobody is asked."""


def chat_model(given: Model) -> ChatModel:
    """The model of a baseline, loaded where it is a string.

    Raises:
        ValueError: if it is no model.
    """
    if isinstance(given, str):
        return Loader()(given, "model")
    if not is_chat_model(given):
        raise ValueError(f"model: cannot use a {type(given).__name__}; give a model string or a chat model")
    return given


def at_least(least: int, **given: int) -> None:
    """Refuse an argument that is no whole number of `least` or more.

    Raises:
        ValueError: naming it.
    """
    for name, number in given.items():
        if not isinstance(number, int) or isinstance(number, bool) or number < least:
            raise ValueError(f"{name}: {number!r} is not a whole number of {least} or more")
