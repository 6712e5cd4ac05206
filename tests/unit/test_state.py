"""Tests of the reducers: parallel specialists may report in any order."""

import copy
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.channels import BinaryOperatorAggregate
from langgraph.types import Overwrite
from pydantic import TypeAdapter

from mmedagent_graph.state import (
    AttendingInput,
    Ballot,
    ConsultationInput,
    ConsultationOutput,
    DeliberationState,
    NodeUsage,
    Opinion,
    Referral,
    SpecialistInput,
    TriageInput,
    Vote,
    add_opinions,
    add_referrals,
    add_replies,
    add_usage,
    add_votes,
)


def opinion(doctor: int, answer: str | None = "CT") -> Opinion:
    return Opinion(specialty="Radiologist", doctor=doctor, answer=answer, index=None, reasoning="", error=None)


def vote(number: int, answer: str | None = "CT") -> Vote:
    return Vote(vote=number, answer=answer, index=None, reasoning="", refer=None, error=None)


def used(calls: int, cached: int = 0, tokens_in: int = 0, tokens_out: int = 0) -> NodeUsage:
    return NodeUsage(calls=calls, cached=cached, input_tokens=tokens_in, output_tokens=tokens_out)


OPINION = st.builds(opinion, st.integers(1, 5), st.sampled_from(["CT", "MRI", None]))
OPINIONS = st.lists(OPINION, max_size=5)
ONE_EACH = st.lists(OPINION, max_size=5, unique_by=lambda said: said["doctor"])
COUNT = st.integers(0, 10**9)
USAGE = st.dictionaries(
    st.sampled_from(["triage", "specialist", "attending"]),
    st.builds(used, COUNT, COUNT, COUNT, COUNT),
)
VOTES = st.lists(st.builds(vote, st.integers(1, 9), st.sampled_from(["CT", "MRI", None])), max_size=9)


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
    one, two = used(1, 3, 5, 2), used(2, 4, 10, 1)
    assert add_usage({"triage": one, "specialist": one}, {"specialist": two}) == {
        "specialist": {"calls": 3, "cached": 7, "input_tokens": 15, "output_tokens": 3},
        "triage": one,
    }


@given(VOTES, VOTES)
def test_votes_stand_in_the_order_of_their_numbers(a: list[Vote], b: list[Vote]) -> None:
    cast = add_votes(add_votes([], a), b)
    numbers = [one["vote"] for one in cast]
    assert numbers == sorted({one["vote"] for one in a + b})
    assert all(one == [said for said in a + b if said["vote"] == one["vote"]][-1] for one in cast)


def test_referrals_stand_in_the_order_in_which_they_were_made() -> None:
    made = [Referral(specialty=name, reasoning="") for name in ("Surgeon", "Oncologist", "Surgeon")]
    assert add_referrals(made[:1], made[1:]) == made
    assert add_referrals(made, []) == made


def test_replies_are_added_as_langgraph_adds_messages() -> None:
    asked, replied = HumanMessage("CT?", id="1"), AIMessage("CT", id="2")
    assert add_replies([asked], [replied]) == [asked, replied]
    assert add_replies([asked], replied) == [asked, replied]
    assert add_replies([asked, replied], [AIMessage("MRI", id="2")]) == [asked, AIMessage("MRI", id="2")]


@pytest.mark.parametrize(
    ("reducer", "kept", "empty"),
    [
        (add_opinions, [opinion(1)], []),
        (add_votes, [vote(1)], []),
        (add_referrals, [Referral(specialty="Surgeon", reasoning="")], []),
        (add_replies, [AIMessage("CT", id="1")], []),
        (add_usage, {"triage": used(1)}, {}),
    ],
)
def test_none_begins_anew(reducer: Any, kept: Any, empty: Any) -> None:
    assert reducer(kept, empty) == kept
    assert reducer(kept, None) == empty
    assert reducer(reducer(kept, None), kept) == kept


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
    spent = {"triage": used(1, 0, 5, 2)}
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
    "schema",
    [ConsultationInput, ConsultationOutput, TriageInput, SpecialistInput, AttendingInput, Ballot, DeliberationState],
)
def test_schemas_can_be_shown(schema: type) -> None:
    assert set(TypeAdapter(schema).json_schema()["properties"]) == set(schema.__annotations__)


def test_a_case_comes_by_its_fields_or_as_messages() -> None:
    schema = TypeAdapter(ConsultationInput).json_schema()
    assert set(schema["properties"]) == {"question", "options", "images", "context", "messages"}
    assert "required" not in schema  # either the question or the messages


@pytest.mark.parametrize("schema", [ConsultationInput, ConsultationOutput])
def test_every_field_that_a_server_shows_is_described(schema: type) -> None:
    fields = TypeAdapter(schema).json_schema()["properties"]
    assert [name for name, field in fields.items() if not field.get("description")] == []


@pytest.mark.parametrize("name", ["Referral", "Opinion", "Decision", "NodeUsage"])
def test_the_parts_of_the_output_are_described(name: str) -> None:
    part = TypeAdapter(ConsultationOutput).json_schema()["$defs"][name]
    assert any("description" in field for field in part["properties"].values())


def test_a_specialist_is_given_no_opinion() -> None:
    case = {"question", "options", "images", "context"}
    assert set(SpecialistInput.__annotations__) == {*case, "specialty", "doctor", "doctors"}
