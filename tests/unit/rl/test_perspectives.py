"""Guideline-based advantages: what they come to, and what leaves them as they are."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trl.trainer.utils import nanstd

from rl.guidelines import PERSPECTIVES, read_guideline
from rl.perspectives import TINY, across, checks_of, from_each
from rl.trainer import ConsultationTrainer

REWARDS = st.integers(1, 3).flatmap(
    lambda cases: st.integers(1, 4).flatmap(
        lambda p: st.integers(2, 5).flatmap(
            lambda g: st.lists(
                st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.25]), min_size=cases * p * g, max_size=cases * p * g
            ).map(lambda values: torch.tensor(values, dtype=torch.float64).view(cases, p, g))
        )
    )
)


def grpo(rewards: torch.Tensor, scale: bool = True) -> torch.Tensor:
    """GRPO's advantage in each group, (groups, G), as TRL writes it."""
    gained = rewards - rewards.mean(1, keepdim=True)
    return gained / (rewards.std(1, keepdim=True) + 1e-4) if scale else gained


def gba(rewards: torch.Tensor, weight: float, scale: bool = True) -> torch.Tensor:
    """The whole advantage, (cases, P, G): within as TRL's groups have it, and across."""
    within = grpo(rewards.flatten(0, 1), scale).view(rewards.shape)
    return (1 - weight) * within + weight * across(rewards, scale)


def test_by_hand():
    """Two perspectives of two completions. Rewards 1 and 3, and 5 and 7: the mean is 4, the sum of squares around it
    9 + 1 + 1 + 9 = 20, the variance 20 / 3. Within, both have the mean in the middle and the variance 2."""
    rewards = torch.tensor([[[1.0, 3.0], [5.0, 7.0]]], dtype=torch.float64)
    over_all = (20 / 3) ** 0.5 + TINY
    assert across(rewards).flatten().tolist() == pytest.approx(
        [-3 / over_all, -1 / over_all, 1 / over_all, 3 / over_all]
    )
    assert across(rewards, scale=False).flatten().tolist() == [-3, -1, 1, 3]
    inside = 1 / (2**0.5 + TINY)
    half = gba(rewards, 0.5).flatten().tolist()
    assert half[0] == pytest.approx(0.5 * -inside + 0.5 * -3 / over_all)
    assert half[1] == pytest.approx(0.5 * inside + 0.5 * -1 / over_all)


@given(REWARDS, st.floats(0, 1), st.booleans())
def test_with_one_perspective_it_is_grpo(rewards, weight, scale):
    rewards = rewards[:, :1]
    torch.testing.assert_close(gba(rewards, weight, scale)[:, 0], grpo(rewards[:, 0], scale))


@given(REWARDS, st.floats(0, 1), st.booleans())
def test_the_advantages_of_a_case_add_up_to_zero(rewards, weight, scale):
    sums = gba(rewards, weight, scale).flatten(1).sum(1)
    torch.testing.assert_close(sums, torch.zeros_like(sums), atol=1e-9, rtol=0)


@given(REWARDS, st.floats(0, 1), st.sampled_from([-2.0, 0.25, 7.0]), st.booleans())
def test_what_is_added_to_all_rewards_does_not_matter(rewards, weight, shift, scale):
    torch.testing.assert_close(gba(rewards + shift, weight, scale), gba(rewards, weight, scale), atol=1e-8, rtol=0)


@given(REWARDS, st.floats(0, 1), st.sampled_from([0.25, 2.0, 10.0]))
def test_nor_what_they_are_multiplied_by(rewards, weight, factor):
    """But for the 1e-4 beside a standard deviation, which is 0 here or at least 0.025: a part in 250 of a term, which
    is at most the root of the number of completions."""
    most = rewards[0].numel() ** 0.5 / 250
    torch.testing.assert_close(gba(rewards * factor, weight), gba(rewards, weight), atol=most, rtol=0)
    torch.testing.assert_close(gba(rewards * factor, weight, False), factor * gba(rewards, weight, False))


@given(REWARDS)
def test_within_alone_a_perspective_with_easier_checks_has_no_advantage(rewards):
    easier = rewards.clone()
    easier[:, 0] += 3
    torch.testing.assert_close(gba(easier, 0.0), gba(rewards, 0.0), atol=1e-8, rtol=0)


@given(REWARDS)
def test_across_a_perspective_that_does_better_is_made_likelier(rewards):
    if rewards.shape[1] > 1:
        better = rewards.clone()
        better[:, 0] += 3
        assert (across(better)[:, 0].sum(1) > 0).all()


def test_what_cannot_be_graded_has_none():
    rewards = torch.tensor([[[1.0, torch.nan], [0.0, 1.0]], [[torch.nan, torch.nan], [torch.nan, torch.nan]]])
    found = across(rewards)
    assert not found.isnan().any()
    assert found[0, 0, 1] == 0
    assert (found[1] == 0).all()
    assert found[0].sum().item() == pytest.approx(0, abs=1e-6)


def test_the_deviation_is_trls():
    rewards = torch.rand(5, 1, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(nanstd(rewards.flatten(1), dim=1), rewards.flatten(1).std(1))


def test_every_prompt_comes_once_from_each(trace):
    prompts = from_each([trace(case="a"), trace(case="b")], PERSPECTIVES[:2])
    assert [(one.case, one.perspective) for one in prompts] == [
        ("a", "differential"),
        ("a", "intuitive"),
        ("b", "differential"),
        ("b", "intuitive"),
    ]


def test_the_share_of_the_checks(trace):
    checks = checks_of(read_guideline())
    said = trace(
        options=["cyst", "scar"],
        text="<think>A cyst would be round, which speaks for it; a scar is unlikely.</think><answer>cyst</answer>",
    )
    assert checks(dataclasses.replace(said, perspective="differential")) == 1.0
    assert checks(dataclasses.replace(said, perspective="bayesian")) < 1.0
    assert checks(said) is None
    assert checks(dataclasses.replace(said, perspective="bayesian", text=None)) is None
    silent = dataclasses.replace(said, perspective="differential", text="<think></think><answer>cyst</answer>")
    assert checks(silent) == 0.0


@pytest.mark.parametrize("scale", ["group", "none"])
def test_each_process_takes_its_own_part(scale):
    """Two cases, each from two perspectives, twice; either case's completions are another process's."""
    rewards = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, float("nan")], [0.5, 1.0]])  # (groups, G), of all processes
    within = torch.tensor([[0.7, -0.7], [0.0, 0.0], [0.0, 0.0], [-0.7, 0.7]])
    expected = 0.5 * within + 0.5 * across(rewards.view(2, 2, 2), scale != "none").view(4, 2)
    for rank in (0, 1):
        trainer = SimpleNamespace(
            environment=SimpleNamespace(perspectives=2, across=0.5),
            accelerator=SimpleNamespace(process_index=rank),
            num_generations=2,
            scale_rewards=scale,
        )
        mine = slice(2 * rank, 2 * rank + 2)
        found = ConsultationTrainer._stratified(trainer, within[mine].flatten(), rewards)
        torch.testing.assert_close(found, expected[mine].flatten())
    case = torch.tensor([0.0, 0.5, 1.0])  # what of the second case could be graded
    gained = (1.0 - case.mean()) / (case.std() + 1e-4 if scale != "none" else 1.0)
    assert found[-1].item() == pytest.approx(0.35 + 0.5 * gained.item(), abs=1e-5)
    assert found[1].item() == 0.0, "nothing is known of what could not be graded"
