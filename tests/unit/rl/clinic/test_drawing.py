"""What is drawn: seven looks, findings that can be seen, and noise that leaves nothing of them."""

import itertools

import numpy as np
import pytest

from mmedagent_graph.prompts import SPECIALTIES
from rl.clinic.drawing import FINDINGS, LOOKS, SIZE, draw

looks = pytest.mark.parametrize("specialty", LOOKS)


def pixels(specialty, finding, clear, seed):
    return np.asarray(draw(specialty, finding, clear, np.random.default_rng(seed)), float)


def tint(specialty, clear):
    """The mean colour of images without a finding."""
    return np.mean([pixels(specialty, "normal", clear, seed) for seed in range(6)], axis=(0, 1, 2))


@pytest.mark.parametrize(("clear", "apart"), [(True, 8), (False, 4)])
def test_every_specialty_has_its_look_and_noise_leaves_its_tint(clear, apart):
    """Radiographs and ultrasound are the closest; a blind image's mean varies by less than 4 in a channel."""
    assert list(LOOKS) == list(SPECIALTIES)
    tints = {name: tint(name, clear) for name in LOOKS}
    for a, b in itertools.combinations(LOOKS, 2):
        assert np.abs(tints[a] - tints[b]).max() > apart, (a, b)


@looks
def test_a_seed_makes_the_pixels(specialty):
    for finding, clear in itertools.product(FINDINGS, (True, False)):
        image = draw(specialty, finding, clear, np.random.default_rng(5))
        assert (image.mode, image.size) == ("RGB", (SIZE, SIZE))
        assert (np.asarray(image, float) == pixels(specialty, finding, clear, 5)).all()
        assert (np.asarray(image, float) != pixels(specialty, finding, clear, 6)).any()


@looks
def test_a_visible_finding_differs_from_every_other(specialty):
    """By over 2 % of the pixels, and by more than the noise (standard deviation 6) can."""
    for seed in range(3):
        drawn = {finding: pixels(specialty, finding, True, seed) for finding in FINDINGS}
        for a, b in itertools.combinations(FINDINGS, 2):
            other = (np.abs(drawn[a] - drawn[b]).max(axis=2) > 50).mean()
            assert other > 0.02, (a, b, seed, other)


def away_from(one, other):
    """The mean brightness of the middle, where findings lie: difference of two groups in standard errors."""
    middle = slice(SIZE // 4, 3 * SIZE // 4)
    a, b = (np.array([image[middle, middle].mean(axis=(0, 1)) for image in images]) for images in (one, other))
    error = np.sqrt(a.var(axis=0, ddof=1) / len(a) + b.var(axis=0, ddof=1) / len(b))
    return np.abs(a.mean(axis=0) - b.mean(axis=0)) / error


@looks
def test_a_blind_image_carries_no_finding(specialty):
    n = 16
    images = {
        (finding, clear): [pixels(specialty, finding, clear, [clear, i, n]) for i in range(k * n, (k + 1) * n)]
        for k, finding in enumerate(FINDINGS)
        for clear in (True, False)
    }
    for finding in FINDINGS[:-1]:
        assert away_from(images[finding, True], images["normal", True]).max() > 8
    for a, b in itertools.combinations(FINDINGS, 2):
        assert away_from(images[a, False], images[b, False]).max() < 5, (a, b)


@looks
def test_noise_covers_the_very_same_image_whatever_was_beneath(specialty):
    """A scar draws one number more (its angle), so it is left to the statistics above."""
    blind = [pixels(specialty, finding, False, 7) for finding in ("nodule", "cyst", "normal")]
    assert (blind[0] == blind[1]).all()
    assert (blind[0] == blind[2]).all()


@looks
def test_a_faint_finding_is_the_same_mark_with_less_ink(specialty):
    def drawn(finding, contrast):
        return np.asarray(draw(specialty, finding, True, np.random.default_rng(5), contrast), float)

    for finding in set(FINDINGS) - {"normal"}:
        whole, faint, none = (drawn(finding, contrast) for contrast in (1.0, 0.35, 0.0))
        inked, faded = np.abs(whole - none).mean(), np.abs(faint - none).mean()
        assert 0.2 * inked < faded < 0.5 * inked, finding
        assert not (np.abs(faint - none) > 2).any(where=np.abs(whole - none) <= 1), "nowhere else"
    assert (drawn("normal", 0.35) == drawn("normal", 1.0)).all()
