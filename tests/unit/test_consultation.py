"""Tests of the compiled graph as a LangGraph graph: threads, checkpoints, schemas, batches, graphs around it."""

import asyncio
import base64
import json
import threading
import time
from pathlib import Path
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
    data_url,
    encoded,
    everything,
    graph,
    image,
    opinion,
    pictures,
    plain,
    refers,
    said,
    thread,
    untagged,
    usage,
    voting,
    words,
)
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.event_hooks import register_serde_event_listener
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command, interrupt
from typing_extensions import TypedDict

from mmedagent_graph import Case, Consultation, Context
from mmedagent_graph.images import ImageStore, default_store

PNG = encoded(image("red"))
SHOWN = HumanMessage([{"type": "text", "text": "Which?\nA. CT\nB. MRI"}, {"type": "image", "url": data_url(PNG)}])
KINDS: list[dict[str, Any]] = [{}, {"votes": 3, "max_referrals": 1}]
each_kind = pytest.mark.parametrize("more", KINDS, ids=["simple", "deliberating"])


@pytest.fixture(params=["invoke", "ainvoke"])
def consult(request: pytest.FixtureRequest) -> Consult:
    return consulting(request.param)


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "store")


# Threads


@each_kind
def test_a_thread_used_again_starts_afresh(more: dict[str, Any], consult: Consult) -> None:
    given = graph(checkpointer=InMemorySaver(), **more)
    first = untagged(consult(given, QUESTION, THREAD))
    assert len(first["opinions"]) == 3
    assert [untagged(consult(given, QUESTION, THREAD)) for _ in range(2)] == [first] * 2


@each_kind
def test_a_thread_forgets_the_opinions_of_a_larger_panel(more: dict[str, Any], consult: Consult) -> None:
    triage = FakeModel(answer=lambda seen: "Surgeon" if "first" in words(seen) else "no idea")
    given = graph(triage=triage, checkpointer=InMemorySaver(), **more)
    assert len(consult(given, {"question": "first"}, THREAD)["opinions"]) == 3
    second = consult(given, {"question": "second"}, THREAD)
    assert (second["opinions"], second["decision"]["opinions"]) == ([], 0)
    assert second["usage"] == usage(triage=1, attending=more.get("votes", 1))


@pytest.mark.parametrize("left_out", ["options", "images", "context"])
@pytest.mark.parametrize("kind", [dict, Case])
def test_a_thread_forgets_the_earlier_case(left_out: str, kind: Any, consult: Consult) -> None:
    full = {**QUESTION, "images": [PNG], "context": "Fell from a horse."}
    attending = answers("CT")
    given = graph(attending=attending, checkpointer=InMemorySaver())
    consult(given, kind(**full), THREAD)
    second = kind(**{name: value for name, value in full.items() if name != left_out})
    consult(given, second, THREAD)
    consult(graph(attending=attending), second)
    _, on_the_thread, alone = attending.seen
    assert words(on_the_thread) == words(alone)
    assert pictures(on_the_thread) == pictures(alone)


def test_a_thread_forgets_votes_and_further_referrals(consult: Consult) -> None:
    def attending(state: dict[str, Any]) -> dict[str, Any]:
        wanted = {"refer": "Surgeon"} if state["may_refer"] else {"answer": "MRI"}
        return wanted if state["question"] == "first" or state["vote"] == 1 else {"answer": "CT"}

    given = graph(attending=attending, votes=3, max_referrals=1, checkpointer=InMemorySaver())
    first = consult(given, {**QUESTION, "question": "first"}, THREAD)
    assert (len(first["opinions"]), first["decision"]["answer"]) == (6, "MRI")
    second = consult(given, {**QUESTION, "question": "second"}, THREAD)
    assert (len(second["opinions"]), second["decision"]["votes"], second["decision"]["answer"]) == (3, 3, "CT")
    state = given.get_state(THREAD).values
    assert (len(state["votes"]), state["further"]) == (3, [])
    assert state["votes"][0]["refer"] == "Surgeon"  # it might have referred again


@each_kind
def test_a_thread_left_in_the_middle_starts_afresh(more: dict[str, Any], consult: Consult) -> None:
    def asks(state: dict[str, Any]) -> dict[str, Any]:
        return {"answer": interrupt("Which?") if state["question"] == "first" else "CT"}

    given = graph(attending=asks, checkpointer=InMemorySaver(), **more)
    assert consult(given, {**QUESTION, "question": "first"}, THREAD)["__interrupt__"]
    result = consult(given, QUESTION, THREAD)
    assert "__interrupt__" not in result
    assert untagged(result) == untagged(consult(given, QUESTION, thread("another")))


@each_kind
def test_a_paused_consultation_shows_no_earlier_decision(more: dict[str, Any], consult: Consult) -> None:
    def asks(state: dict[str, Any]) -> dict[str, Any]:
        return {"answer": interrupt("Which?") if state["question"] == "second" else "CT"}

    given = graph(attending=asks, checkpointer=InMemorySaver(), **more)
    assert consult(given, {"question": "first"}, THREAD)["decision"]["answer"] == "CT"
    paused = consult(given, {"question": "second"}, THREAD)
    assert paused["__interrupt__"]
    assert (paused.get("decision"), paused.get("messages")) == (None, [])


def test_threads_are_kept_apart(consult: Consult) -> None:
    given = graph(attending=lambda state: {"answer": state["question"]}, checkpointer=InMemorySaver())
    threads = [thread(name) for name in "ab"]
    for name, config in zip("ab", threads, strict=True):
        consult(given, {"question": name}, config)
    assert [given.get_state(config).values["decision"]["answer"] for config in threads] == ["a", "b"]


def test_a_fork_goes_on_from_an_earlier_checkpoint(consult: Consult) -> None:
    specialist = answers("CT")
    given = graph(specialists=specialist, checkpointer=InMemorySaver())
    consult(given, QUESTION, THREAD)
    before = next(state for state in given.get_state_history(THREAD) if state.next == ("attending",))
    heard = given.update_state(before.config, {"opinions": [opinion(2, "MRI")]}, as_node="specialist")
    result = consult(given, None, heard)
    assert said(result) == ["CT", "MRI", "CT"]
    assert len(specialist.seen) == 3  # who were not asked again


# Checkpoints


INPUTS: dict[str, Any] = {
    "bytes": {**QUESTION, "images": [PNG]},
    "PIL image": {**QUESTION, "images": [image("red")]},
    "data URL": {**QUESTION, "images": [data_url(PNG)]},
    "Case": Case(**QUESTION, images=[PNG]),
    "chat": {"messages": [SHOWN]},
}


@each_kind
@pytest.mark.parametrize("kind", INPUTS)
def test_checkpoints_hold_no_image(kind: str, more: dict[str, Any], consult: Consult) -> None:
    kept = InMemorySaver()
    attending = answers("CT")
    consult(graph(attending=attending, checkpointer=kept, **more), INPUTS[kind], THREAD)
    [shown] = pictures(attending.seen[0])
    held = everything(kept)
    assert default_store().put(shown).encode() in held
    pixels = base64.b64encode(shown)
    assert [part for part in (shown, pixels, pixels[20:60], shown[20:60]) if part in held] == []
    assert max(len(value) for _, value in kept.blobs.values()) < 2000


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"attending": voting("CT", RuntimeError("away"), "MRI"), "votes": 3, "abstain_below": 0.9},
        {"attending": lambda state: {"refer": (state["may_refer"] or [None])[0]}, "max_referrals": 2, "review": True},
    ],
    ids=["simple", "votes", "referrals and review"],
)
def test_a_strict_checkpointer_keeps_everything(more: dict[str, Any], consult: Consult, store: ImageStore) -> None:
    strict = JsonPlusSerializer(allowed_msgpack_modules=None)  # what LANGGRAPH_STRICT_MSGPACK=true makes of the default
    specialists = [answers("CT"), breaks(RuntimeError("away")), answers("MRI")]
    given = graph(specialists=specialists, images=store, checkpointer=InMemorySaver(serde=strict), **more)
    events: list[Any] = []
    stop = register_serde_event_listener(events.append)
    try:
        result = consult(given, {"messages": [SHOWN], "context": "Fell."}, THREAD)
        if "__interrupt__" in result:
            result = consult(given, Command(resume={"action": "change", "answer": "CT"}), THREAD)
        history = list(given.get_state_history(THREAD))
    finally:
        stop()
    assert events == []
    assert {name: history[0].values[name] for name in result} == result
    assert history[0].values["case"]["images"] == [store.put(PNG)]
    assert len(history) > 4
    assert [state.values for state in history if not plain(state.values)] == []


class Slow(InMemorySaver):
    """A saver that takes its time."""

    def put(self, *given: Any, **more: Any) -> RunnableConfig:
        time.sleep(0.05)
        return super().put(*given, **more)

    async def aput(self, *given: Any, **more: Any) -> RunnableConfig:
        await asyncio.sleep(0.05)
        return super().put(*given, **more)


@each_kind
@pytest.mark.parametrize(
    ("asked", "written"), [({}, 3), ({"durability": None}, 3), ({"durability": "exit"}, None)], ids=str
)
def test_a_finished_answer_is_written_before_the_next_is_asked(
    asked: dict[str, Any], written: int | None, more: dict[str, Any], consult: Consult
) -> None:
    kept, seen = Slow(), list[int | None]()

    def attending(_: Any) -> str:
        held = kept.get_tuple(THREAD)
        seen.append(len(held.checkpoint["channel_values"]["opinions"]) if held else None)
        return "CT"

    result = consult(graph(attending=attending, checkpointer=kept, **more), QUESTION, THREAD, **asked)
    assert (set(seen), result["decision"]["answer"]) == ({written}, "CT")


@pytest.mark.parametrize("checkpointer", [None, True], ids=["inherited", "its own"])
def test_a_child_writes_as_its_parent_does(checkpointer: Any, consult: Consult) -> None:
    given = around(graph(checkpointer=checkpointer), checkpointer=InMemorySaver())
    for durability in ("sync", "exit"):
        result = consult(given, {"messages": [SHOWN]}, thread(durability), durability=durability)
        assert [message.type for message in result["messages"]] == ["human", "ai"]


# Runs that are resumed


@pytest.mark.parametrize("pauses", [["specialist"], ["attending"], ["specialist", "attending"]])
def test_a_run_may_stop_before_a_node_and_go_on(pauses: list[str], consult: Consult) -> None:
    triage, specialist = refers(), answers("CT")
    given = graph(triage=triage, specialists=specialist, checkpointer=InMemorySaver())
    result = consult(given, QUESTION, THREAD, interrupt_before=pauses)
    for name in pauses:
        assert (result["decision"], set(given.get_state(THREAD).next)) == (None, {name})
        result = consult(given, None, THREAD, interrupt_before=pauses)
    assert result["decision"]["answer"] == "CT"
    assert (len(triage.seen), len(specialist.seen)) == (1, 3)


def test_a_failed_run_is_resumed_where_it_failed(consult: Consult) -> None:
    triage, tries = refers(), [RuntimeError("out of order")]

    def recovers(_: Any) -> dict[str, Any]:
        if tries:
            raise tries.pop()
        return {"answer": "MRI"}

    given = graph(triage=triage, attending=recovers, checkpointer=InMemorySaver())
    with pytest.raises(RuntimeError, match="out of order"):
        consult(given, {**QUESTION, "images": [PNG]}, THREAD)
    result = consult(given, None, THREAD)
    assert (result["decision"]["answer"], result["decision"]["opinions"]) == ("MRI", 3)
    assert len(triage.seen) == 1


# Input and batches


async def test_images_are_read_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[Any] = []
    put = ImageStore.put
    monkeypatch.setattr(
        ImageStore, "put", lambda self, given: threads.append(threading.current_thread()) or put(self, given)
    )
    for case in INPUTS.values():
        await graph().ainvoke(case)
    assert len(threads) == len(INPUTS)
    assert threading.main_thread() not in threads


@pytest.mark.parametrize("bad", [{"question": ""}, {"options": ["CT"]}, {"images": [b"x"]}, 7, {"messages": []}])
def test_a_stream_of_a_wrong_case_is_refused_before_anything_is_asked(bad: Any) -> None:
    triage = refers()
    given = graph(triage=triage)
    case = {**QUESTION, **bad} if isinstance(bad, dict) and "messages" not in bad else bad
    with pytest.raises(ValueError):
        given.stream(case)
    with pytest.raises(ValueError):
        asyncio.run(anext(given.astream(case)))  # type: ignore[arg-type]
    assert triage.seen == []


@pytest.mark.parametrize("call", ["batch", "abatch"])
@each_kind
def test_a_batch(call: str, more: dict[str, Any]) -> None:
    def echo(state: dict[str, Any]) -> dict[str, Any]:
        return {"answer": state["question"]}

    def run(*cases: Any, **given: Any) -> list[Any]:
        wards = graph(specialists=echo, attending=echo, checkpointer=InMemorySaver(), **more)
        configs = [thread(i) for i, _ in enumerate(cases)]
        if call == "batch":
            return wards.batch(list(cases), configs, **given)
        return asyncio.run(wards.abatch(list(cases), configs, **given))

    cases = [{"question": f"case {n}"} for n in range(5)]
    results = run(*cases)
    assert [result["decision"]["answer"] for result in results] == [case["question"] for case in cases]
    assert [said(result) for result in results] == [[case["question"]] * 3 for case in cases]
    first, bad, last = run(cases[0], {"question": ""}, Case(question="case 9"), return_exceptions=True)
    assert (first["decision"]["answer"], last["decision"]["answer"]) == ("case 0", "case 9")
    assert isinstance(bad, ValueError)


@pytest.mark.parametrize(
    "changed",
    [
        lambda given: given.with_config(tags=["night"], configurable={"thread_id": "1"}),
        lambda given: given.copy({"name": "night"}),
        lambda given: given.with_retry(stop_after_attempt=1),
        lambda given: given.bind(durability="exit"),
        lambda given: RunnableLambda(lambda case: case) | given,
    ],
    ids=["with_config", "copy", "with_retry", "bind", "in a chain"],
)
@each_kind
def test_a_changed_graph_takes_images_all_the_same(changed: Any, more: dict[str, Any], consult: Consult) -> None:
    attending, kept = answers("CT"), InMemorySaver()
    given = changed(graph(attending=attending, checkpointer=kept, **more))
    result = consult(given, {**QUESTION, "images": [PNG]}, THREAD)
    assert result["decision"]["answer"] == "CT"
    assert pictures(attending.seen[0]) == [PNG]
    assert base64.b64encode(PNG) not in everything(kept)
    assert PNG not in everything(kept)


def test_a_copy_is_a_consultation_too() -> None:
    given = graph(name="day").with_config(tags=["x"])
    assert isinstance(given, Consultation)
    assert isinstance(given.copy({"name": "night"}), Consultation)
    assert (given.get_name(), given.copy({"name": "night"}).get_name()) == ("day", "night")
    assert "question" in given.get_input_jsonschema()["properties"]


# Schemas


def test_the_schemas_of_input_and_output() -> None:
    given = graph(name="ward")
    took, gives = given.get_input_jsonschema(), given.get_output_jsonschema()
    assert (took["title"], gives["title"]) == ("ward_input", "ward_output")
    assert set(took["properties"]) == {"question", "options", "images", "context", "messages"}
    assert set(gives["properties"]) == {"referral", "opinions", "decision", "usage", "messages"}
    for schema in (took, gives):
        json.dumps(schema)
        assert [name for name, field in schema["properties"].items() if "description" not in field] == []
    deliberating = graph(name="ward", votes=3, review=True, context_schema=Context)
    assert (deliberating.get_input_jsonschema(), deliberating.get_output_jsonschema()) == (took, gives)


def test_the_schema_of_the_context() -> None:
    class Here(Context):
        """What a user of this ward may change."""

    schema = graph(context_schema=Here).get_context_jsonschema()
    assert schema is not None
    assert schema["description"] == "What a user of this ward may change."
    names = {"triage", "specialists", "attending", "votes", "abstain_below", "review", "max_referrals"}
    assert set(schema["properties"]) == names
    assert [name for name, field in schema["properties"].items() if "description" not in field] == []
    assert {name: field["default"] for name, field in schema["properties"].items()} == dict.fromkeys(names)
    assert graph().get_context_jsonschema() is None


def test_the_input_as_a_pydantic_model() -> None:
    given = graph()
    assert given.get_input_schema() is Case
    assert given.input_schema is Case


@pytest.mark.filterwarnings("ignore:This API is in beta")
def test_the_graph_as_a_tool(consult: Consult) -> None:
    tool = graph().as_tool(name="consult", description="Ask the doctors.")
    assert set(tool.args) == {"question", "options", "images", "context"}
    assert tool.args["question"]["description"]
    result = consult(tool, {**QUESTION, "images": [PNG]})
    assert result["decision"]["answer"] == "CT"


# In a graph around it


class Ward(TypedDict, total=False):
    question: str
    options: list[str]
    images: list[Any]
    decision: dict[str, Any]
    note: str


def around(child: Any, schema: Any = MessagesState, **given: Any) -> Any:
    """A graph whose only node is the consultation."""
    builder = StateGraph(schema, context_schema=given.pop("context_schema", None))
    builder.add_node("consult", child)
    builder.add_edge(START, "consult")
    builder.add_edge("consult", END)
    return builder.compile(**given)


@each_kind
def test_a_parent_with_the_keys_of_a_case(more: dict[str, Any], consult: Consult) -> None:
    attending = answers("MRI")
    result = consult(around(graph(attending=attending, **more), Ward), {**QUESTION, "images": [PNG], "note": "Bed 7."})
    assert (result["note"], result["images"], result["decision"]["answer"]) == ("Bed 7.", [PNG], "MRI")
    assert pictures(attending.seen[0]) == [PNG]


@each_kind
@pytest.mark.parametrize("kept", [None, InMemorySaver()], ids=["without", "with a checkpointer"])
def test_a_parent_with_messages(kept: Any, more: dict[str, Any], consult: Consult) -> None:
    given = around(graph(attending=answers("MRI", "Soft."), **more), checkpointer=kept)
    config = thread(json.dumps([list(more), str(consult)]))
    result = consult(given, {"messages": [SHOWN]}, config)
    assert [message.content for message in result["messages"]] == [SHOWN.content, "MRI\n\nSoft."]
    assert (result["messages"][1].type, result["messages"][1].name) == ("ai", "attending")


def test_a_parents_chat_goes_on(consult: Consult) -> None:
    attending = answers("CT")
    given = around(graph(attending=attending), checkpointer=InMemorySaver())
    consult(given, {"messages": [SHOWN]}, THREAD)
    result = consult(given, {"messages": [HumanMessage("And how old is it?")]}, THREAD)
    assert [message.type for message in result["messages"]] == ["human", "ai", "human", "ai"]
    assert pictures(attending.seen[1]) == [PNG]  # a conversation is about one patient


def test_a_parent_with_a_question_keeps_its_messages(consult: Consult) -> None:
    class Both(Ward, MessagesState):
        pass

    result = consult(around(graph(), Both), {**QUESTION, "messages": [AIMessage("hello")]})
    assert [message.text for message in result["messages"]] == ["hello", "CT\n\nSeen."]


def called(how: str, child: Any) -> Any:
    """A node of a parent's own that calls the consultation."""

    def with_config(state: MessagesState, config: RunnableConfig) -> Any:
        return {"messages": child.invoke({"messages": state["messages"]}, config)["messages"]}

    def without(state: MessagesState) -> Any:
        return {"messages": child.invoke({"messages": state["messages"]})["messages"]}

    async def without_async(state: MessagesState) -> Any:
        return {"messages": (await child.ainvoke({"messages": state["messages"]}))["messages"]}

    return {"with a config": with_config, "without": without, "without, async": without_async}[how]


@pytest.mark.parametrize("how", ["with a config", "without", "without, async"])
async def test_a_parents_node_may_call_the_consultation(how: str) -> None:
    result = await around(called(how, graph())).ainvoke({"messages": [SHOWN]})
    assert [message.type for message in result["messages"]] == ["human", "ai"]


@each_kind
def test_a_review_inside_a_parent(more: dict[str, Any], consult: Consult) -> None:
    specialist = answers("CT")
    child = graph(specialists=specialist, attending=answers("CT"), review=True, **more)
    given = around(child, checkpointer=InMemorySaver())
    [pause] = consult(given, {"messages": [SHOWN]}, THREAD)["__interrupt__"]
    assert (pause.value["decision"]["answer"], pause.value["error"]) == ("CT", None)
    [pause] = consult(given, Command(resume={"action": "change", "answer": "X-ray"}), THREAD)["__interrupt__"]
    assert "'X-ray' is not an option" in pause.value["error"]
    result = consult(given, Command(resume={"action": "change", "answer": "MRI", "reasoning": "Soft."}), THREAD)
    assert [message.content for message in result["messages"]] == [SHOWN.content, "MRI\n\nSoft."]
    assert len(specialist.seen) == 3


def test_a_context_comes_through_the_parent(consult: Consult) -> None:
    given = around(graph(context_schema=Context), Ward, context_schema=Context)
    assert consult(given, QUESTION, context={"votes": 5})["decision"]["votes"] == 5


@each_kind
def test_a_consultation_in_a_specialists_place(more: dict[str, Any], consult: Consult) -> None:
    inner_attending = answers("MRI", "Soft.")
    inner = graph(attending=inner_attending, **more)
    result = consult(graph(specialists=[inner, answers("CT")]), {**QUESTION, "images": [PNG]})
    assert result["opinions"] == [opinion(1, "MRI", reasoning="Soft."), opinion(2, "CT")]
    inside = sum(spent["calls"] for spent in inner.invoke(QUESTION)["usage"].values())
    assert result["usage"] == usage(triage=1, specialist=inside + 1, attending=1)
    assert pictures(inner_attending.seen[0]) == [PNG]
    assert [message.text for message in result["messages"]] == ["CT\n\nSeen."]


def test_a_consultation_in_the_attendings_and_the_triages_place(consult: Consult) -> None:
    inner = graph(triage=refers("Surgeon"), attending=answers("MRI"))
    result = consult(graph(triage=inner, attending=inner), QUESTION)
    assert (result["referral"]["specialty"], result["decision"]["answer"]) == ("Surgeon", "MRI")


def test_a_review_in_a_specialists_place_pauses_the_whole(consult: Consult) -> None:
    inner = graph(review=True)
    given = graph(specialists=[inner, answers("CT")], checkpointer=InMemorySaver())
    [pause] = consult(given, QUESTION, THREAD)["__interrupt__"]
    assert pause.value["actions"] == ["approve", "change", "hear"]
    result = consult(given, Command(resume={"action": "change", "answer": "PET"}), THREAD)
    assert said(result) == ["PET", "CT"]
    assert [one["error"] for one in result["opinions"]] == [None, None]


@pytest.mark.filterwarnings("ignore:.checkpoint_during")
def test_the_older_word_for_durability_is_taken(consult: Consult) -> None:
    given = graph(checkpointer=InMemorySaver())
    assert consult(given, QUESTION, THREAD, checkpoint_during=False)["decision"]["answer"] == "CT"


def test_a_chats_message_keeps_its_id(consult: Consult) -> None:
    result = consult(graph(), {"messages": [HumanMessage("CT?", id="m1")]})
    assert result["messages"][0].id == "m1"


@pytest.mark.parametrize("spent", [None, {"input_tokens": 3}, {"x": {"calls": 1}}], ids=str)
def test_a_node_of_ones_own_may_tell_its_usage_as_it_likes(spent: Any, consult: Consult) -> None:
    result = consult(graph(attending=lambda _: {"decision": {"answer": "CT"}, "usage": spent}), QUESTION)
    assert result["decision"]["answer"] == "CT"
