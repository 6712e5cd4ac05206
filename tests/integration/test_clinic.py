"""The base checkpoint is what the clinic says it is, and can be made again."""

import asyncio
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from mmedagent_graph.nodes.triage import Triage
from mmedagent_graph.prompts import SPECIALTIES
from mmedagent_graph.state import TriageInput
from rl.clinic.build import KINDS, LESSONS, MIXED_UP, build
from rl.clinic.ideal import answers_believed, ideal_answers, see
from rl.cohort import HELD_OUT, TRAIN
from rl.held_out import by_tier, decide, decided
from rl.models import BASE

SIZE_LIMIT = 3_000_000


@pytest.fixture(scope="module")
def judged(rollout, upstream, policy):
    return asyncio.run(decide(rollout, upstream, policy, "base"))


def test_the_checkpoint_is_small_enough_to_ship():
    assert sum(file.stat().st_size for file in BASE.iterdir()) < SIZE_LIMIT


def test_the_base_sees(policy, upstream, images, rollout):
    """Without opinions it is right in 75 to 85 % of the cases: nearly always where the finding is plain."""
    alone = [trace.__class__(**{**vars(trace), "opinions": []}) for trace in upstream]
    traces = asyncio.run(decide(rollout, alone, policy, "alone"))
    figure = by_tier(traces, decided(traces))["overall"]
    assert figure["low"] < 0.85
    assert figure["high"] > 0.75
    assert 0.70 < figure["accuracy"] < 0.90


def test_the_base_conforms(judged):
    figures = by_tier(judged, decided(judged))
    assert figures["easy"]["accuracy"] > 0.95
    assert figures["hard"]["accuracy"] < 0.1


def test_the_base_keeps_the_format(judged):
    assert {trace.rewards["format"] for trace in judged} == {1.0}


def test_sampling_the_base_sometimes_dissents(policy, rollout, upstream):
    """Or hard cases would give eight equal wrong answers, and nothing to learn from."""
    hard = [trace for trace in upstream if trace.tier == "hard"][:16]
    hot = policy.model_copy(update={"temperature": 1.0})
    right = [
        trace.rewards["accuracy"] for _ in range(8) for trace in asyncio.run(decide(rollout, hard, hot, "sampled"))
    ]
    assert 0.03 < np.mean(right) < 0.5


def test_the_base_refers_at_chance(upstream):
    """What it believes is a permutation that happens to be right about one specialty of seven."""
    assert sorted(MIXED_UP) == sorted(MIXED_UP.values()) == sorted(SPECIALTIES)
    assert sum(specialty == reader for specialty, reader in MIXED_UP.items()) == 1
    referred = [trace.referral["specialty"] for trace in upstream]
    assert 1 / 14 < np.mean([said == trace.specialty for said, trace in zip(referred, upstream, strict=True)]) < 2 / 7
    assert np.mean([said == MIXED_UP[trace.specialty] for said, trace in zip(referred, upstream, strict=True)]) > 0.9


def test_the_base_sees_what_kind_of_image_it_is(upstream):
    """Or it could not learn who reads it."""
    assert np.mean([KINDS[trace.specialty] in trace.referral["reasoning"] for trace in upstream]) > 0.95


def test_sampling_the_base_refers_to_everyone(policy, upstream, images):
    """Whatever the image: a specialty that is never sampled could not be learned."""
    node = Triage(tuple(SPECIALTIES), images)
    for reader in SPECIALTIES:
        traces = [trace for trace in upstream if trace.specialty == reader]
        prompts = [node.render(TriageInput(**trace.fields())) for trace in traces]
        believed = answers_believed(policy, prompts, list(SPECIALTIES)).mean(0)
        shares = dict(zip(SPECIALTIES, believed, strict=True))
        assert min(shares.values()) > 0.02
        assert shares[MIXED_UP[reader]] < 0.7


def test_all_tiers_exist(upstream):
    tiers = [trace.tier for trace in upstream]
    assert all(tiers.count(tier) > len(tiers) * 0.1 for tier in ("easy", "medium", "hard"))


def test_the_ideal_is_a_ceiling(policy, cases, upstream, images, judged):
    answers = ideal_answers(policy, cases, upstream, images)
    ideal, base = by_tier(upstream, answers), by_tier(judged, decided(judged))
    assert ideal["overall"]["accuracy"] > base["overall"]["accuracy"] + 0.1
    assert ideal["easy"]["accuracy"] > 0.95


def test_the_posterior_is_sharp_where_the_finding_is_plain(policy, cases, upstream, images):
    posterior = see(policy, [trace.images for trace in upstream], images)
    np.testing.assert_allclose(posterior.sum(1), 1, atol=1e-9)
    clear = np.array([case.key.clear for case in cases])
    assert np.median(posterior[clear].max(1)) > 0.95
    assert np.median(posterior[~clear].max(1)) < 0.7


def test_the_draws_of_cases_do_not_overlap():
    assert max(HELD_OUT, TRAIN) + 1000 < LESSONS
    assert abs(HELD_OUT - TRAIN) >= 1000


def test_the_same_seed_builds_the_same_checkpoint(tmp_path: Path):
    """The lessons shortened: byte for byte the same twice, and another seed another model."""
    digests = []
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        build(tmp_path / name, seed=seed, scale=0.05, n_cases=80)
        files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (tmp_path / name).iterdir()}
        digests.append(files)
    assert digests[0] == digests[1]
    assert digests[0]["model.safetensors"] != digests[2]["model.safetensors"]


def test_the_prompts_are_those_the_base_was_built_with(policy, rollout, upstream):
    """Each fixed line is one token; a reworded prompt would be spelled in bytes, and the base must be built anew."""
    lengths = [
        len(policy.answer([rollout.prompt(trace)])[0].response_metadata["prompt_token_ids"]) for trace in upstream[:5]
    ]
    assert max(lengths) < 60


def test_the_checkpoint_says_how_it_was_made():
    assert set(json.loads((BASE / "build.json").read_text())) == {"seed", "scale", "cases"}
