"""A trace goes back into the graph, never shows the answer key, and tells which models said what."""

import asyncio
import dataclasses
import json
import time

import pytest
from fakes import QUESTION, FakeModel, answers, breaks, graph, refers, says
from hypothesis import given
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langgraph.cache.memory import InMemoryCache
from strategies import a_trace, quiet

from mmedagent_graph.nodes import Attending
from rl.datasets import LabeledCase
from rl.traces import CallRecorder, NodeCall, Trace, is_right

# Traces


def test_a_trace_of_a_state_goes_back_into_the_attending(images, opinions, png):
    fields = {"question": "Where is it?", "options": [], "images": [images.put(png((1, 2, 3)))], "context": "Fever."}
    state = {
        "case": fields,
        "referral": {"specialty": "Radiologist", "reasoning": "r"},
        "opinions": opinions("left", None),
        "decision": None,
        "usage": {"triage": {"calls": 1, "cached": 0, "input_tokens": 2, "output_tokens": 3}},
    }
    case = LabeledCase("a", "Where is it?", "SECRET-KEY", specialty="SECRET-LABEL")
    call = NodeCall("triage", None, None, None, "m", "t", None, None, None, None)
    trace = Trace.of(case, state, "attending", calls=[call])
    assert (trace.case, trace.answer, trace.specialty, trace.node) == ("a", "SECRET-KEY", "SECRET-LABEL", "attending")
    assert trace.calls == [call]
    assert trace.state() == state
    prompt = Attending(images).render(trace.given())
    assert prompt == Attending(images).render({**fields, "referral": state["referral"], "opinions": state["opinions"]})
    assert "Doctor 1 (Radiologist): left\nDoctor 2 (Radiologist): no opinion" in prompt[1].text
    plain = json.loads(json.dumps(dataclasses.asdict(trace)))
    stored = Trace(**{**plain, "calls": [NodeCall(**one) for one in plain["calls"]]})
    assert stored == trace
    assert Attending(images).render(stored.given()) == prompt


def test_an_attending_without_referral_and_opinions_can_be_asked(images, trace):
    assert "no opinion" in Attending(images).render(trace(referral=None).given())[1].text


@quiet
@given(trace=a_trace)
def test_neither_state_nor_prompt_ever_holds_the_key(trace):
    secret = dataclasses.replace(trace, answer="SECRET-KEY", specialty="SECRET-LABEL", text="SECRET-TEXT")
    assert "SECRET" not in json.dumps([secret.state(), secret.given(), secret.fields()])


@pytest.mark.parametrize(
    ("answer", "right"), [("cyst", True), ("CYST.", True), (None, False), ("", False), ("cys", False)]
)
def test_is_right(answer, right):
    assert is_right(answer, "cyst") is right


def test_nothing_is_right_where_the_key_is_blank():
    assert not is_right("", "")


@pytest.mark.parametrize(
    ("key", "decision", "decided", "right"),
    [
        ("cyst", {"answer": "Cyst"}, "Cyst", True),
        ("cyst", {"answer": "scar"}, "scar", False),
        ("cyst", {"answer": None}, None, False),
        ("cyst", None, None, None),
        (None, {"answer": "Cyst"}, "Cyst", None),
    ],
)
def test_a_trace_tells_whether_it_is_right_where_that_can_be_told(trace, key, decision, decided, right):
    told = trace(answer=key, decision=decision)
    assert (told.decided, told.right) == (decided, right)


# Calls


class Measured(FakeModel):
    """A model that tells its tokens."""

    logprobs: object = None

    def _generate(self, messages, _=None, run_manager=None, **__):
        told = {
            "model_name": f"measured-{self.label}",
            "prompt_token_ids": [1, 2, 3],
            "token_ids": [4, 5],
            "logprobs": self.logprobs,
            "finish_reason": "length",
        }
        spent = {"input_tokens": 9, "output_tokens": 2, "total_tokens": 11}
        message = AIMessage(self._said(messages, run_manager), response_metadata=told, usage_metadata=spent)
        return ChatResult(generations=[ChatGeneration(message=message)])


def recorded(graph, how="ainvoke", **more):
    recorder = CallRecorder()
    config = {"callbacks": [recorder]}
    if how == "invoke":
        graph.invoke(QUESTION, config, **more)
    else:
        asyncio.run(graph.ainvoke(QUESTION, config, **more))
    return recorder.calls


def in_order(calls):
    """The specialists are heard at the same time."""
    return sorted(calls, key=lambda call: (call.doctor or 0, call.vote or 0))


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
def test_every_call_is_recorded_with_who_made_it(how):
    calls = recorded(graph(triage=refers("Surgeon"), specialists=[says("CT"), says("MRI")]), how)
    assert [call.node for call in calls] == ["triage", "specialist", "specialist", "attending"]
    assert calls[0].text == "<think>By the image.</think><answer>Surgeon</answer>"
    assert sorted((call.specialty, call.doctor, call.text) for call in calls[1:3]) == [
        ("Surgeon", 1, "CT"),
        ("Surgeon", 2, "MRI"),
    ]
    told = [(call.prompt_ids, call.completion_ids, call.logprobs, call.finish, call.model) for call in calls]
    assert set(told) == {(None, None, None, None, None)}  # a fake tells nothing of this


def test_votes_are_told_apart():
    calls = recorded(graph(votes=3))
    assert sorted(call.vote for call in calls if call.node == "vote") == [1, 2, 3]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None),
        ([-0.5, -1.0], [-0.5, -1.0]),
        ({"content": [{"token": "C", "logprob": -0.5}], "refusal": None}, [-0.5]),
        ({"content": None}, []),
    ],
    ids=["none", "list", "as OpenAI tells them", "none of OpenAI's"],
)
def test_what_a_model_tells_of_its_tokens_is_kept(given, expected):
    call = recorded(graph(attending=Measured(answer=lambda _: "CT", label="a", logprobs=given)))[-1]
    plain = NodeCall("attending", None, None, None, "measured-a", "CT", [1, 2, 3], [4, 5], expected, "length", 9, 2)
    assert call.seconds > 0
    assert dataclasses.replace(call, seconds=None) == plain


def test_a_model_that_does_not_tell_its_name_is_named_by_langchain():
    class Named(FakeModel):
        model_name: str = "the-model"

    assert recorded(graph(triage=Named(answer=lambda _: "Surgeon")))[0].model == "the-model"


def test_a_call_that_failed_is_none():
    calls = recorded(graph(specialists=[breaks(RuntimeError("away")), answers("CT")]))
    assert [(call.node, call.doctor) for call in calls] == [("triage", None), ("specialist", 2), ("attending", None)]


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
def test_an_answer_out_of_the_cache_is_recorded_as_the_first_one(how):
    def slow(_):
        time.sleep(0.05)
        return "CT"

    model = Measured(answer=slow, label="a", logprobs=[-1.0, -2.0])
    given = graph(triage=refers(), specialists=model, attending=model, votes=2, cache=InMemoryCache())
    first, second = recorded(given, how), recorded(given, how)
    assert len(model.seen) == 5
    assert len(first) == 6
    assert {call.cached for call in second} == {True}
    assert {call.input_tokens for call in second if call.node == "vote"} == {9}  # its price, though it was free
    for call, again in zip(in_order(first), in_order(second), strict=True):
        assert again.seconds >= (0.05 if call.node != "triage" else 0)  # what it took when it was asked
        assert dataclasses.replace(again, seconds=call.seconds, cached=call.cached) == call
