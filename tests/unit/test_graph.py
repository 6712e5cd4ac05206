"""Tests of the whole consultation, sync and async, with fakes in the place of models."""

import asyncio
import threading
import time
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from fakes import (
    INPUT_TOKENS,
    OUTPUT_TOKENS,
    FakeModel,
    answers,
    breaks,
    data_url,
    encoded,
    image,
    pictures,
    says,
    words,
)
from langchain_core.runnables import RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.event_hooks import register_serde_event_listener
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt
from typing_extensions import TypedDict

from mmedagent_graph import SPECIALTIES, Case, build_graph, models
from mmedagent_graph.images import ImageStore

Consult = Callable[..., dict[str, Any]]
QUESTION = {"question": "Which scan is it?", "options": ["CT", "MRI", "PET"]}
THREAD = {"configurable": {"thread_id": "bed 7"}}
PNG = encoded(image("red"))


@pytest.fixture(params=["invoke", "ainvoke"])
def consult(request: pytest.FixtureRequest) -> Consult:
    """Runs a graph to its end, once by `invoke` and once by `ainvoke`."""

    def run(graph: Any, case: Any, config: Any = None) -> dict[str, Any]:
        if request.param == "invoke":
            return graph.invoke(case, config)
        return asyncio.run(graph.ainvoke(case, config))

    return run


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "store")


def refers(specialty: str = "Radiologist") -> FakeModel:
    return answers(specialty, because="By the image.")


def graph(**given: Any) -> Any:
    """A graph whose every node is a fake model, but for those that are given."""
    return build_graph(
        **{"triage": refers(), "specialists": answers("CT"), "attending": answers("CT", because="Seen."), **given}
    )


def said(result: dict[str, Any]) -> list[str | None]:
    return [opinion["answer"] for opinion in result["opinions"]]


def opinion(doctor: int, answer: str | None, **fields: Any) -> dict[str, Any]:
    index = None if answer is None else QUESTION["options"].index(answer)
    plain = {"specialty": "Radiologist", "doctor": doctor, "answer": answer, "index": index}
    return {**plain, "reasoning": "", "error": None, **fields}


def usage(**calls: int) -> dict[str, dict[str, int]]:
    return {
        node: {"calls": n, "input_tokens": INPUT_TOKENS * n, "output_tokens": OUTPUT_TOKENS * n}
        for node, n in calls.items()
    }


# What a consultation returns


def test_a_consultation(consult: Consult) -> None:
    specialists = [answers("CT", "White bone."), answers("MRI", "Soft."), says("I cannot say.")]
    result = consult(graph(specialists=specialists), QUESTION)
    assert result == {
        "referral": {"specialty": "Radiologist", "reasoning": "By the image."},
        "opinions": [
            opinion(1, "CT", reasoning="White bone."),
            opinion(2, "MRI", reasoning="Soft."),
            opinion(3, None),
        ],
        "decision": {"answer": "CT", "index": 0, "reasoning": "Seen.", "agreement": 0.5, "opinions": 2},
        "usage": usage(triage=1, specialist=3, attending=1),
    }


def test_sync_and_async_agree() -> None:
    specialists = [answers("MRI"), breaks(RuntimeError("away")), lambda _: {"answer": "PET"}]
    consultation = graph(specialists=specialists)
    case = {**QUESTION, "images": [PNG], "context": "Fell from a horse."}
    assert consultation.invoke(case) == asyncio.run(consultation.ainvoke(case))


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
    assert result["decision"]["agreement"] == 0.0


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
    assert consult(given, case) == consult(given, case.model_dump())
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


@pytest.mark.parametrize("slot", ["triage", "specialists", "attending"])
@pytest.mark.parametrize(
    "kind", ["model string", "chat model", "callable", "async callable", "Runnable", "chain", "compiled graph"]
)
def test_whatever_is_given_for_a_node(
    slot: str, kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    field, value = ("specialty", "Dermatologist") if slot == "triage" else ("answer", "MRI")
    given = graph(**{slot: own(kind, field, value, monkeypatch)})
    results = [asyncio.run(given.ainvoke(QUESTION))]
    if kind != "async callable":  # which has nothing to offer to a sync caller
        results.append(given.invoke(QUESTION))
    for result in results:
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
        "specialist": {**case, "specialty": "Surgeon", "doctor": 1},
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
    assert result["decision"] == {"answer": "MRI", "index": 1, "reasoning": "", "agreement": None, "opinions": 0}
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
        pytest.param({"attending": None}, ["attending", "NoneType", "a model string"], id="attending is None"),
        pytest.param({"attending": "gpt-4o"}, ["'gpt-4o'", "provider:model", "openai, "], id="no provider"),
        pytest.param({"triage": "opanai:gpt-4o"}, ["'opanai'", "openai, ", "vllm"], id="misspelt provider"),
        pytest.param({"specialties": []}, ["specialties", ALL], id="no specialties"),
        pytest.param({"specialties": "Surgeon"}, ["specialties", "'Surgeon'", "Radiologist"], id="a string"),
        pytest.param({"specialties": ["Surgeon", " "]}, ["specialties", "Radiologist"], id="blank specialty"),
        pytest.param({"specialties": ["Surgeon", "SURGEON"]}, ["specialties[1]", "'SURGEON'", "differ"], id="twice"),
    ],
)
def test_arguments_that_are_wrong(given: dict[str, Any], parts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "find_spec", lambda _: None)  # whether or not langchain is installed
    with pytest.raises(ValueError) as raised:
        graph(**given)
    assert [part for part in parts if part not in str(raised.value)] == []


def test_all_three_nodes_must_be_given() -> None:
    with pytest.raises(TypeError, match=r"triage.*attending"):
        build_graph(specialists=answers("CT"))  # type: ignore[call-arg]


# As any LangGraph graph: threads, checkpoints, streams, drawings


def test_a_thread_used_again_starts_afresh(consult: Consult) -> None:
    given = graph(checkpointer=InMemorySaver())
    first = consult(given, QUESTION, THREAD)
    assert len(first["opinions"]) == 3
    assert [consult(given, QUESTION, THREAD) for _ in range(2)] == [first] * 2


def test_a_thread_forgets_the_opinions_of_a_larger_panel(consult: Consult) -> None:
    triage = FakeModel(answer=lambda seen: "Surgeon" if "first" in words(seen) else "no idea")
    given = graph(triage=triage, checkpointer=InMemorySaver())
    assert len(consult(given, {"question": "first"}, THREAD)["opinions"]) == 3
    second = consult(given, {"question": "second"}, THREAD)
    assert (second["opinions"], second["decision"]["opinions"]) == ([], 0)
    assert second["usage"] == usage(triage=1, attending=1)


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


def test_a_paused_consultation_shows_no_earlier_decision(consult: Consult) -> None:
    def asks(state: dict[str, Any]) -> dict[str, Any]:
        return {"answer": interrupt("Which?") if state["question"] == "second" else "CT"}

    given = graph(attending=asks, checkpointer=InMemorySaver())
    assert consult(given, {"question": "first"}, THREAD)["decision"]["answer"] == "CT"
    paused = consult(given, {"question": "second"}, THREAD)
    assert paused["__interrupt__"]
    assert paused.get("decision") is None


def test_threads_are_kept_apart(consult: Consult) -> None:
    given = graph(attending=lambda state: {"answer": state["question"]}, checkpointer=InMemorySaver())
    threads = [{"configurable": {"thread_id": name}} for name in "ab"]
    for name, thread in zip("ab", threads, strict=True):
        consult(given, {"question": name}, thread)
    assert [given.get_state(thread).values["decision"]["answer"] for thread in threads] == ["a", "b"]


def test_a_strict_checkpointer_keeps_everything(consult: Consult, store: ImageStore) -> None:
    strict = JsonPlusSerializer(allowed_msgpack_modules=None)  # what LANGGRAPH_STRICT_MSGPACK=true makes of the default
    given = graph(
        specialists=[answers("CT"), breaks(RuntimeError("away")), answers("MRI")],
        images=store,
        checkpointer=InMemorySaver(serde=strict),
    )
    events: list[Any] = []
    stop = register_serde_event_listener(events.append)
    try:
        result = consult(given, {**QUESTION, "images": [store.put(PNG)], "context": "Fell."}, THREAD)
        history = list(given.get_state_history(THREAD))
    finally:
        stop()
    assert events == []
    assert {name: history[0].values[name] for name in result} == result
    assert history[0].values["case"]["images"] == [store.put(PNG)]
    assert len(history) > 4


def test_the_checkpoint_holds_no_image(consult: Consult, store: ImageStore) -> None:
    kept = InMemorySaver()
    large = encoded(image("red").resize((400, 400)), "PNG")
    consult(graph(images=store, checkpointer=kept), {**QUESTION, "images": [store.put(large)]}, THREAD)
    assert all(large not in value for _, value in kept.blobs.values())
    assert all(len(value) < 2000 for _, value in kept.blobs.values())


UPDATES = ["intake", "triage", "specialist", "specialist", "specialist", "attending"]


def test_updates_come_in_the_order_of_the_nodes() -> None:
    given = graph()
    assert [node for step in given.stream(QUESTION, stream_mode="updates") for node in step] == UPDATES


async def test_updates_come_in_the_order_of_the_nodes_async() -> None:
    given = graph()
    steps = [step async for step in given.astream(QUESTION, stream_mode="updates")]
    assert [node for step in steps for node in step] == UPDATES


def test_the_graph_can_be_drawn() -> None:
    drawn = graph().get_graph().draw_mermaid()
    edges = ["__start__ --> intake", "intake --> triage", "triage -.-> specialist", "triage -.-> attending"]
    edges += ["specialist --> attending", "attending --> __end__"]
    assert [edge for edge in edges if edge not in drawn] == []


def test_the_graph_has_a_name_and_schemas() -> None:
    given = graph(name="ward")
    assert given.get_name() == "ward"
    assert set(given.get_input_jsonschema()["properties"]) == {"question", "options", "images", "context"}
    assert set(given.get_output_jsonschema()["properties"]) == {"referral", "opinions", "decision", "usage"}
