"""Tests of consultations where one answer of the attending is not all: votes and further referrals."""

import collections
import threading
from collections.abc import Callable
from typing import Any

import pytest
from fakes import (
    QUESTION,
    THREAD,
    Consult,
    FakeModel,
    answers,
    breaks,
    consulting,
    graph,
    says,
    thread,
    untagged,
    usage,
    voting,
    words,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from mmedagent_graph import SPECIALTIES
from mmedagent_graph.deliberation import hear
from mmedagent_graph.votes import budget, decide

AGREED, DIVIDED = [answers("CT")] * 3, [answers("CT"), answers("MRI"), answers("PET")]


@pytest.fixture(params=["invoke", "ainvoke"])
def consult(request: pytest.FixtureRequest) -> Consult:
    return consulting(request.param)


def counted(vote: Callable[[dict[str, Any]], Any]) -> tuple[Any, list[int]]:
    """An attending, and the numbers of the votes that it was asked for."""
    asked: list[int] = []

    def attending(state: dict[str, Any]) -> Any:
        asked.append(state["vote"])
        return vote(state)

    return attending, asked


def tally(result: dict[str, Any]) -> dict[str, int]:
    return {one["answer"]: one["votes"] for one in result["decision"]["tally"]}


# A fixed number of votes


def test_the_majority_decides(consult: Consult) -> None:
    attending, asked = counted(voting("CT", {"answer": "MRI", "reasoning": "Soft."}, "MRI", "what?", "MRI"))
    result = consult(graph(attending=attending, votes=5), QUESTION)
    assert result["decision"] == {
        "answer": "MRI",
        "index": 1,
        "reasoning": "Soft.",
        "agreement": 0.0,
        "entropy": 0.0,
        "opinions": 3,
        "votes": 5,
        "tally": [{"answer": "MRI", "index": 1, "votes": 3}, {"answer": "CT", "index": 0, "votes": 1}],
        "confidence": 0.6,
        "abstained": False,
        "review": None,
    }
    assert sorted(asked) == [1, 2, 3, 4, 5]
    assert [(message.type, message.text) for message in result["messages"]] == [("ai", "MRI\n\nSoft.")]


def test_the_opinions_break_a_tie(consult: Consult) -> None:
    result = consult(graph(attending=voting("CT", "MRI"), specialists=answers("MRI"), votes=2), QUESTION)
    assert (result["decision"]["answer"], result["decision"]["confidence"]) == ("MRI", 0.5)


def test_votes_are_cast_at_the_same_time(consult: Consult) -> None:
    together = threading.Barrier(4, timeout=5)
    result = consult(graph(attending=lambda _: (together.wait() and None) or {"answer": "CT"}, votes=4), QUESTION)
    assert tally(result) == {"CT": 4}


def test_every_vote_sees_the_same_case_and_no_other_vote(consult: Consult) -> None:
    attending, alone = answers("CT", "Vote."), answers("CT")
    result = consult(graph(attending=attending, votes=3), QUESTION)
    consult(graph(attending=alone), QUESTION)
    assert [words(seen) for seen in attending.seen] == [words(alone.seen[0])] * 3
    assert result["usage"] == usage(triage=1, specialist=3, attending=3)


def test_a_vote_knows_its_number_and_that_it_must_answer(consult: Consult) -> None:
    ballots: list[dict[str, Any]] = []
    consult(graph(attending=lambda ballot: ballots.append(dict(ballot)) or "CT", votes=2), QUESTION)
    assert sorted(ballot["vote"] for ballot in ballots) == [1, 2]
    case = {**QUESTION, "images": [], "context": None}
    for ballot in ballots:
        assert {name: ballot[name] for name in case} == case
        assert (ballot["referral"]["specialty"], len(ballot["opinions"]), ballot["may_refer"]) == ("Radiologist", 3, [])
        assert set(ballot) == {*case, "referral", "opinions", "vote", "may_refer"}


def test_votes_of_an_unreadable_referral(consult: Consult) -> None:
    result = consult(graph(triage=says("?"), attending=voting("CT", "MRI", "MRI"), votes=3), QUESTION)
    assert (result["opinions"], result["decision"]["answer"], result["decision"]["votes"]) == ([], "MRI", 3)


@pytest.mark.parametrize(
    ("own", "asked"), [(0.0, 1.0), (0.3, 0.3), (None, None)], ids=["greedy", "sampling", "without a temperature"]
)
def test_votes_are_samples(own: float | None, asked: float | None, consult: Consult) -> None:
    model = answers("CT", temperature=own)
    consult(graph(attending=model, votes=2), QUESTION)
    assert model.warmth == [asked] * 2
    single = answers("CT", temperature=own)
    consult(graph(attending=single, max_referrals=1), QUESTION)
    assert single.warmth == [own]  # one answer is no sample


@pytest.mark.parametrize("kind", ["with_config", "bind", "with_fallbacks", "with_retry"])
def test_votes_of_a_wrapped_model_are_samples_too(kind: str, consult: Consult) -> None:
    model = answers("CT", temperature=0.0)
    wrapped = {
        "with_config": lambda: model.with_config(tags=["x"]),
        "bind": lambda: model.bind(stop=["x"]),
        "with_fallbacks": lambda: model.with_fallbacks([answers("MRI")]),
        "with_retry": lambda: model.with_retry(stop_after_attempt=1),
    }[kind]()
    consult(graph(attending=wrapped, votes=2), QUESTION)
    assert model.warmth == [1.0] * 2


# Adaptive votes


@pytest.mark.parametrize(
    ("panel", "votes", "cast"),
    [
        pytest.param(AGREED, ["CT"], 2, id="agreed, and so is the attending"),
        pytest.param(AGREED, ["CT", "MRI", "MRI"], 3, id="agreed, but the attending wavers"),
        pytest.param(DIVIDED, ["PET"], 5, id="divided"),
        pytest.param(DIVIDED, ["PET", "CT"], 9, id="divided to the end"),
        pytest.param([breaks(RuntimeError())], ["CT"], 5, id="nobody heard"),
    ],
)
def test_adaptive_votes(panel: Any, votes: list[str], cast: int, consult: Consult) -> None:
    attending, asked = counted(voting(*votes))
    result = consult(graph(specialists=panel, attending=attending, votes="adaptive"), QUESTION)
    assert sorted(asked) == list(range(1, cast + 1))
    assert result["decision"]["votes"] == cast
    expected = collections.Counter(votes[i % len(votes)] for i in range(cast))
    assert tally(result) == expected
    assert result["decision"]["answer"] == expected.most_common(1)[0][0]


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.sampled_from(["CT", "MRI", "PET", "?", RuntimeError("away")]), min_size=8, max_size=8),
    st.lists(st.sampled_from(["CT", "MRI", "PET", "?"]), min_size=1, max_size=3),
)
def test_adaptive_votes_decide_as_all_votes_would(votes: list[Any], panel: list[str]) -> None:
    specialists, attending = [says(one) for one in panel], voting("CT", *votes)
    adaptive = graph(specialists=specialists, attending=attending, votes="adaptive").invoke(QUESTION)
    most = budget("adaptive", adaptive["opinions"])
    full = graph(specialists=specialists, attending=attending, votes=most).invoke(QUESTION)
    assert adaptive["decision"]["votes"] <= full["decision"]["votes"] == most
    assert adaptive["decision"]["answer"] == full["decision"]["answer"]


# Votes that fail


def test_a_failing_vote_is_one_vote_less(consult: Consult) -> None:
    result = consult(graph(attending=voting("CT", RuntimeError("away"), "CT", "MRI"), votes=4), QUESTION)
    assert (result["decision"]["votes"], result["decision"]["confidence"]) == (4, 0.5)
    assert tally(result) == {"CT": 2, "MRI": 1}


def test_a_vote_for_no_option_is_a_failed_vote(consult: Consult) -> None:
    given_ = graph(attending=voting({"answer": "X-ray"}, "CT", "CT"), votes=3, checkpointer=InMemorySaver())
    assert consult(given_, QUESTION, THREAD)["decision"]["confidence"] == pytest.approx(2 / 3)
    assert "'X-ray' is not an option" in given_.get_state(THREAD).values["votes"][0]["error"]


@pytest.mark.parametrize("votes", [1, 3, "adaptive"])
def test_where_all_votes_fail_the_run_fails_and_can_be_resumed(votes: Any, consult: Consult) -> None:
    specialist, down, raised = answers("CT"), [True], list[Exception]()

    def model(_: Any) -> str:
        if down:
            raised.append(ConnectionError("the model's own error"))  # kept alive: see the next test
            raise raised[-1]
        return "<answer>MRI</answer>"

    attending = FakeModel(answer=model)
    given_ = graph(
        specialists=specialist, attending=attending, votes=votes, max_referrals=1, checkpointer=InMemorySaver()
    )
    with pytest.raises(ConnectionError, match="the model's own error"):
        consult(given_, QUESTION, THREAD)
    with pytest.raises(ConnectionError):  # still down
        consult(given_, None, THREAD)
    down.clear()
    result = consult(given_, None, THREAD)
    assert result["decision"]["answer"] == "MRI"
    assert len(specialist.seen) == 3  # who are not asked again
    assert consult(given_, QUESTION, THREAD)["decision"]["votes"] == (1 if votes == 1 else 3 if votes == 3 else 2)


def test_where_all_votes_fail_with_the_same_exception_the_run_fails(consult: Consult) -> None:
    with pytest.raises(ConnectionError, match="down"):
        consult(graph(attending=breaks(ConnectionError("down")), votes=3), QUESTION)


def test_the_only_hope_takes_the_place_of_a_failed_vote(consult: Consult) -> None:
    tries: list[int] = []

    def attending(ballot: dict[str, Any]) -> Any:
        tries.append(ballot["vote"])
        if len(tries) <= 3:
            raise ConnectionError("down")
        return "CT"

    result = consult(graph(attending=attending, votes=3), QUESTION)
    assert sorted(tries[:3]) == [1, 2, 3]
    assert tries[3:] == [1]
    assert (result["decision"]["answer"], result["decision"]["votes"]) == ("CT", 3)
    assert result["decision"]["confidence"] == pytest.approx(1 / 3)


# Abstaining


@pytest.mark.parametrize(
    ("votes", "below", "answer"),
    [
        (["CT", "MRI", "PET"], 0.5, None),
        (["CT", "CT", "PET"], 0.5, "CT"),
        (["CT", "CT", "?"], 0.7, None),
        (["CT", "CT", RuntimeError("away")], 0.7, None),
        (["CT", "MRI", "PET"], 0.0, "CT"),
    ],
)
def test_a_weak_majority_is_left_to_a_human(votes: Any, below: float, answer: str | None, consult: Consult) -> None:
    result = consult(graph(attending=voting(*votes), votes=3, abstain_below=below), QUESTION)
    assert (result["decision"]["answer"], result["decision"]["abstained"]) == (answer, answer is None)
    assert result["decision"]["tally"][0]["answer"] == "CT"
    assert ("a human must decide" in result["messages"][0].text) is (answer is None)


# Further referrals


def asks_for(*wanted: str, then: Any = "CT") -> Callable[[dict[str, Any]], Any]:
    """An attending that asks for these specialties as long as they are on offer, and then answers."""
    return lambda ballot: next(
        ({"refer": one, "reasoning": "?"} for one in wanted if one in ballot.get("may_refer", ())), then
    )


def heard(result: dict[str, Any]) -> list[tuple[int, str]]:
    return [(opinion["doctor"], opinion["specialty"]) for opinion in result["opinions"]]


def test_the_attending_hears_a_further_specialty(consult: Consult) -> None:
    triage, attending, ballots = answers("Radiologist"), asks_for("Surgeon"), list[dict[str, Any]]()

    def watched(ballot: dict[str, Any]) -> Any:
        ballots.append(dict(ballot))
        return attending(ballot)

    given_ = graph(triage=triage, attending=watched, doctors=2, max_referrals=1, checkpointer=InMemorySaver())
    result = consult(given_, QUESTION, THREAD)
    assert heard(result) == [(1, "Radiologist"), (2, "Radiologist"), (3, "Surgeon"), (4, "Surgeon")]
    assert (result["decision"]["answer"], result["decision"]["opinions"]) == ("CT", 4)
    assert (result["referral"]["specialty"], len(triage.seen)) == ("Radiologist", 1)
    offered = [name for name in SPECIALTIES if name != "Radiologist"]
    assert [(len(one["opinions"]), one["vote"], one["may_refer"]) for one in ballots] == [(2, 1, offered), (4, 1, [])]
    assert given_.get_state(THREAD).values["further"] == [{"specialty": "Surgeon", "reasoning": "?"}]


def test_a_model_asks_in_the_words_it_was_told(consult: Consult) -> None:
    attending = FakeModel(
        answer=lambda seen: "<answer>refer to Surgeon</answer>" if "refer to Surgeon" in words(seen) else "CT"
    )
    result = consult(graph(attending=attending, max_referrals=1), QUESTION)
    assert [specialty for _, specialty in heard(result)] == ["Radiologist"] * 3 + ["Surgeon"] * 3
    assert "Doctor 6 (Surgeon): CT" in words(attending.seen[1])
    assert result["usage"] == usage(triage=1, specialist=6, attending=2)


@pytest.mark.parametrize("most", [0, 1, 2, 3, 9])
def test_no_more_referrals_than_allowed_and_none_twice(most: int, consult: Consult) -> None:
    specialties = ["Radiologist", "Surgeon", "Oncologist", "Pathologist"]
    attending = asks_for("Radiologist", "Oncologist", "Surgeon", "Pathologist")
    given_ = graph(attending=attending, specialties=specialties, doctors=1, max_referrals=most)
    order = ["Radiologist", "Oncologist", "Surgeon", "Pathologist"]
    assert [specialty for _, specialty in heard(consult(given_, QUESTION))] == order[: 1 + min(most, 3)]


def test_all_the_doctors_of_a_further_specialty_are_heard(consult: Consult) -> None:
    panels: dict[str, Any] = {
        "Radiologist": [answers("CT"), answers("MRI"), answers("PET")],
        "Surgeon": [answers("CT"), answers("PET")],
    }
    given_ = graph(attending=asks_for("Surgeon"), specialists=panels, specialties=list(panels), max_referrals=1)
    opinions = consult(given_, QUESTION)["opinions"]
    assert [opinion["doctor"] for opinion in opinions] == [1, 2, 3, 4, 5]
    assert sorted(opinion["answer"] for opinion in opinions if opinion["specialty"] == "Surgeon") == ["CT", "PET"]


def test_an_unreadable_referral_may_be_made_good(consult: Consult) -> None:
    result = consult(graph(triage=says("?"), attending=asks_for("Surgeon"), doctors=2, max_referrals=1), QUESTION)
    assert heard(result) == [(1, "Surgeon"), (2, "Surgeon")]


def test_a_majority_is_needed_for_a_further_referral(consult: Consult) -> None:
    def some(ballot: dict[str, Any]) -> Any:
        return {"refer": "Surgeon"} if ballot["may_refer"] and ballot["vote"] <= 2 else "MRI"

    assert len(consult(graph(attending=some, votes=3, max_referrals=1), QUESTION)["opinions"]) == 6
    result = consult(graph(attending=some, votes=5, max_referrals=1), QUESTION)
    assert (len(result["opinions"]), result["decision"]["answer"], result["decision"]["confidence"]) == (3, "MRI", 0.6)


def test_votes_are_cast_anew_after_a_further_referral(consult: Consult) -> None:
    attending, asked = counted(asks_for("Surgeon", then="MRI"))
    result = consult(graph(attending=attending, votes=3, max_referrals=1), QUESTION)
    assert sorted(asked) == [1, 1, 2, 2, 3, 3]
    assert (result["decision"]["votes"], tally(result)) == (3, {"MRI": 3})


def test_further_specialists_that_fail_are_opinions_that_say_so(consult: Consult) -> None:
    def specialist(state: dict[str, Any]) -> Any:
        if state["specialty"] == "Surgeon":
            raise RuntimeError("operating")
        return "CT"

    result = consult(graph(specialists=specialist, attending=asks_for("Surgeon"), max_referrals=1), QUESTION)
    assert [opinion["error"] for opinion in result["opinions"]] == [None] * 3 + ["RuntimeError: operating"] * 3
    assert result["decision"]["answer"] == "CT"


def test_a_referral_to_whom_nobody_offered_is_refused(consult: Consult) -> None:
    with pytest.raises(ValueError, match=r"decision\.refer: 'Radiologist' is not on offer; .* Pathologist, Surgeon"):
        consult(graph(attending=lambda _: {"refer": "Radiologist"}, max_referrals=1), QUESTION)


# Everything together


def test_votes_referrals_abstaining_and_review_together(consult: Consult) -> None:
    def attending(ballot: dict[str, Any]) -> Any:
        if ballot["may_refer"] and ballot["vote"] != 2:
            return {"refer": "Surgeon"}
        if ballot["vote"] == 3:
            raise RuntimeError("away")
        return ["CT", "MRI"][ballot["vote"] % 2]

    given_ = graph(
        attending=attending,
        votes="adaptive",
        abstain_below=0.6,
        max_referrals=2,
        review=True,
        doctors=1,
        checkpointer=InMemorySaver(),
    )
    [pause] = consult(given_, QUESTION, THREAD)["__interrupt__"]
    assert [opinion["specialty"] for opinion in pause.value["opinions"]] == ["Radiologist", "Surgeon"]
    assert (pause.value["decision"]["answer"], pause.value["decision"]["abstained"]) == (None, True)
    result = consult(given_, Command(resume={"action": "change", "answer": "PET"}), THREAD)
    assert (result["decision"]["answer"], result["decision"]["abstained"]) == ("PET", False)
    assert result["decision"]["review"] == "changed"


def test_sync_and_async_deliberate_the_same() -> None:
    given_ = graph(specialists=DIVIDED, attending=asks_for("Surgeon", then="MRI"), votes="adaptive", max_referrals=1)
    assert untagged(consulting("invoke")(given_, QUESTION)) == untagged(consulting("ainvoke")(given_, QUESTION))


def test_the_decision_is_what_the_votes_in_the_state_amount_to(consult: Consult) -> None:
    given_ = graph(attending=voting("CT", "?", "MRI", RuntimeError("x"), "MRI"), votes=5, checkpointer=InMemorySaver())
    result = consult(given_, QUESTION, thread(1))
    state = given_.get_state(thread(1)).values
    assert [vote["vote"] for vote in state["votes"]] == [1, 2, 3, 4, 5]
    assert result["decision"] == decide(state["votes"], state["opinions"])


@pytest.mark.parametrize(("last", "count", "doctors"), [(0, 3, [1, 2, 3]), (3, 2, [4, 5]), (5, 1, [6])])
def test_doctors_are_numbered_on(last: int, count: int, doctors: list[int]) -> None:
    case: Any = {**QUESTION, "images": [], "context": None}
    sends = hear(case, "Surgeon", [{"doctor": n} for n in range(1, last + 1)], count)  # type: ignore[typeddict-item]
    assert [send.node for send in sends] == ["specialist"] * count
    assert [send.arg["doctor"] for send in sends] == doctors
    assert {send.arg["doctors"] for send in sends} == {doctors[-1]}
    assert all(send.arg["specialty"] == "Surgeon" and send.arg["question"] == QUESTION["question"] for send in sends)
