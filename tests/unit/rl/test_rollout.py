"""A rollout is an ordinary graph run that pauses: the same prompt, the same decision, one upstream for a group."""

import asyncio
import copy
import dataclasses
from collections import Counter
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langgraph.cache.memory import InMemoryCache

from mmedagent_graph import build_graph
from rl.datasets import LabeledCase
from rl.grading import PAPER, Grading
from rl.rollout import Rollout, at_once, roll_upstream

COMPLETIONS = [
    "<think>a ring</think><answer>B</answer>",
    "<think>a ring</think>\n<answer>\ncyst\n</answer>",
    "<think>a disc</think><answer>nodule</answer>",
    "<answer>A or B</answer>",
    "<think>a ring</think><answer>B",
    "I cannot say.",
    "",
    "<answer>D</answer>",
]


class Scripted(BaseChatModel):
    """A chat model that says `text` and keeps the prompts it was given; "!" raises."""

    text: str
    heard: list[Any] = []  # noqa: RUF012 (a pydantic field)

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        self.heard.append(messages)
        if self.text == "!":
            raise ConnectionError("the doctor is out")
        usage = {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7}
        return ChatResult(generations=[ChatGeneration(message=AIMessage(self.text, usage_metadata=usage))])


class Clinic:
    """The frozen nodes: a triage doctor and three specialists, all scripted."""

    def __init__(
        self, triage="<answer>Radiologist</answer>", specialists=("B", "<think>r</think><answer>A</answer>", "C")
    ):
        self.triage = Scripted(text=triage, heard=[])
        self.specialists = [Scripted(text=text, heard=[]) for text in specialists]

    def calls(self):
        return [len(self.triage.heard), *(len(doctor.heard) for doctor in self.specialists)]

    def rollout(self, images, **given):
        return Rollout(triage=self.triage, specialists=self.specialists, images=images, **given)

    def before_triage(self, images, attending=None, **given):
        """Consultations in which triage is under training."""
        return Rollout(specialists=self.specialists, attending=attending, images=images, **given)

    def consult(self, case, attending, images):
        graph = build_graph(triage=self.triage, specialists=self.specialists, attending=attending, images=images)
        return graph.invoke(
            {"question": case.question, "options": case.options, "images": case.images, "context": case.context}
        )


CLINICS = {
    "all are heard": {},
    "one specialist fails": {"specialists": ("B", "!", "nothing to read here, or is it A or B")},
    "all specialists fail": {"specialists": ("!", "!", "!")},
    "triage cannot be read": {"triage": "somebody"},
}


@pytest.fixture(params=CLINICS.values(), ids=CLINICS.keys())
def clinic(request):
    return Clinic(**request.param)


@pytest.fixture(params=[True, False], ids=["options", "free text"])
def case(request, png):
    options = ["nodule", "cyst", "scar"] if request.param else []
    return LabeledCase("c", "What is it?", "cyst", options, [png((9, 9, 9)), png((200, 0, 0))], "Fever.", "Radiologist")


def left_over(rollout):
    saver = rollout._saver
    return [*saver.list(None), *saver.storage, *saver.writes, *saver.blobs]


async def test_upstream_runs_triage_and_specialists_once_and_never_the_attending(images, case):
    clinic = Clinic()
    rollout = clinic.rollout(images)
    trace = await rollout.upstream(case)
    assert clinic.calls() == [1, 1, 1, 1]
    assert trace.decision is None
    assert trace.text is None
    assert (trace.case, trace.answer, trace.specialty, trace.node) == ("c", "cyst", "Radiologist", "attending")
    assert trace.referral == {"specialty": "Radiologist", "reasoning": ""}
    assert [opinion["doctor"] for opinion in trace.opinions] == [1, 2, 3]
    assert trace.opinions[1]["reasoning"] == "r"
    assert all(image.startswith("sha256:") for image in trace.images)
    assert {node: spent["calls"] for node, spent in trace.usage.items()} == {"specialist": 3, "triage": 1}
    assert trace.tier == ("medium" if case.options else "hard")  # "B" names an option, and is no answer by itself
    assert left_over(rollout) == []


async def test_what_the_frozen_nodes_said_is_recorded(images, case):
    trace = await Clinic().rollout(images).upstream(case)
    said = [(call.node, call.doctor, call.text) for call in trace.calls]
    assert said[0] == ("triage", None, "<answer>Radiologist</answer>")
    specialists = [
        ("specialist", 1, "B"),
        ("specialist", 2, "<think>r</think><answer>A</answer>"),
        ("specialist", 3, "C"),
    ]
    assert sorted(said[1:]) == specialists
    assert {call.specialty for call in trace.calls[1:]} == {"Radiologist"}


async def test_no_prompt_upstream_or_after_it_holds_the_key(images, png):
    clinic = Clinic()
    rollout = clinic.rollout(images)
    case = LabeledCase("SECRET-ID", "What is it?", "SECRET", [], [png((1, 1, 1))], None, "SECRET-LABEL")
    trace = await rollout.upstream(case)
    heard = [prompt for model in (clinic.triage, *clinic.specialists) for prompt in model.heard]
    assert len(heard) == 4
    assert "SECRET" not in repr([*heard, rollout.prompt(trace)])


async def test_the_prompt_is_what_inference_puts_to_the_model(images, clinic, case):
    rollout = clinic.rollout(images)
    prompt = rollout.prompt(await rollout.upstream(case))
    recorder = Scripted(text="B", heard=[])
    clinic.consult(case, recorder, images)
    assert recorder.heard == [prompt]
    assert [block["type"] for block in prompt[1].content] == ["image", "image", "text"]


async def test_a_completion_is_decided_as_the_whole_graph_decides(images, clinic, case):
    rollout = clinic.rollout(images)
    upstream = await rollout.upstream(case)
    finished = await asyncio.gather(*(rollout.finish(upstream, text) for text in COMPLETIONS))
    assert [done.text for done in finished] == COMPLETIONS
    for done in finished:
        whole = clinic.consult(case, Scripted(text=done.text, heard=[]), images)
        assert done.decision == whole["decision"]
        assert done.opinions == whole["opinions"]
        assert done.referral == whole["referral"]
    assert len({str(done.decision) for done in finished}) > 3  # not all the same
    assert left_over(rollout) == []


async def test_the_completions_of_a_group_share_one_upstream(images, case):
    clinic = Clinic()
    rollout = clinic.rollout(images)
    upstream = await rollout.upstream(case)
    await asyncio.gather(*(rollout.finish(upstream, text) for text in COMPLETIONS))
    assert clinic.calls() == [1, 1, 1, 1]
    assert upstream.text is None
    assert upstream.decision is None


async def test_a_finished_trace_can_be_finished_again(images, case):
    """A trace read back from disk with its decision goes on from the new completion alone."""
    rollout = Clinic().rollout(images)
    upstream = await rollout.upstream(case)
    first = await rollout.finish(upstream, COMPLETIONS[2])
    again = await rollout.finish(first, COMPLETIONS[0])
    assert again.decision == (await rollout.finish(upstream, COMPLETIONS[0])).decision
    assert again.opinions == upstream.opinions


async def test_a_node_under_training_is_never_called(images, case):
    rollout = Rollout(specialists=Clinic().specialists, images=images)
    with pytest.raises(RuntimeError, match="must come from the trainer"):
        await rollout.upstream(case)


async def test_a_failed_run_leaves_no_thread_behind(images, case):
    rollout = Clinic(triage="!").rollout(images)
    with pytest.raises(ConnectionError):
        await rollout.upstream(case)
    assert left_over(rollout) == []


def test_many_cases_are_rolled_each_once(images, png):
    clinic = Clinic()
    cases = [LabeledCase(str(i), f"No. {i}?", "cyst", ["nodule", "cyst"], [png((i, i, i))]) for i in range(9)]
    done = asyncio.run(roll_upstream(clinic.rollout(images), cases, quiet=True))
    assert [trace.case for trace in done] == [case.id for case in cases]
    assert all(trace.question == f"No. {trace.case}?" for trace in done)
    assert clinic.calls() == [9, 9, 9, 9]


async def test_pieces_of_work_keep_their_places_whoever_is_first(trace):
    async def piece(i):
        for _ in range(10 - i):  # the later, the sooner done
            await asyncio.sleep(0)
        return trace(case=str(i))

    found = {}
    await at_once([lambda i=i: piece(i) for i in range(10)], found.__setitem__, "test", quiet=True)
    assert {i: one.case for i, one in found.items()} == {i: str(i) for i in range(10)}
    assert list(found) != sorted(found)


# Triage under training


REFERRALS = [
    "<think>dark</think><answer>Surgeon</answer>",
    "<answer>Radiologist</answer>",
    "<think>a lump</think><answer>surgeon.</answer>",
    "<answer>A</answer>",  # specialties have no letters
    "anybody",
    "",
]
NAMED = ["Surgeon", "Radiologist", "Surgeon", None, None, None]


async def test_before_triage_nobody_is_asked(images, case):
    clinic = Clinic()
    rollout = clinic.before_triage(images)
    trace = await rollout.upstream(case, "triage")
    assert clinic.calls() == [0, 0, 0, 0]
    assert (trace.node, trace.tier, trace.referral, trace.opinions, trace.calls) == ("triage", None, None, [], [])
    recorder = Scripted(text="<answer>Surgeon</answer>", heard=[])
    graph = build_graph(triage=recorder, specialists=clinic.specialists, attending=clinic.triage, images=images)
    graph.invoke({"question": case.question, "options": case.options, "images": case.images, "context": case.context})
    assert recorder.heard == [rollout.prompt(trace)]


async def test_a_specialist_is_asked_as_in_a_consultation_and_decides_alone(images, case):
    clinic = Clinic(triage=f"<answer>{case.specialty}</answer>")
    rollout = Rollout(images=images)
    trace = await rollout.upstream(case, "specialist")
    assert (trace.node, trace.tier, trace.opinions, trace.calls) == ("specialist", None, [], [])
    assert trace.referral == {"specialty": case.specialty, "reasoning": ""}
    clinic.consult(case, clinic.triage, images)
    assert clinic.specialists[0].heard == [rollout.prompt(trace)]
    for text in COMPLETIONS:
        done, opinion = (
            await rollout.finish(trace, text),
            await Clinic(specialists=(text,)).rollout(images).upstream(case),
        )
        assert (done.text, done.opinions) == (text, [])
        assert done.decision["index"] == opinion.opinions[0]["index"], text
    graded = await Grading.parse(PAPER["attending"]).grade_all([await rollout.finish(trace, COMPLETIONS[0])])
    assert graded[0].rewards == {"format": 1, "accuracy": int(graded[0].decision["answer"] == case.answer)}


async def test_a_specialist_needs_a_label(images, case):
    with pytest.raises(ValueError, match=r"cases: .* has no specialty, as which its specialist would be asked"):
        await Rollout(images=images).upstream(dataclasses.replace(case, specialty=None), "specialist")


async def test_without_a_frozen_attending_a_trace_ends_with_the_referral(images, case):
    clinic = Clinic()
    rollout = clinic.before_triage(images)
    upstream = await rollout.upstream(case, "triage")
    ended = [await rollout.finish(upstream, text) for text in REFERRALS]
    assert [done.referral["specialty"] for done in ended] == NAMED
    assert [done.referral["reasoning"] for done in ended[:3]] == ["dark", "", "a lump"]
    assert {done.decision for done in ended} == {None}
    assert clinic.calls() == [0, 0, 0, 0]
    graded = await Grading.parse(PAPER["triage"]).grade_all(ended)
    assert [done.rewards["specialty"] for done in graded] == [0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("text", REFERRALS)
async def test_a_referral_leads_where_it_leads_at_inference(images, case, text):
    """`refer` is `upstream` with a triage doctor who says just that."""
    at_inference = await Clinic(triage=text).rollout(images).upstream(case)
    rollout = Clinic().before_triage(images)
    reached = await rollout.refer(await rollout.upstream(case, "triage"), text)
    assert reached.node == "attending"
    assert (reached.referral, reached.opinions) == (at_inference.referral, at_inference.opinions)
    assert (reached.tier, rollout.prompt(reached)) == (at_inference.tier, rollout.prompt(at_inference))
    assert len(reached.opinions) == (3 if reached.referral["specialty"] else 0)
    assert reached.tier == ("medium" if reached.opinions and case.options else "hard")
    assert [call.node for call in reached.calls] == ["specialist"] * len(reached.opinions)
    assert left_over(rollout) == []


@pytest.mark.parametrize("text", REFERRALS[:5])
async def test_with_a_frozen_attending_a_referral_is_followed_to_the_end(images, case, text):
    attending = Scripted(text="<answer>cyst</answer>", heard=[])
    rollout = Clinic().before_triage(images, attending)
    done = await rollout.finish(await rollout.upstream(case, "triage"), text)
    whole = Clinic(triage=text).consult(case, attending, images)
    assert (done.node, done.text) == ("triage", text)
    assert (done.referral, done.opinions, done.decision) == (whole["referral"], whole["opinions"], whole["decision"])
    assert [call.node for call in done.calls] == ["specialist"] * len(done.opinions) + ["attending"]
    assert (await Grading.parse(["outcome"]).grade(done)).reward == 1
    assert left_over(rollout) == []


class Slow(Scripted):
    """Lets the others go ahead before it answers."""

    async def _agenerate(self, messages, stop=None, run_manager=None, **kwargs):
        await asyncio.sleep(0.02)
        return self._generate(messages)


async def test_completions_that_name_one_specialty_share_its_panel_and_its_end(images, case):
    """Eight completions at once, two specialties and an unreadable one: two panels and three ends."""
    clinic = Clinic()
    clinic.specialists = [Slow(text=doctor.text, heard=[]) for doctor in clinic.specialists]
    attending = Slow(text="<answer>cyst</answer>", heard=[])
    rollout = clinic.before_triage(images, attending)
    upstream = await rollout.upstream(case, "triage")
    texts = [*REFERRALS[:3], *REFERRALS[:3], "?", "???"]
    ended = await asyncio.gather(*(rollout.finish(upstream, text) for text in texts))
    assert clinic.calls() == [0, 2, 2, 2]
    assert len(attending.heard) == 3
    assert [done.text for done in ended] == texts
    assert [done.referral["reasoning"] for done in ended] == ["dark", "", "a lump"] * 2 + ["", ""]  # each its own
    assert rollout.asked == 2 * (3 + 1) + 1  # specialists and the attending, twice; the attending alone
    assert rollout.spared == 4 * (3 + 1) + 1  # as many calls as the other five completions would have made
    other = LabeledCase("other", case.question, case.answer, case.options, case.images, case.context)
    await rollout.finish(await rollout.upstream(other, "triage"), REFERRALS[0])
    assert clinic.calls() == [0, 3, 3, 3]  # another case has a panel of its own


async def test_what_completions_share_none_can_change(images, case):
    rollout = Clinic().before_triage(images)
    upstream = await rollout.upstream(case, "triage")
    first, second = [await rollout.refer(upstream, REFERRALS[0]) for _ in range(2)]
    before = copy.deepcopy(second)
    first.opinions[0]["answer"] = "changed"
    first.calls.clear()
    first.usage.clear()
    assert second == before
    assert await rollout.refer(upstream, REFERRALS[0]) == before


async def test_a_referral_to_the_attending_is_not_taken_for_one_to_the_end(images, case):
    attending = Scripted(text="<answer>cyst</answer>", heard=[])
    rollout = Clinic().before_triage(images, attending)
    upstream = await rollout.upstream(case, "triage")
    assert (await rollout.finish(upstream, REFERRALS[0])).decision
    assert (await rollout.refer(upstream, REFERRALS[0])).decision is None
    assert len(attending.heard) == 1


async def test_a_failure_is_not_remembered(images, case):
    attending = Scripted(text="!", heard=[])
    clinic = Clinic()
    rollout = clinic.before_triage(images, attending)
    upstream = await rollout.upstream(case, "triage")
    failed = await asyncio.gather(*(rollout.finish(upstream, REFERRALS[0]) for _ in range(3)), return_exceptions=True)
    assert [type(error) for error in failed] == [ConnectionError] * 3
    assert len(attending.heard) == 1
    attending.text = "<answer>cyst</answer>"
    done = await rollout.finish(upstream, REFERRALS[0])
    assert done.decision["answer"] == "cyst"
    assert left_over(rollout) == []


def test_what_is_known_holds_in_the_next_event_loop(images, case):
    """The trainer rolls upstream in one loop, and rewards in another."""
    clinic = Clinic()
    rollout = clinic.before_triage(images)
    upstream = asyncio.run(rollout.upstream(case, "triage"))
    first, second = (asyncio.run(rollout.refer(upstream, REFERRALS[0])) for _ in range(2))
    assert first == second
    assert clinic.calls() == [0, 1, 1, 1]


async def test_frozen_answers_are_counted_as_spared(images, case):
    answers = InMemoryCache()
    clinic = Clinic()
    asked = []
    for _ in range(2):
        rollout = clinic.rollout(images, answers=answers)
        trace = await rollout.upstream(case)
        asked.append((rollout.asked, rollout.spared, Counter(call.node for call in trace.calls)))
    said = Counter(triage=1, specialist=3)
    assert asked == [(4, 0, said), (0, 4, said)]
    assert clinic.calls() == [1, 1, 1, 1]
