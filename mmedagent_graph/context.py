"""What can be changed: the settings of a graph, and what a run (LangGraph's context) may change of them."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from langgraph.runtime import get_runtime
from pydantic import BaseModel, ConfigDict, Field, StrictInt, model_validator

from mmedagent_graph.models import Loader

Votes = Annotated[StrictInt, Field(ge=1)] | Literal["adaptive"]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[StrictInt, Field(ge=0)]


class Settings(BaseModel):
    """How a consultation comes to its decision.

    Raises:
        ValidationError: (a ValueError) that names the field, the value and what is valid.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    votes: Votes = 1
    """How often the attending is asked; the majority wins. "adaptive": up to 3 times where the specialists agree and up
    to 9 where they do not, and no more once the majority cannot change."""
    abstain_below: Share | None = None
    """Withhold a majority with a smaller share of the votes, and leave the decision to a human."""
    review: bool = False
    """Interrupt before a decision is released, so that a human approves it, changes it or hears another specialist."""
    max_referrals: Count = 0
    """How often the attending may ask for another specialty before it decides."""

    @model_validator(mode="after")
    def _a_share_of_several(self) -> "Settings":
        if self.abstain_below and self.votes == 1:
            raise ValueError(f"abstain_below={self.abstain_below} needs votes: 2 or more, or 'adaptive'")
        return self

    @property
    def deliberates(self) -> bool:
        """Whether there is more to it than one answer of the attending."""
        return self != Settings()

    def changed_by(self, context: Any) -> "Settings":
        """These settings, with what a run's `Context` says instead."""
        if not isinstance(context, Context):
            return self
        changes = context.model_dump(include=set(Settings.model_fields), exclude_none=True)
        return Settings(**{**self.model_dump(), **changes}) if changes else self


class Context(BaseModel):
    """What one run may change: `graph.invoke(case, context=Context(votes=5))`, or a Studio user in a form.

    Subclass it for a context of one's own nodes. None: as the graph was built. A consultation that is resumed goes on
    with the context that it had; what a resume gives stands before that.
    """

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    triage: str | None = None
    """Model string of the triage doctor, such as `openai:gpt-4o` or `vllm:Qwen/Qwen2.5-VL-7B-Instruct`."""
    specialists: str | Annotated[list[str], Field(min_length=1)] | None = None
    """Model string of all specialists, or one for each doctor."""
    attending: str | None = None
    """Model string of the attending physician."""
    votes: Votes | None = None
    """How often the attending is asked; the majority wins. "adaptive": up to 3 times where the specialists
    agree and up to 9 where they do not, and no more once the majority cannot change."""
    abstain_below: Share | None = None
    """Withhold a majority with a smaller share of the votes (0: never), and leave the decision to a human."""
    review: bool | None = None
    """Interrupt before a decision is released, for a human's approval."""
    max_referrals: Count | None = None
    """How often the attending may ask for another specialty before it decides."""

    def models(self) -> list[tuple[str, str]]:
        """The model strings that it names, each with the node it is named for."""
        specialists = self.specialists if isinstance(self.specialists, list) else [self.specialists]
        named = [("triage", self.triage), *(("specialists", one) for one in specialists), ("attending", self.attending)]
        return [(node, name) for node, name in named if name is not None]


def run_context() -> Context | None:
    """The context of the run that this is called in; None where it is none of ours, or there is no run."""
    try:
        runtime = get_runtime()
    except RuntimeError:
        return None
    return runtime.context if runtime and isinstance(runtime.context, Context) else None


@dataclasses.dataclass(frozen=True)
class Contexts:
    """The contexts of a graph's runs.

    Args:
        schema: of them.
        settings: as the graph was built.
        load: loads the models that they name.
    """

    schema: type[Context]
    settings: Settings
    load: Loader

    def effective(self, given: Any, kept: Mapping[str, Any] | None) -> Context | None:
        """The context of a run: what is given, and where that says nothing what the consultation began with.

        Raises:
            ValueError: naming the field, and what is valid.
        """
        if isinstance(given, Context):
            if not kept:
                return given
            given = self.keep(given)
        said = {name: value for name, value in (given or {}).items() if value is not None}
        return self.schema.model_validate({**(kept or {}), **said}) if given is not None or kept else None

    def ready(self, context: Context | None) -> bool:
        """Whether nothing has to be loaded for this one."""
        return context is None or all(name in self.load for _, name in context.models())

    def prepare(self, context: Context | None) -> None:
        """Check a context and load its models, before anybody is asked.

        Raises:
            ValueError: naming the field, and what is valid.
        """
        self.settings.changed_by(context)
        for node, name in context.models() if context else ():
            self.load(name, node)

    def keep(self, context: Context) -> dict[str, Any]:
        """What is kept of a context while a consultation waits, as plain values."""
        return context.model_dump(mode="json", exclude_none=True)

    def current(self, kept: Mapping[str, Any] | None) -> Settings:
        """The settings that hold in a node."""
        begun = {name: value for name, value in (kept or {}).items() if name in Context.model_fields}
        return self.settings.changed_by(Context(**begun)).changed_by(run_context())
