"""Frozen answers: what a model has once answered is not asked again.

The answers lie in any LangGraph cache (`SqliteCache(path="answers.db")` is one on disk, which several processes may
share), under a key of all that an answer depends on: node, model, prompt, image hashes, sampling, and which doctor or
vote it was, since three doctors with one model are three samples.

Invariant: to callbacks, traces and streams an answer out of the cache is a model call like any other, but that it costs
no tokens.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableWithFallbacks
from langchain_core.runnables.base import RunnableBindingBase
from langgraph.cache.base import BaseCache, FullKey
from pydantic import Field

NAMESPACE = "mmedagent-graph"


class FrozenAnswers:
    """The answers that a LangGraph cache holds.

    A model is known by its class, the addresses among its fields, and what LangChain's `asdict()` tells of it
    (`_identifying_params`), which a chat model class of one's own must therefore define.
    """

    def __init__(self, cache: BaseCache[Any]) -> None:
        self._cache = cache

    def key(self, node: str, model: Any, messages: Sequence[BaseMessage], state: Mapping[str, Any]) -> FullKey:
        """The key of an answer. The images count by their references, which are hashes of their bytes."""
        asked = [[message.type, str(message.text)] for message in messages]
        who = [state.get("specialty"), state.get("doctor"), state.get("vote")]
        whole = json.dumps([node, who, _identity(model), asked, state["images"]], sort_keys=True, default=repr)
        return (NAMESPACE, node), hashlib.sha256(whole.encode()).hexdigest()

    def get(self, key: FullKey) -> BaseMessage | None:
        """The answer, if there is one."""
        return self._cache.get([key]).get(key)

    async def aget(self, key: FullKey) -> BaseMessage | None:
        """The answer, if there is one."""
        return (await self._cache.aget([key])).get(key)

    def keep(self, key: FullKey, answer: BaseMessage) -> None:
        """Keep an answer for good, unless it is empty."""
        if answer.text:
            self._cache.set({key: (answer, None)})

    async def akeep(self, key: FullKey, answer: BaseMessage) -> None:
        """Keep an answer for good, unless it is empty."""
        if answer.text:
            await self._cache.aset({key: (answer, None)})


class Kept(BaseChatModel):
    """Says once more what a model has answered; the tokens that it once cost stand in the metadata, as `spent`."""

    answer: BaseMessage = Field(repr=False)  # the repr goes into every trace
    cache: Any = False  # LangChain's own cache knows nothing of doctors and votes

    @property
    def _llm_type(self) -> str:
        return "kept"

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        told = {**self.answer.response_metadata, "spent": getattr(self.answer, "usage_metadata", None)}
        free = self.answer.model_copy(update={"usage_metadata": None, "response_metadata": told})
        return ChatResult(generations=[ChatGeneration(message=free)])


def _identity(model: Any) -> Any:
    """Who answers, and how it samples."""
    if isinstance(model, RunnableBindingBase):
        return [_identity(model.bound), model.kwargs]
    if isinstance(model, RunnableWithFallbacks):
        return [_identity(model.runnable), *map(_identity, model.fallbacks)]
    if isinstance(model, BaseChatModel):
        addresses = [value for _, value in model if isinstance(value, str) and "://" in value]
        return [f"{type(model).__module__}.{type(model).__qualname__}", model.asdict(), addresses]
    return repr(model)
