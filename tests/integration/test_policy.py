"""The policy as a chat model: batching, token ids, and its place in the graph."""

import asyncio
import gc
import shutil
import subprocess
import sys
import weakref

import pytest
from langchain_core.messages import HumanMessage

from mmedagent_graph import build_graph
from rl.models import BASE
from rl.policy import PolicyChatModel, forget_policies, load_policy


@pytest.fixture
def prompts(rollout, upstream):
    return [rollout.prompt(trace) for trace in upstream[:24]]


async def test_concurrent_calls_are_batched_and_answered_as_alone(policy, prompts, monkeypatch):
    alone = [policy.answer([prompt])[0].text for prompt in prompts]
    sizes = []
    answer = PolicyChatModel.answer

    def counting(self, batch):
        sizes.append(len(batch))
        return answer(self, batch)

    monkeypatch.setattr(PolicyChatModel, "answer", counting)
    together = await asyncio.gather(*(policy.ainvoke(prompt) for prompt in prompts))
    assert [message.text for message in together] == alone
    assert sum(sizes) == len(prompts)
    assert len(sizes) < len(prompts) / 2


def test_token_ids_are_what_the_text_came_from(policy, prompts):
    message = policy.invoke(prompts[0])
    meta = message.response_metadata
    assert policy.processor.tokenizer.decode(meta["token_ids"], skip_special_tokens=True) == message.text
    assert meta["finish_reason"] == "stop"
    assert meta["token_ids"][-1] == policy.model.generation_config.eos_token_id
    usage = message.usage_metadata
    assert (usage["input_tokens"], usage["output_tokens"]) == (len(meta["prompt_token_ids"]), len(meta["token_ids"]))


def test_a_limit_on_tokens_is_reported(policy, prompts):
    message = policy.model_copy(update={"max_tokens": 2}).invoke(prompts[0])
    assert message.response_metadata["finish_reason"] == "length"
    assert len(message.response_metadata["token_ids"]) == 2


async def test_a_copy_that_samples_shares_the_queue_but_not_the_temperature(policy, prompts):
    hot = policy.model_copy(update={"temperature": 50.0})
    cold = [message.text for message in policy.answer(prompts)]
    calls = [model.ainvoke(prompt) for prompt in prompts for model in (policy, hot)]
    mixed = [message.text for message in await asyncio.gather(*calls)]
    assert mixed[0::2] == cold
    assert mixed[1::2] != cold


async def test_a_forgotten_policy_is_gone(prompts, tmp_path):
    """Or on a GPU it would take the room of what is trained."""
    shutil.copytree(BASE, tmp_path / "model")
    policy = load_policy(str(tmp_path / "model"))
    await policy.ainvoke(prompts[0])
    model = weakref.ref(policy.model)
    del policy
    forget_policies()
    gc.collect()
    assert model() is None


def test_text_without_an_image_works(policy):
    assert isinstance(policy.invoke([HumanMessage("Is this a test?")]).text, str)


def test_a_missing_model_is_named():
    with pytest.raises(ValueError, match="model: cannot load '/no/such/folder'"):
        load_policy("transformers:/no/such/folder")


def test_model_strings_reach_the_policy_through_entry_points(cases, images):
    """`clinic:` works in build_graph as installed, with nothing of rl imported by hand."""
    doctors = ["clinic:doctor-1", "clinic:doctor-2", "clinic:doctor-3"]
    graph = build_graph(triage="clinic:base", specialists=doctors, attending="clinic:base", images=images)
    case = next(case for case in cases if case.options)
    result = graph.invoke({"question": case.question, "options": case.options, "images": case.images})
    assert result["decision"]["answer"] in case.options
    assert [opinion["error"] for opinion in result["opinions"]] == [None] * 3
    assert result["usage"]["attending"]["calls"] == 1
    assert result["usage"]["attending"]["input_tokens"] > 20


def test_one_model_can_be_the_whole_hospital(cases, images):
    graph = build_graph(triage="clinic:base", specialists="clinic:base", attending="clinic:base", images=images)
    result = graph.invoke({"question": cases[0].question, "options": cases[0].options, "images": cases[0].images})
    assert len(result["opinions"]) == 3


def test_the_graph_package_alone_never_loads_torch():
    code = "import sys, mmedagent_graph; assert not {'torch', 'transformers', 'rl'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
