"""Tests of what can be changed: the settings of a graph, and what a run may change of them."""

import asyncio
import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from fakes import QUESTION, THREAD, Consult, FakeModel, answers, consulting, graph, image, refers, said, thread
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.runtime import get_runtime
from langgraph.types import Command
from pydantic import ValidationError, model_validator
from typing_extensions import TypedDict

from mmedagent_graph import Context, models
from mmedagent_graph.context import Settings


@pytest.fixture(params=["invoke", "ainvoke"])
def consult(request: pytest.FixtureRequest) -> Consult:
    return consulting(request.param)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[FakeModel]:
    """Makes `fake:TEXT` a model that answers TEXT (at temperature 0); those that were loaded."""
    made: list[FakeModel] = []

    def load(name: str) -> FakeModel:
        made.append(answers(name, label=name, temperature=0.0))
        return made[-1]

    monkeypatch.setitem(models.BUILT_IN, "fake", load)
    return made


# Settings


@pytest.mark.parametrize(
    ("changes", "deliberates"),
    [
        ({}, False),
        ({"votes": 1, "max_referrals": 0, "review": False, "abstain_below": None}, False),
        ({"votes": 2}, True),
        ({"votes": "adaptive"}, True),
        ({"max_referrals": 1}, True),
        ({"review": True}, True),
    ],
)
def test_what_takes_more_than_one_answer(changes: dict[str, Any], deliberates: bool) -> None:
    assert Settings(**changes).deliberates is deliberates


WRONG: list[tuple[dict[str, Any], list[str]]] = [
    ({"votes": 0}, ["votes", "input_value=0", "greater than or equal to 1", "'adaptive'"]),
    ({"votes": True}, ["votes", "input_value=True", "'adaptive'"]),
    ({"votes": "3"}, ["votes", "input_value='3'", "'adaptive'"]),
    ({"votes": "Adaptive"}, ["votes", "input_value='Adaptive'", "'adaptive'"]),
    ({"votes": 3, "abstain_below": 1.01}, ["abstain_below", "1.01", "less than or equal to 1"]),
    ({"votes": 3, "abstain_below": -1}, ["abstain_below", "-1", "greater than or equal to 0"]),
    ({"votes": 3, "abstain_below": "half"}, ["abstain_below", "'half'", "number"]),
    ({"max_referrals": -1}, ["max_referrals", "-1", "greater than or equal to 0"]),
    ({"max_referrals": 1.5}, ["max_referrals", "1.5", "integer"]),
    ({"review": "maybe"}, ["review", "'maybe'", "boolean"]),
]


@pytest.mark.parametrize("kind", [Settings, Context])
@pytest.mark.parametrize(("given", "parts"), WRONG, ids=[str(given) for given, _ in WRONG])
def test_what_is_wrong_is_named(given: dict[str, Any], parts: list[str], kind: Any) -> None:
    with pytest.raises(ValidationError) as raised:
        kind(**given)
    assert [part for part in parts if part not in str(raised.value)] == []


@pytest.mark.parametrize("given", [{"specialists": []}, {"specialists": [3]}, {"attending": 3}, {"triage": ["a:b"]}])
def test_models_in_a_context_are_strings(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=f"{next(iter(given))}.*\n.* valid string"):
        Context(**given)


@pytest.mark.parametrize("abstain_below", [0.1, 1.0])
def test_a_share_of_one_vote_is_none(abstain_below: float) -> None:
    with pytest.raises(ValueError, match=f"abstain_below={abstain_below} needs votes: 2 or more, or 'adaptive'"):
        Settings(abstain_below=abstain_below)
    assert Settings(abstain_below=0, votes=1).abstain_below == 0  # never
    assert Settings(abstain_below=abstain_below, votes="adaptive").votes == "adaptive"


def test_settings_cannot_be_changed_or_misspelt() -> None:
    with pytest.raises(ValidationError):
        Settings().votes = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="vote"):
        Settings(vote=3)  # type: ignore[call-arg]


BUILT = Settings(votes=3, abstain_below=0.5, review=True, max_referrals=1)


@pytest.mark.parametrize(
    ("context", "changed"),
    [
        (None, {}),
        ({"votes": 5}, {}),  # which is no Context
        (Context(), {}),
        (Context(votes=5), {"votes": 5}),
        (Context(votes=None, review=False), {"review": False}),
        (Context(max_referrals=0, abstain_below=0.0), {"max_referrals": 0, "abstain_below": 0.0}),
        (Context(votes="adaptive", attending="openai:gpt-4o"), {"votes": "adaptive"}),
    ],
    ids=str,
)
def test_a_context_changes_what_it_names(context: Any, changed: dict[str, Any]) -> None:
    assert BUILT.changed_by(context) == Settings(**{**BUILT.model_dump(), **changed})
    assert BUILT.votes == 3


def test_a_context_cannot_make_settings_that_contradict_each_other() -> None:
    with pytest.raises(ValueError, match=r"abstain_below=0\.5 needs votes"):
        BUILT.changed_by(Context(votes=1))


def test_a_context_of_ones_own_changes_the_settings_too() -> None:
    class Ward(Context):
        review_by: str = "anybody"

    assert BUILT.changed_by(Ward(votes=7, review_by="the head")).votes == 7


# A run with a context


@pytest.mark.parametrize(
    ("context", "triaged", "heard", "decided"),
    [
        ({}, "Radiologist", ["CT"] * 3, "CT"),
        ({"triage": "fake:Surgeon"}, "Surgeon", ["CT"] * 3, "CT"),
        ({"specialists": "fake:MRI"}, "Radiologist", ["MRI"] * 3, "CT"),
        ({"specialists": ["fake:MRI", "fake:PET"]}, "Radiologist", ["MRI", "PET"], "CT"),
        (
            {"specialists": ["fake:MRI", "fake:PET", "fake:CT", "fake:?"]},
            "Radiologist",
            ["MRI", "PET", "CT", None],
            "CT",
        ),
        ({"attending": "fake:PET"}, "Radiologist", ["CT"] * 3, "PET"),
        ({"triage": "fake:?", "attending": "fake:PET"}, None, [], "PET"),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [dict, Context])
@pytest.mark.usefixtures("loaded")
def test_a_run_may_name_its_models(
    context: Any, triaged: Any, heard: Any, decided: Any, kind: Any, consult: Consult
) -> None:
    given = graph(context_schema=Context)
    result = consult(given, QUESTION, context=kind(**context))
    assert (result["referral"]["specialty"], said(result), result["decision"]["answer"]) == (triaged, heard, decided)
    assert [one["error"] for one in result["opinions"]] == [None] * len(heard)
    assert consult(given, QUESTION)["decision"]["answer"] == "CT"  # as it was built


def test_a_model_is_loaded_once(loaded: list[FakeModel], consult: Consult) -> None:
    given = graph(doctors=1, context_schema=Context)
    for _ in range(2):
        consult(given, QUESTION, context={"specialists": "fake:MRI", "attending": "fake:MRI"})
    assert [len(model.seen) for model in loaded] == [4]


def test_parallel_doctors_load_their_model_once(monkeypatch: pytest.MonkeyPatch, consult: Consult) -> None:
    made: list[str] = []

    def load(name: str) -> FakeModel:
        made.append(name)
        time.sleep(0.05)
        return answers(name)

    monkeypatch.setitem(models.BUILT_IN, "fake", load)
    result = consult(graph(context_schema=Context), QUESTION, context={"specialists": "fake:MRI"})
    assert (said(result), made) == (["MRI"] * 3, ["MRI"])


async def test_a_model_is_loaded_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[Any] = []

    def load(name: str) -> FakeModel:
        threads.append(threading.current_thread())
        return answers(name)

    monkeypatch.setitem(models.BUILT_IN, "fake", load)
    await graph(context_schema=Context).ainvoke(QUESTION, context={"triage": "fake:Surgeon"})
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()


@pytest.mark.parametrize(("votes", "warmth"), [(1, [0.0]), (3, [1.0] * 3)])
def test_the_votes_of_a_named_model_are_samples(
    votes: int, warmth: Any, loaded: list[FakeModel], consult: Consult
) -> None:
    consult(graph(context_schema=Context), QUESTION, context={"votes": votes, "attending": "fake:MRI"})
    assert [temperature for model in loaded for temperature in model.warmth] == warmth


@pytest.mark.usefixtures("loaded")
def test_a_further_specialty_has_as_many_doctors_as_the_context_names(consult: Consult) -> None:
    def attending(ballot: dict[str, Any]) -> Any:
        return {"refer": "Surgeon"} if ballot["may_refer"] else "CT"

    given = graph(attending=attending, context_schema=Context)
    context = {"specialists": ["fake:MRI", "fake:PET"], "max_referrals": 1}
    result = consult(given, QUESTION, context=context)
    assert said(result) == ["MRI", "PET", "MRI", "PET"]
    assert [one["specialty"] for one in result["opinions"]] == ["Radiologist"] * 2 + ["Surgeon"] * 2


@pytest.mark.parametrize("built", [{}, {"votes": 3, "review": True, "max_referrals": 1}], ids=str)
def test_a_run_may_change_how_it_comes_to_its_decision(built: dict[str, Any], consult: Consult) -> None:
    given = graph(context_schema=Context, checkpointer=InMemorySaver(), **built)
    context = {"votes": 4, "review": False, "max_referrals": 0, "abstain_below": 0.5}
    result = consult(given, QUESTION, THREAD, context=context)
    assert (result["decision"]["votes"], "__interrupt__" in result) == (4, False)
    result = consult(given, QUESTION, thread(2), context={"votes": 1, "review": True})
    assert (result["decision"]["votes"], "__interrupt__" in result) == (1, True)
    result = consult(given, Command(resume=True), thread(2), context={"votes": 1, "review": True})
    assert result["decision"]["review"] == "approved"


@pytest.mark.parametrize(("given", "parts"), WRONG, ids=[str(given) for given, _ in WRONG])
def test_a_wrong_context_is_refused_before_anything_is_asked(given: Any, parts: list[str], consult: Consult) -> None:
    triage = refers()
    with pytest.raises(ValueError) as raised:
        consult(graph(triage=triage, context_schema=Context), QUESTION, context=given)
    assert [part for part in parts if part not in str(raised.value)] == []
    assert triage.seen == []


@pytest.mark.parametrize("misspelt", [{"vote": 5}, {"revew": True}])
def test_a_misspelt_context_is_refused(misspelt: dict[str, Any], consult: Consult) -> None:
    with pytest.raises(ValueError, match=next(iter(misspelt))):
        consult(graph(context_schema=Context), QUESTION, context=misspelt)


def test_a_context_that_contradicts_the_graph_is_refused_before_anything_is_asked(consult: Consult) -> None:
    triage = refers()
    given = graph(triage=triage, votes=3, abstain_below=0.5, context_schema=Context)
    with pytest.raises(ValueError, match=r"abstain_below=0\.5 needs votes"):
        consult(given, QUESTION, context={"votes": 1})
    assert triage.seen == []


@pytest.mark.parametrize("node", ["triage", "attending"])
@pytest.mark.usefixtures("loaded")
def test_an_unknown_model_is_named_with_the_choices(
    node: str, consult: Consult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=rf"{node}: model: unknown provider 'fale' in 'fale:CT'; .*fake, openai"):
        consult(graph(context_schema=Context), QUESTION, context={node: "fale:CT"})


@pytest.mark.parametrize("named", ["fale:CT", ["fake:CT", "fale:CT"]])
@pytest.mark.usefixtures("loaded")
def test_an_unknown_model_of_the_specialists_is_refused_as_any_other(
    named: Any, consult: Consult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"specialists.*: model: unknown provider 'fale'"):
        consult(graph(context_schema=Context), QUESTION, context={"specialists": named})


# Contexts of one's own


class Outer(TypedDict, total=False):
    """The state of a graph around a consultation."""

    question: str
    options: list[str]
    opinions: list[Any]
    decision: Any


class Ward(Context):
    ward: str = "W1"

    @model_validator(mode="after")
    def _open(self) -> "Ward":
        if self.ward == "closed":
            raise ValueError("ward: 'closed' takes no cases; give W1")
        return self


@dataclasses.dataclass
class Shift:
    ward: str = "W2"


class Plain(TypedDict):
    ward: str


def tells(read: Callable[[Any], str]) -> Callable[[Any], Any]:
    return lambda _: {"answer": read(get_runtime().context)}


@pytest.mark.parametrize(
    ("schema", "context", "read", "ward"),
    [
        (Ward, {"ward": "W7"}, lambda context: context.ward, "W7"),
        (Ward, Ward(ward="W7"), lambda context: context.ward, "W7"),
        (Ward, {}, lambda context: context.ward, "W1"),
        (Shift, {"ward": "W7"}, lambda context: context.ward, "W7"),
        (Shift, Shift(), lambda context: context.ward, "W2"),
        (Plain, {"ward": "W7"}, lambda context: context["ward"], "W7"),
    ],
    ids=["subclass", "its object", "its default", "dataclass", "its object with the default", "TypedDict"],
)
@pytest.mark.parametrize("more", [{}, {"votes": 2}], ids=str)
def test_ones_own_nodes_reach_the_context(
    schema: Any, context: Any, read: Any, ward: str, more: dict[str, Any], consult: Consult
) -> None:
    given = graph(specialists=tells(read), attending=tells(read), context_schema=schema, **more)
    result = consult(given, {"question": "Which ward?"}, context=context)
    assert (said(result), result["decision"]["answer"]) == ([ward] * 3, ward)


@pytest.mark.usefixtures("loaded")
def test_a_subclass_changes_the_run_too(consult: Consult) -> None:
    given = graph(context_schema=Ward)
    result = consult(given, QUESTION, context={"votes": 3, "attending": "fake:PET", "ward": "W7"})
    assert (result["decision"]["votes"], result["decision"]["answer"]) == (3, "PET")


def test_a_subclass_may_refuse(consult: Consult) -> None:
    with pytest.raises(ValueError, match="ward: 'closed' takes no cases"):
        consult(graph(context_schema=Ward), QUESTION, context={"ward": "closed"})


@pytest.mark.parametrize("schema", [Shift, Plain])
def test_a_foreign_context_changes_nothing(schema: Any, consult: Consult) -> None:
    given = graph(context_schema=schema)
    assert set(given.nodes) == set(graph().nodes)
    assert consult(given, QUESTION, context={"ward": "W7"})["decision"]["votes"] == 1


@pytest.mark.parametrize("more", [{}, {"votes": 3}], ids=str)
@pytest.mark.usefixtures("loaded")
def test_a_graph_without_our_context_keeps_its_models(more: dict[str, Any], consult: Consult) -> None:
    context = Context(triage="fake:Surgeon", specialists=["fake:MRI"], attending="fake:MRI")
    result = consult(graph(**more), QUESTION, context=context)
    assert (result["referral"]["specialty"], said(result)) == ("Radiologist", ["CT"] * 3)
    assert result["decision"]["answer"] == "CT"


@pytest.mark.parametrize("schema", [None, Shift])
def test_a_graph_without_our_context_cannot_be_changed(schema: Any, consult: Consult) -> None:
    given = graph(votes=3, review=True, context_schema=schema, checkpointer=InMemorySaver())
    result = consult(given, QUESTION, THREAD, context=Context(votes=5, review=False))
    assert (result["decision"]["votes"], "__interrupt__" in result) == (3, True)


@dataclasses.dataclass
class Rota:
    specialists: list[str]


@pytest.mark.parametrize("named", [[], ["Anna"] * 5])
def test_a_context_of_another_graph_says_nothing_of_doctors(named: list[str], consult: Consult) -> None:
    builder = StateGraph(Outer, context_schema=Rota).add_node("consult", graph(context_schema=Context))
    result = consult(builder.add_edge(START, "consult").compile(), QUESTION, context=Rota(named))
    assert (len(result["opinions"]), result["decision"]["answer"]) == (3, "CT")


# Runs that go on


def test_what_a_run_asked_for_holds_when_it_goes_on(consult: Consult) -> None:
    given = graph(context_schema=Context, checkpointer=InMemorySaver())
    consult(given, QUESTION, THREAD, context={"review": True, "votes": 3})
    result = consult(given, Command(resume={"action": "hear", "specialty": "Surgeon"}), THREAD)
    assert [pause.value["decision"]["votes"] for pause in result["__interrupt__"]] == [3]
    assert consult(given, Command(resume=True), THREAD)["decision"]["review"] == "approved"
    assert "__interrupt__" not in consult(given, QUESTION, THREAD)  # the next one did not ask for it


def test_a_review_that_was_asked_for_outlives_a_failure(consult: Consult) -> None:
    failing = [True]

    def attending(_: Any) -> Any:
        if failing:
            failing.clear()
            raise RuntimeError("down")
        return "CT"

    given = graph(attending=attending, context_schema=Context, checkpointer=InMemorySaver())
    with pytest.raises(RuntimeError, match="down"):
        consult(given, QUESTION, THREAD, context={"review": True})
    assert "__interrupt__" in consult(given, None, THREAD)


@pytest.mark.usefixtures("loaded")
def test_the_models_that_a_run_named_answer_when_it_goes_on(consult: Consult) -> None:
    given = graph(context_schema=Context, checkpointer=InMemorySaver())
    asked = {"review": True, "attending": "fake:PET", "specialists": ["fake:MRI"]}
    consult(given, QUESTION, THREAD, context=asked)
    [pause] = consult(given, Command(resume={"action": "hear", "specialty": "Surgeon"}), THREAD)["__interrupt__"]
    assert said(pause.value) == ["MRI", "MRI"]
    assert pause.value["decision"]["answer"] == "PET"


def test_what_a_resume_asked_for_holds_at_the_next(consult: Consult) -> None:
    given = graph(context_schema=Context, checkpointer=InMemorySaver())
    hear = Command(resume={"action": "hear", "specialty": "Surgeon"})
    consult(given, QUESTION, THREAD, context={"review": True})
    for context in ({"votes": 3}, None):
        [pause] = consult(given, hear, THREAD, context=context)["__interrupt__"]
        assert pause.value["decision"]["votes"] == 3


def test_a_resumes_context_is_checked_with_what_the_run_began_with(consult: Consult) -> None:
    specialist = answers("CT")
    given = graph(specialists=specialist, context_schema=Context, checkpointer=InMemorySaver())
    hear = Command(resume={"action": "hear", "specialty": "Surgeon"})
    consult(given, QUESTION, THREAD, context={"votes": 3, "review": True})
    assert "__interrupt__" in consult(given, hear, THREAD, context={"abstain_below": 0.5})
    heard = len(specialist.seen)
    with pytest.raises(ValueError, match=r"abstain_below=0\.5 needs votes"):
        consult(given, hear, THREAD, context={"votes": 1})
    assert len(specialist.seen) == heard


def test_a_context_of_ones_own_goes_on_whole(consult: Consult) -> None:
    def told(_: Any) -> Any:
        return {"answer": get_runtime().context.ward}

    given = graph(specialists=told, attending=told, doctors=1, context_schema=Ward, checkpointer=InMemorySaver())
    consult(given, {"question": "Which ward?"}, THREAD, context=Ward(ward="W7", review=True))
    [pause] = consult(given, Command(resume={"action": "hear", "specialty": "Surgeon"}), THREAD)["__interrupt__"]
    assert (said(pause.value), pause.value["decision"]["answer"]) == (["W7", "W7"], "W7")


@pytest.mark.usefixtures("loaded")
def test_a_graph_called_on_a_thread_of_its_own_has_the_whole_context_around_it(consult: Consult) -> None:
    inner = graph(context_schema=Context, checkpointer=InMemorySaver())

    def call(_: Any) -> Any:
        return {"decision": inner.invoke(QUESTION, thread("inner"))["decision"]}

    builder = StateGraph(Outer, context_schema=Context).add_node("consult", call).add_edge(START, "consult")
    result = consult(builder.compile(), QUESTION, context=Context(votes=3, attending="fake:PET"))
    assert (result["decision"]["votes"], result["decision"]["answer"]) == (3, "PET")


def test_a_resume_may_say_otherwise(consult: Consult) -> None:
    given = graph(context_schema=Context, checkpointer=InMemorySaver())
    consult(given, QUESTION, THREAD, context={"review": True})
    verdict = Command(resume={"action": "hear", "specialty": "Surgeon"})
    assert "__interrupt__" not in consult(given, verdict, THREAD, context={"review": False})


def test_a_review_asked_for_around_the_graph_holds_when_it_goes_on(consult: Consult) -> None:
    builder = StateGraph(Outer, context_schema=Context).add_node("consult", graph(context_schema=Context))
    given = builder.add_edge(START, "consult").compile(checkpointer=InMemorySaver())
    consult(given, QUESTION, THREAD, context=Context(review=True))
    assert "__interrupt__" in consult(given, Command(resume={"action": "hear", "specialty": "Surgeon"}), THREAD)


@pytest.mark.usefixtures("loaded")
def test_a_mistake_in_the_context_of_a_graph_around_is_told_as_well(
    consult: Consult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "find_spec", lambda _: None)
    builder = StateGraph(Outer, context_schema=Context).add_node("consult", graph(context_schema=Context))
    with pytest.raises(ValueError, match="specialists: model: unknown provider 'fale'"):
        consult(builder.add_edge(START, "consult").compile(), QUESTION, context=Context(specialists="fale:CT"))


async def test_a_model_that_is_loaded_is_not_waited_for_beside_one_that_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = threading.Event()

    def load(name: str) -> FakeModel:
        assert name != "slow" or slow.wait(20)
        return answers(name)

    monkeypatch.setitem(models.BUILT_IN, "fake", load)
    given = graph(context_schema=Context)
    await given.ainvoke(QUESTION, context={"attending": "fake:MRI"})
    waiting = [asyncio.create_task(given.ainvoke(QUESTION, context={"attending": "fake:slow"})) for _ in range(20)]
    async with asyncio.timeout(10):
        await given.ainvoke({**QUESTION, "images": [image()]}, context={"attending": "fake:MRI"})
    slow.set()
    await asyncio.gather(*waiting)
