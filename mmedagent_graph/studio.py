"""The graph that LangGraph's server and Studio load (`langgraph.json`, `make studio`).

It works as it is, with the embedded clinic. A run's context (`mmedagent_graph.Context`) or the environment switches to
real models. Environment, besides the models' (`mmedagent_graph.defaults`):

    MMEDAGENT_IMAGE_STORE    folder for the images; as long as the threads shall live. Default: a temporary one
    MMEDAGENT_IMAGE_FOLDERS  folders (separated as in PATH) from which input may name files. Default: none
    MMEDAGENT_IMAGE_HOSTS    hosts (separated by commas) from which input may name images. Default: none
    MMEDAGENT_MODELS         the models (separated by commas) that a context may name. Default: any

Input comes from outside: unless the operator says so by name, it may hold images as data, but no path and no address.
"""

import os
from typing import Self

from pydantic import model_validator

from mmedagent_graph.context import Context
from mmedagent_graph.defaults import default_graph
from mmedagent_graph.images import ImageStore


def _listed(variable: str, separator: str = ",") -> list[str]:
    return [entry.strip() for entry in os.environ.get(variable, "").split(separator) if entry.strip()]


class ServedContext(Context):
    """What a user of the server may change."""

    @model_validator(mode="after")
    def _models_are_allowed(self) -> Self:
        allowed = _listed("MMEDAGENT_MODELS")
        for _, name in self.models():
            if allowed and name not in allowed:
                raise ValueError(f"model {name!r} is not allowed here; allowed are {', '.join(allowed)}")
        return self


def served_store() -> ImageStore:
    """The image store of a served graph, as the environment says."""
    return ImageStore(
        os.environ.get("MMEDAGENT_IMAGE_STORE"),
        paths=_listed("MMEDAGENT_IMAGE_FOLDERS", os.pathsep),
        hosts=_listed("MMEDAGENT_IMAGE_HOSTS"),
    )


graph = default_graph(context_schema=ServedContext, images=served_store())
