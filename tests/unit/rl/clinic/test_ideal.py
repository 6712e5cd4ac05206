"""The ideal attending: a likelihood that is a probability, that simulation confirms, and that Bayes' rule uses."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from rl.clinic.cases import DIFFICULTIES, ClinicCase, Key
from rl.clinic.drawing import FINDINGS
from rl.clinic.ideal import ideal_answers, opinions_likelihood

TRIPLES = list(itertools.product(FINDINGS, repeat=3))
CASE = ClinicCase("c", "What?", "cyst", list(FINDINGS), [], None, "Surgeon")
who = pytest.mark.parametrize("specialty", ["Surgeon", "Radiologist"], ids=["insider", "outsider"])


@who
@pytest.mark.parametrize("finding", FINDINGS)
def test_the_likelihood_sums_to_one(opinions, specialty, finding):
    chances = [opinions_likelihood(CASE, opinions(*said, specialty=specialty), finding) for said in TRIPLES]
    assert sum(chances) == pytest.approx(1)
    assert min(chances) > 0


@who
def test_simulation_confirms_the_likelihood(opinions, specialty):
    rng, n = np.random.default_rng(0), 10_000
    lures = [finding for finding in FINDINGS if finding != "cyst"]
    drawn = rng.choice(list(DIFFICULTIES), n, p=list(DIFFICULTIES.values())), rng.choice(lures, n)
    keys = [Key("cyst", "Surgeon", str(d), str(lure), True, i) for i, (d, lure) in enumerate(zip(*drawn, strict=True))]
    said = Counter(tuple(key.seen_by(doctor, specialty) for doctor in (1, 2, 3)) for key in keys)
    for triple in TRIPLES:
        p = opinions_likelihood(CASE, opinions(*triple, specialty=specialty), "cyst")
        assert abs(said[triple] - n * p) < 4.5 * math.sqrt(n * p * (1 - p)) + 3, triple


@who
def test_an_opinion_that_is_missing_is_summed_over(opinions, specialty):
    for heard in (("cyst", "scar"), ("nodule", "nodule")):
        known = opinions_likelihood(CASE, opinions(*heard, None, specialty=specialty), "cyst")
        over = [opinions_likelihood(CASE, opinions(*heard, f, specialty=specialty), "cyst") for f in FINDINGS]
        assert known == pytest.approx(sum(over))
    assert opinions_likelihood(CASE, [], "cyst") == pytest.approx(1)


def test_insiders_weigh_more(opinions):
    """Three who agree on the truth are likelier to be of the right specialty; three on a lure, of another."""
    for said, side in (("cyst", 1), ("scar", -1)):
        inside, outside = (
            opinions_likelihood(CASE, opinions(said, said, said, specialty=s), "cyst") for s in ("Surgeon", "Surgery")
        )
        assert (inside - outside) * side > 0


@pytest.fixture
def answer(monkeypatch, opinions, trace):
    """The ideal's answer to what it sees (chances of nodule, cyst, scar, normal) and hears."""

    def of(seen, *said, specialty="Surgeon"):
        monkeypatch.setattr("rl.clinic.ideal.see", lambda base, pictures, images: np.array([seen] * len(pictures)))
        traces = [trace(opinions=opinions(*said, specialty=specialty))]
        return ideal_answers(None, [CASE], traces, None)[0]

    return of


CONSENSUS = ("nodule", "nodule", "nodule")


def test_it_follows_its_eyes_where_they_are_sharp(answer):
    assert answer([0.005, 0.985, 0.005, 0.005], *CONSENSUS) == "cyst"
    assert answer([0.01, 0.01, 0.01, 0.97], *CONSENSUS, specialty="Radiologist") == "normal"


def test_it_follows_the_consensus_where_they_are_not(answer):
    assert answer([0.25, 0.25, 0.25, 0.25], *CONSENSUS) == "nodule"
    assert answer([0.2, 0.4, 0.2, 0.2], *CONSENSUS) == "nodule"
    assert answer([0.24, 0.25, 0.26, 0.25], "scar", "cyst", "cyst") == "cyst"


def test_it_follows_its_eyes_where_nobody_is_heard(answer):
    for said in ((), (None, None, None)):
        assert answer([0.2, 0.2, 0.35, 0.25], *said) == "scar"


def test_the_eyes_overrule_the_consensus_at_the_ratio_of_bayes_rule(answer, opinions):
    """By hand: P(3 x nodule | nodule) is close to 0.5 * 0.97^3 + 0.3 * 0.5^3, P(... | cyst) to a third of the lured."""
    ratio = (0.5 * 0.97**3 + 0.3 * 0.5**3) / ((0.3 * 0.4**3 + 0.2 * (0.96 * 0.8) ** 3) / 3)
    heard = opinions(*CONSENSUS, specialty="Surgeon")
    exact = opinions_likelihood(CASE, heard, "nodule") / opinions_likelihood(CASE, heard, "cyst")
    assert exact == pytest.approx(ratio, rel=0.01)
    for factor, said in ((0.95, "nodule"), (1.05, "cyst")):
        assert answer([1, factor * exact, 0, 0], *CONSENSUS) == said


def test_each_case_gets_its_own_answer(monkeypatch, opinions, trace):
    seen = np.eye(4)[[2, 0, 3]]
    asked = []
    monkeypatch.setattr("rl.clinic.ideal.see", lambda base, pictures, images: asked.append(pictures) or seen)
    traces = [trace(images=[str(i)], opinions=opinions("cyst")) for i in range(3)]
    assert ideal_answers(None, [CASE] * 3, traces, None) == ["scar", "nodule", "normal"]
    assert asked == [[["0"], ["1"], ["2"]]]
