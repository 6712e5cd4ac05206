"""Tests of the wiring: what may be given for a node, who is heard, what is refused; sync and async, with fakes."""

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from importlib.metadata import EntryPoint
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
    graph,
    image,
    opinion,
    pictures,
    refers,
    said,
    says,
    untagged,
    usage,
    words,
)
from langchain_core.rate_limiters import BaseRateLimiter
from langchain_core.runnables import RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.errors import NodeError, NodeTimeoutError
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, RetryPolicy, TimeoutPolicy, interrupt
from typing_extensions import TypedDict

from mmedagent_graph import SPECIALTIES, Case, build_graph, models
from mmedagent_graph.images import ImageStore

PNG = encoded(image("red"))


@pytest.fixture(params=["invoke", "ainvoke"])
def consult(request: pytest.FixtureRequest) -> Consult:
    """Runs a graph to its end, once by `invoke` and once by `ainvoke`."""
    return consulting(request.param)


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "store")


DECISION = {
    "answer": "CT",
    "index": 0,
    "reasoning": "",
    "agreement": None,
    "entropy": None,
    "opinions": 0,
    "votes": 1,
    "tally": [{"answer": "CT", "index": 0, "votes": 1}],
    "confidence": None,
    "abstained": False,
    "review": None,
}


# What a consultation returns


def test_a_consultation(consult: Consult) -> None:
    specialists = [answers("CT", "White bone."), answers("MRI", "Soft."), says("I cannot say.")]
    result = consult(graph(specialists=specialists), QUESTION)
    assert untagged(result) == {
        "referral": {"specialty": "Radiologist", "reasoning": "By the image."},
        "opinions": [
            opinion(1, "CT", reasoning="White bone."),
            opinion(2, "MRI", reasoning="Soft."),
            opinion(3, None),
        ],
        "decision": {**DECISION, "reasoning": "Seen.", "agreement": 0.5, "entropy": 1.0, "opinions": 2},
        "usage": usage(triage=1, specialist=3, attending=1),
        "messages": [("ai", "CT\n\nSeen.")],
    }


def test_sync_and_async_agree() -> None:
    specialists = [answers("MRI"), breaks(RuntimeError("away")), lambda _: {"answer": "PET"}]
    consultation = graph(specialists=specialists)
    case = {**QUESTION, "images": [PNG], "context": "Fell from a horse."}
    assert untagged(consultation.invoke(case)) == untagged(asyncio.run(consultation.ainvoke(case)))


def test_without_options_answers_are_free_text(consult: Consult) -> None:
    given = graph(specialists=[answers("a cyst"), says("A cyst."), answers("a tumour")], attending=answers("a  cyst"))
    result = consult(given, {"question": "What is it?"})
    assert said(result) == ["a cyst", "A cyst.", "a tumour"]
    assert [opinion["index"] for opinion in result["opinions"]] == [None] * 3
    assert (result["decision"]["answer"], result["decision"]["index"]) == ("a cyst", None)
    assert result["decision"]["agreement"] == pytest.approx(2 / 3)


def test_a_decision_that_cannot_be_read(consult: Consult) -> None:
    result = consult(graph(attending=says("CT or MRI, who knows")), QUESTION)
    assert (result["decision"]["answer"], result["decision"]["index"]) == (None, None)
    assert (result["decision"]["agreement"], result["decision"]["entropy"]) == (None, 0.0)


def test_opinions_stand_in_the_order_of_the_doctors(consult: Consult) -> None:
    def slowest_first(state: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.05 * (3 - state["doctor"]))
        return {"index": state["doctor"] - 1}

    attending = answers("CT")
    result = consult(graph(specialists=slowest_first, attending=attending), QUESTION)
    assert result["opinions"] == [opinion(1, "CT"), opinion(2, "MRI"), opinion(3, "PET")]
    heard = words(attending.seen[0])
    assert heard.index("Doctor 1") < heard.index("Doctor 2") < heard.index("Doctor 3")


def test_a_case_is_taken_as_an_object(consult: Consult) -> None:
    case = Case(question="Which scan is it?", options=["CT", "MRI", "PET"], images=[PNG], context="Fell.")
    attending = answers("CT")
    given = graph(attending=attending)
    assert untagged(consult(given, case)) == untagged(consult(given, case.model_dump()))
    assert pictures(attending.seen[0]) == [PNG]
    assert [words(seen) for seen in attending.seen] == [words(attending.seen[0])] * 2


def test_cases_in_a_batch_are_kept_apart() -> None:
    def echo(state: dict[str, Any]) -> dict[str, Any]:
        return {"answer": state["question"]}

    cases = [{"question": f"case {n}"} for n in range(6)]
    results = graph(specialists=echo, attending=echo).batch(cases)
    assert [result["decision"]["answer"] for result in results] == [case["question"] for case in cases]
    assert [said(result) for result in results] == [[case["question"]] * 3 for case in cases]


def test_no_model_is_shown_an_answer_key(consult: Consult) -> None:
    nodes = {"triage": refers(), "specialists": answers("CT"), "attending": answers("CT")}
    consult(build_graph(**nodes), {**QUESTION, "answer": "KEY", "index": "KEY", "decision": "KEY", "tier": "KEY"})
    shown = [words(seen) for model in nodes.values() for seen in model.seen]
    assert len(shown) == 5
    assert not any("KEY" in text for text in shown)


# What may be given for a node


class Visit(TypedDict, total=False):
    question: str
    specialty: str
    answer: str


def own(kind: str, field: str, value: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """One of the things that may stand for a node; its answer is `value`."""

    def sync(state: dict[str, Any]) -> dict[str, Any]:
        assert state["question"] == QUESTION["question"]
        return {field: value}

    async def asynchronous(state: dict[str, Any]) -> dict[str, Any]:
        return sync(state)

    if kind == "model string":
        entry = EntryPoint(name="fake", value="fakes:answers", group=models.GROUP)
        monkeypatch.setattr(models, "entry_points", lambda group: [entry])
        return f"fake:{value}"
    if kind == "chat model":
        return answers(value)
    if kind == "bound model":
        return answers(value).bind(stop=["x"])
    if kind == "model with fallbacks":
        return breaks(ConnectionError("refused")).with_fallbacks([answers(value)])
    if kind == "model with retry":
        return answers(value).with_retry(stop_after_attempt=1)
    if kind == "configured model":
        return answers(value).with_config(tags=["x"])
    if kind == "callable":
        return sync
    if kind == "async callable":
        return asynchronous
    if kind == "Runnable":
        return RunnableLambda(sync, afunc=asynchronous)
    if kind == "chain":
        return RunnableLambda(lambda state: state["question"]) | answers(value)
    builder = StateGraph(Visit)
    builder.add_node("only", sync)
    builder.add_edge(START, "only")
    builder.add_edge("only", END)
    return builder.compile()


MODELS = ["model string", "chat model", "bound model", "configured model", "model with fallbacks", "model with retry"]
KINDS = [*MODELS, "callable", "async callable", "Runnable", "chain", "compiled graph"]


@pytest.mark.parametrize("slot", ["triage", "specialists", "attending"])
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_given_for_a_node(
    slot: str, kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    field, value = ("specialty", "Dermatologist") if slot == "triage" else ("answer", "MRI")
    given = graph(**{slot: own(kind, field, value, monkeypatch)})
    for result in (asyncio.run(given.ainvoke(QUESTION)), given.invoke(QUESTION)):
        assert result["referral"]["specialty"] == ("Dermatologist" if slot == "triage" else "Radiologist")
        assert said(result) == ["MRI" if slot == "specialists" else "CT"] * 3
        assert [opinion["error"] for opinion in result["opinions"]] == [None] * 3
        assert result["decision"]["answer"] == ("MRI" if slot == "attending" else "CT")


def test_an_own_node_is_given_the_case_with_references(consult: Consult, store: ImageStore) -> None:
    given: dict[str, Any] = {}

    def keep(node: str, update: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
        return lambda state: given.__setitem__(node, dict(state)) or update

    consultation = build_graph(
        triage=keep("triage", {"specialty": "Surgeon"}),
        specialists=[keep("specialist", {"answer": "CT"})],
        attending=keep("attending", {"answer": "CT"}),
        images=store,
    )
    result = consult(consultation, {**QUESTION, "images": [PNG], "context": "Fell."})
    case = {**QUESTION, "images": [store.put(PNG)], "context": "Fell."}
    assert given == {
        "triage": case,
        "specialist": {**case, "specialty": "Surgeon", "doctor": 1, "doctors": 1},
        "attending": {**case, "referral": result["referral"], "opinions": result["opinions"]},
    }
    assert store.get(given["specialist"]["images"][0]) == PNG


def test_an_own_node_may_return_its_whole_update(consult: Consult) -> None:
    given = graph(
        triage=lambda _: {"referral": {"specialty": "Surgeon", "reasoning": "r"}},
        specialists=lambda state: {"opinions": [{"answer": "PET"}]},
        attending=lambda _: {"decision": {"index": 1}},
    )
    result = consult(given, QUESTION)
    assert result["referral"] == {"specialty": "Surgeon", "reasoning": "r"}
    assert said(result) == ["PET"] * 3
    assert result["decision"]["answer"] == "MRI"


def test_own_nodes_that_call_no_model_use_nothing(consult: Consult) -> None:
    given = graph(triage=lambda _: {"specialty": "Surgeon"}, specialists=lambda _: {"answer": "CT"})
    assert consult(given, QUESTION)["usage"] == usage(attending=1)


def test_a_list_has_one_specialist_for_each_doctor(consult: Consult) -> None:
    panel = [answers("CT"), lambda _: {"answer": "MRI"}, answers("PET"), answers("CT")]
    result = consult(graph(specialists=panel), QUESTION)
    assert [(one["doctor"], one["answer"]) for one in result["opinions"]] == [
        (1, "CT"),
        (2, "MRI"),
        (3, "PET"),
        (4, "CT"),
    ]


@pytest.mark.parametrize("doctors", [1, 2, 5])
def test_one_specialist_stands_for_any_number_of_doctors(doctors: int, consult: Consult) -> None:
    result = consult(graph(doctors=doctors), QUESTION)
    assert [one["doctor"] for one in result["opinions"]] == list(range(1, doctors + 1))
    assert result["usage"]["specialist"]["calls"] == doctors


@pytest.mark.parametrize("specialty", ["Radiologist", "Surgeon", "Dermatologist"])
def test_a_mapping_has_an_entry_for_each_specialty(specialty: str, consult: Consult) -> None:
    panels: dict[str, Any] = dict.fromkeys(SPECIALTIES, answers("CT"))
    panels |= {"Surgeon": [answers("MRI"), answers("PET")], "Dermatologist": lambda _: {"answer": "MRI"}}
    result = consult(graph(triage=refers(specialty), specialists=panels), QUESTION)
    expected = {"Radiologist": ["CT"] * 3, "Surgeon": ["MRI", "PET"], "Dermatologist": ["MRI"] * 3}
    assert said(result) == expected[specialty]
    assert {one["specialty"] for one in result["opinions"]} == {specialty}


@pytest.mark.parametrize("specialties", [["Cardiologist"], ["Cardiologist", "Midwife", "Surgeon"], ("Ärztin", "B")])
def test_any_list_of_specialties(specialties: Any, consult: Consult) -> None:
    triage, specialist = refers(specialties[-1]), answers("CT")
    result = consult(graph(triage=triage, specialists=specialist, specialties=specialties), QUESTION)
    assert result["referral"]["specialty"] == specialties[-1]
    assert {one["specialty"] for one in result["opinions"]} == {specialties[-1]}
    assert all(specialty in words(triage.seen[0]) for specialty in specialties)
    assert "Pathologist" not in words(triage.seen[0])
    assert specialties[-1] in words(specialist.seen[0])


def test_a_mapping_over_specialties_of_ones_own(consult: Consult) -> None:
    panels = {"Cardiologist": answers("MRI"), "Midwife": answers("PET")}
    result = consult(graph(triage=refers("Midwife"), specialists=panels, specialties=list(panels)), QUESTION)
    assert said(result) == ["PET"] * 3


# Images


def jpeg(folder: Path) -> Path:
    path = folder / "scan.jpg"
    path.write_bytes(encoded(image("blue"), "JPEG"))
    return path


IMAGES: dict[str, Callable[[Path], Any]] = {
    "path as str": lambda folder: str(jpeg(folder)),
    "Path": jpeg,
    "bytes": lambda folder: jpeg(folder).read_bytes(),
    "PIL image": lambda _: image("blue"),
    "data URL": lambda folder: data_url(jpeg(folder).read_bytes(), "image/jpeg"),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_images_reach_the_model_of_every_node(kind: str, consult: Consult, tmp_path: Path) -> None:
    nodes = {"triage": refers(), "specialists": answers("CT"), "attending": answers("CT")}
    consult(build_graph(**nodes), {**QUESTION, "images": [IMAGES[kind](tmp_path), PNG]})
    expected = encoded(image("blue")) if kind == "PIL image" else jpeg(tmp_path).read_bytes()
    assert [len(model.seen) for model in nodes.values()] == [1, 3, 1]
    for model in nodes.values():
        assert [pictures(seen) for seen in model.seen] == [[expected, PNG]] * len(model.seen)


def test_images_may_be_references_into_the_graphs_store(consult: Consult, store: ImageStore) -> None:
    attending = answers("CT")
    consult(graph(attending=attending, images=store), {**QUESTION, "images": [store.put(PNG)]})
    assert pictures(attending.seen[0]) == [PNG]


# Specialists: in parallel, alone, and fallible


def test_specialists_run_in_parallel() -> None:
    together = threading.Barrier(3, timeout=5)

    def meet(state: dict[str, Any]) -> dict[str, Any]:
        together.wait()
        return {"answer": "CT"}

    assert [one["error"] for one in graph(specialists=meet).invoke(QUESTION)["opinions"]] == [None] * 3


def test_specialists_run_in_parallel_async() -> None:
    async def meeting() -> dict[str, Any]:
        together = asyncio.Barrier(3)

        async def meet(state: dict[str, Any]) -> dict[str, Any]:
            async with asyncio.timeout(5):
                await together.wait()
            return {"answer": "CT"}

        return await graph(specialists=meet).ainvoke(QUESTION)

    assert [one["error"] for one in asyncio.run(meeting())["opinions"]] == [None] * 3


def test_specialist_models_run_in_parallel(consult: Consult) -> None:
    together = threading.Barrier(3, timeout=5)
    model = FakeModel(answer=lambda _: f"<answer>CT</answer>{together.wait() and ''}")
    assert said(consult(graph(specialists=model), QUESTION)) == ["CT"] * 3


def test_specialists_never_see_another_opinion(consult: Consult) -> None:
    panel = [answers("CT", f"Reason of doctor {doctor}.") for doctor in (1, 2, 3)]
    given = graph(specialists=panel, checkpointer=InMemorySaver())
    for _ in range(2):  # on one thread, whose state holds opinions the second time
        consult(given, QUESTION, THREAD)
    shown = [words(seen) for model in panel for seen in model.seen]
    assert len(shown) == 6
    assert set(shown) == {shown[0]}
    assert not any(word in shown[0] for word in ["Reason of", "Opinion", "Doctor"])


def test_the_attending_hears_every_opinion(consult: Consult) -> None:
    attending = answers("CT")
    panel = [answers("CT", "White bone."), says("?"), breaks(RuntimeError("secret path /etc"))]
    consult(graph(specialists=panel, attending=attending), QUESTION)
    heard = words(attending.seen[0]).partition("Opinions:\n")[2].split("\n")
    assert heard == [
        "Doctor 1 (Radiologist): CT",
        "Reasoning: White bone.",
        "Doctor 2 (Radiologist): no opinion",
        "Doctor 3 (Radiologist): no opinion",
    ]


FAILING = [{1}, {2}, {3}, {1, 2}, {2, 3}, {1, 2, 3}]


@pytest.mark.parametrize("failing", FAILING, ids=str)
def test_specialists_that_fail_are_opinions_that_say_so(failing: set[int], consult: Consult) -> None:
    def fallible(state: dict[str, Any]) -> dict[str, Any]:
        if state["doctor"] in failing:
            raise TimeoutError(f"doctor {state['doctor']} is away")
        time.sleep(0.05)  # long after the others have failed
        return {"answer": "MRI"}

    attending = answers("MRI")
    result = consult(graph(specialists=fallible, attending=attending), QUESTION)
    assert result["opinions"] == [
        opinion(doctor, None, error=f"TimeoutError: doctor {doctor} is away")
        if doctor in failing
        else opinion(doctor, "MRI")
        for doctor in (1, 2, 3)
    ]
    assert len(attending.seen) == 1
    assert result["decision"]["answer"] == "MRI"
    assert result["decision"]["opinions"] == 3 - len(failing)
    assert result["decision"]["agreement"] == (1.0 if failing != {1, 2, 3} else None)
    assert result["usage"]["attending"]["calls"] == 1


@pytest.mark.parametrize("failing", FAILING, ids=str)
def test_async_specialists_that_fail(failing: set[int]) -> None:
    async def fallible(state: dict[str, Any]) -> dict[str, Any]:
        if state["doctor"] in failing:
            raise TimeoutError("away")
        await asyncio.sleep(0.05)
        return {"answer": "MRI"}

    attending = answers("MRI")
    result = asyncio.run(graph(specialists=fallible, attending=attending).ainvoke(QUESTION))
    assert [one["error"] is not None for one in result["opinions"]] == [doctor in failing for doctor in (1, 2, 3)]
    assert said(result) == [None if doctor in failing else "MRI" for doctor in (1, 2, 3)]
    assert (len(attending.seen), result["decision"]["answer"]) == (1, "MRI")


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_specialist_models_that_fail_cost_no_tokens(failures: int, consult: Consult) -> None:
    panel = [breaks(ConnectionError("refused"))] * failures + [answers("CT")] * (3 - failures)
    attending = answers("CT")
    result = consult(graph(specialists=panel, attending=attending), QUESTION)
    assert [one["error"] for one in result["opinions"]] == ["ConnectionError: refused"] * failures + [None] * (
        3 - failures
    )
    answered = {"specialist": 3 - failures} if failures < 3 else {}
    assert result["usage"] == usage(triage=1, attending=1, **answered)
    assert len(attending.seen) == 1


@pytest.mark.parametrize(
    ("output", "why"),
    [
        ({"answer": "X-ray"}, "ValueError: opinion.answer: 'X-ray' is not an option; options are ['CT', 'MRI', 'PET']"),
        ({"index": 7}, "ValueError: opinion.index: 7 does not name None; options are ['CT', 'MRI', 'PET']"),
        (None, "ValueError: specialist: the node returned a NoneType"),
    ],
)
def test_an_own_specialist_that_answers_no_option(output: Any, why: str, consult: Consult) -> None:
    result = consult(graph(specialists=[answers("CT"), lambda _: output, answers("CT")]), QUESTION)
    assert said(result) == ["CT", None, "CT"]
    assert result["opinions"][1]["error"].startswith(why)
    assert result["decision"]["opinions"] == 2


@pytest.mark.parametrize("text", ["", "No idea.", "<answer>Cardiologist</answer>", "<answer>Surgeon or Oncologist"])
def test_an_unreadable_referral_leaves_the_attending_alone(text: str, consult: Consult) -> None:
    specialist, attending = answers("CT"), answers("MRI")
    result = consult(graph(triage=says(text), specialists=specialist, attending=attending), QUESTION)
    assert result["referral"]["specialty"] is None
    assert (specialist.seen, len(attending.seen)) == ([], 1)
    assert result["opinions"] == []
    tally = [{"answer": "MRI", "index": 1, "votes": 1}]
    assert result["decision"] == {**DECISION, "answer": "MRI", "index": 1, "tally": tally}
    assert result["usage"] == usage(triage=1, attending=1)


def test_a_specialist_may_pause_to_ask(consult: Consult) -> None:
    def asks(state: dict[str, Any]) -> dict[str, Any]:
        return {"answer": interrupt("Which?") if state["doctor"] == 2 else "CT"}

    given = graph(specialists=asks, checkpointer=InMemorySaver())
    assert [pause.value for pause in consult(given, QUESTION, THREAD)["__interrupt__"]] == ["Which?"]
    result = consult(given, Command(resume="MRI"), THREAD)
    assert result["opinions"] == [opinion(1, "CT"), opinion(2, "MRI"), opinion(3, "CT")]
    assert result["decision"]["opinions"] == 3


# What is refused, by name


@pytest.mark.parametrize(
    ("case", "parts"),
    [
        pytest.param({"question": " "}, ["question is empty", "give the question as text"], id="empty question"),
        pytest.param({"options": ["CT"]}, ["options has one entry", "'CT'", "give two or more, or none"], id="one"),
        pytest.param({"options": ["CT", "CT"]}, ["options[1] 'CT' repeats options[0]", "must differ"], id="repeated"),
        pytest.param({"options": ["Maß", "CT", "MASS"]}, ["options[2] 'MASS' repeats options[0]"], id="case-folded"),
        pytest.param({"options": ["CT", ""]}, ["options[1] is empty", "needs a text"], id="empty option"),
        pytest.param({"images": [PNG, b"x"]}, ["images[1]", "not a readable image", "give a path, bytes"], id="text"),
        pytest.param({"images": ["/no/scan.png"]}, ["images[0]", "'/no/scan.png'", "give a path, bytes"], id="no file"),
        pytest.param({"images": [7]}, ["images[0]", "int", "give a path, bytes"], id="a number as image"),
        pytest.param({"images": ["https://x.org/a.png"]}, ["images[0]", "remote address", "a data URL"], id="remote"),
    ],
)
def test_a_case_that_is_wrong(case: dict[str, Any], parts: list[str], consult: Consult) -> None:
    triage = refers()
    with pytest.raises(ValueError) as raised:
        consult(graph(triage=triage), {**QUESTION, **case})
    assert [part for part in parts if part not in str(raised.value)] == []
    assert triage.seen == []


def test_a_misspelt_specialty_from_an_own_triage(consult: Consult) -> None:
    attending = answers("CT")
    given = graph(triage=lambda _: {"specialty": "Radiolgist"}, attending=attending)
    with pytest.raises(ValueError, match=r"referral\.specialty: 'Radiolgist' is unknown") as raised:
        consult(given, QUESTION)
    assert ", ".join(SPECIALTIES) in str(raised.value)
    assert attending.seen == []


def test_an_own_attending_that_decides_for_no_option(consult: Consult) -> None:
    with pytest.raises(ValueError, match=r"decision\.answer: 'X-ray' is not an option; options are \['CT', 'MRI'"):
        consult(graph(attending=lambda _: {"answer": "X-ray"}), QUESTION)


ALL = ", ".join(SPECIALTIES)
NODES = "nodes are triage, specialist, attending"
MISSPELT = {("Radiolgist" if name == "Radiologist" else name): answers("CT") for name in SPECIALTIES}


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        pytest.param({"specialists": MISSPELT}, ["specialists", "Radiolgist, Radiologist", ALL], id="misspelt key"),
        pytest.param({"specialists": {"Surgeon": answers("CT")}}, ["specialists", "missing", ALL], id="missing keys"),
        pytest.param({"specialists": {}}, ["specialists", "missing", ALL], id="empty mapping"),
        pytest.param({"specialists": []}, ["specialists", "one entry for each doctor"], id="empty list"),
        pytest.param({"specialists": [answers("CT"), 3]}, ["specialist", "int", "a model string"], id="in a list"),
        pytest.param({"doctors": 0}, ["doctors: 0", "1 or more"], id="no doctors"),
        pytest.param({"triage": 3}, ["triage", "int", "a model string, a chat model"], id="triage is a number"),
        pytest.param({"attending": None}, ["attending", "a model string"], id="attending is None"),
        pytest.param({"attending": "gpt-4o"}, ["'gpt-4o'", "provider:model", "openai, "], id="no provider"),
        pytest.param({"triage": "opanai:gpt-4o"}, ["'opanai'", "openai, ", "vllm"], id="misspelt provider"),
        pytest.param({"specialties": []}, ["specialties", ALL], id="no specialties"),
        pytest.param({"specialties": "Surgeon"}, ["specialties", "'Surgeon'", "Radiologist"], id="a string"),
        pytest.param({"specialties": ["Surgeon", " "]}, ["specialties", "Radiologist"], id="blank specialty"),
        pytest.param({"specialties": ["Surgeon", "SURGEON"]}, ["specialties[1]", "'SURGEON'", "differ"], id="twice"),
        pytest.param({"votes": 0}, ["votes", "input_value=0", "or equal to 1", "'adaptive'"], id="no votes"),
        pytest.param({"votes": True}, ["votes", "input_value=True", "'adaptive'"], id="votes is a bool"),
        pytest.param({"votes": 2.5}, ["votes", "input_value=2.5", "'adaptive'"], id="half a vote"),
        pytest.param({"votes": "many"}, ["votes", "input_value='many'", "'adaptive'"], id="misspelt votes"),
        pytest.param({"abstain_below": 0.5}, ["abstain_below=0.5 needs votes", "'adaptive'"], id="a share of one vote"),
        pytest.param({"abstain_below": 1.5, "votes": 3}, ["abstain_below", "1.5", "or equal to 1"], id="over 100 %"),
        pytest.param({"abstain_below": -0.1, "votes": 3}, ["abstain_below", "or equal to 0"], id="under 0 %"),
        pytest.param({"max_referrals": -1}, ["max_referrals", "-1", "or equal to 0"], id="negative referrals"),
        pytest.param({"max_referrals": True}, ["max_referrals", "input_value=True"], id="referrals is a bool"),
        pytest.param({"review": "maybe"}, ["review", "'maybe'", "boolean"], id="review is a text"),
        pytest.param({"retry_policy": {"intake": RetryPolicy()}}, ["retry_policy: unknown node intake", NODES], id="r"),
        pytest.param({"timeout": {"vote": 3, "decide": 3}}, ["timeout: unknown node decide, vote", NODES], id="t"),
        pytest.param({"error_handler": {"specialists": print}}, ["error_handler: unknown node", NODES], id="e"),
        pytest.param({"timeout": 0}, ["timeout must be greater than 0"], id="no time"),
        pytest.param({"doctors": 2.5}, ["doctors: 2.5", "1 or more"], id="half a doctor"),
    ],
)
def test_arguments_that_are_wrong(given: dict[str, Any], parts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "find_spec", lambda _: None)  # whether or not langchain is installed
    with pytest.raises(ValueError) as raised:
        graph(**given)
    assert [part for part in parts if part not in str(raised.value)] == []


def test_checkpoints_that_outlive_the_process_need_images_that_do_too(store: ImageStore) -> None:
    with contextlib.closing(sqlite3.connect(":memory:", check_same_thread=False)) as connection:
        with pytest.raises(ValueError, match=r"images: checkpoints that outlive .*; give ImageStore\(folder\)"):
            graph(checkpointer=SqliteSaver(connection))
        result = graph(checkpointer=SqliteSaver(connection), images=store).invoke({**QUESTION, "images": [PNG]}, THREAD)
        assert result["decision"]["answer"] == "CT"
    graph(checkpointer=InMemorySaver())  # which does not outlive it


def test_all_three_nodes_must_be_given() -> None:
    with pytest.raises(ValueError, match="triage, attending: nobody is given; give a model string, or a hospital"):
        build_graph(specialists=answers("CT"))


# Nodes that fail: retries, time, handlers


def fallible(node: str, failures: int, ok: Any, error: type[Exception] = ConnectionError) -> tuple[Any, list[int]]:
    """A node of one's own that fails so many times, and how often it was tried."""
    tries: list[int] = []

    def tried(state: dict[str, Any]) -> Any:
        if node == "specialists" and state["doctor"] != 2:
            return ok
        tries.append(len(tries) + 1)
        if len(tries) <= failures:
            raise error(f"try {len(tries)}")
        return ok

    return tried, tries


SLOTS = {"triage": {"specialty": "Surgeon"}, "specialists": {"answer": "MRI"}, "attending": {"answer": "PET"}}
NODE = {"triage": "triage", "specialists": "specialist", "attending": "attending"}
AGAIN = RetryPolicy(max_attempts=3, initial_interval=0, jitter=False)


@pytest.mark.parametrize("slot", SLOTS)
@pytest.mark.parametrize("by", ["all", "node", "sequence"])
@pytest.mark.parametrize("more", [{}, {"votes": 3}], ids=str)
def test_a_node_is_retried(slot: str, by: str, more: dict[str, Any], consult: Consult) -> None:
    own, tries = fallible(slot, 2, SLOTS[slot])
    policy: Any = {"all": AGAIN, "node": {NODE[slot]: AGAIN}, "sequence": [RetryPolicy(retry_on=KeyError), AGAIN]}[by]
    result = consult(graph(**{slot: own}, retry_policy=policy, **more), QUESTION)
    votes = more.get("votes", 1) if slot == "attending" else 1
    assert len(tries) == 2 + votes
    assert [one["error"] for one in result["opinions"]] == [None] * 3
    assert result["decision"]["answer"] == ("PET" if slot == "attending" else "CT")
    assert result["decision"]["confidence"] in (None, 1.0)


@pytest.mark.parametrize("slot", SLOTS)
def test_a_node_is_not_retried_as_another_is(slot: str, consult: Consult) -> None:
    own, tries = fallible(slot, 2, SLOTS[slot])
    others = {node: AGAIN for node in NODE.values() if node != NODE[slot]}
    given = graph(**{slot: own}, retry_policy=others)
    if slot == "specialists":
        assert consult(given, QUESTION)["opinions"][1]["error"] == "ConnectionError: try 1"
    else:
        with pytest.raises(ConnectionError, match="try 1"):
            consult(given, QUESTION)
    assert len(tries) == 1


def test_a_specialist_that_fails_to_the_end_is_an_opinion_that_says_so(consult: Consult) -> None:
    own, tries = fallible("specialists", 9, {})
    result = consult(graph(specialists=own, retry_policy=AGAIN), QUESTION)
    assert (len(tries), result["opinions"][1]["error"]) == (3, "ConnectionError: try 3")


@pytest.mark.parametrize("call", ["invoke", "stream", "batch"])
@pytest.mark.parametrize("timeout", [1.5, {"triage": 1.5}])
def test_a_timeout_is_refused_where_it_cannot_be_kept(call: str, timeout: Any) -> None:
    triage = refers()
    given = graph(triage=triage, timeout=timeout)
    with pytest.raises(ValueError, match=r"timeout: Python cannot cut off a sync call; use ainvoke, astream or abatch"):
        list(getattr(given, call)([QUESTION] if call == "batch" else QUESTION))
    assert triage.seen == []
    assert asyncio.run(given.ainvoke(QUESTION))["decision"]["answer"] == "CT"


def hangs(*doctors: int) -> Any:
    async def specialist(state: dict[str, Any]) -> dict[str, Any]:
        if state.get("doctor", state.get("vote")) in doctors:
            await asyncio.sleep(30)
        return {"answer": "MRI"}

    return specialist


SHORT = 0.4  # long enough for a fake on a busy machine
LATE = "NodeTimeoutError: Node 'specialist' exceeded its run timeout of 0.400s"


@pytest.mark.parametrize(
    ("timeout", "more"),
    [
        (SHORT, {}),
        (timedelta(seconds=SHORT), {}),
        (TimeoutPolicy(run_timeout=SHORT), {}),
        ({"specialist": SHORT}, {}),
        ({"specialist": SHORT, "attending": 9}, {"votes": 3}),
    ],
    ids=str,
)
async def test_a_hanging_specialist_is_an_opinion_that_says_so(timeout: Any, more: dict[str, Any]) -> None:
    given = graph(specialists=hangs(1, 3), timeout=timeout, **more)
    async with asyncio.timeout(20):
        result = await given.ainvoke(QUESTION)
    assert said(result) == [None, "MRI", None]
    assert [str(one["error"]).startswith(LATE) for one in result["opinions"]] == [True, False, True]
    assert (result["decision"]["answer"], result["decision"]["opinions"]) == ("CT", 1)


async def test_a_hanging_attending_ends_the_run() -> None:
    async def never(_: Any) -> Any:
        await asyncio.sleep(30)

    for timeout in (SHORT, {"attending": SHORT}):
        with pytest.raises(NodeTimeoutError, match="attending"):
            await graph(attending=never, timeout=timeout).ainvoke(QUESTION)


async def test_a_hanging_vote_is_one_vote_less() -> None:
    async with asyncio.timeout(20):
        result = await graph(attending=hangs(2), votes=3, timeout={"attending": SHORT}).ainvoke(QUESTION)
    assert result["decision"]["confidence"] == pytest.approx(2 / 3)
    assert result["decision"]["answer"] == "MRI"


@pytest.mark.parametrize("slot", ["triage", "attending"])
def test_any_other_failure_is_the_runs(slot: str, consult: Consult) -> None:
    with pytest.raises(RuntimeError, match="out of order"):
        consult(graph(**{slot: breaks(RuntimeError("out of order"))}), QUESTION)


def test_a_failure_of_the_attending_is_the_runs_where_specialists_failed_alike(consult: Consult) -> None:
    broken = breaks(ConnectionError("down"))
    with pytest.raises(ConnectionError, match="down"):
        consult(graph(specialists=broken, attending=broken), QUESTION)


@pytest.mark.parametrize("more", [{}, {"votes": 3}], ids=str)
def test_a_handler_of_ones_own_sends_on_to_the_attending(more: dict[str, Any], consult: Consult) -> None:
    def unreferred(state: dict[str, Any], error: NodeError) -> Command[Any]:
        return Command(update={"referral": {"specialty": None, "reasoning": str(error.error)}}, goto="attending")

    def unheard(state: dict[str, Any], error: NodeError) -> Command[Any]:
        return Command(update={"opinions": [opinion(state["doctor"], None, error="mine")]}, goto="attending")

    broken = breaks(RuntimeError("away"))
    handlers = {"triage": unreferred, "specialist": unheard}
    result = consult(graph(triage=broken, error_handler=handlers, **more), QUESTION)
    assert (result["referral"]["reasoning"], result["opinions"], result["decision"]["answer"]) == ("away", [], "CT")
    result = consult(graph(specialists=broken, error_handler=handlers, **more), QUESTION)
    assert [one["error"] for one in result["opinions"]] == ["mine"] * 3
    assert result["decision"]["answer"] == "CT"


def test_a_handler_of_ones_own_for_the_attending(consult: Consult) -> None:
    def undecided(state: dict[str, Any], error: NodeError) -> dict[str, Any]:
        return {"decision": {"answer": None, "reasoning": str(error.error)}}

    given = graph(attending=breaks(RuntimeError("away")), error_handler={"attending": undecided})
    assert consult(given, QUESTION)["decision"] == {"answer": None, "reasoning": "away"}


@pytest.mark.parametrize("slot", SLOTS)
@pytest.mark.parametrize("own", ["sync", "async"])
def test_an_own_node_may_pause_to_ask(slot: str, own: str, consult: Consult) -> None:
    def asks(state: dict[str, Any]) -> Any:
        wanted = interrupt({"of": slot}) if state.get("doctor", 2) == 2 else "CT"
        return {"specialty" if slot == "triage" else "answer": wanted}

    async def asks_async(state: dict[str, Any]) -> Any:
        return asks(state)

    given = graph(**{slot: asks if own == "sync" else asks_async}, checkpointer=InMemorySaver())
    assert [pause.value for pause in consult(given, QUESTION, THREAD)["__interrupt__"]] == [{"of": slot}]
    result = consult(given, Command(resume="Surgeon" if slot == "triage" else "MRI"), THREAD)
    assert result["referral"]["specialty"] == ("Surgeon" if slot == "triage" else "Radiologist")
    assert said(result) == (["CT", "MRI", "CT"] if slot == "specialists" else ["CT"] * 3)
    assert [one["error"] for one in result["opinions"]] == [None] * 3
    assert result["decision"]["answer"] == ("MRI" if slot == "attending" else "CT")


def test_several_nodes_may_pause_at_once(consult: Consult) -> None:
    given = graph(
        specialists=lambda state: {"answer": interrupt(state["doctor"])},
        attending=lambda state: {"answer": interrupt(f"vote {state['vote']}")},
        votes=2,
        checkpointer=InMemorySaver(),
    )
    result = consult(given, QUESTION, THREAD)
    for wanted in ({1: "CT", 2: "MRI", 3: "PET"}, {"vote 1": "MRI", "vote 2": "MRI"}):
        resume = {pause.id: wanted[pause.value] for pause in result["__interrupt__"]}
        result = consult(given, Command(resume=resume), THREAD)
    assert said(result) == ["CT", "MRI", "PET"]
    assert (result["decision"]["answer"], result["decision"]["confidence"]) == ("MRI", 1.0)


# How many at a time


@pytest.mark.parametrize(("config", "most"), [({"max_concurrency": 2}, 2), ({"max_concurrency": 1}, 1)])
@pytest.mark.parametrize("slot", ["specialists", "attending"])
def test_the_config_bounds_the_calls_at_a_time(slot: str, config: Any, most: int, consult: Consult) -> None:
    lock, running, seen = threading.Lock(), [0], [0]

    def busy(state: dict[str, Any]) -> dict[str, Any]:
        with lock:
            running[0] += 1
            seen[0] = max(seen[0], running[0])
        time.sleep(0.02)
        with lock:
            running[0] -= 1
        return {"answer": "CT"}

    consult(graph(**{slot: busy}, doctors=6, votes=6), QUESTION, config)
    assert seen[0] == most


def test_the_rate_limiter_of_a_model_is_asked(consult: Consult) -> None:
    class Gate(BaseRateLimiter):
        passed = 0

        def acquire(self, *, blocking: bool = True) -> bool:
            Gate.passed += 1
            return True

        async def aacquire(self, *, blocking: bool = True) -> bool:
            return self.acquire()

    limited = answers("CT")
    limited.rate_limiter = Gate()
    consult(graph(specialists=limited, attending=limited, votes=2), QUESTION)
    assert Gate.passed == 5


# Drawings and names

SIMPLE = ["__start__", "triage", "specialist", "attending", "__end__"]
EDGES = ["__start__ --> triage", "triage -.-> specialist", "triage -.-> attending", "specialist --> attending"]


def handler(state: Any, error: NodeError) -> dict[str, Any]:
    return {}


@pytest.mark.parametrize("more", [{}, {"error_handler": {"triage": handler, "attending": handler}}], ids=["", "own"])
def test_the_simple_graph_has_three_nodes(more: dict[str, Any]) -> None:
    drawn = graph(**more).get_graph()
    assert list(drawn.nodes) == SIMPLE
    mermaid = drawn.draw_mermaid()
    assert [edge for edge in [*EDGES, "attending --> __end__"] if edge not in mermaid] == []
    assert "error" not in mermaid


@pytest.mark.parametrize("more", [{"votes": 3}, {"max_referrals": 1}, {"review": True}], ids=str)
def test_a_graph_that_deliberates_is_drawn_without_its_handlers(more: dict[str, Any]) -> None:
    drawn = graph(**more).get_graph()
    assert set(drawn.nodes) == {*SIMPLE, "vote", "review"}
    assert {end for edge in drawn.edges for end in (edge.source, edge.target)} == set(drawn.nodes)
    mermaid = drawn.draw_mermaid()
    ahead = [f"attending -.-> {node}" for node in ("__end__", "review", "specialist", "vote")]
    ahead += ["review -.-> __end__", "review -.-> specialist", "vote --> attending"]
    assert [edge for edge in [*EDGES, *ahead] if edge not in mermaid] == []
    assert "error" not in mermaid


def test_the_graph_has_a_name() -> None:
    assert graph().get_name() == "consultation"
    assert graph(name="ward").get_name() == graph(name="ward").name == "ward"
