"""Tests of what a consultation says while it runs: the streams, the events, and what callbacks are told."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from fakes import (
    QUESTION,
    THREAD,
    StreamingModel,
    answers,
    breaks,
    encoded,
    graph,
    image,
    opinion,
    streaming,
    voting,
)
from langchain_core.callbacks import BaseCallbackHandler
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_stream_writer
from langgraph.types import Command

from mmedagent_graph.events import events

Listen = Callable[..., list[Any]]


@pytest.fixture(params=["stream", "astream"])
def listen(request: pytest.FixtureRequest) -> Listen:
    return streaming(request.param)


REFERRAL = {"specialty": "Radiologist", "reasoning": "By the image."}
REFERRED = {"event": "referral", "by": "triage", "referral": REFERRAL}


def heard(doctor: int, answer: str | None, doctors: int = 3, **fields: Any) -> dict[str, Any]:
    return {"event": "opinion", "doctor": doctor, "doctors": doctors, "opinion": opinion(doctor, answer, **fields)}


def cast(number: int, answer: str | None, **fields: Any) -> dict[str, Any]:
    index = QUESTION["options"].index(answer) if answer else None
    vote = {"vote": number, "answer": answer, "index": index, "reasoning": "", "refer": None, "error": None}
    return {"event": "vote", "vote": {**vote, **fields}}


def tallied(count: int, budget: int, **votes: int) -> dict[str, Any]:
    tally = [{"answer": name, "index": QUESTION["options"].index(name), "votes": n} for name, n in votes.items()]
    return {"event": "votes", "cast": count, "budget": budget, "tally": tally}


def by_number(said: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The events of a kind; those of parallel nodes come in any order."""
    found = [event for event in said if event["event"] == kind]
    return sorted(found, key=lambda event: event["doctor"] if kind == "opinion" else event["vote"]["vote"])


def kinds(said: list[dict[str, Any]]) -> list[str]:
    return [event["event"] for event in said]


# Events


def test_every_step_is_an_event(listen: Listen) -> None:
    said = listen(graph(specialists=[answers("CT"), answers("MRI")]), QUESTION, stream_mode="custom")
    assert kinds(said) == ["referral", "opinion", "opinion", "decision"]
    assert said[0] == REFERRED
    assert by_number(said, "opinion") == [heard(1, "CT", 2), heard(2, "MRI", 2)]
    assert (said[-1]["decision"]["answer"], said[-1]["decision"]["review"]) == ("CT", None)


def test_a_specialist_that_failed_is_an_event_too(listen: Listen) -> None:
    panel = [answers("CT"), breaks(RuntimeError("away")), lambda _: {"answer": "PET"}]
    said = listen(graph(specialists=panel), QUESTION, stream_mode="custom")
    assert kinds(said) == ["referral", "opinion", "opinion", "opinion", "decision"]
    away = heard(2, None, error="RuntimeError: away")
    assert by_number(said, "opinion") == [heard(1, "CT"), away, heard(3, "PET")]


async def test_an_event_is_said_when_it_happens() -> None:
    first_is_heard = asyncio.Event()

    async def specialist(state: dict[str, Any]) -> dict[str, Any]:
        if state["doctor"] != 1:
            await first_is_heard.wait()
        return {"answer": "CT"}

    said = []
    async with asyncio.timeout(20):
        async for event in graph(specialists=specialist).astream(QUESTION, stream_mode="custom"):
            said.append(event)
            if event["event"] == "opinion":
                first_is_heard.set()  # while the others are still thinking
    assert next(event["doctor"] for event in said if event["event"] == "opinion") == 1
    assert len(said) == 5


def test_votes_are_tallied_as_they_come(listen: Listen) -> None:
    attending = voting("MRI", "CT", "MRI")
    said = listen(graph(attending=attending, votes=3), QUESTION, stream_mode="custom")
    assert kinds(said) == ["referral", *["opinion"] * 3, *["vote"] * 3, "votes", "decision"]
    assert by_number(said, "vote") == [cast(1, "MRI"), cast(2, "CT"), cast(3, "MRI")]
    assert said[-2] == tallied(3, 3, MRI=2, CT=1)


def test_a_failed_vote_is_an_event_too(listen: Listen) -> None:
    attending = voting("CT", RuntimeError("away"), "CT")
    said = listen(graph(attending=attending, votes=3), QUESTION, stream_mode="custom")
    assert by_number(said, "vote")[1] == cast(2, None, error="RuntimeError: away")
    assert said[-2] == tallied(3, 3, CT=2)
    assert kinds(said).count("votes") == kinds(said).count("decision") == 1


def test_adaptive_votes_are_tallied_round_by_round(listen: Listen) -> None:
    given = graph(specialists=[answers("CT"), answers("CT")], attending=voting("CT", "MRI", "MRI"), votes="adaptive")
    said = listen(given, QUESTION, stream_mode="custom")
    assert kinds(said)[3:] == ["vote", "vote", "votes", "vote", "votes", "decision"]
    assert [event for event in said if event["event"] == "votes"] == [
        tallied(2, 3, CT=1, MRI=1),
        tallied(3, 3, MRI=2, CT=1),
    ]


def test_a_further_referral_is_the_attendings(listen: Listen) -> None:
    def attending(state: dict[str, Any]) -> dict[str, Any]:
        return {"refer": "Surgeon", "reasoning": "Cut."} if state["may_refer"] else {"answer": "CT"}

    given = graph(specialists=[answers("CT"), answers("CT")], attending=attending, max_referrals=1)
    said = listen(given, QUESTION, stream_mode="custom")
    assert [event for event in said if event["event"] == "referral"] == [
        REFERRED,
        {"event": "referral", "by": "attending", "referral": {"specialty": "Surgeon", "reasoning": "Cut."}},
    ]
    opinions = by_number(said, "opinion")
    assert [(one["doctor"], one["doctors"]) for one in opinions] == [(1, 2), (2, 2), (3, 4), (4, 4)]
    assert kinds(said)[-1] == "decision"


def test_a_review_is_heard_too(listen: Listen) -> None:
    given = graph(review=True, checkpointer=InMemorySaver())
    said = listen(given, QUESTION, THREAD, stream_mode="custom")
    assert (said[-1]["event"], said[-1]["decision"]["review"]) == ("decision", None)
    hear = Command(resume={"action": "hear", "specialty": "Surgeon"})
    said = listen(given, hear, THREAD, stream_mode="custom")
    referral = {"specialty": "Surgeon", "reasoning": ""}
    assert said[0] == {"event": "referral", "by": "review", "referral": referral}
    assert kinds(said) == ["referral", "opinion", "vote", "votes", "decision"]
    assert (said[1]["doctor"], said[1]["doctors"]) == (4, 4)
    said = listen(given, Command(resume=True), THREAD, stream_mode="custom")
    assert (kinds(said), said[-1]["decision"]["review"]) == (["decision"], "approved")


def test_an_own_node_may_say_something_too(listen: Listen) -> None:
    def specialist(state: dict[str, Any]) -> dict[str, Any]:
        get_stream_writer()({"event": "looking", "doctor": state["doctor"]})
        return {"answer": "CT"}

    async def attending(_: Any) -> dict[str, Any]:
        get_stream_writer()({"event": "thinking"})
        return {"answer": "CT"}

    said = listen(graph(specialists=[specialist], attending=attending), QUESTION, stream_mode="custom")
    assert kinds(said) == ["referral", "looking", "opinion", "thinking", "decision"]


@pytest.mark.parametrize(
    ("update", "kind"),
    [
        ({"referral": REFERRAL}, ["referral"]),
        ({"opinions": [opinion(1, "CT"), opinion(2, "CT")]}, ["opinion", "opinion"]),
        ({"votes": [{}]}, ["vote"]),
        ({"decision": {}}, ["decision"]),
        ({"usage": {}, "messages": []}, []),
    ],
)
def test_what_an_update_amounts_to(update: dict[str, Any], kind: list[str]) -> None:
    assert kinds(list(events(update, {"doctors": 2}))) == kind  # type: ignore[arg-type]


# Streams


def test_updates_come_in_the_order_of_the_nodes(listen: Listen) -> None:
    steps = listen(graph(), QUESTION, stream_mode="updates")
    assert [node for step in steps for node in step] == ["triage", *["specialist"] * 3, "attending"]
    steps = listen(graph(votes=2), QUESTION, stream_mode="updates")
    nodes = [node for step in steps for node in step]
    assert nodes == ["triage", *["specialist"] * 3, "attending", "vote", "vote", "attending"]


def test_values_grow(listen: Listen) -> None:
    states = listen(graph(), QUESTION, stream_mode="values")
    came = [(bool(one["referral"]), len(one["opinions"]), bool(one["decision"])) for one in states]
    assert came == [(False, 0, False), (True, 0, False), (True, 3, False), (True, 3, True)]
    assert states[-1]["messages"][0].text == "CT\n\nSeen."


@pytest.mark.parametrize("more", [{}, {"votes": 1, "review": False, "max_referrals": 1}, {"votes": 2}], ids=str)
def test_messages_stream_word_by_word_and_say_whose_they_are(more: dict[str, Any], listen: Listen) -> None:
    speaking = StreamingModel(answer=lambda _: "<think>It is white.</think> <answer>CT</answer>")
    given = graph(specialists=[speaking, answers("MRI")], attending=speaking, **more)
    chunks = listen(given, QUESTION, stream_mode="messages")
    words: dict[tuple[Any, ...], list[str]] = {}
    for message, about in chunks[:-1]:
        said = words.setdefault((about["langgraph_node"], about.get("doctor"), about.get("vote")), [])
        said.append(message.text)
    pieces = ["<think>It", "is", "white.</think>", "<answer>CT</answer>", ""]
    votes = more.get("votes", 1)
    attending = {("vote", None, n) for n in (1, 2)} if votes == 2 else {("attending", None, 1 if more else None)}
    assert words.keys() == {("triage", None, None), ("specialist", 1, None), ("specialist", 2, None), *attending}
    assert words["specialist", 2, None] == ["<think></think><answer>MRI</answer>"]
    for who in (("specialist", 1, None), *attending):
        assert [word for word in words[who] if word] == pieces[:4]
    reply, about = chunks[-1]  # what a chat shows
    assert (reply.text, reply.name) == ("CT\n\nItiswhite.", "attending")
    assert about["langgraph_node"] == "attending"


def test_several_modes_at_once(listen: Listen) -> None:
    chunks = listen(graph(), QUESTION, stream_mode=["updates", "custom", "values", "messages"])
    count = {mode: sum(mode == kind for kind, _ in chunks) for mode in ("updates", "custom", "values", "messages")}
    assert count == {"updates": 5, "custom": 5, "values": 4, "messages": 6}
    order = [kind for kind, _ in chunks if kind in ("updates", "custom")]
    assert order[:2] == ["custom", "updates"]


async def test_langchains_events() -> None:
    case = {**QUESTION, "images": [encoded(image())]}
    happened = [event async for event in graph(votes=2).astream_events(case, version="v2")]
    asked = [(e["name"], e["metadata"]["langgraph_node"]) for e in happened if e["event"] == "on_chat_model_start"]
    doctors = [(f"specialist Radiologist {doctor}", "specialist") for doctor in (1, 2, 3)]
    assert sorted(asked) == sorted([("triage", "triage"), *doctors, ("attending 1", "vote"), ("attending 2", "vote")])
    ended = [event for event in happened if event["event"] == "on_chain_end" and not event["parent_ids"]]
    assert ended[-1]["data"]["output"]["decision"]["answer"] == "CT"


# Callbacks


class Listening(BaseCallbackHandler):
    """What a tracer sees."""

    def __init__(self) -> None:
        self.asked: dict[str, dict[str, Any]] = {}
        self.inputs: list[str] = []
        self.tags: list[list[str]] = []

    def on_chat_model_start(self, *_: Any, metadata: Any = None, tags: Any = None, **given: Any) -> None:
        named = ("specialty", "doctor", "vote", "langgraph_node", "ward")
        self.asked[given["name"]] = {name: metadata[name] for name in named if name in (metadata or {})}
        self.tags.append(tags)

    def on_chain_start(self, _: Any, inputs: Any, **__: Any) -> None:
        self.inputs.append(repr(inputs))


def test_callbacks_are_told_node_specialty_doctor_and_vote(listen: Listen) -> None:
    listening = Listening()
    config = {"callbacks": [listening], "metadata": {"ward": 7}, "tags": ["night"], "run_name": "round"}
    listen(graph(doctors=2, votes=2, checkpointer=InMemorySaver()), QUESTION, {**THREAD, **config})
    assert listening.asked == {
        "triage": {"langgraph_node": "triage", "ward": 7},
        "specialist Radiologist 1": {
            "specialty": "Radiologist",
            "doctor": 1,
            "langgraph_node": "specialist",
            "ward": 7,
        },
        "specialist Radiologist 2": {
            "specialty": "Radiologist",
            "doctor": 2,
            "langgraph_node": "specialist",
            "ward": 7,
        },
        "attending 1": {"vote": 1, "langgraph_node": "vote", "ward": 7},
        "attending 2": {"vote": 2, "langgraph_node": "vote", "ward": 7},
    }
    assert all("night" in tags for tags in listening.tags)


def test_the_model_itself_is_told(listen: Listen) -> None:
    attending = answers("CT")
    listen(graph(attending=attending, votes=2), QUESTION)
    assert sorted(told["vote"] for told in attending.told) == [1, 2]


def test_callbacks_see_no_image(listen: Listen) -> None:
    listening = Listening()
    listen(graph(), {**QUESTION, "images": [encoded(image())]}, {"callbacks": [listening]})
    assert len(listening.inputs) > 4
    assert not any("PNG" in given for given in listening.inputs)
    assert any("sha256:" in given for given in listening.inputs)


def test_a_model_behind_another_is_told_too(listen: Listen) -> None:
    attending = answers("CT")
    listen(graph(attending=breaks(RuntimeError("x")).with_fallbacks([attending]), votes=2), QUESTION)
    assert sorted(told["vote"] for told in attending.told) == [1, 2]
