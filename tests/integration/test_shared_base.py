"""Adapters beside their base in one process: in memory once, and each answers as it would alone."""

import asyncio
import gc
import shutil
import weakref

import pytest
import torch
from peft import PeftModel

from rl.chat import tokenize
from rl.models import BASE, load_model
from rl.policy import GREEDY, PolicyChatModel, _answers, _work, forget_policies, load_policy
from tests.integration.random_adapters import random_adapter

ALL_LINEAR = r".*\.(qkv|[qkvo]_proj|gate_proj|up_proj|down_proj)"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three of the language model, and one that works in the vision tower as well."""
    out = tmp_path_factory.mktemp("adapters")
    plain = [random_adapter(out / str(seed), seed) for seed in range(3)]
    return [*plain, random_adapter(out / "eyes", 3, target_modules=ALL_LINEAR)]


@pytest.fixture(scope="module")
def prompts(rollout, upstream):
    return [rollout.prompt(trace) for trace in upstream[:12]]


@pytest.fixture(scope="module")
def alone(folders, prompts, policy):
    """Token ids and log-probabilities of each adapter's answers, loaded with nothing beside it; the base's last."""

    def answer(model):
        inputs = tokenize(policy.processor, prompts)
        with torch.inference_mode():
            told = model.generate(
                **inputs, max_new_tokens=24, output_logits=True, return_dict_in_generate=True, **GREEDY
            )
        return rows(told, inputs)

    adapted = [PeftModel.from_pretrained(load_model(str(BASE), torch.float32), folder).eval() for folder in folders]
    return [answer(model) for model in (*adapted, load_model(str(BASE), torch.float32).eval())]


def rows(told, inputs):
    """Of each row its tokens up to the end, and their log-probabilities."""
    width, end, pad = inputs["input_ids"].shape[1], 2, 0
    logprobs = torch.stack(told.logits, 1).log_softmax(-1)
    found = []
    for ids, row in zip(told.sequences[:, width:], logprobs, strict=True):
        said = [token for token in ids.tolist() if token != pad]
        assert end not in said[:-1]
        found.append((said, row[range(len(said)), said]))
    return found


@pytest.fixture(params=["with eyes", "plain"])
def who(request):
    """Which of them are beside the base, the base among them: with an adapter of the vision tower, or without."""
    return [0, 1, 2, 3, 4] if request.param == "with eyes" else [0, 1, 2, 4]


@pytest.fixture
def policies(folders, who):
    forget_policies()
    yield [load_policy(str([*folders, BASE][i])) for i in who]
    forget_policies()


@pytest.fixture
def expected(alone, who):
    return [alone[i] for i in who]


def ids(messages):
    return [message.response_metadata["token_ids"] for message in messages]


def said(found):
    return [tokens for tokens, _ in found]


def test_adapters_of_one_base_are_beside_it(policies):
    assert len({id(policy.model) for policy in policies}) == 1
    assert len({id(policy._batcher) for policy in policies}) == 1
    assert len({policy.adapter for policy in policies}) == len(policies)


def test_each_answers_as_alone_whoever_was_asked_before(policies, prompts, expected):
    assert len({str(said(found)) for found in expected}) == len(policies)  # they differ, or this could not fail
    pairs = list(zip(policies, expected, strict=True))
    for policy, found in [*pairs, *pairs[::-1]]:
        assert ids(policy.answer(prompts)) == said(found)


async def test_all_at_once_they_answer_as_alone(policies, prompts, expected):
    calls = [policy.ainvoke(prompt) for prompt in prompts for policy in policies]
    together = ids(await asyncio.gather(*calls))
    assert together == [said(found)[i] for i in range(len(prompts)) for found in expected]


@pytest.mark.parametrize("who", [[0, 1, 2, 4]])
def test_one_batch_of_several_adapters_has_the_log_probabilities_of_each_alone(
    policies, prompts, expected, monkeypatch
):
    asked = [(row, who) for row in range(len(prompts)) for who in range(len(policies))]
    kept = {}
    generate = PeftModel.generate

    def keeping(self, *given, **options):
        kept["told"] = generate(self, *given, **options, output_logits=True, return_dict_in_generate=True)
        kept["inputs"] = options
        return kept["told"].sequences

    monkeypatch.setattr(PeftModel, "generate", keeping)
    _answers([policies[who] for _, who in asked], [prompts[row] for row, _ in asked])
    for (row, who), (tokens, logprobs) in zip(asked, rows(kept["told"], kept["inputs"]), strict=True):
        known_tokens, known = expected[who][row]
        assert tokens == known_tokens
        torch.testing.assert_close(logprobs, known, atol=1e-5, rtol=0)


def test_the_base_is_the_base_however_it_is_asked(policies, prompts):
    """Also by a forward pass of one's own, as the clinic's ideal attending does."""
    base = policies[-1]
    policies[0].answer(prompts[:1])
    inputs = tokenize(base.processor, prompts[:2])
    with torch.inference_mode():
        alone = load_model(str(BASE), torch.float32).eval()(**inputs).logits
        torch.testing.assert_close(base.model(**inputs).logits, alone)


async def test_answers_say_who_gave_them(policies, prompts, folders, who):
    messages = await asyncio.gather(*(policy.ainvoke(prompts[0]) for policy in policies))
    named = [str([*folders, BASE][i]) for i in who]
    assert [message.response_metadata["model_name"] for message in messages] == named


def test_frozen_answers_tell_adapters_apart(policies):
    assert len({str(policy.asdict()) for policy in policies}) == len(policies)


async def test_temperatures_and_limits_are_kept_apart(policies, prompts, expected):
    short = [policy.model_copy(update={"max_tokens": 2}) for policy in policies]
    mixed = [model for pair in zip(policies, short, strict=True) for model in pair]
    together = ids(await asyncio.gather(*(model.ainvoke(prompts[0]) for model in mixed)))
    assert together[0::2] == [said(found)[0] for found in expected]
    assert together[1::2] == [said(found)[0][:2] for found in expected]


@pytest.mark.parametrize(("who", "passes"), [([0, 1, 2, 4], [4]), ([0, 3, 4], [1, 1, 1])])
def test_a_batch_of_several_adapters_is_one_pass_unless_one_has_eyes_of_its_own(policies, prompts, passes, monkeypatch):
    sizes = []
    monkeypatch.setattr("rl.policy._answers", lambda who, asked: sizes.append(len(who)) or ["said"] * len(who))
    _work([(policy, prompts[0]) for policy in policies])
    assert sizes == passes


def test_an_adapter_that_does_not_fit_leaves_the_others_as_they_are(policies, prompts, expected, tmp_path):
    wrong = random_adapter(tmp_path / "wrong", 9, r=4)
    config = wrong / "adapter_config.json"
    config.write_text(config.read_text().replace('"r": 4', '"r": 16'))
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_policy(str(wrong))
    for policy, found in zip(policies, expected, strict=True):
        assert ids(policy.answer(prompts[:4])) == said(found)[:4]


def test_nor_the_first_that_comes_after_it(folders, prompts, tmp_path):
    """What peft has left of it in the base is in nobody's way."""
    wrong = random_adapter(tmp_path / "wrong", 9, r=4)
    config = wrong / "adapter_config.json"
    good = str(random_adapter(tmp_path / "good", 8, target_modules=r".*\.language_model\..*\.q_proj"))
    forget_policies()
    alone = ids(load_policy(good).answer(prompts[:4]))
    config.write_text(config.read_text().replace('"r": 4', '"r": 16'))
    forget_policies()
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_policy(str(wrong))
    assert ids(load_policy(good).answer(prompts[:4])) == alone
    forget_policies()


def test_an_adapter_of_an_adapter_is_refused(folders, tmp_path):
    wrong = shutil.copytree(folders[0], tmp_path / "wrong")
    config = wrong / "adapter_config.json"
    config.write_text(config.read_text().replace(str(BASE), str(folders[1])))
    with pytest.raises(ValueError, match=r"is an adapter of an adapter, .*; merge that into its base first"):
        load_policy(str(wrong))


async def test_forgotten_they_are_all_gone(folders, prompts):
    forget_policies()
    policies: list[PolicyChatModel] = [load_policy(str(folder)) for folder in folders]
    await asyncio.gather(*(policy.ainvoke(prompts[0]) for policy in policies))
    model = weakref.ref(policies[0].model)
    del policies
    forget_policies()
    gc.collect()
    assert model() is None
