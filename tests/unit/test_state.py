"""Tests of the reducers: parallel specialists may report in any order."""

import copy
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langgraph.channels import BinaryOperatorAggregate
from langgraph.types import Overwrite
from pydantic import TypeAdapter

from mmedagent_graph.state import (
    AttendingInput,
    ConsultationInput,
    ConsultationOutput,
    NodeUsage,
    Opinion,
    SpecialistInput,
    TriageInput,
    add_opinions,
    add_usage,
)


def opinion(doctor: int, answer: str | None = "CT") -> Opinion:
    return Opinion(specialty="Radiologist", doctor=doctor, answer=answer, index=None, reasoning="", error=None)


OPINION = st.builds(opinion, st.integers(1, 5), st.sampled_from(["CT", "MRI", None]))
OPINIONS = st.lists(OPINION, max_size=5)
ONE_EACH = st.lists(OPINION, max_size=5, unique_by=lambda said: said["doctor"])
COUNT = st.integers(0, 10**9)
USAGE = st.dictionaries(
    st.sampled_from(["triage", "specialist", "attending"]),
    st.builds(lambda a, b, c: NodeUsage(calls=a, input_tokens=b, output_tokens=c), COUNT, COUNT, COUNT),
)


@given(ONE_EACH, st.data())
def test_opinions_in_any_order_of_arrival(said: list[Opinion], data: st.DataObject) -> None:
    heard: list[Opinion] = []
    for one in data.draw(st.permutations(said)):
        heard = add_opinions(heard, [one])
    assert heard == sorted(said, key=lambda one: one["doctor"])


@given(OPINIONS, OPINIONS, OPINIONS)
def test_opinions_are_associative(a: list[Opinion], b: list[Opinion], c: list[Opinion]) -> None:
    assert add_opinions(add_opinions(a, b), c) == add_opinions(a, add_opinions(b, c))


@given(OPINIONS, OPINIONS)
def test_a_doctor_has_one_opinion_the_last(a: list[Opinion], b: list[Opinion]) -> None:
    heard = add_opinions(a, b)
    doctors = [one["doctor"] for one in heard]
    assert doctors == sorted({one["doctor"] for one in a + b})
    assert all(one == [said for said in a + b if said["doctor"] == one["doctor"]][-1] for one in heard)


@given(USAGE, USAGE)
def test_usage_is_commutative(a: dict[str, NodeUsage], b: dict[str, NodeUsage]) -> None:
    assert add_usage(a, b) == add_usage(b, a)
    assert list(add_usage(a, b)) == list(add_usage(b, a))


@given(USAGE, USAGE, USAGE)
def test_usage_is_associative(a: dict[str, NodeUsage], b: dict[str, NodeUsage], c: dict[str, NodeUsage]) -> None:
    assert add_usage(add_usage(a, b), c) == add_usage(a, add_usage(b, c))


@given(USAGE)
def test_no_usage_adds_nothing(a: dict[str, NodeUsage]) -> None:
    assert add_usage(a, {}) == add_usage({}, a) == a


def test_usage_is_summed_by_node() -> None:
    one, two = NodeUsage(calls=1, input_tokens=5, output_tokens=2), NodeUsage(calls=2, input_tokens=10, output_tokens=1)
    assert add_usage({"triage": one, "specialist": one}, {"specialist": two}) == {
        "specialist": {"calls": 3, "input_tokens": 15, "output_tokens": 3},
        "triage": one,
    }


@given(OPINIONS, OPINIONS, USAGE, USAGE)
def test_reducers_leave_their_arguments_alone(
    a: list[Opinion], b: list[Opinion], c: dict[str, NodeUsage], d: dict[str, NodeUsage]
) -> None:
    before = copy.deepcopy((a, b, c, d))
    add_opinions(a, b)
    add_usage(c, d)
    assert (a, b, c, d) == before


def test_opinions_are_reset() -> None:
    channel = BinaryOperatorAggregate(list, add_opinions)
    channel.update([[opinion(1)], [opinion(2)]])
    assert channel.get() == [opinion(1), opinion(2)]
    channel.update([Overwrite([])])
    assert channel.get() == []
    channel.update([[opinion(3)]])
    assert channel.get() == [opinion(3)]


def test_usage_is_reset() -> None:
    spent = {"triage": NodeUsage(calls=1, input_tokens=5, output_tokens=2)}
    channel = BinaryOperatorAggregate(dict, add_usage)
    channel.update([spent, spent])
    assert channel.get()["triage"]["calls"] == 2
    channel.update([Overwrite({})])
    assert channel.get() == {}
    channel.update([spent])
    assert channel.get() == spent


def test_every_order_of_three_parallel_specialists_is_the_same() -> None:
    said = [[opinion(doctor, answer)] for doctor, answer in [(1, "CT"), (2, None), (3, "MRI")]]
    ends = []
    for order in itertools.permutations(said):
        channel = BinaryOperatorAggregate(list, add_opinions)
        channel.update(order)
        ends.append(channel.get())
    assert ends == [[opinion(1, "CT"), opinion(2, None), opinion(3, "MRI")]] * 6


@pytest.mark.parametrize(
    "schema", [ConsultationInput, ConsultationOutput, TriageInput, SpecialistInput, AttendingInput]
)
def test_schemas_can_be_shown(schema: type) -> None:
    assert set(TypeAdapter(schema).json_schema()["properties"]) == set(schema.__annotations__)


def test_only_the_question_is_required() -> None:
    assert TypeAdapter(ConsultationInput).json_schema()["required"] == ["question"]


def test_a_specialist_is_given_no_opinion() -> None:
    assert set(SpecialistInput.__annotations__) == {"question", "options", "images", "context", "specialty", "doctor"}
