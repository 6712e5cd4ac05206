"""The compiled graph: a LangGraph graph whose input is checked, and its images put away, before LangGraph sees it.

Invariant: LangGraph never sees an image. It keeps what it is given in its first checkpoint; so a case is turned into
references first, and a checkpoint stays small and holds nothing that only a human should look at.
"""

import asyncio
import contextlib
import contextvars
import functools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, cast

from langchain_core.runnables import RunnableConfig, ensure_config
from langchain_core.runnables.config import merge_configs
from langchain_core.runnables.graph import Graph
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph.state import CompiledStateGraph, StateGraph
from langgraph.types import Command
from pydantic import BaseModel, TypeAdapter

from mmedagent_graph.case import Case
from mmedagent_graph.chat import asked
from mmedagent_graph.context import Contexts, run_context
from mmedagent_graph.images import ImageStore, default_store
from mmedagent_graph.nodes.standing import HANDLED
from mmedagent_graph.state import ConsultationInput, ConsultationOutput, ConsultationState

LOADING = ThreadPoolExecutor(64, "mmedagent-graph-load")
"""For the loading of models. Most of its threads wait for one that another loads; images have a pool of their own."""


class Builder(StateGraph[ConsultationState, Any, Any, ConsultationOutput]):
    """LangGraph's builder, with what a consultation does before LangGraph begins."""

    images: ImageStore
    contexts: Contexts | None
    """None: a run's context is none of ours."""

    def compile(self, *args: Any, **kwargs: Any) -> "Consultation":
        """Compile as LangGraph does, to a `Consultation`."""
        return Consultation(**vars(super().compile(*args, **kwargs)))  # as a compiled graph copies itself


class Consultation(CompiledStateGraph[ConsultationState, Any, ConsultationInput, ConsultationOutput]):
    """A compiled LangGraph graph that takes a `Case`, its fields, or chat messages.

    `invoke`, `ainvoke`, `stream`, `astream`, `batch`, `abatch`, `get_state` and the rest are LangGraph's own.
    """

    builder: Builder

    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        """As in LangGraph.

        Raises:
            ValueError: naming the field of the input or of the context and what is valid; or where the graph has a
                `timeout`, which only `ainvoke` and `astream` can keep.
        """
        if any(node.timeout for node in self.nodes.values()):
            raise ValueError(
                "timeout: Python cannot cut off a sync call; use ainvoke, astream or abatch, or a model with a timeout"
            )
        context = self._context(kwargs.get("context"), self._saved(input, config))
        received = self._received(input, config, context)
        return super().stream(received, _remembering(config), **self._with(context, kwargs))

    async def astream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[Any]:
        """As in LangGraph; images are read and checked, and models loaded, in a thread."""
        context = self._context(kwargs.get("context"), await self._asaved(input, config))
        begin = functools.partial(self._received, input, config, context)
        if self.builder.contexts and not self.builder.contexts.ready(context):
            received = await _in_thread(begin, LOADING)
        elif _has_images(input):
            received = await _in_thread(begin)
        else:
            received = begin()
        chunks = super().astream(received, _remembering(config), **self._with(context, kwargs))
        async with contextlib.aclosing(cast(AsyncGenerator[Any, None], chunks)) as open_chunks:
            async for chunk in open_chunks:
                yield chunk

    def _saved(self, given: Any, config: RunnableConfig | None) -> CheckpointTuple | None:
        """What a run goes on from, if it does and may have to know."""
        thread = self._thread(given, config)
        return cast(BaseCheckpointSaver[Any], self.checkpointer).get_tuple(thread) if thread else None

    async def _asaved(self, given: Any, config: RunnableConfig | None) -> CheckpointTuple | None:
        thread = self._thread(given, config)
        return await cast(BaseCheckpointSaver[Any], self.checkpointer).aget_tuple(thread) if thread else None

    def _thread(self, given: Any, config: RunnableConfig | None) -> RunnableConfig | None:
        resumes = given is None or isinstance(given, Command)
        if not (resumes and self.builder.contexts and isinstance(self.checkpointer, BaseCheckpointSaver)):
            return None
        thread = ensure_config(merge_configs(self.config, config))
        return thread if "thread_id" in thread["configurable"] else None

    def _context(self, given: Any, saved: CheckpointTuple | None) -> Any:
        """The run's context: what was given, or that of the graph around this one, before what it began with."""
        if not self.builder.contexts:
            return given
        kept = saved.checkpoint["channel_values"].get("kept") if saved else None
        return self.builder.contexts.effective(run_context() if given is None else given, kept)

    def _with(self, context: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a run, with its context.

        A finished answer is written before the next thing is done: to ask again may cost more than to write.
        """
        said = kwargs.get("durability") or kwargs.get("checkpoint_during") is not None
        durable = {} if said or not self.checkpointer else {"durability": "sync"}
        return {**kwargs, "context": context, **durable}

    def _received(self, given: Any, config: RunnableConfig | None, context: Any) -> Any:
        """What LangGraph is given: the case by references. A resume (None, a Command) is passed on as it is."""
        if self.builder.contexts:
            self.builder.contexts.prepare(context)
        if given is None or isinstance(given, Command):
            return given
        # nothing of an earlier consultation on the same thread: None begins every channel anew
        received: dict[str, Any] = dict.fromkeys(self.builder.state_schema.__annotations__)
        received["case"] = Case.of(given).fields(self.builder.images)
        if self.builder.contexts and context:
            received["kept"] = self.builder.contexts.keep(context)
        if isinstance(given, Mapping) and given.get("messages") and not _nested(config):
            # the chat goes on; a graph around this one keeps its own
            received["messages"] = [asked(received["case"], given["messages"])]
        return received

    def get_input_schema(self, config: RunnableConfig | None = None) -> type[BaseModel]:
        """The input as a Pydantic model, for `as_tool` and the like."""
        return Case

    def get_input_jsonschema(self, config: RunnableConfig | None = None) -> dict[str, Any]:
        """The JSON schema of the input."""
        return TypeAdapter(ConsultationInput).json_schema() | {"title": self.get_name("Input")}

    def get_output_jsonschema(self, config: RunnableConfig | None = None) -> dict[str, Any]:
        """The JSON schema of the output."""
        return TypeAdapter(ConsultationOutput).json_schema() | {"title": self.get_name("Output")}

    def get_graph(self, config: RunnableConfig | None = None, *, xray: int | bool = False) -> Graph:
        """The drawable graph, without the boxes of error handlers, which no edge leads to."""
        graph = super().get_graph(config, xray=xray)
        for name in [name for name in graph.nodes if "__error_handler__" in name]:
            del graph.nodes[name]
            graph.edges = [edge for edge in graph.edges if name not in (edge.source, edge.target)]
        return graph


def kept_images(images: ImageStore | None, checkpointer: Any) -> ImageStore:
    """Where a graph's images are kept: by default in a temporary folder of the process.

    Raises:
        ValueError: if its checkpoints would outlive them.
    """
    if images is None and isinstance(checkpointer, BaseCheckpointSaver) and not isinstance(checkpointer, InMemorySaver):
        raise ValueError(
            "images: checkpoints that outlive the process need images that do, too; give ImageStore(folder)"
        )
    return images or default_store()


async def _in_thread(call: Callable[[], Any], executor: Executor | None = None) -> Any:
    return await asyncio.get_running_loop().run_in_executor(executor, contextvars.copy_context().run, call)


def _has_images(given: Any) -> bool:
    return bool(given.get("images") or given.get("messages")) if isinstance(given, Mapping) else isinstance(given, Case)


def _nested(config: RunnableConfig | None) -> bool:
    """Whether a node of another graph calls; it need not have handed on its config."""
    return bool(ensure_config(config).get("configurable", {}).get("checkpoint_ns"))


def _remembering(config: RunnableConfig | None) -> RunnableConfig:
    """The config, with room for the exceptions of this run that are dealt with."""
    given = config or RunnableConfig()
    return {**given, "configurable": {**given.get("configurable", {}), HANDLED: []}}
