"""One vLLM for all stages of a run, with a stand-in for the engine: vLLM itself needs a GPU."""

import gc
import weakref
from types import SimpleNamespace

import pytest
from trl.generation.vllm_generation import VLLMGeneration
from trl.trainer import grpo_trainer

from rl.trainer import SharedVLLM


class Thing:
    """A model, or an engine: something that can be told apart, and referred to weakly."""


class Accelerator(Thing):
    """Of one process, without DeepSpeed or FSDP."""

    state = SimpleNamespace(deepspeed_plugin=None)


@pytest.fixture(autouse=True)
def engines(monkeypatch):
    """The engines that were started, in their order; TRL's own start would refuse without vLLM."""
    started = []

    def start(self):
        self.llm, self._llm_weights_sleeping = Thing(), True
        started.append(self.llm)

    monkeypatch.setattr(VLLMGeneration, "_init_vllm", start)
    monkeypatch.setattr(SharedVLLM, "_last", None)  # and what a test leaves there is taken back
    return started


def stage():
    return SharedVLLM(Thing(), Accelerator(), processing_class=None, enable_sleep_mode=True)


def test_trl_makes_ours():
    assert grpo_trainer.VLLMGeneration is SharedVLLM


def test_every_stage_has_the_engine_of_the_first(engines):
    first, second, third = (stage() for _ in range(3))
    assert engines == [first.llm]
    assert first.llm is second.llm is third.llm
    assert third._llm_weights_sleeping is True  # its weights are pushed anew before it generates
    assert not hasattr(third, "vllm_client")  # the server's, which this mode does not have
    assert third.model is not first.model


def test_an_engine_in_another_state_is_taken_over_as_it_is():
    first = stage()
    first._llm_weights_sleeping = False
    assert stage()._llm_weights_sleeping is False


def test_a_servers_connection_is_shared_too(monkeypatch):
    def connect(self):
        self.vllm_client = Thing()

    monkeypatch.setattr(VLLMGeneration, "_init_vllm", connect)
    first, second = stage(), stage()
    assert first.vllm_client is second.vllm_client
    assert not hasattr(second, "llm")


def test_the_weights_of_a_finished_stage_are_let_go_and_the_engine_stays(engines):
    first = stage()
    gone = [weakref.ref(first.model), weakref.ref(first.accelerator)]
    del first  # as `del trainer` does
    gc.collect()
    assert [ref() is None for ref in gone] == [False, False]  # the class itself holds the last stage's
    SharedVLLM.let_go()
    gc.collect()
    assert [ref() is None for ref in gone] == [True, True]
    assert [stage().llm] == engines


def test_before_the_first_stage_there_is_nothing_to_let_go():
    SharedVLLM.let_go()
