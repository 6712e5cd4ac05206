"""Model strings: `provider:model` becomes a LangChain chat model.

`openai:` and `vllm:` are built in. Packages add providers by an entry point in the group `mmedagent_graph.models`,
whose object is called with the model's name; `rl` adds `clinic:` and `transformers:` that way, so that this package
needs no torch. Any other provider is left to `langchain.chat_models.init_chat_model` where LangChain is installed.
"""

import asyncio
import functools
import os
from collections.abc import Callable
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any
from weakref import WeakKeyDictionary

from langchain_core.language_models import BaseChatModel
from pydantic import SecretStr

GROUP = "mmedagent_graph.models"
TIMEOUT = 600.0
"""Seconds that a served model may be silent: the limit of OpenAI's own client, which ChatOpenAI lifts. Of a whole node
it is `build_graph(timeout=...)`."""


def load_model(name: str) -> BaseChatModel:
    """The chat model that a string names.

    Args:
        name: `provider:model`, such as `openai:gpt-4o`, `vllm:Qwen/Qwen2.5-VL-7B-Instruct`, `clinic:base`.

    Raises:
        ValueError: if the string has no provider or names an unknown one; the message lists those that there are.
    """
    provider, colon, model = name.partition(":")
    plugins = {entry.name: entry for entry in entry_points(group=GROUP)}
    known = ", ".join(sorted({*BUILT_IN, *plugins}))
    if not (colon and provider and model):
        raise ValueError(f"model: {name!r} is not of the form 'provider:model'; providers are {known}")
    if provider in BUILT_IN:
        return BUILT_IN[provider](model)
    if provider in plugins:
        try:
            loaded: BaseChatModel = plugins[provider].load()(model)
        except ModuleNotFoundError as error:
            raise ValueError(f"model: {name!r} needs {error.name}; pip install 'mmedagent-graph[rl]'") from error
        return loaded
    if find_spec("langchain") is None:
        more = "install langchain for more"
        raise ValueError(f"model: unknown provider {provider!r} in {name!r}; providers are {known} ({more})")
    from langchain.chat_models import init_chat_model  # type: ignore[import-not-found, unused-ignore]

    chat_model: BaseChatModel = init_chat_model(name)
    return chat_model


def sampled(model: BaseChatModel) -> BaseChatModel:
    """A model that answers anew each time: at temperature 1 where its own is 0, else as it is."""
    return model.model_copy(update={"temperature": 1.0}) if getattr(model, "temperature", None) == 0.0 else model


def _openai(model: str) -> BaseChatModel:
    from langchain_openai import ChatOpenAI  # half a second of import, paid only where it is used

    return ChatOpenAI(model=model, timeout=TIMEOUT, http_async_client=_async_client())


def _vllm(model: str) -> BaseChatModel:
    """A model served by vLLM; `VLLM_BASE_URL` says where (by default this machine, port 8000). It decodes greedily."""
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(
        model=model,
        base_url=os.environ.get("VLLM_BASE_URL", "http://127.0.0.1:8000/v1"),
        api_key=SecretStr(os.environ.get("VLLM_API_KEY", "none")),
        timeout=TIMEOUT,
        temperature=0.0,  # where votes are cast, `sampled` makes it 1
        use_responses_api=False,
        stream_usage=True,  # ChatOpenAI by itself asks only OpenAI's own server for it
        http_async_client=_async_client(),
    )


@functools.cache
def _async_client() -> Any:
    """A client for one event loop after another. ChatOpenAI's own serves only the first (langchain issue 35783)."""
    from openai import DefaultAsyncHttpxClient

    pools: WeakKeyDictionary[asyncio.AbstractEventLoop, Any] = WeakKeyDictionary()

    class Client(DefaultAsyncHttpxClient):
        async def send(self, *args: Any, **kwargs: Any) -> Any:
            """Over a pool of the running loop's own: a connection dies with its loop."""
            loop = asyncio.get_running_loop()
            pool = pools.get(loop) or pools.setdefault(loop, DefaultAsyncHttpxClient())
            return await pool.send(*args, **kwargs)

    return Client()


BUILT_IN: dict[str, Callable[[str], BaseChatModel]] = {"openai": _openai, "vllm": _vllm}
