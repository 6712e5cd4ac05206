"""Tests of what all systems have in common: input and output, caches, checkpoints, retries, calls at the same time."""

import asyncio
import base64
from collections.abc import Callable
from typing import Any

import pytest
from casts import AGREED, Cast, md_agents_cast, med_agents_cast
from fakes import (
    QUESTION,
    THREAD,
    Consult,
    FakeModel,
    answers,
    consulting,
    encoded,
    everything,
    graph,
    image,
    pictures,
    plain,
    refers,
    streaming,
    untagged,
)
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.outputs import ChatResult
from langgraph.cache.memory import InMemoryCache
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.event_hooks import register_serde_event_listener
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.types import RetryPolicy
from pydantic import TypeAdapter

from mmedagent_graph import Consultation, baselines
from mmedagent_graph.baselines import (
    all_specialties,
    majority_vote,
    md_agents,
    med_agents,
    one_specialist,
    random_triage,
    self_consistency,
    single,
)
from mmedagent_graph.images import ImageStore, default_store
from mmedagent_graph.state import ConsultationOutput

PNG = encoded(image("red"))
SEEN = {**QUESTION, "images": [PNG], "context": "Fell."}


@pytest.fixture(params=["invoke", "ainvoke"])
def consult(request: pytest.FixtureRequest) -> Consult:
    return consulting(request.param)


def always(text: str = "<think>Seen.</think><answer>CT</answer>") -> FakeModel:
    return FakeModel(answer=lambda _: text)


def objecting() -> Cast:
    return med_agents_cast(lambda _: True)


def agreeing() -> Cast:
    return md_agents_cast(opinion=AGREED)


System = tuple[Callable[[], Any], Callable[..., Consultation], int]
SYSTEMS: dict[str, System] = {
    "single": (always, single, 1),
    "self_consistency": (always, self_consistency, 5),
    "majority_vote": (always, lambda model, **more: majority_vote(triage=refers(), specialists=model, **more), 3),
    "one_specialist": (always, lambda model, **more: one_specialist(triage=refers(), specialist=model, **more), 1),
    "random_triage": (
        always,
        lambda model, **more: graph(triage=random_triage(), specialists=model, attending=model, **more),
        4,
    ),
    "all_specialties": (always, lambda model, **more: all_specialties(specialists=model, attending=model, **more), 8),
    "med_agents": (med_agents_cast, med_agents, 18),
    "med_agents, never agreed": (objecting, med_agents, 56),
    "md_agents, low": (lambda: md_agents_cast("low"), md_agents, 2),
    "md_agents, moderate": (agreeing, md_agents, 13),
    "md_agents, never agreed": (md_agents_cast, md_agents, 71),
    "md_agents, high": (lambda: md_agents_cast("high"), md_agents, 15),
}
each_system = pytest.mark.parametrize("system", SYSTEMS)


def made(system: str, **more: Any) -> tuple[Any, Consultation, int]:
    """The model, the graph, and how many calls of the model a case takes."""
    cast, make, calls = SYSTEMS[system]
    model = cast()
    return model, make(model=model, **more), calls


def prompts(model: FakeModel) -> list[list[BaseMessage]]:
    return [messages for _, _, messages in model.calls] if isinstance(model, Cast) else model.seen


# Input and output


def test_every_baseline_is_tested() -> None:
    assert {name.partition(",")[0] for name in SYSTEMS} == set(baselines.__all__)


@each_system
def test_a_case_goes_in_and_what_a_consultation_returns_comes_out(system: str, consult: Consult) -> None:
    model, given, calls = made(system)
    result = consult(given, SEEN)
    assert isinstance(given, Consultation)
    assert len(prompts(model)) == calls
    assert list(result) == list(consult(graph(), SEEN))
    TypeAdapter(ConsultationOutput).validate_python(result)
    assert result["decision"]["answer"] in QUESTION["options"]
    assert sum(spent["calls"] for spent in result["usage"].values()) == calls + ("triage" in result["usage"])
    assert [message.type for message in result["messages"]] == ["ai"]


@each_system
def test_the_schemas_are_those_of_a_consultation(system: str) -> None:
    _, given, _ = made(system)
    for schema in ("get_input_jsonschema", "get_output_jsonschema"):
        ours, theirs = getattr(graph(), schema)(), getattr(given, schema)()
        assert {**ours, "title": None} == {**theirs, "title": None}


@each_system
def test_sync_and_async_agree(system: str) -> None:
    _, first, _ = made(system)
    _, second, _ = made(system)
    assert untagged(first.invoke(SEEN)) == untagged(asyncio.run(second.ainvoke(SEEN)))


@each_system
def test_images_reach_every_call(system: str, consult: Consult) -> None:
    model, given, _ = made(system)
    scans = [PNG, encoded(image("blue"))]
    consult(given, {**QUESTION, "images": scans})
    assert [pictures(messages) for messages in prompts(model)] == [scans] * len(prompts(model))


@each_system
def test_no_model_is_shown_an_answer_key(system: str, consult: Consult) -> None:
    model, given, _ = made(system)
    consult(given, {**QUESTION, "answer": "KEY", "index": "KEY", "decision": "KEY", "complexity": "KEY"})
    assert not any("KEY" in str(message.content) for messages in prompts(model) for message in messages)


@each_system
def test_a_chat_is_taken_and_answered(system: str, consult: Consult) -> None:
    _, given, _ = made(system)
    result = consult(given, {"messages": [HumanMessage("Which scan is it?\nA. CT\nB. MRI\nC. PET")]})
    assert [message.type for message in result["messages"]] == ["human", "ai"]
    assert result["messages"][-1].text.startswith(result["decision"]["answer"])


@each_system
def test_a_case_that_is_wrong_is_refused_before_anybody_is_asked(system: str, consult: Consult) -> None:
    model, given, _ = made(system)
    with pytest.raises(ValueError, match=r"options\[1\] 'CT' repeats"):
        consult(given, {"question": "?", "options": ["CT", "CT"]})
    with pytest.raises(ValueError, match=r"images\[0\]"):
        consult(given, {**QUESTION, "images": [b"x"]})
    assert prompts(model) == []


@each_system
@pytest.mark.parametrize("how", ["stream", "astream"])
def test_what_happens_can_be_watched(system: str, how: str) -> None:
    _, given, _ = made(system)
    events = streaming(how)(given, QUESTION, stream_mode="custom")
    assert events[-1]["event"] == "decision"
    assert events[-1]["decision"]["answer"] in QUESTION["options"]
    assert sum(event["event"] == "decision" for event in events) == 1
    for event in events:
        if event["event"] == "opinion":
            assert 1 <= event["opinion"]["doctor"] == event["doctor"] <= event["doctors"]


@each_system
def test_the_graph_has_a_name_and_a_picture(system: str) -> None:
    _, given, _ = made(system)
    _, named, _ = made(system, name="ward")
    assert given.get_name() == ("consultation" if system == "random_triage" else system.partition(",")[0])
    assert named.get_name() == "ward"
    assert "error" not in given.get_graph().draw_mermaid()


# Frozen answers


@each_system
def test_nothing_is_asked_twice(system: str, consult: Consult) -> None:
    model, given, calls = made(system, cache=InMemoryCache())
    first, second = consult(given, SEEN), consult(given, SEEN)
    assert len(prompts(model)) == calls
    # no answer stood for another one: two samples of a role are told apart, though their prompts may be the same
    assert all(spent["cached"] == 0 for spent in first["usage"].values())
    assert all((spent["calls"], spent["input_tokens"]) == (0, 0) for spent in second["usage"].values())
    assert sum(spent["cached"] for spent in second["usage"].values()) == calls + ("triage" in first["usage"])
    assert {**untagged(first), "usage": None} == {**untagged(second), "usage": None}


# Checkpoints


@each_system
def test_checkpoints_hold_plain_values_and_no_image(system: str, consult: Consult) -> None:
    strict = JsonPlusSerializer(allowed_msgpack_modules=None)  # what LANGGRAPH_STRICT_MSGPACK=true makes of the default
    kept, events = InMemorySaver(serde=strict), list[Any]()
    _, given, _ = made(system, checkpointer=kept)
    stop = register_serde_event_listener(events.append)
    try:
        consult(given, SEEN, THREAD)
        history = list(given.get_state_history(THREAD))
    finally:
        stop()
    held, pixels = everything(kept), base64.b64encode(PNG)
    assert default_store().put(PNG).encode() in held
    assert [part for part in (PNG[20:60], pixels[20:60]) if part in held] == []
    assert events == []
    assert [state.values for state in history if not plain(state.values)] == []


@each_system
def test_a_thread_used_again_starts_afresh(system: str, consult: Consult) -> None:
    model, given, calls = made(system, checkpointer=InMemorySaver())
    results = [untagged(consult(given, SEEN, THREAD)) for _ in range(2)]
    assert results[0] == results[1]
    assert len(prompts(model)) == 2 * calls


def test_nothing_of_an_earlier_case_is_seen_in_a_later_one(consult: Consult) -> None:
    """On one thread, where the second case takes another way through the graph."""
    for first, second in (("high", "moderate"), ("moderate", "low"), ("moderate", "high")):
        model = md_agents_cast(first)
        given = md_agents(model=model, checkpointer=InMemorySaver())
        consult(given, QUESTION, THREAD)
        model.script["checker"] = second
        alone = untagged(consult(md_agents(model=md_agents_cast(second)), QUESTION))
        assert untagged(consult(given, QUESTION, THREAD)) == alone
    model = med_agents_cast(lambda _: True)
    given = med_agents(model=model, checkpointer=InMemorySaver())
    consult(given, QUESTION, THREAD)
    free = consult(given, {"question": "What is it?"}, THREAD)
    assert len(free["opinions"]) == 5
    assert len(model.calls) == 56 + 41


@pytest.mark.parametrize(
    ("cast", "make", "node"),
    [(objecting, med_agents, "revision"), (objecting, med_agents, "decision_maker")]
    + [(md_agents_cast, md_agents, node) for node in ("recruiter", "feedback", "moderator")]
    + [(lambda: md_agents_cast("high"), md_agents, node) for node in ("request", "team_report", "decision_maker")],
)
def test_a_failed_run_goes_on_where_it_was(
    cast: Callable[[], Cast], make: Callable[..., Consultation], node: str, consult: Consult
) -> None:
    whole = cast()
    expected = untagged(consult(make(model=whole), QUESTION))
    model = cast()
    line, failures = model.script[node], [1]

    def once(told: dict[str, Any]) -> str:
        if failures:
            failures.pop()
            raise TimeoutError("away")
        return line if isinstance(line, str) else str(line(told))

    model.script[node] = once
    given = make(model=model, checkpointer=InMemorySaver())
    with pytest.raises(TimeoutError, match="away"):
        consult(given, QUESTION, THREAD)
    assert untagged(consult(given, None, THREAD)) == expected
    assert len(model.calls) == len(whole.calls) + 1  # only what failed was asked again


class Durable(BaseCheckpointSaver[Any]):
    """A checkpointer that is none of this process."""


@each_system
def test_checkpoints_that_outlive_the_process_need_images_that_do_too(system: str, tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=r"images: checkpoints that outlive .*; give ImageStore\(folder\)"):
        made(system, checkpointer=Durable())
    made(system, checkpointer=Durable(), images=ImageStore(tmp_path))


@each_system
def test_an_argument_that_nobody_takes(system: str) -> None:
    with pytest.raises(TypeError, match="retries"):
        made(system, retries=3)


# Retries and time

AGAIN = RetryPolicy(max_attempts=2, initial_interval=0, jitter=False, retry_on=TimeoutError)


@pytest.mark.parametrize("system", [name for name in SYSTEMS if "agents" in name])
def test_every_role_is_retried(system: str, consult: Consult) -> None:
    model, given, calls = made(system, retry_policy=AGAIN)
    expected = untagged(consult(made(system)[1], QUESTION))
    failed = set[tuple[Any, ...]]()

    def flaky(line: Any) -> Callable[[dict[str, Any]], str]:
        def say(told: dict[str, Any]) -> str:
            who = tuple(told.get(key) for key in ("langgraph_node", "specialty", "doctor", "vote"))
            if who not in failed:
                failed.add(who)
                raise TimeoutError("away")
            return line if isinstance(line, str) else str(line(told))

        return say

    model.script = {node: flaky(line) for node, line in model.script.items()}
    assert untagged(consult(given, QUESTION)) == expected
    assert len(model.calls) == 2 * calls


class Slow(Cast):
    """A cast whose lines take their time; those at `hangs` never end."""

    hangs: str = ""
    running: int = 0
    most: dict[str, int]
    """By node, how many lines were said at the same time."""

    async def _agenerate(
        self, messages: list[BaseMessage], _: Any = None, run_manager: Any = None, **__: Any
    ) -> ChatResult:
        node = run_manager.metadata["langgraph_node"]
        self.running += 1
        self.most[node] = max(self.most.get(node, 0), self.running)
        await asyncio.sleep(30 if node == self.hangs and run_manager.metadata["doctor"] == 2 else 0.02)
        self.running -= 1
        said: CallbackManagerForLLMRun = run_manager.get_sync()
        return self._generate(messages, run_manager=said)


def slow(cast: Cast, **more: Any) -> Slow:
    return Slow(script=cast.script, most={}, **more)


PARALLEL: list[tuple[Callable[[], Cast], Callable[..., Consultation], dict[str, int]]] = [
    (
        lambda: med_agents_cast(lambda told: told["vote"] == 1),
        med_agents,
        {"question_domains": 2, "option_domains": 2, "question_analysis": 5, "option_analysis": 2, "synthesis": 1}
        | {"voting": 7, "advice": 7, "revision": 1, "decision_maker": 1},
    ),
    (
        md_agents_cast,
        md_agents,
        {"checker": 1, "recruiter": 1, "opinion": 5, "talk": 5, "feedback": 1, "final_answer": 5, "moderator": 1},
    ),
    (
        lambda: md_agents_cast("high"),
        md_agents,
        {"checker": 1, "team_recruiter": 1, "request": 1, "findings": 2, "team_report": 1, "decision_maker": 1},
    ),
]


@pytest.mark.parametrize(("cast", "make", "most"), PARALLEL)
def test_calls_that_do_not_need_one_another_are_made_at_the_same_time(
    cast: Callable[[], Cast], make: Callable[..., Consultation], most: dict[str, int]
) -> None:
    model = slow(cast())
    asyncio.run(make(model=model).ainvoke(QUESTION))
    most_at_once = {node: n for node, n in model.most.items() if node not in ("question_domains", "option_domains")}
    assert most_at_once == {node: n for node, n in most.items() if node in most_at_once}
    assert max(model.most.get(node, 2) for node in ("question_domains", "option_domains")) == 2


@pytest.mark.parametrize(
    ("cast", "make", "node"),
    [
        (med_agents_cast, med_agents, "question_analysis"),
        (agreeing, md_agents, "final_answer"),
        (lambda: md_agents_cast("high"), md_agents, "findings"),
    ],
)
async def test_a_hanging_expert_is_an_opinion_that_says_so(
    cast: Callable[[], Cast], make: Callable[..., Consultation], node: str
) -> None:
    given = make(model=slow(cast(), hangs=node), timeout=1.5)
    with pytest.raises(ValueError, match="timeout: Python cannot cut off a sync call"):
        given.invoke(QUESTION)
    async with asyncio.timeout(20):
        result = await given.ainvoke(QUESTION)
    errors = {one["doctor"]: one["error"] for one in result["opinions"] if one["error"]}
    assert list(errors) == [2]
    assert errors[2].startswith(f"NodeTimeoutError: Node '{node}' exceeded its run timeout of 1.500s")
    assert result["decision"]["answer"] in QUESTION["options"]


# Models


@pytest.mark.parametrize("make", [single, self_consistency, med_agents, md_agents])
def test_a_model_may_be_bound_configured_or_have_fallbacks(make: Callable[..., Consultation], consult: Consult) -> None:
    def broken(_: Any) -> str:
        raise ConnectionError("refused")

    models = [
        answers("CT").bind(stop=["x"]),
        answers("CT").with_config(tags=["x"]),
        answers("CT").with_retry(stop_after_attempt=1),
        FakeModel(answer=broken).with_fallbacks([answers("CT")]),
    ]
    for model in models:
        assert consult(make(model=model), QUESTION)["decision"]["answer"] == "CT"
