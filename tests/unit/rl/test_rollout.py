"""A rollout is an ordinary graph run that pauses: the same prompt, the same decision, one upstream for a group."""

import asyncio
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from mmedagent_graph import build_graph
from rl.datasets import LabeledCase
from rl.rollout import AttendingRollout, roll_upstream

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

    def rollout(self, images):
        return AttendingRollout(self.triage, self.specialists, images)

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
    assert left_over(rollout) == []


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


async def test_a_failed_run_leaves_no_thread_behind(images, case):
    rollout = Clinic(triage="!").rollout(images)
    with pytest.raises(ConnectionError):
        await rollout.upstream(case)
    assert left_over(rollout) == []


def test_many_cases_are_rolled_each_once(images, png):
    clinic = Clinic()
    cases = [LabeledCase(str(i), f"No. {i}?", "cyst", ["nodule", "cyst"], [png((i, i, i))]) for i in range(9)]
    done = []
    asyncio.run(roll_upstream(clinic.rollout(images), cases, done.append))
    assert sorted(trace.case for trace in done) == [case.id for case in cases]
    assert all(trace.question == f"No. {trace.case}?" for trace in done)
    assert clinic.calls() == [9, 9, 9, 9]
