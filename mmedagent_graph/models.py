"""Model strings: `provider:model` becomes a LangChain chat model.

`openai:` and `vllm:` are built in. Packages add providers by an entry point in the group `mmedagent_graph.models`,
whose object is called with the model's name; `rl` adds `clinic:` and `transformers:` that way, so that this package
needs no torch. Any other provider is left to `langchain.chat_models.init_chat_model` where LangChain is installed.
"""

import asyncio
import functools
import os
import threading
from collections.abc import AsyncGenerator, Callable
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any, TypeVar

from langchain_core.language_models import BaseChatModel
from langchain_core.outputs import ChatResult
from langchain_core.runnables import Runnable, RunnableWithFallbacks
from langchain_core.runnables.base import RunnableBindingBase
from pydantic import SecretStr

ChatModel = Runnable[Any, Any]
"""A chat model, as it is or with retries, fallbacks or bound arguments around it."""
Model = TypeVar("Model", bound=ChatModel)
GROUP = "mmedagent_graph.models"
TIMEOUT = {"timeout": 600.0, "connect": 5.0}
"""Seconds that a served model may be silent, and that a connection may take: the limits of OpenAI's own client, which
ChatOpenAI lifts. That of a whole node is `build_graph(timeout=...)`."""


def load_model(name: str) -> BaseChatModel:
    """The chat model that a string names.

    Args:
        name: `provider:model`, such as `openai:gpt-4o`, `vllm:Qwen/Qwen2.5-VL-7B-Instruct`, `clinic:base`.

    Raises:
        ValueError: if the string has no provider or names an unknown one (the message lists those that there are), or
            if the model cannot be made.
    """
    provider, colon, model = name.partition(":")
    plugins = {entry.name: entry for entry in entry_points(group=GROUP)}
    known = ", ".join(sorted({*BUILT_IN, *plugins}))
    if not (colon and provider and model):
        raise ValueError(f"model: {name!r} is not of the form 'provider:model'; providers are {known}")
    if provider in BUILT_IN:
        try:
            return BUILT_IN[provider](model)
        except Exception as error:  # no key, say
            raise ValueError(f"model: {name!r}: {error}") from error
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


class Loader:
    """Loads each model once, however many ask for it at a time, and keeps it."""

    def __init__(self) -> None:
        self._guard, self._locks = threading.Lock(), dict[str, threading.Lock]()
        self._loaded: dict[str, BaseChatModel] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._loaded

    def __call__(self, name: str, argument: str) -> BaseChatModel:
        """The model of this name.

        Raises:
            ValueError: as `load_model`, naming the argument that names the model.
        """
        with self._guard:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            if name not in self._loaded:
                try:
                    self._loaded[name] = load_model(name)
                except ValueError as error:
                    raise ValueError(f"{argument}: {error}") from error
            return self._loaded[name]


def sampled(model: Model) -> Model:
    """A model that answers anew each time: at temperature 1 where its own is 0, else as it is."""
    if isinstance(model, RunnableBindingBase):
        warmer = {"temperature": 1.0} if model.kwargs.get("temperature") == 0.0 else {}
        return model.model_copy(update={"bound": sampled(model.bound), "kwargs": {**model.kwargs, **warmer}})
    if isinstance(model, RunnableWithFallbacks):
        fallbacks = [sampled(fallback) for fallback in model.fallbacks]
        return model.model_copy(update={"runnable": sampled(model.runnable), "fallbacks": fallbacks})
    if isinstance(model, BaseChatModel) and getattr(model, "temperature", None) == 0.0:
        return model.model_copy(update={"temperature": 1.0})
    return model


def _openai(model: str) -> BaseChatModel:
    from langchain_openai import ChatOpenAI  # half a second of import, paid only where it is used

    return ChatOpenAI(model=model, **_connections())


def vllm_model(model: str, url: str | None = None) -> BaseChatModel:
    """A model served by vLLM, at an address or else where `VLLM_BASE_URL` says (by default this machine, port 8000).

    It decodes greedily. Its messages hold `prompt_token_ids` and `token_ids` in their `response_metadata`, unless they
    are streamed.
    """
    return _chat_vllm()(
        model=model,
        base_url=url or os.environ.get("VLLM_BASE_URL", "http://127.0.0.1:8000/v1"),
        api_key=SecretStr(vllm_key()),
        temperature=0.0,  # where votes are cast, `sampled` makes it 1
        use_responses_api=False,
        stream_usage=True,  # ChatOpenAI by itself asks only OpenAI's own server for it
        extra_body={"return_token_ids": True},
        **_connections(),
    )


def vllm_key() -> str:
    """The key of a server of one's own."""
    return os.environ.get("VLLM_API_KEY", "none")


@functools.cache
def _chat_vllm() -> Callable[..., BaseChatModel]:
    from langchain_openai import ChatOpenAI

    class ChatVLLM(ChatOpenAI):
        """ChatOpenAI, which by itself drops the token ids of a reply."""

        def _create_chat_result(self, response: Any, generation_info: dict[str, Any] | None = None) -> ChatResult:
            result = super()._create_chat_result(response, generation_info)
            reply = response if isinstance(response, dict) else response.model_dump()
            for generation, choice in zip(result.generations, reply["choices"], strict=True):
                ids = {"prompt_token_ids": reply.get("prompt_token_ids"), "token_ids": choice.get("token_ids")}
                generation.message.response_metadata.update(ids)
            return result

    return ChatVLLM


def _connections() -> dict[str, Any]:
    from openai import Timeout

    given: dict[str, Any] = {"timeout": Timeout(**TIMEOUT)}
    if not os.environ.get("OPENAI_PROXY"):  # which ChatOpenAI refuses beside a client
        # no socket options: with them the sync client would not see the proxies of the environment
        given |= {"http_async_client": async_client(), "http_socket_options": ()}
    return given


@functools.cache
def async_client() -> Any:
    """The connections of `openai:` and `vllm:` models; for one of your own, `ChatOpenAI(http_async_client=...)`.

    It serves one event loop after another; ChatOpenAI's own serves only the first (langchain issue 35783). It is over
    aiohttp, since httpx looks at each of its idle connections at every request, which takes most of a batch's time. A
    loop that is not run by `asyncio.run` should end with `shutdown_asyncgens`, which closes its connections.
    """
    import httpx2  # openai's
    from openai import DefaultAioHttpClient, DefaultAsyncHttpxClient

    pools: dict[asyncio.AbstractEventLoop, tuple[Any, AsyncGenerator[None]]] = {}

    async def until_the_loop_ends(loop: asyncio.AbstractEventLoop, pool: Any) -> AsyncGenerator[None]:
        try:
            yield  # asyncio.run finishes the async generators that it finds unfinished
        finally:
            pools.pop(loop, None)
            await pool.aclose()

    class Client(DefaultAsyncHttpxClient):
        async def send(self, *args: Any, **kwargs: Any) -> Any:
            """Over a pool of the running loop's own: a connection dies with its loop."""
            loop = asyncio.get_running_loop()
            if loop not in pools:
                for closed in [other for other in list(pools) if other.is_closed()]:
                    pools.pop(closed, None)  # by somebody who does not end a loop as asyncio.run does
                pool = DefaultAioHttpClient()
                pools[loop] = pool, until_the_loop_ends(loop, pool)
                await anext(pools[loop][1])
            try:
                return await pools[loop][0].send(*args, **kwargs)
            except httpx2.ConnectTimeout as error:
                if isinstance(error.__cause__, TimeoutError):
                    raise
                raise httpx2.ConnectError(str(error)) from error  # it calls every failure to connect a timeout

    return Client()


BUILT_IN: dict[str, Callable[[str], BaseChatModel]] = {"openai": _openai, "vllm": vllm_model}
