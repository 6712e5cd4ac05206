"""The batcher: concurrent requests share a batch, and no error or cancellation stops it. No model here."""

import asyncio
import threading
from concurrent.futures import CancelledError

import pytest
from langchain_core.messages import AIMessage, HumanMessage

from rl.clinic.doctors import ClinicDoctor
from rl.policy import Batcher, PolicyChatModel, clinic_model

SOON = 20
"""Seconds after which a test gives up."""


class Worker:
    """A work function that stops at the request "wait" until it is let go; "fail" raises."""

    def __init__(self):
        self.batches = []
        self.entered, self.go = threading.Event(), threading.Event()

    def __call__(self, requests):
        self.batches.append(list(requests))
        if "wait" in requests:
            self.entered.set()
            assert self.go.wait(SOON)
        if "fail" in requests:
            raise LookupError("broken")
        return [f"{request}!" for request in requests]


@pytest.fixture
def worker():
    worker = Worker()
    yield worker
    worker.go.set()


def held_up(worker, max_batch=64):
    """A batcher that is busy, so that what is submitted now queues up."""
    batcher = Batcher(worker, max_batch)
    first = batcher.submit("wait")
    assert worker.entered.wait(SOON)
    return batcher, first


def test_concurrent_requests_are_batched_in_order(worker):
    batcher, first = held_up(worker)
    futures = [batcher.submit(name) for name in "abc"]
    worker.go.set()
    assert [future.result(SOON) for future in (first, *futures)] == ["wait!", "a!", "b!", "c!"]
    assert worker.batches == [["wait"], ["a", "b", "c"]]


def test_a_batch_has_a_limit(worker):
    batcher, _ = held_up(worker, max_batch=2)
    futures = [batcher.submit(name) for name in "abcde"]
    worker.go.set()
    assert [future.result(SOON) for future in futures] == ["a!", "b!", "c!", "d!", "e!"]
    assert worker.batches == [["wait"], ["a", "b"], ["c", "d"], ["e"]]


def test_threads_get_their_own_replies(worker):
    batcher = Batcher(worker, 8)
    replies = {}

    def ask(name):
        replies[name] = batcher.submit(name).result(SOON)

    threads = [threading.Thread(target=ask, args=(str(i),)) for i in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    assert replies == {str(i): f"{i}!" for i in range(40)}
    assert sorted(name for batch in worker.batches for name in batch) == sorted(replies)
    assert max(map(len, worker.batches)) <= 8


def test_an_error_reaches_its_whole_batch_and_the_next_batch_works(worker):
    batcher, first = held_up(worker, max_batch=3)
    failing = [batcher.submit(name) for name in ("a", "fail", "b")]
    later = batcher.submit("c")
    worker.go.set()
    for future in failing:
        with pytest.raises(LookupError, match="broken"):
            future.result(SOON)
    assert (first.result(SOON), later.result(SOON)) == ("wait!", "c!")


@pytest.mark.parametrize("work", [lambda requests: [], lambda requests: [*requests, "more"]])
def test_a_wrong_number_of_replies_is_an_error_and_no_hang(work):
    batcher = Batcher(work, 1)
    for _ in range(2):
        future = batcher.submit("a")
        if work("a"):
            assert future.result(SOON) == "a"  # its own reply, nobody else's
        else:
            with pytest.raises(ValueError):
                future.result(SOON)


def test_cancelled_requests_are_passed_over(worker):
    batcher, _ = held_up(worker)
    kept, dropped, last = (batcher.submit(name) for name in "abc")
    assert dropped.cancel()
    worker.go.set()
    assert (kept.result(SOON), last.result(SOON)) == ("a!", "c!")
    assert worker.batches[1:] == [["a", "c"]]
    with pytest.raises(CancelledError):
        dropped.result(0)


def test_a_batch_that_is_cancelled_as_a_whole_is_not_worked_off(worker):
    batcher, _ = held_up(worker, max_batch=1)
    assert batcher.submit("a").cancel()
    later = batcher.submit("b")
    worker.go.set()
    assert later.result(SOON) == "b!"
    assert worker.batches == [["wait"], ["b"]]


class Fake(PolicyChatModel):
    """A policy whose forward pass repeats what it is asked."""

    seen: list = []  # noqa: RUF012 (a pydantic field)

    def answer(self, prompts):
        self.seen.append((self.temperature, [prompt[-1].text for prompt in prompts]))
        return [AIMessage(f"{prompt[-1].text} at {self.temperature}") for prompt in prompts]


async def test_calls_that_sample_alike_go_through_the_model_together():
    greedy = Fake(model_name="fake", model=None, processor=None, seen=[])
    warm = greedy.model_copy(update={"temperature": 1.0})
    calls = [(warm if i % 3 else greedy, str(i)) for i in range(12)]
    replies = await asyncio.gather(*(policy.ainvoke([HumanMessage(text)]) for policy, text in calls))
    assert [reply.text for reply in replies] == [f"{text} at {policy.temperature}" for policy, text in calls]
    for temperature, texts in greedy.seen:
        assert {int(text) % 3 > 0 for text in texts} == {temperature == 1.0}
    assert len(greedy.seen) < len(calls)
    assert greedy.invoke([HumanMessage("x")]).text == "x at 0.0"


def test_a_doctor_is_named_by_its_number():
    assert clinic_model("doctor-2") == ClinicDoctor(doctor=2)
