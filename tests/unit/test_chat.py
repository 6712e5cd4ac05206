"""Tests of a consultation as a chat: the case in the messages, and the decision as a reply."""

import base64
from typing import Any

import pytest
from fakes import THREAD, Consult, answers, consulting, data_url, encoded, graph, image, pictures, says, voting, words
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver

from mmedagent_graph.chat import asked, case_of_chat, reply
from mmedagent_graph.images import default_store
from mmedagent_graph.state import CaseFields
from mmedagent_graph.votes import decide

PNG = encoded(image("red"))
URL = data_url(PNG)
BASE64 = base64.b64encode(PNG).decode()
SHOWN = {"type": "image", "url": URL}


@pytest.fixture(params=["invoke", "ainvoke"])
def consult(request: pytest.FixtureRequest) -> Consult:
    return consulting(request.param)


def human(text: str, *blocks: Any) -> HumanMessage:
    return HumanMessage([{"type": "text", "text": text}, *blocks])


# Images


@pytest.mark.parametrize(
    "block",
    [
        pytest.param({"type": "image", "base64": BASE64, "mime_type": "image/png"}, id="v1 base64"),
        pytest.param({"type": "image", "url": URL}, id="v1 url"),
        pytest.param({"type": "file", "base64": BASE64, "mime_type": "image/png"}, id="v1 file"),
        pytest.param({"type": "image", "source_type": "base64", "data": BASE64, "mime_type": "image/png"}, id="v0"),
        pytest.param({"type": "image", "source_type": "url", "url": URL}, id="v0 url"),
        pytest.param({"type": "image_url", "image_url": {"url": URL}}, id="OpenAI"),
        pytest.param({"type": "image_url", "image_url": {"url": URL, "detail": "low"}}, id="OpenAI with detail"),
        pytest.param({"type": "file", "file": {"file_data": URL, "filename": "scan.png"}}, id="OpenAI file"),
        pytest.param(
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": BASE64}}, id="Anthropic"
        ),
        pytest.param({"type": "image", "source": {"type": "url", "url": URL}}, id="Anthropic url"),
    ],
)
def test_an_image_in_any_format_reaches_the_models(block: dict[str, Any], consult: Consult) -> None:
    attending = answers("CT")
    consult(graph(attending=attending), {"messages": [human("Which scan?", block)]})
    assert pictures(attending.seen[0]) == [PNG]


@pytest.mark.parametrize("field", ["url", "file_id"])
def test_an_image_may_be_a_reference_into_the_store(field: str, consult: Consult) -> None:
    attending = answers("CT")
    block = {"type": "image", field: default_store().put(PNG)}
    consult(graph(attending=attending), {"messages": [human("Which scan?", block)]})
    assert pictures(attending.seen[0]) == [PNG]


def test_images_keep_their_order() -> None:
    urls = [data_url(encoded(image(color))) for color in ("red", "green", "blue")]
    blocks = [{"type": "image", "url": url} for url in urls]
    message = HumanMessage([blocks[0], {"type": "text", "text": "Which?"}, *blocks[1:]])
    assert case_of_chat([message])["images"] == urls


@pytest.mark.parametrize(
    ("chat", "images"),
    [
        pytest.param([human("?", SHOWN), AIMessage("CT"), human("And how old is it?")], [URL], id="earlier images"),
        pytest.param([human("?", {"type": "image", "url": "old"}), human("?", SHOWN)], [URL], id="its own come first"),
        pytest.param(
            [human("?", {"type": "image", "url": "older"}), human("?", SHOWN), human("?")], [URL], id="the last before"
        ),
        pytest.param([human("?"), human("?")], [], id="none at all"),
        pytest.param([AIMessage([SHOWN]), human("?")], [], id="not those of a reply"),
        pytest.param([ToolMessage([SHOWN], tool_call_id="1"), human("?")], [], id="not those of a tool"),
    ],
)
def test_a_conversation_is_about_one_patient(chat: list[Any], images: list[str]) -> None:
    assert case_of_chat(chat)["images"] == images


@pytest.mark.parametrize(
    ("chat", "said"),
    [
        ([], "there is no human message; give the question as one"),
        ([AIMessage("hello"), SystemMessage("be brief")], "there is no human message"),
        ([human("?", {"type": "audio", "base64": "UklG", "mime_type": "audio/wav"})], "a block of type 'audio'; give"),
        ([human("?", {"type": "video", "url": "x"})], "a block of type 'video'; give text, image or file blocks"),
        ([human("?", {"type": "image"})], "an image block has no base64, url or file_id"),
        ([human("?", {"type": "file", "mime_type": "application/dicom"})], "a file block has no|an file block has no"),
    ],
)
def test_what_cannot_be_used_is_named(chat: list[Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"messages: .*({said})"):
        case_of_chat(chat)


@pytest.mark.parametrize("messages", ["CT?", HumanMessage("CT?"), ("user", "CT?"), {"role": "user", "content": "CT?"}])
def test_a_single_message_is_a_chat_as_in_langgraph(messages: Any) -> None:
    assert case_of_chat(messages)["question"] == "CT?"


@pytest.mark.parametrize("messages", [3, [3], [[]]], ids=str)
def test_what_are_no_messages_are_refused_by_name(messages: Any, consult: Consult) -> None:
    with pytest.raises(ValueError, match="messages: not a list of chat messages"):
        consult(graph(), {"messages": messages})


def test_an_unreadable_image_of_a_chat_is_named_by_its_place(consult: Consult) -> None:
    chat = [human("Which?", SHOWN, {"type": "image", "url": "https://hospital.org/scan.png"})]
    with pytest.raises(ValueError, match=r"images\[1\]: 'https://hospital.org/scan.png' is a remote address"):
        consult(graph(), {"messages": chat})


# Questions and options


@pytest.mark.parametrize(
    ("text", "question", "options"),
    [
        ("Which?\nA. CT\nB. MRI", "Which?", ["CT", "MRI"]),
        ("Which?\n\nA) CT\nB) MRI\nC) PET\n", "Which?", ["CT", "MRI", "PET"]),
        ("Which?\n (A) CT \n (B) MRI", "Which?", ["CT", "MRI"]),
        ("Which?\nA: CT\nB: MRI", "Which?", ["CT", "MRI"]),
        ("Two\nlines?\nA. CT\nB. MRI", "Two\nlines?", ["CT", "MRI"]),
        ("Which?\nA.   T2 * weighted  \nB. x", "Which?", ["T2 * weighted", "x"]),
        ("Which?\nA. CT", "Which?\nA. CT", []),  # one is no choice
        ("Which?\nB. CT\nC. MRI", "Which?\nB. CT\nC. MRI", []),  # not from A on
        ("Which?\nA. CT\nC. MRI", "Which?\nA. CT\nC. MRI", []),
        ("Which?\nB. CT\nA. MRI", "Which?\nB. CT\nA. MRI", []),
        ("A. CT\nB. MRI\nWhich?", "A. CT\nB. MRI\nWhich?", []),  # not the closing lines
        ("Which?\na. CT\nb. MRI", "Which?\na. CT\nb. MRI", []),
        ("Which?\nA.CT\nB.MRI", "Which?\nA.CT\nB.MRI", []),
        ("Which?\nA. \nB. MRI", "Which?\nA. \nB. MRI", []),
        ("  Is it CT?  ", "Is it CT?", []),
        ("A. CT\nB. MRI", "", ["CT", "MRI"]),  # which Case refuses: nothing is asked
    ],
)
def test_closing_lines_are_the_options(text: str, question: str, options: list[str]) -> None:
    assert case_of_chat([("human", text)]) == {"question": question, "options": options, "images": []}


def test_as_many_options_as_letters() -> None:
    lines = [f"{letter}. finding {letter}" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
    assert len(case_of_chat(["\n".join(["Which?", *lines])])["options"]) == 26


@pytest.mark.parametrize(
    "message",
    [("user", "q"), {"role": "user", "content": "q"}, "q", HumanMessage("q"), human("q"), HumanMessage(["q"])],
)
def test_messages_come_in_all_of_langchains_forms(message: Any) -> None:
    assert case_of_chat([message])["question"] == "q"


def test_the_last_human_message_is_the_question() -> None:
    chat = [SystemMessage("A. x\nB. y"), human("first\nA. CT\nB. MRI"), human("second"), AIMessage("A. CT\nB. MRI")]
    assert case_of_chat(chat) == {"question": "second", "options": [], "images": []}


LINE = st.text(st.characters(categories=["L", "N", "P", "S"], include_characters=" "), min_size=1).filter(str.strip)


@settings(deadline=None)
@given(st.text(st.characters(categories=["L"]), min_size=1), st.lists(LINE, min_size=2, max_size=26))
def test_the_record_of_a_chat_asks_the_same_again(question: str, options: list[str]) -> None:
    again = case_of_chat([asked(case(question=question, options=[option.strip() for option in options]))])
    assert again == {"question": question, "options": [option.strip() for option in options], "images": []}


def test_words_around_an_image_are_one_question() -> None:
    message = HumanMessage([{"type": "text", "text": "Is this "}, SHOWN, {"type": "text", "text": "a CT?"}])
    assert case_of_chat([message])["question"] == "Is this a CT?"


# Replies


def case(**fields: Any) -> CaseFields:
    return CaseFields(**{"question": "Which?", "options": ["CT", "MRI"], "images": [], "context": None, **fields})


def test_the_record_of_a_chat_holds_references() -> None:
    message = asked(case(images=["sha256:1", "sha256:2"], context="Mrs Smith"))
    assert (message.type, message.content) == ("human", "Which?\nA. CT\nB. MRI\n[image sha256:1]\n[image sha256:2]")
    assert asked(case(options=[])).content == "Which?"


def vote(answer: str | None, reasoning: str = "") -> Any:
    return {"vote": 1, "answer": answer, "index": None, "reasoning": reasoning, "refer": None, "error": None}


@pytest.mark.parametrize(
    ("votes", "below", "text"),
    [
        ([vote("CT", "Seen.")], None, "CT\n\nSeen."),
        ([vote("CT")], None, "CT"),
        ([vote(None, "Hm.")], None, "No decision: the attending's answer could not be read."),
        (
            [vote("CT"), vote("CT"), vote("MRI")],
            0.9,
            "No decision: a human must decide. Leading answer: CT (67%).",
        ),
        ([vote(None), vote(None)], 0.9, "No decision: a human must decide. Leading answer: none readable (0%)."),
    ],
)
def test_the_reply(votes: list[Any], below: float | None, text: str) -> None:
    message = reply(decide(votes, [], below))
    assert (message.type, message.content, message.name) == ("ai", text, "attending")


# The graph in a chat


CHAT = [human("Which scan?\nA. CT\nB. MRI", SHOWN)]


@pytest.mark.parametrize("more", [{}, {"votes": 3}, {"max_referrals": 1}], ids=str)
def test_a_chat_is_answered(more: dict[str, Any], consult: Consult) -> None:
    attending = answers("MRI", because="Soft.")
    result = consult(graph(attending=attending, **more), {"messages": CHAT})
    assert result["decision"]["index"] == 1
    question = f"Which scan?\nA. CT\nB. MRI\n[image {default_store().put(PNG)}]"
    assert [message.content for message in result["messages"]] == [question, "MRI\n\nSoft."]
    alone = answers("CT")
    consult(graph(attending=alone, **more), {"question": "Which scan?", "options": ["CT", "MRI"], "images": [PNG]})
    assert words(attending.seen[0]) == words(alone.seen[0])


def test_a_case_by_its_fields_is_answered_by_one_message(consult: Consult) -> None:
    result = consult(graph(), {"question": "CT?"})
    assert [(message.type, message.text, message.name) for message in result["messages"]] == [
        ("ai", "CT\n\nSeen.", "attending")
    ]


def test_a_chat_goes_on_on_its_thread(consult: Consult) -> None:
    attending = answers("CT")
    given_ = graph(attending=attending, checkpointer=InMemorySaver())
    first = [HumanMessage("first?")]
    result = consult(given_, {"messages": first}, THREAD)
    result = consult(given_, {"messages": [*first, AIMessage("CT"), HumanMessage("second?")]}, THREAD)
    assert [message.text for message in result["messages"]] == ["first?", "CT", "second?", "CT"]
    assert len(result["opinions"]) == 3
    assert "first?" not in words(attending.seen[1])  # it sees the case, and no conversation


def test_a_case_by_its_fields_begins_a_new_chat(consult: Consult) -> None:
    given_ = graph(checkpointer=InMemorySaver())
    consult(given_, {"messages": [HumanMessage("first?")]}, THREAD)
    result = consult(given_, {"question": "second?"}, THREAD)
    assert [message.text for message in result["messages"]] == ["CT\n\nSeen."]


def test_the_reply_to_votes_that_abstain(consult: Consult) -> None:
    given_ = graph(attending=voting("CT", "MRI", "PET"), votes=3, abstain_below=0.5)
    result = consult(given_, {"messages": [human("Which?\nA. CT\nB. MRI\nC. PET")]})
    assert result["messages"][-1].text == "No decision: a human must decide. Leading answer: CT (33%)."


def test_the_reply_to_an_unreadable_answer(consult: Consult) -> None:
    result = consult(graph(attending=says("CT or MRI")), {"messages": CHAT})
    assert result["messages"][-1].text == "No decision: the attending's answer could not be read."
