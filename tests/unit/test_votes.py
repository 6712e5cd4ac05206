"""Tests of the arithmetic of votes: who wins, how sure it is, and how many votes are cast."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mmedagent_graph.answers import same_text
from mmedagent_graph.state import Opinion, Vote
from mmedagent_graph.votes import LEAST, MOST, agreement, budget, decide, entropy, outstanding, winner

OPTIONS = ["CT", "MRI", "PET", "X-ray"]
at_ease = settings(deadline=None)  # on a busy machine
REFER = "refer to "


def vote(number: int, said: str | None, **fields: Any) -> Vote:
    """A vote for an answer, for nothing readable (None), or for a further specialty ("refer to ...")."""
    refer = said.removeprefix(REFER) if said is not None and said.startswith(REFER) else None
    answer = None if refer else said
    index = OPTIONS.index(said) if said in OPTIONS else None
    plain = Vote(vote=number, answer=answer, index=index, reasoning=f"vote {number}", refer=refer, error=None)
    return {**plain, **fields}  # type: ignore[typeddict-item]


def votes(*said: str | None) -> list[Vote]:
    return [vote(number, one) for number, one in enumerate(said, 1)]


def opinions(*said: str | None) -> list[Opinion]:
    plain = {"specialty": "Radiologist", "index": None, "reasoning": "", "error": None}
    return [Opinion(doctor=i, answer=answer, **plain) for i, answer in enumerate(said, 1)]  # type: ignore[typeddict-item]


def wish(won: Vote | None) -> tuple[str | None, str | None] | None:
    return None if won is None else (won["answer"], won["refer"])


# Who wins


@pytest.mark.parametrize(
    ("cast", "heard", "answer"),
    [
        pytest.param(["CT"], [], "CT", id="one vote"),
        pytest.param(["CT", "MRI", "MRI"], ["CT", "CT", "CT"], "MRI", id="most votes, whatever the opinions"),
        pytest.param(["CT", "MRI"], ["MRI", "PET", "PET"], "MRI", id="tie: the one that more opinions support"),
        pytest.param(["CT", "MRI", "MRI", "CT"], ["MRI", "CT", "MRI"], "MRI", id="tie of two each"),
        pytest.param(["MRI", "CT"], ["PET", None], "MRI", id="tie in both: the first voted"),
        pytest.param(["CT", "MRI"], ["CT", "MRI"], "CT", id="tie in both with support: the first voted"),
        pytest.param(["PET", "CT", "MRI"], ["CT", "MRI", "MRI"], "MRI", id="three apart: most support"),
        pytest.param([None, None, "PET"], ["CT"], "PET", id="unreadable votes are for nobody"),
        pytest.param([None, None], ["CT", "CT"], None, id="none readable"),
        pytest.param(["CT", "MRI", "PET", "PET"], ["CT", "CT"], "PET", id="a plurality is enough"),
    ],
)
def test_who_wins(cast: list[str | None], heard: list[str | None], answer: str | None) -> None:
    decision = decide(votes(*cast), opinions(*heard))
    assert decision["answer"] == answer
    assert decision["index"] == (None if answer is None else OPTIONS.index(answer))
    assert wish(winner(votes(*cast), opinions(*heard))) == (None if answer is None else (answer, None))


def test_the_tally_has_every_answer_the_winner_first() -> None:
    decision = decide(votes("CT", "MRI", None, "PET", "MRI", "PET", "X-ray", "PET"), opinions("X-ray", "X-ray"))
    assert [(one["answer"], one["index"], one["votes"]) for one in decision["tally"]] == [
        ("PET", 2, 3),
        ("MRI", 1, 2),
        ("X-ray", 3, 1),  # before CT, which was voted for earlier: two opinions support it
        ("CT", 0, 1),
    ]
    assert (decision["votes"], decision["opinions"]) == (8, 2)


@pytest.mark.parametrize(
    ("cast", "confidence"),
    [
        (["CT"], None),
        (["CT", "CT"], 1.0),
        (["CT", "CT", "MRI"], 2 / 3),
        (["CT", "CT", None, None], 0.5),
        ([None, None], 0.0),
        ([None], None),
        (["CT", "CT", "refer to Surgeon", None, "PET"], 0.4),
    ],
)
def test_unreadable_votes_and_referrals_count_in_the_confidence(
    cast: list[str | None], confidence: float | None
) -> None:
    assert decide(votes(*cast), [])["confidence"] == confidence


def test_failed_votes_count_in_the_confidence() -> None:
    cast = [*votes("CT", "CT"), vote(3, None, error="TimeoutError: late"), vote(4, None, error="TimeoutError: late")]
    decision = decide(cast, [])
    assert (decision["confidence"], decision["votes"]) == (0.5, 4)
    assert [one["votes"] for one in decision["tally"]] == [2]


def test_the_reasoning_is_of_the_first_vote_for_the_winner() -> None:
    assert decide(votes("MRI", "CT", "CT"), [])["reasoning"] == "vote 2"
    assert decide(votes(None, None), [])["reasoning"] == "vote 1"


@pytest.mark.parametrize(
    ("cast", "answer", "counts"),
    [
        (["a tumour", "A cyst.", "a  CYST"], "A cyst.", [2, 1]),
        (["a cyst", "cyst", "the cyst"], "a cyst", [1, 1, 1]),
        (["...", "!", "..."], "...", [2, 1]),  # which are nothing once normalised, and still the same words
        (["x" * 3000, "y", "x" * 3000], "x" * 3000, [2, 1]),  # too long to be normalised
    ],
)
def test_open_answers_are_the_same_by_their_words(cast: list[str], answer: str, counts: list[int]) -> None:
    decision = decide(votes(*cast), [])
    assert (decision["answer"], decision["index"]) == (answer, None)
    assert [one["votes"] for one in decision["tally"]] == counts


def test_support_for_open_answers_is_by_their_words() -> None:
    assert decide(votes("a tumour", "a cyst"), opinions("A CYST!", "a scar"))["answer"] == "a cyst"


@pytest.mark.parametrize(
    ("cast", "wanted"),
    [
        (["refer to Surgeon", "refer to Surgeon", "CT"], (None, "Surgeon")),
        (["refer to Surgeon", "refer to Oncologist", "CT", "CT"], ("CT", None)),
        (["refer to Surgeon", "CT"], ("CT", None)),  # a tie, and an opinion supports CT
        (["refer to Surgeon", "MRI"], (None, "Surgeon")),  # a tie in everything: the first
        (["MRI", "refer to Surgeon"], ("MRI", None)),
        ([None, "refer to Surgeon"], (None, "Surgeon")),
    ],
)
def test_a_further_specialty_is_voted_for_like_an_answer(cast: list[str | None], wanted: Any) -> None:
    assert wish(winner(votes(*cast), opinions("CT"))) == wanted


def test_a_referral_is_no_answer() -> None:
    decision = decide(votes("refer to Surgeon", "refer to Surgeon", "CT"), [])
    assert (decision["answer"], decision["confidence"]) == ("CT", pytest.approx(1 / 3))
    assert [one["answer"] for one in decision["tally"]] == ["CT"]
    assert decide(votes("refer to Surgeon"), [])["answer"] is None


# Abstaining


@pytest.mark.parametrize(
    ("cast", "below", "abstained"),
    [
        (["CT", "CT", "MRI"], 0.7, True),
        (["CT", "CT", "MRI"], 0.6, False),
        (["CT", "MRI"], 0.5, False),  # as much as is asked for is enough
        (["CT", "CT", None, None], 0.6, True),
        (["CT", "CT", "CT"], 1.0, False),
        ([None, None], 0.1, True),
        ([None, None], 0.0, False),
        ([None, None], None, False),
        (["CT", "MRI", "PET"], None, False),
    ],
)
def test_a_weak_majority_is_withheld(cast: list[str | None], below: float | None, abstained: bool) -> None:
    plain, decision = (decide(votes(*cast), opinions("CT", "MRI"), share) for share in (None, below))
    assert decision["abstained"] is abstained
    withheld = {"answer": None, "index": None, "agreement": None, "abstained": True} if abstained else {}
    assert decision == {**plain, **withheld}  # the tally and the reasoning still tell what it was


def test_nobody_has_reviewed_it() -> None:
    assert decide(votes("CT"), [])["review"] is None


# What is said of the opinions


@pytest.mark.parametrize(
    ("heard", "bits"),
    [
        ([], None),
        ([None, None], None),
        (["CT"], 0.0),
        (["CT", "CT", "CT"], 0.0),
        (["CT", None, "CT"], 0.0),
        (["CT", "MRI"], 1.0),
        (["CT", "MRI", None], 1.0),
        (["CT", "MRI", "PET"], math.log2(3)),
        (["CT", "MRI", "PET", "X-ray"], 2.0),
        (["CT", "CT", "MRI"], 0.9182958340544896),
        (["A cyst.", "a  CYST", "a scar", "A SCAR"], 1.0),
    ],
)
def test_entropy_in_bits(heard: list[str | None], bits: float | None) -> None:
    assert entropy(opinions(*heard)) == (None if bits is None else pytest.approx(bits))
    assert decide(votes("CT"), opinions(*heard))["entropy"] == entropy(opinions(*heard))


def test_a_consensus_is_no_negative_zero() -> None:
    assert str(entropy(opinions("CT", "CT"))) == "0.0"


@pytest.mark.parametrize(
    ("answer", "heard", "share"),
    [
        ("CT", ["CT", "MRI", "CT"], 2 / 3),
        ("CT", ["CT", None, None], 1.0),
        ("CT", ["MRI"], 0.0),
        ("CT", [None], None),
        ("CT", [], None),
        (None, ["CT"], None),
        (None, [], None),
        ("a cyst", ["A cyst!", "a scar"], 0.5),
    ],
)
def test_agreement(answer: str | None, heard: list[str | None], share: float | None) -> None:
    assert agreement(answer, opinions(*heard)) == (None if share is None else pytest.approx(share))
    assert decide(votes(answer), opinions(*heard))["agreement"] == agreement(answer, opinions(*heard))


# How many votes


@pytest.mark.parametrize(
    ("heard", "most"),
    [
        ([], 9),
        ([None, None, None], 9),
        (["CT"], 3),
        (["CT", None], 3),
        (["CT", "CT", "CT"], 3),
        (["CT", "CT", "CT", "CT", "MRI"], 5),
        (["CT", "CT", "MRI"], 7),
        (["CT", "MRI"], 9),
        (["CT", "MRI", "PET"], 9),
        (["CT", "MRI", None], 9),
    ],
)
def test_the_adaptive_budget_grows_with_disagreement(heard: list[str | None], most: int) -> None:
    assert budget("adaptive", opinions(*heard)) == most
    assert budget(4, opinions(*heard)) == 4


@pytest.mark.parametrize(
    ("count", "cast", "missing"),
    [
        (1, [], 1),
        (5, [], 5),
        (5, ["CT", None], 3),
        (5, ["CT"] * 5, 0),
        (5, ["CT"] * 7, 0),
        (5, ["CT"] * 4, 1),  # a fixed number is cast, though nothing can change any more
    ],
)
def test_a_fixed_number_of_votes_is_cast(count: int, cast: list[str | None], missing: int) -> None:
    assert outstanding(votes(*cast), count, opinions("CT", "MRI")) == missing


@pytest.mark.parametrize(
    ("heard", "cast", "missing"),
    [
        (["CT", "CT"], [], 2),  # two of three could settle it
        (["CT", "CT"], ["CT", "CT"], 0),
        (["CT", "CT"], ["CT", "MRI"], 1),
        (["CT", "CT"], ["CT", None], 1),
        (["CT", "CT"], ["CT", "MRI", "PET"], 0),
        (["CT", "MRI"], [], 5),
        (["CT", "MRI"], ["CT"] * 5, 0),
        (["CT", "MRI"], ["CT"] * 4 + ["MRI"], 1),
        (["CT", "MRI"], ["CT"] * 2 + ["MRI"] * 2 + ["PET"], 3),
        (["CT", "MRI"], [None] * 5, 3),
        (["CT", "MRI"], [None] * 9, 0),
        (["CT", "MRI"], [None] * 10, 0),
        (["CT", "MRI"], ["refer to Surgeon"] * 5, 0),
        (["CT", "CT"], ["CT", "refer to CT"], 1),  # which is no vote for CT
    ],
)
def test_adaptive_votes_are_cast_until_nothing_can_change(heard: list[str], cast: list[Any], missing: int) -> None:
    assert outstanding(votes(*cast), "adaptive", opinions(*heard)) == missing


SAID = st.sampled_from(["CT", "MRI", "PET", None, "refer to Surgeon", "refer to Oncologist"])
CAST = st.lists(SAID, min_size=MOST, max_size=MOST)
HEARD = st.lists(st.sampled_from(["CT", "MRI", "PET", None]), max_size=5).map(lambda said: opinions(*said))


def adaptively(ballots: Sequence[Vote], heard: list[Opinion]) -> list[Vote]:
    """The votes that adaptive voting casts, of those that would be cast in turn."""
    cast: list[Vote] = []
    most = budget("adaptive", heard)
    while missing := outstanding(cast, "adaptive", heard):
        assert 1 <= missing <= most - len(cast)
        cast = list(ballots[: len(cast) + missing])
    return cast


@at_ease
@given(CAST, HEARD)
def test_adaptive_voting_ends_within_its_budget_with_the_answer_of_the_full_budget(
    said: list[str | None], heard: list[Opinion]
) -> None:
    full = votes(*said)[: budget("adaptive", heard)]
    cast = adaptively(full, heard)
    assert wish(winner(cast, heard)) == wish(winner(full, heard))
    if winner(cast, heard):
        assert decide(cast, heard)["answer"] == decide(full, heard)["answer"] or winner(cast, heard)["refer"]


@at_ease
@given(CAST, HEARD, SAID)
def test_adaptive_voting_stops_only_when_no_votes_could_change_the_winner(
    said: list[str | None], heard: list[Opinion], rest: str | None
) -> None:
    cast = adaptively(votes(*said), heard)
    left = budget("adaptive", heard) - len(cast)
    for other in (rest, "X-ray", *said):  # the worst that can come is all the same
        ended = votes(*said[: len(cast)], *[other] * left)
        assert wish(winner(ended, heard)) == wish(winner(cast, heard))


@at_ease
@given(st.lists(SAID, max_size=MOST), HEARD)
def test_adaptive_voting_casts_as_few_as_could_settle_it(said: list[str | None], heard: list[Opinion]) -> None:
    cast = votes(*said)
    missing = outstanding(cast, "adaptive", heard)
    most = budget("adaptive", heard)
    assume(missing and most > len(cast) + missing)
    lead = winner(cast, heard)
    favourite = "X-ray" if lead is None else (lead["answer"] or f"{REFER}{lead['refer']}")
    for further in range(missing):
        assert outstanding(votes(*said, *[favourite] * further), "adaptive", heard) == missing - further
    assert outstanding(votes(*said, *[favourite] * missing), "adaptive", heard) == 0


@at_ease
@given(st.lists(SAID, max_size=2 * MOST), HEARD, st.integers(1, MOST) | st.just("adaptive"))
def test_what_is_outstanding_is_never_negative_and_never_above_the_budget(
    said: list[str | None], heard: list[Opinion], count: Any
) -> None:
    missing = outstanding(votes(*said), count, heard)
    assert 0 <= missing <= max(0, budget(count, heard) - len(said))


@at_ease
@given(HEARD)
def test_the_adaptive_budget_is_odd_and_within_its_limits(heard: list[Opinion]) -> None:
    assert budget("adaptive", heard) in range(LEAST, MOST + 1, 2)


@at_ease
@given(st.data(), st.integers(1, 7))
def test_more_disagreement_is_never_a_smaller_budget(data: st.DataObject, count: int) -> None:
    answers = st.lists(st.sampled_from("ABCDEFG"), min_size=count, max_size=count)
    one, other = (opinions(*data.draw(answers)) for _ in range(2))
    first, second = sorted([one, other], key=lambda heard: entropy(heard) or 0.0)
    assert budget("adaptive", first) <= budget("adaptive", second)


@at_ease
@given(st.lists(SAID, min_size=1, max_size=MOST), HEARD, st.data())
def test_the_order_of_the_votes_matters_for_the_last_rule_only(
    said: list[str | None], heard: list[Opinion], data: st.DataObject
) -> None:
    def strength(wanted: tuple[str | None, str | None]) -> tuple[int, int]:
        name = wanted[0] or f"{REFER}{wanted[1]}"
        support = sum(bool(opinion["answer"]) and same_text(opinion["answer"], name) for opinion in heard)
        return said.count(name), support

    mixed = data.draw(st.permutations(said))
    won, again = (wish(winner(votes(*order), heard)) for order in (said, mixed))
    assert (won is None) == (again is None)
    if won and again:
        assert strength(won) == strength(again)
        best = max(strength((name, None)) for name in said if name)
        assert strength(won) == best
