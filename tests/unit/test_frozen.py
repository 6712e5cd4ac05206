"""Tests of frozen answers: what is asked once, what is asked again, and who shares the answers."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fakes import (
    INPUT_TOKENS,
    OUTPUT_TOKENS,
    QUESTION,
    Consult,
    FakeModel,
    answers,
    breaks,
    consulting,
    encoded,
    graph,
    image,
    refers,
    said,
    says,
    streaming,
    untagged,
    usage,
    voting,
)
from langchain_core.caches import InMemoryCache as LangChainCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.globals import set_llm_cache
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.outputs import LLMResult
from langchain_openai import ChatOpenAI
from langgraph.cache.base import BaseCache
from langgraph.cache.memory import InMemoryCache
from langgraph.cache.sqlite import SqliteCache

from mmedagent_graph import Context, models
from mmedagent_graph.frozen import FrozenAnswers


@pytest.fixture(params=["invoke", "ainvoke"])
def consult(request: pytest.FixtureRequest) -> Consult:
    return consulting(request.param)


@pytest.fixture(params=["memory", "disk"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> BaseCache[Any]:
    return InMemoryCache() if request.param == "memory" else SqliteCache(path=str(tmp_path / "answers.db"))


def kept(**cached: int) -> dict[str, dict[str, int]]:
    return {node: {"calls": 0, "cached": n, "input_tokens": 0, "output_tokens": 0} for node, n in cached.items()}


# Runs


@pytest.mark.parametrize("more", [{}, {"votes": 3, "max_referrals": 1}], ids=str)
def test_nothing_is_asked_twice(more: dict[str, Any], cache: BaseCache[Any], consult: Consult) -> None:
    nodes = {"triage": refers(), "specialists": answers("MRI", "Soft."), "attending": answers("MRI")}
    given = graph(cache=cache, **nodes, **more)
    case = {**QUESTION, "images": [encoded(image())]}
    first, second = consult(given, case), consult(given, case)
    votes = more.get("votes", 1)
    assert [len(model.seen) for model in nodes.values()] == [1, 3, votes]
    assert first["usage"] == usage(triage=1, specialist=3, attending=votes)
    assert second["usage"] == kept(triage=1, specialist=3, attending=votes)
    assert {**untagged(first), "usage": None} == {**untagged(second), "usage": None}


def test_answers_are_shared_by_graphs_and_by_sync_and_async(cache: BaseCache[Any]) -> None:
    specialists = [answers("CT"), answers("CT")]
    for ask, specialist in zip((consulting("invoke"), consulting("ainvoke")), specialists, strict=True):
        result = ask(graph(specialists=specialist, cache=cache), QUESTION)
    assert [len(specialist.seen) for specialist in specialists] == [3, 0]
    assert result["usage"]["specialist"]["cached"] == 3


def test_without_a_cache_everything_is_asked_again(consult: Consult) -> None:
    attending = answers("CT")
    given = graph(attending=attending)
    for _ in range(2):
        assert consult(given, QUESTION)["usage"] == usage(triage=1, specialist=3, attending=1)
    assert len(attending.seen) == 2


def test_three_doctors_with_one_model_are_three_samples(consult: Consult) -> None:
    samples = iter(["CT", "MRI", "PET", "no more"])
    given = graph(specialists=FakeModel(answer=lambda _: next(samples)), cache=InMemoryCache())
    first = consult(given, QUESTION)
    assert sorted(map(str, said(first))) == ["CT", "MRI", "PET"]
    assert said(consult(given, QUESTION)) == said(first)


def test_three_votes_of_one_model_are_three_samples(consult: Consult) -> None:
    samples = iter(["CT", "CT", "MRI", "no more"])
    given = graph(attending=FakeModel(answer=lambda _: next(samples)), votes=3, cache=InMemoryCache())
    first = consult(given, QUESTION)["decision"]
    assert [one["votes"] for one in first["tally"]] == [2, 1]
    assert consult(given, QUESTION)["decision"] == first


@pytest.mark.parametrize(
    "other",
    [
        {"question": "Which scan is this?"},
        {"options": ["CT", "PET", "MRI"]},
        {"context": "Fell."},
        {"images": [encoded(image("blue"))]},
        {"images": [encoded(image("red"))] * 2},
        {"images": []},
    ],
    ids=["question", "order of the options", "context", "another image", "twice the image", "no image"],
)
def test_another_case_is_asked(other: dict[str, Any], consult: Consult) -> None:
    specialist = answers("CT")
    given = graph(specialists=specialist, doctors=1, cache=InMemoryCache())
    case = {**QUESTION, "images": [encoded(image("red"))]}
    consult(given, case)
    consult(given, {**case, **other})
    assert len(specialist.seen) == 2
    consult(given, case)
    consult(given, {**case, **other})
    assert len(specialist.seen) == 2


def test_an_attending_that_hears_something_else_is_asked(consult: Consult) -> None:
    cache, attending = InMemoryCache(), answers("CT")
    for opinion in ("CT", "MRI", "CT"):
        consult(graph(specialists=answers(opinion, label=opinion), attending=attending, cache=cache), QUESTION)
    assert len(attending.seen) == 2


def test_errors_are_not_kept(cache: BaseCache[Any], consult: Consult) -> None:
    down = [True]

    def model(_: Any) -> str:
        if down:
            raise ConnectionError("down")
        return "<answer>MRI</answer>"

    specialist = FakeModel(answer=model)
    given = graph(specialists=specialist, doctors=1, cache=cache)
    assert consult(given, QUESTION)["opinions"][0]["error"] == "ConnectionError: down"
    down.clear()
    assert said(consult(given, QUESTION)) == ["MRI"]
    assert said(consult(given, QUESTION)) == ["MRI"]
    assert len(specialist.seen) == 2


def test_an_answer_that_cannot_be_read_is_kept_as_any_other(consult: Consult) -> None:
    attending = answers("X-ray", "Hm.")
    given = graph(attending=attending, cache=InMemoryCache())
    assert [consult(given, QUESTION)["decision"]["answer"] for _ in range(2)] == [None, None]
    assert len(attending.seen) == 1


def test_nodes_of_ones_own_are_always_asked(consult: Consult) -> None:
    asked: list[int] = []
    given = graph(specialists=lambda state: asked.append(state["doctor"]) or "CT", cache=InMemoryCache())
    consult(given, QUESTION)
    consult(given, QUESTION)
    assert sorted(asked) == [1, 1, 2, 2, 3, 3]


def test_a_failed_vote_is_asked_again_and_the_others_are_not(consult: Consult) -> None:
    votes = voting("CT", RuntimeError("away"), "CT")
    first = [True]

    class Fickle(FakeModel):
        def _said(self, messages: Any, run_manager: Any) -> str:
            super()._said(messages, run_manager)
            return votes({"vote": self.told[-1]["vote"]}) if first else "CT"

    attending = Fickle(answer=lambda _: "")
    given = graph(attending=attending, votes=3, cache=InMemoryCache())
    assert consult(given, QUESTION)["decision"]["confidence"] == pytest.approx(2 / 3)
    first.clear()
    again = consult(given, QUESTION)
    assert again["decision"]["confidence"] == 1.0
    tokens = {"input_tokens": INPUT_TOKENS, "output_tokens": OUTPUT_TOKENS}
    assert again["usage"]["attending"] == {"calls": 1, "cached": 2, **tokens}


def test_a_named_model_has_answers_of_its_own(consult: Consult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.BUILT_IN, "fake", lambda name: answers(name, label=name))
    given = graph(context_schema=Context, cache=InMemoryCache())
    for _ in range(2):
        assert consult(given, QUESTION)["decision"]["answer"] == "CT"
        for name in ("MRI", "PET"):
            result = consult(given, QUESTION, context={"attending": f"fake:{name}"})
            assert result["decision"]["answer"] == name
    assert result["usage"]["attending"]["cached"] == 1


@pytest.mark.parametrize("kind", ["bind", "with_retry", "with_config", "several"])
def test_a_wrapped_model_is_frozen_too(kind: str, consult: Consult) -> None:
    attending = answers("CT")
    wrapped: Any = {
        "bind": lambda: attending.bind(stop=["x"]),
        "with_retry": lambda: attending.with_retry(stop_after_attempt=1),
        "with_config": lambda: attending.with_config(tags=["x"]),
        "several": lambda: attending.bind(stop=["x"]).with_retry().with_fallbacks([answers("MRI")]),
    }[kind]()
    given = graph(attending=wrapped, cache=InMemoryCache())
    consult(given, QUESTION)
    assert consult(given, QUESTION)["usage"]["attending"]["cached"] == 1
    assert len(attending.seen) == 1


def test_a_cached_answer_of_a_broken_model_serves(cache: BaseCache[Any], consult: Consult) -> None:
    consult(graph(cache=cache), QUESTION)
    away = breaks(ConnectionError("away"))
    result = consult(graph(triage=away, specialists=away, attending=away, cache=cache), QUESTION)
    assert result["decision"]["answer"] == "CT"


@pytest.mark.parametrize("how", ["stream", "astream"])
def test_an_answer_out_of_the_cache_is_streamed_as_any_other(how: str) -> None:
    given = graph(specialists=answers("CT"), cache=InMemoryCache())
    heard = [
        sorted(
            (told["langgraph_node"], str(told.get("doctor")), message.text)
            for message, told in streaming(how)(given, QUESTION, stream_mode="messages")
            if message.type == "ai"
        )
        for _ in range(2)
    ]
    assert len(heard[0]) == 6  # five models, and the reply to the user
    assert heard[1] == heard[0]


def test_tokens_of_a_cached_answer_are_not_counted_again(consult: Consult) -> None:
    given = graph(attending=says("CT"), cache=InMemoryCache())
    costs = []
    for _ in range(2):
        costs.append(Costs())
        consult(given, QUESTION, {"callbacks": [costs[-1]]})
    assert [cost.tokens for cost in costs] == [5 * (INPUT_TOKENS + OUTPUT_TOKENS), 0]
    assert [cost.answers for cost in costs] == [5, 5]


class Costs(BaseCallbackHandler):
    """What a run costs, by the callbacks."""

    def __init__(self) -> None:
        self.tokens = self.answers = 0

    def on_llm_end(self, response: LLMResult, **_: Any) -> None:
        self.answers += 1
        self.tokens += (response.generations[0][0].message.usage_metadata or {}).get("total_tokens", 0)  # type: ignore[union-attr]


def test_the_cache_of_langchain_does_not_mix_up_the_doctors(consult: Consult) -> None:
    """Three doctors get one prompt; LangChain's cache would know only that."""
    samples = iter(["CT", "MRI", "PET", "no more"])
    given = graph(specialists=FakeModel(answer=lambda _: next(samples), cache=False), cache=InMemoryCache())
    first = consult(given, QUESTION)
    set_llm_cache(LangChainCache())
    try:
        assert said(consult(given, QUESTION)) == said(first)
    finally:
        set_llm_cache(None)


WORKER = """
import sys
from fakes import graph, said, says
from langgraph.cache.sqlite import SqliteCache

print("ready", flush=True)
sys.stdin.readline()
given = graph(specialists=says("Anna"), cache=SqliteCache(path=sys.argv[1]))
for n in range(12):
    assert {"Anna", "Bert"}.issuperset(said(given.invoke({"question": f"case {n}"})))
"""


def test_two_processes_share_the_answers(tmp_path: Path) -> None:
    path, here = str(tmp_path / "answers.db"), Path(__file__).parent
    cases = [{"question": f"case {n}"} for n in range(12)]
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, path],
        env={**os.environ, "PYTHONPATH": f"{here.parents[1]}{os.pathsep}{here}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
        mine = graph(specialists=says("Bert"), cache=SqliteCache(path=path))  # SQLite lets only one make a new file
        worker.stdin.write("go\n")
        worker.stdin.flush()
        for case in cases:
            assert {"Anna", "Bert"}.issuperset(said(mine.invoke(case)))
        assert worker.wait(timeout=120) == 0
    nobody = graph(specialists=breaks(RuntimeError("asked")), cache=SqliteCache(path=path))
    assert all({"Anna", "Bert"}.issuperset(said(nobody.invoke(case))) for case in cases)


# Keys

STATE = {"images": [], "specialty": "Surgeon", "doctor": 1}
ASKED = [SystemMessage("You are a doctor."), HumanMessage("Which?")]


def key(node: str = "specialist", model: Any = None, messages: Any = ASKED, **state: Any) -> str:
    return FrozenAnswers(InMemoryCache()).key(node, model or answers("CT"), messages, {**STATE, **state})[1]


def test_a_key_is_the_same_for_the_same() -> None:
    assert key() == key(model=answers("CT"), messages=list(ASKED), question="not looked at: it is in the prompt")
    assert key(messages=[ASKED[0], HumanMessage([{"type": "text", "text": "Which?"}])]) == key()


class Another(FakeModel):
    pass


OTHERS: dict[str, dict[str, Any]] = {
    "node": {"node": "attending"},
    "model": {"model": answers("CT", label="another")},
    "temperature": {"model": answers("CT", temperature=0.5)},
    "class of the model": {"model": Another(answer=lambda _: "CT")},
    "bound argument": {"model": answers("CT").bind(stop=["x"])},
    "fallback": {"model": answers("CT").with_fallbacks([answers("CT", label="another")])},
    "fewer messages": {"messages": ASKED[:1]},
    "order of the messages": {"messages": ASKED[::-1]},
    "kind of message": {"messages": [HumanMessage("You are a doctor."), HumanMessage("Which?")]},
    "one message": {"messages": [SystemMessage("You are a doctor.Which?")]},
    "image": {"images": ["sha256:1"]},
    "images": {"images": ["sha256:1", "sha256:2"]},
    "order of the images": {"images": ["sha256:2", "sha256:1"]},
    "specialty": {"specialty": "Radiologist"},
    "doctor": {"doctor": 2},
    "vote": {"vote": 1},
    "another vote": {"vote": 2},
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_a_key_changes_with_all_that_an_answer_depends_on(other: dict[str, Any]) -> None:
    assert key(**other) != key()


def test_no_two_others_are_the_same() -> None:
    assert len({key(**other) for other in OTHERS.values()}) == len(OTHERS)


def test_no_two_of_these_models_are_the_same() -> None:
    plain = answers("CT")
    models_ = [
        plain,
        plain.bind(a=1),
        plain.bind(a=2),
        plain.bind(b=1),
        plain.with_fallbacks([plain]),
        plain.with_fallbacks([plain.bind(a=1)]),
        plain.bind(a=1).with_fallbacks([plain]),
        plain.with_fallbacks([plain, plain]),
    ]
    assert len({key(model=model) for model in models_}) == len(models_)


OPENAI: list[dict[str, Any]] = [
    {"model": "gpt-4o"},
    {"temperature": 0.5},
    {"seed": 1},
    {"top_p": 0.5},
    {"max_tokens": 5},
    {"stop": ["x"]},
    {"model_kwargs": {"x": 1}},
    {"extra_body": {"top_k": 5}},
    {"base_url": "http://127.0.0.1:9000/v1"},
]


@pytest.mark.parametrize("other", OPENAI, ids=str)
def test_a_key_tells_apart_what_an_api_is_asked(other: dict[str, Any]) -> None:
    plain: dict[str, Any] = {"model": "m", "api_key": "none", "base_url": "http://127.0.0.1:8000/v1"}
    assert key(model=ChatOpenAI(**plain)) == key(model=ChatOpenAI(**plain))
    assert key(model=ChatOpenAI(**plain)) != key(model=ChatOpenAI(**{**plain, **other}))


def test_an_api_key_is_no_part_of_it() -> None:
    first, second = (ChatOpenAI(model="m", api_key=secret) for secret in ("one", "two"))  # type: ignore[arg-type]
    assert key(model=first) == key(model=second)


@pytest.mark.parametrize("sync", [True, False])
def test_an_answer_is_kept_whole(sync: bool, cache: BaseCache[Any]) -> None:
    frozen, answer = FrozenAnswers(cache), AIMessage("CT", id="1", response_metadata={"token_ids": [1, 2]})
    whole = frozen.key("attending", answers("CT"), ASKED, STATE)
    other = frozen.key("attending", answers("CT"), ASKED, {**STATE, "doctor": 2})
    if sync:
        assert frozen.get(whole) is None
        frozen.keep(whole, answer)
        assert (frozen.get(whole), frozen.get(other)) == (answer, None)
        return

    async def both() -> tuple[Any, Any, Any]:
        before = await frozen.aget(whole)
        await frozen.akeep(whole, answer)
        return before, await frozen.aget(whole), await frozen.aget(other)

    assert asyncio.run(both()) == (None, answer, None)
