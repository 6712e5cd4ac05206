"""Traces are plain JSON, survive a killed run, and never show the answer key."""

import dataclasses
import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmedagent_graph.nodes import Attending
from rl.datasets import LabeledCase
from rl.traces import (
    Completion,
    Trace,
    append_completions,
    append_traces,
    forget_after,
    read_completions,
    read_traces,
)

text = st.text(max_size=12)
maybe = st.none() | text
opinion = st.fixed_dictionaries(
    {
        "specialty": text,
        "doctor": st.integers(1, 9),
        "answer": maybe,
        "index": st.none() | st.integers(0, 3),
        "reasoning": text,
        "error": maybe,
    }
)
decision = st.fixed_dictionaries(
    {
        "answer": maybe,
        "index": st.none(),
        "reasoning": text,
        "agreement": st.none() | st.floats(0, 1),
        "opinions": st.integers(0, 3),
    }
)
a_trace = st.builds(
    Trace,
    case=text,
    question=text,
    options=st.lists(text, max_size=3),
    images=st.lists(text, max_size=2),
    context=maybe,
    answer=text,
    specialty=maybe,
    referral=st.none() | st.fixed_dictionaries({"specialty": maybe, "reasoning": text}),
    opinions=st.lists(opinion, max_size=3),
    decision=st.none() | decision,
    node=text,
    text=maybe,
    usage=st.dictionaries(text, st.integers(), max_size=2),
    tier=st.none() | st.sampled_from(["easy", "medium", "hard"]),
    rewards=st.dictionaries(text, st.floats(allow_nan=False), max_size=2),
)
quiet = settings(deadline=None, max_examples=60)


@pytest.fixture(scope="session")
def new_file(tmp_path_factory):
    folder, number = tmp_path_factory.mktemp("traces"), itertools.count()
    return lambda: folder / "deep" / f"{next(number)}.jsonl"


@quiet
@given(first=st.lists(a_trace, max_size=2), second=st.lists(a_trace, max_size=2))
def test_traces_come_back_as_they_were_appended(new_file, first, second):
    path = new_file()
    append_traces(path, first)
    append_traces(path, second)
    assert list(read_traces(path)) == first + second


def test_a_file_that_is_not_there_holds_no_traces(tmp_path):
    assert list(read_traces(tmp_path / "none.jsonl")) == []


@pytest.mark.parametrize("question", ["Where?", "Où ça ? 肺"])
def test_whatever_a_kill_cuts_off_only_the_last_line_is_lost(tmp_path, trace, question):
    path = tmp_path / "traces.jsonl"
    append_traces(path, [trace(case=str(i), question=question) for i in range(2)])
    data = path.read_bytes()
    first = data.index(b"\n") + 1
    for cut in range(first, len(data)):  # in the middle of a character, too
        path.write_bytes(data[:cut])
        assert [done.case for done in read_traces(path)] == ["0"], f"cut after {data[max(0, cut - 9) : cut]!r}"


def test_a_resumed_run_appends_behind_an_unfinished_line(tmp_path, trace):
    path = tmp_path / "traces.jsonl"
    append_traces(path, [trace(case="0"), trace(case="1")])
    path.write_bytes(path.read_bytes()[:-20])
    append_traces(path, [trace(case="1"), trace(case="2")])
    assert [done.case for done in read_traces(path)] == ["0", "1", "2"]


def completion(step, answer="cyst"):
    return Completion(case="a", step=step, text="x", answer=answer, rewards={"accuracy": 1.0}, tier="easy")


def test_completions_come_back(tmp_path):
    path = tmp_path / "completions.jsonl"
    append_completions(path, [completion(1), completion(2, None)])
    assert list(read_completions(path)) == [completion(1), completion(2, None)]


def test_a_completion_is_what_a_graded_trace_adds(trace):
    graded = trace(text="t", decision={"answer": "scar"}, rewards={"format": 0.5}, tier="hard")
    assert Completion.of(graded, 7) == Completion("case-1", 7, "t", "scar", {"format": 0.5}, "hard")
    assert Completion.of(trace(text="t"), 7).answer is None


@quiet
@given(steps=st.lists(st.integers(1, 9), max_size=8), last=st.integers(0, 9), cut=st.booleans())
def test_what_came_after_a_checkpoint_is_forgotten(new_file, steps, last, cut):
    path = new_file()
    append_completions(path, map(completion, steps))
    if cut:
        with path.open("a") as file:
            file.write('{"case": "b", "st')
    forget_after(path, last)
    assert [row.step for row in read_completions(path)] == [step for step in steps if step <= last]
    append_completions(path, [completion(last + 1)])
    assert [row.step for row in read_completions(path)][-1] == last + 1


def test_there_may_be_nothing_to_forget(tmp_path):
    forget_after(tmp_path / "none.jsonl", 3)
    assert not (tmp_path / "none.jsonl").exists()


def test_a_trace_of_a_state_goes_back_into_the_attending(images, opinions, png):
    fields = {"question": "Where is it?", "options": [], "images": [images.put(png((1, 2, 3)))], "context": "Fever."}
    state = {
        "case": fields,
        "referral": {"specialty": "Radiologist", "reasoning": "r"},
        "opinions": opinions("left", None),
        "decision": None,
        "usage": {"triage": {"calls": 1, "input_tokens": 2, "output_tokens": 3}},
    }
    case = LabeledCase("a", "Where is it?", "SECRET-KEY", specialty="SECRET-LABEL")
    trace = Trace.of(case, state, "attending")
    assert (trace.case, trace.answer, trace.specialty, trace.node) == ("a", "SECRET-KEY", "SECRET-LABEL", "attending")
    assert trace.state() == state
    prompt = Attending(images).render(trace.given())
    assert prompt == Attending(images).render({**fields, "referral": state["referral"], "opinions": state["opinions"]})
    assert "Doctor 1 (Radiologist): left\nDoctor 2 (Radiologist): no opinion" in prompt[1].text
    stored = Trace(**json.loads(json.dumps(dataclasses.asdict(trace))))
    assert Attending(images).render(stored.given()) == prompt


def test_an_attending_without_referral_and_opinions_can_be_asked(images, trace):
    assert "no opinion" in Attending(images).render(trace(referral=None).given())[1].text


@quiet
@given(trace=a_trace)
def test_neither_state_nor_prompt_ever_holds_the_key(trace):
    trace = dataclasses.replace(trace, answer="SECRET-KEY", specialty="SECRET-LABEL", text="SECRET-TEXT")
    assert "SECRET" not in json.dumps([trace.state(), trace.given(), trace.fields()])
