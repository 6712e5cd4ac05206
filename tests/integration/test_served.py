"""The graph on a real server of OpenAI's protocol: the clinic's base model behind vLLM's CPU build, images included.

`vllm:clinic` and `clinic:base` both decode greedily, so that they compare word for word.
"""

import asyncio
import json
import os

import pytest
from langchain_core.messages import AIMessageChunk
from langchain_openai import ChatOpenAI
from openai import DefaultHttpxClient

from mmedagent_graph import build_graph
from rl.clinic.cases import QUESTION
from rl.clinic.drawing import FINDINGS
from rl.models import BASE
from tests.integration.servers.vllm_server import served

AT_ONCE = 32
pytestmark = pytest.mark.timeout(900)  # the first of them starts the server
FIELDS = "usage", "referral", "opinions", "decision"


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder  # the workers share the one above theirs
    with served(folder / "vllm", "--model", str(BASE), "--served-model-name", "clinic") as server:
        yield server


@pytest.fixture(autouse=True)
def url(server, monkeypatch):
    monkeypatch.setenv("VLLM_BASE_URL", server.url)
    before = server.log.stat().st_size
    yield server.url
    print(server.log.read_bytes()[before:].decode(errors="replace"))  # pytest shows it where the test failed


@pytest.fixture
def hospital(images):
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


async def test_consultations_at_once_end_as_they_do_in_process(hospital, patients):
    """Word for word, and as many tokens. That can be asked for: over the first 64 of these cases the attending's best
    token leads the second by a logit of 0.29 or more, and the log-probabilities of the two sides differ by 2e-5."""
    there = await hospital("vllm:clinic").abatch(patients, {"max_concurrency": AT_ONCE})
    here = await hospital("clinic:base").abatch(patients, {"max_concurrency": AT_ONCE})
    for field in FIELDS:
        assert [result[field] for result in there] == [result[field] for result in here]
    assert {result["decision"]["answer"] for result in there} == set(FINDINGS)  # and not all the same, nor unreadable


def test_the_sync_path_ends_the_same(hospital, patients):
    there, here = hospital("vllm:clinic"), hospital("clinic:base")
    for patient in patients[:4]:
        assert told(there.invoke(patient)) == told(here.invoke(patient))


def test_server_and_policy_read_and_write_the_same_tokens(url, policy, rollout, upstream):
    """ChatOpenAI drops the token ids that vLLM returns, so they are read off the wire."""
    bodies = []
    model = ChatOpenAI(
        model="clinic",
        base_url=url,
        api_key="none",
        use_responses_api=False,
        extra_body={"return_token_ids": True},
        http_client=DefaultHttpxClient(event_hooks={"response": [lambda response: bodies.append(response.read())]}),
    )
    for trace in upstream[:8]:
        prompt = rollout.prompt(trace)
        there, here = model.invoke(prompt), policy.invoke(prompt)
        reply = json.loads(bodies.pop())
        assert reply["prompt_token_ids"] == here.response_metadata["prompt_token_ids"]
        assert reply["choices"][0]["token_ids"] == here.response_metadata["token_ids"]
        assert there.text == here.text


def test_another_image_is_another_answer(hospital, cases):
    """Everything else is the same, and no doctor has an opinion: what it answers, it has seen."""
    plain = {case.key.finding: case.images for case in reversed(cases) if case.key.clear}  # the first of each finding
    graph = hospital("vllm:clinic", specialists=lambda case: {"answer": None})
    shown = [{"question": QUESTION, "options": FINDINGS, "images": plain[finding]} for finding in FINDINGS]
    assert [graph.invoke(case)["decision"]["answer"] for case in shown] == list(FINDINGS)


async def test_tokens_are_streamed_with_the_name_of_their_node(hospital, patients):
    """In more pieces than messages: that each token is one of its own cannot be asked of a busy server."""
    pieces = 0
    for patient in patients[:4]:
        said = {"triage": "", "specialist": "", "attending": ""}
        async for chunk, about in hospital("vllm:clinic").astream(patient, stream_mode="messages"):
            if isinstance(chunk, AIMessageChunk) and chunk.text:
                said[about["langgraph_node"]] += chunk.text
                pieces += 1
        here = await hospital("clinic:base").ainvoke(patient)
        assert said["triage"].endswith(f"<answer>{here['referral']['specialty']}</answer>")
        assert said["specialist"].endswith(f"<answer>{here['opinions'][0]['answer']}</answer>")
        assert said["attending"].endswith(f"<answer>{here['decision']['answer']}</answer>")
    assert pieces > 4 * len(said)


async def test_streamed_tokens_are_counted_as_well(hospital, patients):
    graph = hospital("vllm:clinic")
    async for mode, part in graph.astream(patients[0], stream_mode=["messages", "values"]):
        if mode == "values":
            streamed = part
    assert streamed["usage"] == (await graph.ainvoke(patients[0]))["usage"]


async def test_a_model_that_is_not_served_is_named_at_once(hospital, patients):
    async with asyncio.timeout(60):
        with pytest.raises(Exception, match="model `nobody` does not exist"):
            await hospital("vllm:nobody").ainvoke(patients[0])


async def test_a_doctor_that_is_not_served_is_an_opinion_that_says_so(hospital, patients):
    async with asyncio.timeout(60):
        result = await hospital("vllm:clinic", specialists=["vllm:nobody", "vllm:clinic"]).ainvoke(patients[0])
    missing, heard = result["opinions"]
    assert "model `nobody` does not exist" in missing["error"]
    assert heard["error"] is None
    assert result["decision"]["answer"] in patients[0]["options"]


def test_a_graph_works_in_one_event_loop_after_another(hospital, patients):
    """As `asyncio.run` in a script, twice; training does it too."""
    graph = hospital("vllm:clinic")
    first, second = (asyncio.run(graph.ainvoke(patients[0])) for _ in range(2))
    assert told(first) == told(second)
