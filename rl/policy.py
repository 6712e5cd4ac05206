"""A transformers model as a LangChain chat model, with batching across concurrent calls, for runs without a server.

Registered as `clinic:` and `transformers:`, so `build_graph(attending="transformers:DIR_OR_ID")` works and
`mmedagent_graph` never imports torch.

Invariant: a base is in memory once, with all adapters of it beside it, and whoever of them is asked answers as it would
alone. Between answers no adapter is in force, so that `PolicyChatModel.model` is the base.
"""

import asyncio
import contextlib
import functools
import gc
import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

import torch
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from pydantic import ConfigDict, PrivateAttr
from transformers import PreTrainedModel

from rl.chat import tokenize
from rl.clinic.doctors import ClinicDoctor, ClinicTeacher
from rl.models import fingerprint, folder_of, is_adapter, load_model, load_processor, why_not_plain

Request = TypeVar("Request")
Reply = TypeVar("Reply")
PLAIN = {"do_sample": True, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
GREEDY = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None, "repetition_penalty": 1.0}
BARE = "__base__"
"""PEFT's name for no adapter."""
PATIENCE = 0.01
"""Seconds that a batch waits for company after its first request."""


class Batcher(Generic[Request, Reply]):
    """Collects concurrent requests into batches and works them off in one thread of its own."""

    def __init__(self, work: Callable[[Sequence[Request]], Sequence[Reply]], max_batch: int) -> None:
        self._work, self._max_batch = work, max_batch
        self._queue: queue.Queue[tuple[Request, Future[Reply]]] = queue.Queue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def submit(self, request: Request) -> "Future[Reply]":
        """Queue a request; the future holds its reply, or the error of its batch."""
        future: Future[Reply] = Future()
        self._queue.put((request, future))
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="policy", daemon=True)
                self._thread.start()
        return future

    def _run(self) -> None:
        while True:
            self._work_off_one()

    def _work_off_one(self) -> None:
        """Wait for a batch and answer it. What it held goes as this returns: a policy would wait in it for ever."""
        batch = [self._queue.get()]
        deadline = time.monotonic() + PATIENCE
        while len(batch) < self._max_batch:
            try:
                batch.append(self._queue.get(timeout=max(0.0, deadline - time.monotonic())))
            except queue.Empty:
                break
        live = [(request, future) for request, future in batch if future.set_running_or_notify_cancel()]
        if not live:
            return
        try:
            for (_, future), reply in zip(live, self._work([request for request, _ in live]), strict=True):
                future.set_result(reply)
        except Exception as error:
            for _, future in live:
                if not future.done():
                    future.set_exception(error)


class Shared:
    """A base in memory, and the adapters beside it; one generation at a time.

    Args:
        base: the model, which adapters are put into.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        self._base, self.lock = base, threading.RLock()
        self._adapted: PeftModel | None = None
        self._numbers = itertools.count()
        self.mixes = True
        """Whether rows of one batch may differ in their adapter; one that also sees with other eyes forbids it to all,
        since PEFT then takes a vision tower's patches for rows."""

    def add(self, folder: str) -> str:
        """Load an adapter; returns what it is called here."""
        with self.lock:
            name = f"adapter-{next(self._numbers)}"  # never again: peft leaves behind what it could not load
            try:
                if self._adapted is None:
                    self._adapted = PeftModel.from_pretrained(self._base, folder, adapter_name=name)
                else:
                    self._adapted.load_adapter(folder, name)
            finally:
                for layer in self._base.modules():
                    if isinstance(layer, BaseTunerLayer):  # also of one that could not be loaded
                        layer.enable_adapters(False)
            self._adapted.eval()
            self.mixes = self.mixes and why_not_plain(folder) is None
        return name

    @contextlib.contextmanager
    def under(self, adapters: Sequence[str]) -> Iterator[Callable[..., torch.Tensor]]:
        """The `generate` under which each row of a batch has its adapter in force."""
        with self.lock:
            if self._adapted is None or set(adapters) == {BARE}:
                yield self._base.generate
                return
            self._adapted.base_model.enable_adapter_layers()
            try:
                if len(set(adapters)) == 1:
                    self._adapted.set_adapter(adapters[0])
                    yield self._adapted.generate
                else:
                    yield functools.partial(self._adapted.generate, adapter_names=list(adapters))
            finally:
                self._adapted.base_model.disable_adapter_layers()


class PolicyChatModel(BaseChatModel):
    """A Qwen2.5-VL, or another image-text model of transformers, as a chat model.

    The message's `response_metadata` holds `prompt_token_ids`, `token_ids` and `finish_reason` (`stop` or `length`).
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    model_name: str
    model: Any
    """The transformers model; an adapter's is its base, which other adapters share."""
    processor: Any
    adapter: str = BARE
    """What is in force while it answers."""
    weights: str = ""
    """What tells these weights from others of the same name; frozen answers go by it."""
    max_tokens: int | None = None
    """At most so many tokens are generated. Default: what the model's generation config says, or 512."""
    temperature: float = 0.0
    """0 decodes greedily."""
    max_batch: int = 64
    disable_streaming: bool = True  # a streamed message would lose its token ids
    _batcher: "Batcher[_Call, AIMessage]" = PrivateAttr()
    _shared: Shared = PrivateAttr()

    def model_post_init(self, context: Any) -> None:
        """Start with an empty queue; a `model_copy` shares it, since it shares the model."""
        super().model_post_init(context)
        self._batcher = Batcher(_work, self.max_batch)
        self._shared = Shared(self.model)

    def beside(self, folder: str) -> "PolicyChatModel":
        """An adapter of this model, loaded beside it."""
        known = {"model_name": folder, "weights": fingerprint(folder, self.model)}
        return self.model_copy(update={**known, "adapter": self._shared.add(folder)})

    @property
    def _llm_type(self) -> str:
        return "transformers"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        known = {"model": self.model_name, "temperature": self.temperature, "max_tokens": self.max_tokens}
        return {**known, "weights": self.weights}

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return _result(self._batcher.submit((self, messages)).result())

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return _result(await asyncio.wrap_future(self._batcher.submit((self, messages))))

    def answer(self, prompts: Sequence[list[BaseMessage]]) -> list[AIMessage]:
        """Answer several prompts in one forward pass, padded on the left."""
        return _answers([self] * len(prompts), prompts)

    def _message(self, prompt_ids: list[int], completion: list[int]) -> AIMessage:
        ends = self.model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        stop = next((i for i, token in enumerate(completion) if token in ends), None)
        ids = completion if stop is None else completion[: stop + 1]
        return AIMessage(
            self.processor.tokenizer.decode(ids, skip_special_tokens=True),
            usage_metadata={
                "input_tokens": len(prompt_ids),
                "output_tokens": len(ids),
                "total_tokens": len(prompt_ids) + len(ids),
            },
            response_metadata={
                "model_name": self.model_name,
                "prompt_token_ids": prompt_ids,
                "token_ids": ids,
                "finish_reason": "length" if stop is None else "stop",
            },
        )


_Call = tuple[PolicyChatModel, list[BaseMessage]]


def _answers(policies: Sequence[PolicyChatModel], prompts: Sequence[list[BaseMessage]]) -> list[AIMessage]:
    """Answer each prompt as its policy; they share their base and sample alike."""
    first = policies[0]
    inputs = tokenize(first.processor, prompts).to(first.model.device)
    # whatever the checkpoint's own generation config says: as TRL samples
    sampling = {**PLAIN, "temperature": first.temperature} if first.temperature else GREEDY
    limit = first.max_tokens or first.model.generation_config.max_new_tokens or 512
    with first._shared.under([policy.adapter for policy in policies]) as generate, torch.inference_mode():
        training = first.model.training
        first.model.eval()
        output = generate(**inputs, max_new_tokens=limit, **sampling)
        first.model.train(training)
    width = inputs["input_ids"].shape[1]
    rows = zip(policies, inputs["input_ids"], inputs["attention_mask"].bool(), output, strict=True)
    return [policy._message(ids[mask].tolist(), row[width:].tolist()) for policy, ids, mask, row in rows]


def _work(calls: Sequence[_Call]) -> list[AIMessage]:
    """Answer a batch: calls that sample alike go through the model together, of several adapters where that is exact.

    On one CPU core that takes the clinic's base with three adapters 0.8 of the time that one adapter after the other
    takes, and with nine 0.65.
    """
    replies: dict[int, AIMessage] = {}
    shared = calls[0][0]._shared
    with shared.lock:  # no adapter comes that forbids what is begun
        together: dict[Any, list[int]] = {}
        for i, (policy, _) in enumerate(calls):
            alike = policy.temperature, policy.max_tokens, None if shared.mixes else policy.adapter
            together.setdefault(alike, []).append(i)
        for rows in together.values():
            policies, prompts = zip(*(calls[i] for i in rows), strict=True)
            one = len({policy.adapter for policy in policies}) == 1
            answers = policies[0].answer(prompts) if one else _answers(policies, prompts)
            replies.update(zip(rows, answers, strict=True))
    return [replies[i] for i in range(len(calls))]


def _result(message: AIMessage) -> ChatResult:
    return ChatResult(generations=[ChatGeneration(message=message)])


def transformers_model(name: str) -> BaseChatModel:
    """`transformers:DIR_OR_ID`: one model a process for each name, however many nodes use it."""
    return load_policy(name)


def clinic_model(name: str) -> BaseChatModel:
    """`clinic:base` (the base checkpoint), `clinic:doctor-1` to `-3`, `clinic:teacher` (simulated), or `clinic:DIR`."""
    if name == "teacher":
        return ClinicTeacher()
    if name.startswith("doctor-") and name.removeprefix("doctor-").isdecimal():
        return ClinicDoctor(doctor=int(name.removeprefix("doctor-")))
    return load_policy(f"clinic:{name}")


def load_policy(name: str) -> PolicyChatModel:
    """A policy from `clinic:base`, a folder or a hub id; loaded once a process, an adapter beside its base.

    Raises:
        ValueError: if there is no such folder or hub id, or if it is an adapter of an adapter.
    """
    with _loading:
        return _loaded(folder_of(name))


_loading = threading.RLock()


@functools.cache
def _loaded(folder: str) -> PolicyChatModel:
    if is_adapter(folder):
        base = folder_of(str(PeftConfig.from_pretrained(folder).base_model_name_or_path))
        if is_adapter(base):
            raise ValueError(f"model: {folder!r} is an adapter of an adapter, {base!r}; merge that into its base first")
        return _loaded(base).beside(folder)
    # one precision for every model of a machine, so that before and after compare; half precision is slow on a CPU
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    model = load_model(folder, dtype).eval()
    processor = load_processor(folder)
    return PolicyChatModel(model_name=folder, model=model, processor=processor, weights=fingerprint(folder, model))


def forget_policies() -> None:
    """Let go of the loaded policies, so that their memory is free once nobody else holds them."""
    _loaded.cache_clear()
    gc.collect()
    torch.cuda.empty_cache()
