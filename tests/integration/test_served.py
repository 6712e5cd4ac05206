"""The graph on a real server of OpenAI's protocol: the clinic's base model behind vLLM's CPU build, images included.

`vllm:base` and `clinic:base` both decode greedily, so that they compare word for word.
"""

import asyncio
import dataclasses

import pytest
import torch
from langchain_core.messages import AIMessageChunk
from trl.data_utils import prepare_multimodal_messages

from mmedagent_graph import build_graph
from mmedagent_graph.models import load_model
from rl.clinic.cases import QUESTION
from rl.clinic.drawing import FINDINGS
from rl.curriculum import Stage
from rl.environment import Environment
from rl.models import BASE, load_processor
from rl.recipe import stage_settings
from rl.rollout import roll_upstream
from rl.store import Rollouts
from rl.train_attending import COMMAND
from rl.trainer import ConsultationTrainer

AT_ONCE = 32
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]  # the first of them starts the server
FIELDS = "usage", "referral", "opinions", "decision"


@pytest.fixture(autouse=True)
def url(server, monkeypatch):
    monkeypatch.setenv("VLLM_BASE_URL", server.url)
    before = server.log.stat().st_size
    yield server.url
    print(server.log.read_bytes()[before:].decode(errors="replace"))  # pytest shows it where the test failed


@pytest.fixture
def whole(images):
    """A graph whose triage, first doctor and attending are a model; the other doctors disagree with it at times."""

    def build(model, **nodes):
        doctors = [model, "clinic:doctor-2", "clinic:doctor-3"]
        return build_graph(**{"triage": model, "specialists": doctors, "attending": model, **nodes}, images=images)

    return build


@pytest.fixture(scope="module")
def patients(cases):
    return [{"question": case.question, "options": case.options, "images": case.images} for case in cases[:AT_ONCE]]


def told(result):
    """What a consultation comes to, without the ids of messages."""
    return {field: result[field] for field in FIELDS}


async def test_consultations_at_once_end_as_they_do_in_process(whole, patients):
    """Word for word, and as many tokens. That can be asked for: over the first 64 of these cases the attending's best
    token leads the second by a logit of 0.29 or more, and the log-probabilities of the two sides differ by 2e-5."""
    there = await whole("vllm:base").abatch(patients, {"max_concurrency": AT_ONCE})
    here = await whole("clinic:base").abatch(patients, {"max_concurrency": AT_ONCE})
    for field in FIELDS:
        assert [result[field] for result in there] == [result[field] for result in here]
    assert {result["decision"]["answer"] for result in there} == set(FINDINGS)  # and not all the same, nor unreadable


def test_the_sync_path_ends_the_same(whole, patients):
    there, here = whole("vllm:base"), whole("clinic:base")
    for patient in patients[:4]:
        assert told(there.invoke(patient)) == told(here.invoke(patient))


@pytest.fixture(scope="module")
def asked(rollout, cases, upstream):
    """Consultations that pause at triage and at the attending; the cases of one have two images."""
    triage = asyncio.run(roll_upstream(rollout, cases[:6], node="triage", quiet=True))
    two = [dataclasses.replace(trace, images=trace.images + upstream[0].images) for trace in upstream[6:8]]
    return [*triage, *upstream[:6], *two]


def test_trainer_policy_and_server_read_the_same_tokens(url, policy, rollout, asked, tmp_path):
    """Prompt ids are identical, images included, in training, in process and served; so are the greedy answers, and
    their log-probabilities in float32 within 1e-3."""
    served = load_model("vllm:base").bind(logprobs=True)
    trainer = trainer_of(asked, rollout, tmp_path)
    rows = [trainer.train_dataset[i] for i in range(len(asked))]
    chats = [prepare_multimodal_messages(row["prompt"], row["images"]) for row in rows]
    trained, _, _ = trainer._tokenize_prompts(chats)
    for i, trace in enumerate(asked):
        there, here = served.invoke(rollout.prompt(trace)), policy.invoke(rollout.prompt(trace))
        ids, said = there.response_metadata["prompt_token_ids"], there.response_metadata["token_ids"]
        assert trained[i] == ids == here.response_metadata["prompt_token_ids"]
        assert said == here.response_metadata["token_ids"]
        told = [token["logprob"] for token in there.response_metadata["logprobs"]["content"]]
        one = trainer._tokenize_prompts([chats[i]])[2]
        scored = logprobs_of(trainer, ids, said, one)
        torch.testing.assert_close(torch.tensor(told[: len(said)]), scored, atol=1e-3, rtol=0)


def trainer_of(traces, rollout, folder):
    """A trainer in float32 over these very prompts."""
    stage = Stage("1-mixed", 1, 0.0, {}, {"triage": 1.0, "attending": 1.0})
    flags = [f"--per_device_train_batch_size={2 * len(traces)}", "--num_generations=2"]
    return ConsultationTrainer(
        environment=Environment(stage, traces, rollout, {}, Rollouts(folder / "rollouts"), folder),
        model=str(BASE),
        args=stage_settings(COMMAND, flags, stage, folder),
        processing_class=load_processor("clinic:base"),
    )


def logprobs_of(trainer, prompt, completion, fields):
    """What the trainer makes of a completion, token by token."""
    images = {name: torch.as_tensor(fields[name]) for name in ("pixel_values", "image_grid_thw")}
    ids = torch.tensor([[*prompt, *completion]])
    kinds = (ids == trainer.processing_class.image_token_id).long()
    images |= {"mm_token_type_ids": kinds, "num_images": [len(images["image_grid_thw"])]}
    with torch.no_grad():
        logps, _, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, torch.ones_like(ids), len(completion), **images
        )
    return logps[0]


def test_another_image_is_another_answer(whole, cases):
    """Everything else is the same, and no doctor has an opinion: what it answers, it has seen."""
    clear = [case for case in cases if case.key.clear][:12]
    shown = [{"question": QUESTION, "options": FINDINGS, "images": case.images} for case in clear]
    served, here = (
        [
            result["decision"]["answer"]
            for result in whole(model, specialists=lambda case: {"answer": None}).batch(shown)
        ]
        for model in ("vllm:base", "clinic:base")
    )
    assert served == here
    assert len(set(served)) > 1


async def test_tokens_are_streamed_with_the_name_of_their_node(whole, patients):
    """In more pieces than messages: that each token is one of its own cannot be asked of a busy server."""
    pieces = 0
    for patient in patients[:4]:
        said = {"triage": "", "specialist": "", "attending": ""}
        async for chunk, about in whole("vllm:base").astream(patient, stream_mode="messages"):
            if isinstance(chunk, AIMessageChunk) and chunk.text:
                said[about["langgraph_node"]] += chunk.text
                pieces += 1
        here = await whole("clinic:base").ainvoke(patient)
        assert said["triage"].endswith(f"<answer>{here['referral']['specialty']}</answer>")
        assert said["specialist"].endswith(f"<answer>{here['opinions'][0]['answer']}</answer>")
        assert said["attending"].endswith(f"<answer>{here['decision']['answer']}</answer>")
    assert pieces > 4 * len(said)


async def test_streamed_tokens_are_counted_as_well(whole, patients):
    graph = whole("vllm:base")
    async for mode, part in graph.astream(patients[0], stream_mode=["messages", "values"]):
        if mode == "values":
            streamed = part
    assert streamed["usage"] == (await graph.ainvoke(patients[0]))["usage"]


async def test_a_model_that_is_not_served_is_named_at_once(whole, patients):
    async with asyncio.timeout(60):
        with pytest.raises(Exception, match="model `nobody` does not exist"):
            await whole("vllm:nobody").ainvoke(patients[0])


async def test_a_doctor_that_is_not_served_is_an_opinion_that_says_so(whole, patients):
    async with asyncio.timeout(60):
        result = await whole("vllm:base", specialists=["vllm:nobody", "vllm:base"]).ainvoke(patients[0])
    missing, heard = result["opinions"]
    assert "model `nobody` does not exist" in missing["error"]
    assert heard["error"] is None
    assert result["decision"]["answer"] in patients[0]["options"]


def test_a_graph_works_in_one_event_loop_after_another(whole, patients):
    """As `asyncio.run` in a script, twice; training does it too."""
    graph = whole("vllm:base")
    first, second = (asyncio.run(graph.ainvoke(patients[0])) for _ in range(2))
    assert told(first) == told(second)
