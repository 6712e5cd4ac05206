"""Tiers without a key: the policy is asked alone, and its answers stand in for the key that nobody looks at."""

import dataclasses

import pytest
from langchain_core.messages import AIMessage

from rl.policy import PolicyChatModel
from rl.rollout import Rollout
from rl.unlabeled import SAMPLES, stratify


class Fake(PolicyChatModel):
    """Says of each question, in turn, what it is told to."""

    says: dict = {}  # noqa: RUF012 (a pydantic field)
    asked: list = []  # noqa: RUF012

    def answer(self, prompts):
        self.asked.append((self.temperature, self.max_tokens, [prompt[1].text for prompt in prompts]))
        return [AIMessage(self._next(prompt[1].text)) for prompt in prompts]

    def _next(self, prompt):
        question = next(name for name in self.says if f"Question: {name}\n" in prompt)
        answers = self.says[question]
        answers.append(answers.pop(0))
        return f"<think></think><answer>{answers[-1]}</answer>"


@pytest.fixture
def rollout(images):
    return Rollout(specialists=lambda state: {}, images=images)


def fake(max_batch=64, **says):
    return Fake(model_name="fake", model=None, processor=None, says=says, asked=[], max_batch=max_batch)


def test_each_case_is_sampled_alone_and_set_against_its_opinions(trace, opinions, rollout):
    traces = [
        trace(question="sure", opinions=opinions("cyst", "cyst", "cyst"), answer="scar", tier="hard"),
        trace(question="contradicted", opinions=opinions("scar", "scar", "scar"), answer="scar", tier="easy"),
        trace(question="unsure", opinions=opinions("cyst", "cyst", "cyst"), answer="cyst", tier="easy"),
        trace(question="unreadable", opinions=opinions("cyst", "cyst", "cyst"), answer=None, tier=None),
        trace(question="unheard", opinions=[], answer="cyst", tier="hard"),
    ]
    policy = fake(sure=["cyst"], contradicted=["B"], unsure=["cyst", "scar"], unreadable=["A or B"], unheard=["cyst"])
    before = [dataclasses.replace(one, tier=None) for one in traces]
    stratify(traces, policy, rollout, max_tokens=5)
    assert [one.tier for one in traces] == ["easy", "hard", "medium", "hard", "medium"]
    assert [dataclasses.replace(one, tier=None) for one in traces] == before  # nothing else is touched
    asked = [prompt for *_, prompts in policy.asked for prompt in prompts]
    assert len(asked) == SAMPLES * len(traces)
    assert all("Doctor" not in prompt and prompt.endswith("no opinion") for prompt in asked)  # nobody was heard
    assert {(temperature, room) for temperature, room, _ in policy.asked} == {(1.0, 5)}


def test_batches_hold_whole_cases_and_answers_go_to_their_own(trace, opinions, rollout):
    names = [f"q{i}" for i in range(7)]
    right = ["cyst" if i % 3 else "scar" for i in range(7)]
    traces = [trace(question=name, opinions=opinions("cyst")) for name in names]
    policy = fake(max_batch=2 * SAMPLES + 3, **{name: [said] for name, said in zip(names, right, strict=True)})
    stratify(traces, policy, rollout, None)
    assert [len(prompts) for *_, prompts in policy.asked] == [2 * SAMPLES] * 3 + [SAMPLES]
    assert [one.tier for one in traces] == ["easy" if said == "cyst" else "hard" for said in right]


def test_a_policy_that_takes_few_at_a_time_takes_one_case(trace, opinions, rollout):
    policy = fake(max_batch=1, q=["cyst"])
    stratify([trace(question="q", opinions=opinions("cyst"))] * 2, policy, rollout, None)
    assert [len(prompts) for *_, prompts in policy.asked] == [SAMPLES] * 2
