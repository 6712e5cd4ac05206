"""Tests of the three nodes: what they render, read and accept."""

import asyncio
import dataclasses
import threading
from pathlib import Path
from typing import Any

import pytest
from fakes import answers, encoded, image, says, usage, words
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableLambda

from mmedagent_graph.images import ImageStore, default_store
from mmedagent_graph.nodes import Attending, Specialist, Triage, Voter
from mmedagent_graph.nodes.attending import attending_input, failed_vote
from mmedagent_graph.nodes.base import ByModel, ByOwn, is_chat_model, stated
from mmedagent_graph.nodes.specialist import failed
from mmedagent_graph.prompts import attending_messages, specialist_messages, triage_messages

NAMES = ("Radiologist", "Pathologist")
OPTIONS = ["CT", "MRI", "PET"]
OPINION = {
    "specialty": "Radiologist",
    "doctor": 2,
    "answer": None,
    "index": None,
    "reasoning": "",
    "error": None,
}


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "store")


@pytest.fixture
def triage(store: ImageStore) -> Triage:
    return Triage(NAMES, store)


@pytest.fixture
def specialist(store: ImageStore) -> Specialist:
    return Specialist(store)


@pytest.fixture
def attending(store: ImageStore) -> Attending:
    return Attending(store)


@pytest.fixture
def voter(store: ImageStore) -> Voter:
    return Voter(store)


def opinions(*said: str | None) -> list[dict[str, Any]]:
    return [{**OPINION, "doctor": i, "answer": answer} for i, answer in enumerate(said, 1)]


def state(**fields: Any) -> Any:
    """Everything that any node is given, so that one state serves all three."""
    return {
        "question": "Which scan is it?",
        "options": OPTIONS,
        "images": [],
        "context": None,
        "specialty": "Radiologist",
        "doctor": 2,
        "referral": {"specialty": "Radiologist", "reasoning": ""},
        "opinions": opinions("CT", "MRI", "CT"),
        **fields,
    }


def opinion(**fields: Any) -> dict[str, Any]:
    return {"opinions": [{**OPINION, **fields}]}


def decision(answer: str | None, index: int | None, agreement: float | None, heard: int, why: str = "") -> Any:
    """The decision by one answer; the entropy of the opinions is a matter of `test_votes`."""
    said = {"answer": answer, "index": index, "reasoning": why, "agreement": agreement, "opinions": heard}
    tally = [] if answer is None else [{"answer": answer, "index": index, "votes": 1}]
    return {"decision": {**said, "votes": 1, "tally": tally, "confidence": None, "abstained": False, "review": None}}


def told(update: dict[str, Any]) -> dict[str, Any]:
    """The decision without its entropy."""
    return {"decision": {name: value for name, value in update["decision"].items() if name != "entropy"}}


def vote(answer: str | None = None, index: int | None = None, **fields: Any) -> dict[str, Any]:
    plain = {"vote": 2, "answer": answer, "index": index, "reasoning": "", "refer": None, "error": None}
    return {"votes": [{**plain, **fields}]}


def referral(specialty: str | None, reasoning: str = "") -> dict[str, Any]:
    return {"referral": {"specialty": specialty, "reasoning": reasoning}}


# What is rendered


def test_render(triage: Triage, specialist: Specialist, attending: Attending, store: ImageStore) -> None:
    assert triage.render(state()) == triage_messages(state(), NAMES, store)
    assert specialist.render(state()) == specialist_messages(state(), store)
    assert attending.render(state()) == attending_messages(state(), store)


def test_names() -> None:
    nodes = (Triage(NAMES, default_store()), Specialist(default_store()), Attending(default_store()))
    assert [node.name for node in nodes] == ["triage", "specialist", "attending"]


def test_nodes_cannot_be_changed(triage: Triage) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        triage.name = "other"  # type: ignore[misc]


# What is read


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>An X-ray.</think><answer>Radiologist</answer>", referral("Radiologist", "An X-ray.")),
        ("pathologist.", referral("Pathologist")),
        ("<think>Hm.</think><answer>Cardiologist</answer>", referral(None, "Hm.")),
        ("<answer>Radiologist or Pathologist</answer>", referral(None)),
        ("", referral(None)),
    ],
)
def test_triage_reads(text: str, expected: dict[str, Any], triage: Triage) -> None:
    assert triage.read(text, state()) == expected


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("<think>Soft.</think><answer>MRI</answer>", {"answer": "MRI", "index": 1, "reasoning": "Soft."}),
        ("<answer>b</answer>", {"answer": "MRI", "index": 1}),
        ("<think>Soft.</think><answer>X-ray</answer>", {"reasoning": "Soft."}),
        ("It may be CT or MRI.", {}),
        ("", {}),
    ],
)
def test_a_specialist_reads(text: str, fields: dict[str, Any], specialist: Specialist) -> None:
    assert specialist.read(text, state()) == opinion(**fields)


def test_a_specialist_reads_free_text(specialist: Specialist) -> None:
    text = "<think>t</think><answer> a  cyst </answer>"
    assert specialist.read(text, state(options=[])) == opinion(answer="a cyst", reasoning="t")


@pytest.mark.parametrize(
    ("text", "heard", "expected"),
    [
        ("<think>w</think><answer>CT</answer>", ["CT", "MRI", "CT"], decision("CT", 0, 2 / 3, 3, "w")),
        ("<answer>PET</answer>", ["CT", "MRI", "CT"], decision("PET", 2, 0.0, 3)),
        ("<answer>CT</answer>", ["CT", None, "MRI"], decision("CT", 0, 0.5, 2)),
        ("<answer>CT</answer>", [None, None, None], decision("CT", 0, None, 0)),
        ("<answer>CT</answer>", [], decision("CT", 0, None, 0)),
        ("no idea", ["CT", "CT", "CT"], decision(None, None, None, 3)),
        ("no idea", [None], decision(None, None, None, 0)),
    ],
)
def test_the_attending_reads(text: str, heard: list[str | None], expected: Any, attending: Attending) -> None:
    assert told(attending.read(text, state(opinions=opinions(*heard)))) == expected


def test_agreement_in_free_text_is_by_the_words(attending: Attending) -> None:
    given_ = state(options=[], opinions=opinions("A cyst.", "a  CYST", "a tumour"))
    assert told(attending.read("<answer>a cyst</answer>", given_)) == decision("a cyst", None, 2 / 3, 3)


def test_a_decision_tells_the_entropy_of_the_opinions(attending: Attending) -> None:
    read = attending.read("<answer>CT</answer>", state(opinions=opinions("CT", "MRI")))
    accepted = attending.accept({"answer": "CT"}, state(opinions=opinions("CT", "MRI")))
    assert read["decision"]["entropy"] == accepted["decision"]["entropy"] == 1.0


OFFER = {"vote": 2, "may_refer": ["Surgeon", "Oncologist"]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>Soft.</think><answer>MRI</answer>", vote("MRI", 1, reasoning="Soft.")),
        ("<answer>b</answer>", vote("MRI", 1)),
        ("no idea", vote()),
        ("<think>Cut.</think><answer>refer to Surgeon</answer>", vote(refer="Surgeon", reasoning="Cut.")),
        ("Refer to ONCOLOGIST.", vote(refer="Oncologist")),
        ("<answer>refer to Radiologist</answer>", vote()),  # who is not on offer
        ("<answer>Surgeon</answer>", vote()),  # which is not the words for it
        ("<answer>refer to Surgeon or refer to Oncologist</answer>", vote()),
    ],
)
def test_a_voter_reads(text: str, expected: dict[str, Any], voter: Voter) -> None:
    assert voter.read(text, state(**OFFER)) == expected


def test_a_voter_with_nobody_on_offer_reads_no_referral(voter: Voter) -> None:
    assert voter.read("<answer>refer to Surgeon</answer>", state(vote=2, may_refer=[])) == vote()
    free = state(vote=2, may_refer=[], options=[])
    assert voter.read("<answer>refer to Surgeon</answer>", free) == vote("refer to Surgeon")


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ({"answer": "MRI"}, vote("MRI", 1)),
        ({"index": 1, "reasoning": "Soft."}, vote("MRI", 1, reasoning="Soft.")),
        ({"decision": {"answer": "MRI"}}, vote("MRI", 1)),
        ({"refer": "Surgeon", "reasoning": "Cut."}, vote(refer="Surgeon", reasoning="Cut.")),
        ({"refer": None, "answer": "CT"}, vote("CT", 0)),
        ({}, vote()),
    ],
)
def test_a_voter_accepts(output: dict[str, Any], expected: dict[str, Any], voter: Voter) -> None:
    assert voter.accept(output, state(**OFFER)) == expected


@pytest.mark.parametrize("refer", ["Radiologist", "surgeon", ""])
def test_a_voter_refuses_a_referral_that_is_not_on_offer(refer: str, voter: Voter) -> None:
    with pytest.raises(ValueError, match=r"decision\.refer: .* is not on offer; .* Surgeon, Oncologist"):
        voter.accept({"refer": refer}, state(**OFFER))


def test_an_attending_alone_may_refer_to_nobody(attending: Attending) -> None:
    with pytest.raises(ValueError, match=r"decision\.refer: 'Surgeon' is not on offer"):
        attending.accept({"refer": "Surgeon"}, state())


def test_a_failed_vote_says_why() -> None:
    assert failed_vote(state(**OFFER), TimeoutError("late")) == vote(error="TimeoutError: late")


@pytest.mark.parametrize("referral", [{"specialty": "Radiologist", "reasoning": "An X-ray."}, None])
def test_what_the_attending_is_given(referral: Any) -> None:
    case = {"question": "q", "options": OPTIONS, "images": [], "context": None}
    given_ = attending_input({"case": case, "referral": referral, "opinions": opinions("CT"), "usage": {}})  # type: ignore[typeddict-item]
    nobody = {"specialty": None, "reasoning": ""}
    assert given_ == {**case, "referral": referral or nobody, "opinions": opinions("CT")}


@given(st.text(), st.sampled_from([[], OPTIONS]))
def test_reading_never_fails(text: str, options: list[str]) -> None:
    given_ = state(options=options)
    assert Triage(NAMES, default_store()).read(text, given_)["referral"]["specialty"] in (None, *NAMES)
    said = Specialist(default_store()).read(text, given_)["opinions"][0]
    decided = Attending(default_store()).read(text, given_)["decision"]
    for one in (said, decided):
        assert not options or (one["answer"], one["index"]) in [(None, None), ("CT", 0), ("MRI", 1), ("PET", 2)]


def test_stated() -> None:
    assert stated("<answer>mri</answer>", OPTIONS) == ("MRI", 1)
    assert stated("<answer>X-ray</answer>", OPTIONS) == (None, None)
    assert stated("<answer>X-ray</answer>", []) == ("X-ray", None)


# What is accepted


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ({"specialty": "Pathologist"}, referral("Pathologist")),
        ({"specialty": "Pathologist", "reasoning": "A slide."}, referral("Pathologist", "A slide.")),
        ({"referral": {"specialty": "Pathologist", "reasoning": "A slide."}}, referral("Pathologist", "A slide.")),
        ({"specialty": None}, referral(None)),
        ({}, referral(None)),
    ],
)
def test_triage_accepts(output: dict[str, Any], expected: dict[str, Any], triage: Triage) -> None:
    assert triage.accept(output, state()) == expected


@pytest.mark.parametrize("specialty", ["Radiolgist", "radiologist", "", 1])
def test_triage_refuses_an_unknown_specialty(specialty: Any, triage: Triage) -> None:
    with pytest.raises(ValueError, match=r"referral\.specialty: .* is unknown; .* Radiologist, Pathologist"):
        triage.accept({"specialty": specialty}, state())


ACCEPTED: list[tuple[dict[str, Any], str | None, int | None, str]] = [
    ({"answer": "MRI"}, "MRI", 1, ""),
    ({"index": 1}, "MRI", 1, ""),
    ({"answer": "MRI", "index": 1, "reasoning": "Soft."}, "MRI", 1, "Soft."),
    ({"answer": None, "index": None, "reasoning": "Hm."}, None, None, "Hm."),
    ({}, None, None, ""),
]


@pytest.mark.parametrize(("output", "answer", "index", "why"), ACCEPTED)
def test_answers_accepted(
    output: dict[str, Any], answer: str, index: int, why: str, specialist: Specialist, attending: Attending
) -> None:
    said = opinion(answer=answer, index=index, reasoning=why)
    decided = decision(answer, index, 1 / 3 if answer else None, 3, why)
    assert specialist.accept(output, state()) == said
    assert specialist.accept({"opinions": [output]}, state()) == said
    assert told(attending.accept(output, state())) == decided
    assert told(attending.accept({"decision": output}, state())) == decided


def test_free_answers_are_accepted(specialist: Specialist, attending: Attending) -> None:
    assert specialist.accept({"answer": "a cyst"}, state(options=[])) == opinion(answer="a cyst")
    given_ = state(options=[], opinions=[])
    assert told(attending.accept({"answer": "a cyst"}, given_)) == decision("a cyst", None, None, 0)


def test_a_whole_consultation_is_accepted_for_an_opinion(specialist: Specialist) -> None:
    decided = {"referral": {}, "opinions": [{"answer": "CT"}], "decision": {"answer": "MRI", "reasoning": "Soft."}}
    assert specialist.accept(decided, state()) == opinion(answer="MRI", index=1, reasoning="Soft.")
    assert specialist.accept({**decided, "decision": None}, state()) == opinion()  # which came to no decision


@pytest.mark.parametrize(
    ("output", "options", "said"),
    [
        ({"answer": "X-ray"}, OPTIONS, "answer: 'X-ray' is not an option"),
        ({"answer": "ct"}, OPTIONS, "answer: 'ct' is not an option"),
        ({"answer": ""}, OPTIONS, "answer: '' is not an option"),
        ({"index": 3}, OPTIONS, "index: 3 does not name"),
        ({"index": -1}, OPTIONS, "index: -1 does not name"),
        ({"index": "1"}, OPTIONS, "index: '1' does not name"),
        ({"index": 1.0}, OPTIONS, "index: 1.0 does not name"),
        ({"answer": "CT", "index": 1}, OPTIONS, "index: 1 does not name 'CT'"),
        ({"answer": 3}, [], "answer: 3 is not a text"),
        ({"index": 0}, [], "answer: None is not a text"),
    ],
)
def test_answers_refused(
    output: dict[str, Any], options: list[str], said: str, specialist: Specialist, attending: Attending
) -> None:
    choices = [] if not options else [str(OPTIONS)]
    for node, field in ((specialist, "opinion"), (attending, "decision")):
        with pytest.raises(ValueError) as raised:
            node.accept(output, state(options=options))
        assert [part for part in [f"{field}.{said}", *choices] if part not in str(raised.value)] == []


def test_a_failed_specialist_says_why() -> None:
    assert failed(state(), TimeoutError("late")) == opinion(error="TimeoutError: late")


# The model or the own node between the two functions


async def called(who: Any, given_: Any) -> dict[str, Any]:
    """What it answers, the same for sync and async callers."""
    sync, asynchronous = who.call(given_), await who.acall(given_)
    assert sync == asynchronous
    return sync


async def test_a_model_is_put_between_render_and_read(specialist: Specialist) -> None:
    model = answers("MRI", because="Soft.")
    update = await called(ByModel(specialist, model), state())
    assert update == {**opinion(answer="MRI", index=1, reasoning="Soft."), "usage": usage(specialist=1)}
    assert [words(seen) for seen in model.seen] == [words(specialist.render(state()))] * 2


async def test_images_are_rendered_beside_the_event_loop(specialist: Specialist, monkeypatch: Any) -> None:
    threads: list[Any] = []
    block = ImageStore.block
    monkeypatch.setattr(
        ImageStore, "block", lambda self, ref: threads.append(threading.current_thread()) or block(self, ref)
    )
    given_ = state(images=[specialist.store.put(encoded(image()))])
    await ByModel(specialist, answers("CT")).acall(given_)
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()


@pytest.mark.parametrize("kind", ["bind", "with_retry", "with_fallbacks", "with_config", "several"])
async def test_a_wrapped_chat_model_is_a_model(kind: str, specialist: Specialist) -> None:
    model = answers("MRI")
    wrapped: Any = {
        "bind": lambda: model.bind(stop=["x"]),
        "with_retry": lambda: model.with_retry(),
        "with_fallbacks": lambda: model.with_fallbacks([answers("CT")]),
        "with_config": lambda: model.with_config(tags=["x"]),
        "several": lambda: model.bind(stop=["x"]).with_fallbacks([answers("CT")]).with_config(tags=["x"]).bind(n=1),
    }[kind]()
    assert is_chat_model(wrapped)
    update = await called(ByModel(specialist, wrapped), state())
    assert (update["opinions"][0]["answer"], update["usage"]) == ("MRI", usage(specialist=1))


@pytest.mark.parametrize(
    "other",
    [
        RunnableLambda(lambda _: "CT"),
        RunnableLambda(lambda _: "CT").with_retry(),
        RunnableLambda(lambda _: "CT").with_fallbacks([answers("CT")]),
        RunnableLambda(lambda _: "CT") | answers("CT"),
        lambda _: "CT",
        "openai:gpt-4o",
    ],
)
def test_nothing_else_is_a_chat_model(other: Any) -> None:
    assert not is_chat_model(other)


async def test_a_model_that_counts_no_tokens_has_used_none(attending: Attending) -> None:
    own = RunnableLambda(lambda _: AIMessage("<answer>CT</answer>"))
    update = await called(ByOwn(attending, own), state())
    assert update["usage"] == {"attending": {"calls": 1, "cached": 0, "input_tokens": 0, "output_tokens": 0}}


@pytest.mark.parametrize("said", ["<answer>MRI</answer>", {"answer": "MRI"}, {"index": 1}])
async def test_an_own_node_may_return_a_text_or_a_mapping(said: Any, specialist: Specialist) -> None:
    assert await called(ByOwn(specialist, lambda _: said), state()) == opinion(answer="MRI", index=1)


async def test_an_own_node_may_return_a_message_in_blocks(specialist: Specialist) -> None:
    said = AIMessage([{"type": "text", "text": "<answer>MRI</answer>"}])
    update = await called(ByOwn(specialist, lambda _: said), state())
    assert update["opinions"] == opinion(answer="MRI", index=1)["opinions"]


async def test_an_own_node_that_is_a_chain_with_a_model(specialist: Specialist) -> None:
    chain = RunnableLambda(lambda given_: given_["question"]) | says("<answer>MRI</answer>")
    update = await called(ByOwn(specialist, chain), state())
    assert (update["opinions"][0]["answer"], update["usage"]["specialist"]["calls"]) == ("MRI", 1)


async def test_an_own_node_that_is_async_only_serves_sync_callers_too(specialist: Specialist) -> None:
    class Doctor:
        async def __call__(self, given_: Any) -> dict[str, Any]:
            await asyncio.sleep(0)
            return {"answer": "MRI"}

    for own in (Doctor(), Doctor().__call__):
        assert await called(ByOwn(specialist, own), state()) == opinion(answer="MRI", index=1)


@pytest.mark.parametrize("said", [None, 3, ["MRI"], HumanMessage("MRI")])
async def test_an_own_node_may_return_nothing_else(said: Any, specialist: Specialist) -> None:
    own = ByOwn(specialist, lambda _: said)
    wrong = f"specialist: the node returned a {type(said).__name__}; it must return a mapping, a text or a message"
    with pytest.raises(ValueError, match=wrong):
        own.call(state())
    with pytest.raises(ValueError, match=wrong):
        await own.acall(state())


async def test_an_own_node_is_given_its_state(specialist: Specialist) -> None:
    given_: list[Any] = []
    await called(ByOwn(specialist, lambda seen: given_.append(seen) or {}), state())
    assert given_ == [state(), state()]
