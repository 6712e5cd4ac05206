"""The entropy bonus by hand; what it does inside TRL is tested in `tests/integration`."""

import pytest
import torch

from rl.trainer import entropy_bonus, other_images

ENTROPIES = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
MASK = torch.tensor([[1, 1, 0], [1, 0, 0]])


def test_by_hand():
    # (0.1 * (1 + 2) + 0.5 * 4) / 3 tokens
    assert entropy_bonus(ENTROPIES, MASK, torch.tensor([0.1, 0.5])).item() == pytest.approx(2.3 / 3)


def test_with_the_same_gamma_everywhere_it_is_gamma_times_the_mean_token_entropy():
    bonus = entropy_bonus(ENTROPIES, MASK, torch.tensor([0.2, 0.2]))
    assert bonus.item() == pytest.approx(0.2 * ENTROPIES[MASK.bool()].mean().item())


def test_masked_tokens_do_not_count():
    other = ENTROPIES.masked_fill(MASK == 0, 100.0)
    gamma = torch.tensor([0.1, 0.5])
    assert entropy_bonus(other, MASK, gamma) == entropy_bonus(ENTROPIES, MASK, gamma)


def test_zero_gamma_gives_nothing_but_its_tokens_count():
    assert entropy_bonus(ENTROPIES, MASK, torch.zeros(2)).item() == 0
    assert entropy_bonus(ENTROPIES, MASK, torch.tensor([0.0, 1.0])).item() == pytest.approx(4 / 3)


def test_a_batch_without_tokens_gives_zero_and_not_nan():
    assert entropy_bonus(ENTROPIES, torch.zeros(2, 3), torch.ones(2)).item() == 0


def test_the_gradient_is_gamma_over_the_tokens():
    entropies = ENTROPIES.clone().requires_grad_()
    entropy_bonus(entropies, MASK, torch.tensor([0.3, 0.6])).backward()
    torch.testing.assert_close(entropies.grad, torch.tensor([[0.1, 0.1, 0.0], [0.2, 0.0, 0.0]]))


def test_other_images_are_those_of_other_prompts():
    pixels = torch.arange(12.0).view(6, 2)  # three images of two patches
    swapped = other_images(pixels, torch.tensor([[1, 1, 2]] * 3))
    assert torch.equal(swapped, pixels[[4, 5, 2, 3, 0, 1]])
    different = torch.tensor([[1, 1, 2], [1, 1, 4]])
    assert not other_images(pixels, different).any()
    assert not other_images(pixels[:2], torch.tensor([[1, 1, 2]])).any()  # there is no other
