"""Tests of how analyses, fields, teams, votes and remarks are read: never a failure, never a guess."""

import string
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmedagent_graph.answers import same_text
from mmedagent_graph.baselines.reading import (
    GENERALIST,
    read_consent,
    read_fields,
    read_prose,
    read_remarks,
    read_teams,
)

# Texts that are nearly, or quite, what the prompts ask for
TAGS = ["<answer>", "</answer>", "<think>", "</think>"]
MARKS = ["To 2:", "to 99:", "To \u0662:", "1:", "Team 2:", "- ", "3. ", "\n", ";", ",", " "]
WORDS = ["yes", "no", "Cardiology", "cardiology.", "**Radiology**", "General medicine", "\u00e9"]
fragment = st.sampled_from([*TAGS, *MARKS, *WORDS])
hostile = st.text(max_size=40) | st.lists(fragment, max_size=25).map("".join)
name = st.text(string.ascii_letters, min_size=2, max_size=12)
names = st.lists(name, min_size=1, max_size=8, unique_by=str.casefold)


# Prose


@pytest.mark.parametrize(
    ("text", "prose"),
    [
        (" A white bone. ", "A white bone."),
        ("<think>Hm.</think>\nA white bone.", "A white bone."),
        ("<think>Hm.</think><answer>Line 1\nLine 2</answer>", "Line 1\nLine 2"),
        ("<think>cut off", "<think>cut off"),  # what is not to be told apart is kept
        ("<think>Hm.</think>", "<think>Hm.</think>"),
        ("", ""),
    ],
)
def test_prose(text: str, prose: str) -> None:
    assert read_prose(text) == prose


# Votes


@pytest.mark.parametrize(
    ("text", "agrees"),
    [
        ("<think>I do not know.</think><answer>yes</answer>", True),
        ("<answer>No.</answer>", False),
        ("YES", True),
        ("**no**", False),
        ("I do not agree", None),  # the original reads a no in it
        ("I know", None),  # and here
        ("ERROR.", None),  # and a yes here
        ("<answer>yes or no</answer>", None),
        ("yes\nno", None),
        ("", None),
    ],
)
def test_consent(text: str, agrees: bool | None) -> None:
    assert read_consent(text) is agrees


@settings(deadline=None)
@given(hostile)
def test_consent_is_read_only_where_the_word_stands_there(text: str) -> None:
    agrees = read_consent(text)
    assert agrees is None or ("yes" if agrees else "no") in text.casefold()


# Fields


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("Cardiology\nRadiology", ["Cardiology", "Radiology"]),
        ("<think>Let me see: Surgery</think><answer>\nCardiology\nRadiology\n</answer>", ["Cardiology", "Radiology"]),
        ("1. Cardiology\n2) Radiology\n- Surgery", ["Cardiology", "Radiology", "Surgery"]),
        ("* **Cardiology**\n* Ear nose & throat", ["Cardiology", "Ear nose & throat"]),
        ("Cardiology, Radiology; Surgery | Dentistry.", ["Cardiology", "Radiology", "Surgery", "Dentistry"]),
        ("1.Cardiology\r\n  -Radiology\r\n", ["Cardiology", "Radiology"]),
        ("X-ray imaging\nSurgery - hand", ["X-ray imaging", "Surgery - hand"]),
        ("Here are the fields:\nCardiology", ["Cardiology"]),
        ("?\n" * 100 + "Cardiology", []),
        ("Cardiology: it is the heart", []),
        ("The patient should be seen by a cardiologist", []),
        ("Cardiology\nCARDIOLOGY.\ncardiology", ["Cardiology"]),
        ("A\nB\n3D\n?", []),
        ("<answer>Cardiology", []),
        ("", []),
    ],
)
def test_fields(text: str, fields: list[str]) -> None:
    assert read_fields(text, 0, 5) == fields


@pytest.mark.parametrize(
    "unit",
    ["Cardiology\n", "cArdiology,", " ", "\t*", "- ", "\n", "To 1:", "To 1: a\n", "1:", "\n1: a", "**", "1.", "a b;"],
)
def test_a_megabyte_ends(unit: str) -> None:
    text, start = unit * (1_000_000 // len(unit)), time.process_time()
    read_prose(text), read_consent(text), read_fields(text, 5, 5), read_teams(text, 3, 3), read_remarks(text, 1, 5)
    assert time.process_time() - start < 10  # measured: at most 0.3


def test_missing_fields_are_general_and_surplus_ones_are_left_out() -> None:
    assert read_fields("Cardiology\nCardiology", 3, 3) == ["Cardiology", GENERALIST, GENERALIST]
    assert read_fields("no idea, I am afraid: none", 2, 2) == ["no idea", GENERALIST]
    assert read_fields("One\nTwo\nThree\nFour", 2, 3) == ["One", "Two", "Three"]


@settings(deadline=None)
@given(hostile, st.integers(0, 4), st.integers(0, 4))
def test_as_many_fields_as_it_says_each_written_there_and_once(text: str, least: int, more: int) -> None:
    fields = read_fields(text, least, least + more)
    assert least <= len(fields) <= least + more
    written = " ".join(text.split())
    named = [field for field in fields if field != GENERALIST]
    assert [field for field in named if field not in written] == []
    assert not any(same_text(a, b) for i, a in enumerate(named) for b in named[:i])


@settings(deadline=None)
@given(names, st.sampled_from(["\n", "\n- ", ", ", " | ", ";\n"]))
def test_a_plain_list_is_read_in_its_order(fields: list[str], separator: str) -> None:
    assert read_fields(f"<answer>{separator.join(fields)}</answer>", 0, 99) == fields


# Teams


def test_teams() -> None:
    text = "Team 1: Surgery; Nursing; Anaesthesia\n**3: Surgery; Radiology\n3: Other; Other fields; More\n4: Nobody"
    nobody = [GENERALIST] * 3
    assert read_teams(text, 3, 3) == [
        ["Surgery", "Nursing", "Anaesthesia"],
        nobody,
        ["Surgery", "Radiology", GENERALIST],
    ]
    assert read_teams("no idea", 3, 3) == [nobody] * 3


@settings(deadline=None)
@given(hostile, st.integers(1, 4), st.integers(1, 4))
def test_as_many_teams_and_members_as_it_says(text: str, teams: int, members: int) -> None:
    read = read_teams(text, teams, members)
    assert [len(team) for team in read] == [members] * teams
    written = " ".join(text.split())
    assert [field for team in read for field in team if field != GENERALIST and field not in written] == []


# Remarks


@pytest.mark.parametrize(
    ("text", "remarks"),
    [
        ("<answer>To 2: Look at the edge.</answer>", [(2, "Look at the edge.")]),
        ("To 1: Why?\nIt is white.\nto doctor 3 : No.", [(1, "Why?\nIt is white."), (3, "No.")]),
        ("**To 2:** Look.", [(2, "Look.")]),
        ("To 2: One.\nTo 2: Two.", [(2, "One."), (2, "Two.")]),
        ("To 4: To myself.\nTo 0: To nobody.\nTo 6: Neither.\nTo 5: You.", [(5, "You.")]),
        ("To 2:\nTo 3:  ", []),
        ("I would tell To 2: nothing", []),
        ("nothing", []),
        ("<answer>To 2: cut off", []),
        ("", []),
    ],
)
def test_remarks_of_doctor_4_of_5(text: str, remarks: list[tuple[int, str]]) -> None:
    assert read_remarks(text, 4, 5) == remarks


@settings(deadline=None)
@given(hostile, st.integers(1, 5))
def test_remarks_are_to_others_who_are_there_and_were_written(text: str, doctor: int) -> None:
    for to, said in read_remarks(text, doctor, 5):
        assert to in {1, 2, 3, 4, 5} - {doctor}
        assert said
        assert said in text
        assert f"{to}" in text
