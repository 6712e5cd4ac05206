"""Merging by hand-worked numbers: no model."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import IA3Config, LoraConfig

from rl.conflicts import Conflict, place_of, shortened, write_conflicts
from rl.merge import METHODS, Merging, factorize, main
from rl.search import search

# Three task vectors of six entries. At density 0.5 each keeps its three largest:
A = [4.0, -1.0, 0.5, 2.0, 0.0, -3.0]  # ->   4   0   0   2   0  -3
B = [-1.0, -2.0, 0.25, 5.0, 3.0, 0.5]  # ->  0  -2   0   5   3   0
C = [-6.0, 0.5, 1.0, -8.0, 0.25, -2.0]  # -> -6  0   0  -8   0  -2
# their sums                                 -2  -2   0  -1   3  -5
# elect, though at the fourth two of three   -   -       -   +   -
# the mean of those that have the sign       -6  -2   0  -8   3  -2.5
HALF = [-6.0, -2.0, 0.0, -8.0, 3.0, -2.5]
VECTORS = [torch.tensor(vector) for vector in (A, B, C)]


def vectors(entries: st.SearchStrategy[float]) -> st.SearchStrategy[list[torch.Tensor]]:
    """Two to four task vectors, of quarters, so that sums are exact in any order."""
    sizes = st.tuples(st.integers(2, 4), st.integers(1, 12))
    rows = sizes.flatmap(lambda size: st.lists(st.lists(entries, min_size=size[1], max_size=size[1]), min_size=size[0]))
    return rows.map(lambda rows: [torch.tensor(row) / 4 for row in rows[:4]])


QUARTERS = st.integers(-20, 20).map(float)


def test_ties_trims_elects_and_takes_the_mean_of_those_elected():
    assert Merging(density=0.5).combine(VECTORS).tolist() == HALF


def test_weights_have_no_vote_and_do_not_divide():
    # the same signs; times 2, 1, 0.5: -6 * 0.5, -2, 0, -8 * 0.5, 3, (-3 * 2 - 2 * 0.5) / 2
    weighted = Merging(density=0.5, weights=(2.0, 1.0, 0.5)).combine(VECTORS)
    assert weighted.tolist() == [-3.0, -2.0, 0.0, -4.0, 3.0, -3.5]


def test_the_lambda_of_ties_is_the_scale_and_so_are_equal_weights():
    assert Merging(density=0.5, scale=1.5).combine(VECTORS).tolist() == [1.5 * entry for entry in HALF]
    assert Merging(density=0.5, weights=(1.5,) * 3).combine(VECTORS).tolist() == [1.5 * entry for entry in HALF]


def test_the_linear_ones():
    total = [a + b + c for a, b, c in zip(A, B, C, strict=True)]
    assert Merging("task_arithmetic").combine(VECTORS).tolist() == total
    assert Merging("mean").combine(VECTORS).tolist() == pytest.approx([entry / 3 for entry in total])
    weighted = [a + b / 2 - c for a, b, c in zip(A, B, C, strict=True)]
    assert Merging("task_arithmetic", weights=(1.0, 0.5, -1.0)).combine(VECTORS).tolist() == weighted
    shares = [0.5 * a + 0.25 * b + 0.25 * c for a, b, c in zip(A, B, C, strict=True)]
    assert Merging("mean", weights=(4.0, 2.0, 2.0)).combine(VECTORS).tolist() == shares


def test_dare_drops_at_random_and_keeps_the_expectation():
    torch.manual_seed(0)
    ones = torch.ones(20000)
    kept = Merging("dare_linear", density=0.25).combine([ones])
    assert set(kept.tolist()) == {0.0, 4.0}
    assert float(kept.mean()) == pytest.approx(1, abs=5 * math.sqrt(3 / 20000))  # the variance of one entry is 3
    # one of two that agree is dropped on some entries: a mean of those left, never their sum
    assert set(Merging("dare_ties", density=0.5).combine([ones, ones]).tolist()) == {0.0, 2.0}


@given(vectors(QUARTERS), st.sampled_from([0.25, 0.5, 1.0]), st.randoms(use_true_random=False))
def test_the_order_of_the_experts_does_not_matter(deltas, density, random):
    shuffled = random.sample(deltas, len(deltas))
    for how in (Merging(density=density), Merging("task_arithmetic")):
        assert torch.equal(how.combine(deltas), how.combine(shuffled))
    torch.testing.assert_close(Merging("mean").combine(deltas), Merging("mean").combine(shuffled))


@given(vectors(QUARTERS), st.sampled_from(sorted(METHODS)))
def test_a_single_expert_at_density_1_is_itself(deltas, method):
    density = None if method in ("mean", "task_arithmetic") else 1.0
    assert torch.equal(Merging(method, density=density).combine(deltas[:1]), deltas[0])


@given(vectors(st.integers(1, 20).map(float)), st.data())
def test_where_all_signs_agree_ties_is_the_mean(deltas, data):
    signs = torch.tensor(data.draw(st.lists(st.sampled_from([-1.0, 1.0]), min_size=len(deltas[0]), max_size=12)))
    agreed = [signs[: len(deltas[0])] * delta for delta in deltas]
    torch.testing.assert_close(Merging(density=1).combine(agreed), Merging("mean").combine(agreed))


@given(vectors(QUARTERS), st.sampled_from([0.25, 0.5, 1.0]))
def test_no_entry_of_ties_is_beyond_those_of_the_experts(deltas, density):
    stacked, merged = torch.stack(deltas), Merging(density=density).combine(deltas)
    assert bool((merged <= stacked.amax(0).clamp(min=0)).all())
    assert bool((merged >= stacked.amin(0).clamp(max=0)).all())


def test_a_delta_is_kept_whole_at_its_rank_and_zeros_stand_beyond():
    torch.manual_seed(1)
    delta = torch.randn(6, 2) @ torch.randn(2, 9)
    a, b, (kept, whole) = factorize(delta, 8)  # more than there are rows
    assert (a.shape, b.shape) == ((8, 9), (6, 8))
    torch.testing.assert_close(b @ a, delta, atol=1e-5, rtol=1e-5)
    assert kept == pytest.approx(whole) == pytest.approx(float(delta.square().sum()), rel=1e-5)


def test_what_a_rank_keeps_of_the_squared_norm():
    a, b, (kept, whole) = factorize(torch.diag(torch.tensor([3.0, -2.0, 1.0])), 2)
    torch.testing.assert_close(b @ a, torch.diag(torch.tensor([3.0, -2.0, 0.0])))
    assert (kept, whole) == (pytest.approx(13), pytest.approx(14))  # 9 + 4, and + 1


# conflicts


def test_conflicts_of_the_three():
    """Both nonzero: of A and B the fourth, which agrees; of A and C the first and the fourth, which do not, and the
    last, which does; of B and C the fourth, which does not. The election throws 4 away, and 2 + 5, of 35 in all."""
    told = Conflict.of(VECTORS, 0.5).told("abc")
    assert [pair["conflict"] for pair in told["pairs"]] == [0, pytest.approx(2 / 3), 1]
    assert [pair["entries"] for pair in told["pairs"]] == [1, 3, 1]
    assert told["conflict"] == pytest.approx(3 / 5)
    assert told["divided"] == pytest.approx(2 / 3)
    assert told["discarded"] == pytest.approx(11 / 35)


@given(vectors(st.integers(1, 20).map(float)))
def test_identical_experts_have_no_conflict_and_opposite_ones_nothing_else(deltas):
    same = Conflict.of([deltas[0], deltas[0]], 1).shares()
    assert same == {"conflict": 0, "divided": 0, "discarded": 0}
    opposite = Conflict.of([deltas[0], -deltas[0]], 1).shares()
    assert opposite == {"conflict": 1, "divided": 1, "discarded": 0.5}


def test_random_experts_are_in_conflict_on_one_half():
    torch.manual_seed(2)
    found = Conflict.of(list(torch.randn(3, 20000)), 1).shares()
    near = 4 * math.sqrt(0.25 / 20000)
    assert found["conflict"] == pytest.approx(0.5, abs=near)
    assert found["divided"] == pytest.approx(1 - 2**-2, abs=near)  # that three coins are not all alike


def test_who_has_left_a_weight_alone_is_in_no_conflict():
    found = Conflict.of([VECTORS[0], torch.zeros(6)], 1).shares()
    assert found == {"conflict": None, "divided": None, "discarded": 0}


@given(vectors(QUARTERS), vectors(QUARTERS))
def test_conflicts_of_two_weights_are_those_of_all_their_entries(some, others):
    n = min(len(some), len(others))
    both = [torch.cat(pair) for pair in zip(some[:n], others[:n], strict=True)]
    assert Conflict.of(some[:n], 1) + Conflict.of(others[:n], 1) == Conflict.of(both, 1)


@pytest.mark.parametrize(
    ("weight", "place"),
    [
        ("model.language_model.layers.3.mlp.up_proj.weight", ("language_model mlp.up_proj", 3)),
        ("model.visual.blocks.11.attn.qkv.bias", ("visual attn.qkv.bias", 11)),
        ("model.layers.0.self_attn.q_proj.weight", ("layers self_attn.q_proj", 0)),
        ("model.visual.merger.mlp.2.weight", ("visual.merger.mlp.2", None)),
        ("lm_head.weight", ("lm_head", None)),
    ],
)
def test_the_place_of_a_weight(weight, place):
    assert place_of(weight) == place


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["runs/a/model", "runs/b/model"], ["a", "b"]),
        (["/x/sft/a/model", "/x/grpo/a/model"], ["sft", "grpo"]),
        (["a", "a/b"], ["a", "a/b"]),
        (["a/model", "a/model"], ["a/model", "a/model"]),
        (["owner/one", "owner/two"], ["one", "two"]),
    ],
)
def test_experts_are_called_by_what_tells_them_apart(names, short):
    assert shortened(names) == short


def test_the_report_of_conflicts(tmp_path):
    deltas = {"m.layers.0.q.weight": VECTORS, "m.layers.1.q.weight": [VECTORS[0], torch.zeros(6), VECTORS[0]]}
    found = {name: Conflict.of(three, 0.5) for name, three in deltas.items()}
    write_conflicts(tmp_path, ["a", "b", "c"], 0.5, found)
    told = json.loads((tmp_path / "conflicts.json").read_text())
    # 3 of 5 before; A and itself agree on the 3 that are left of it
    assert told["overall"]["conflict"] == told["kinds"]["m q"]["conflict"] == pytest.approx(3 / 8)
    assert told["modules"]["m.layers.1.q.weight"]["conflict"] == 0
    table = (tmp_path / "conflicts.md").read_text()
    assert "| **all** | 37.5 | 33.3 |" in table
    assert "| conflict of | a | b | c |" in table
    assert "| a |  | " in table
    assert " | 33.3 |\n| b | " in table  # a and c
    assert (tmp_path / "conflicts.png").read_bytes().startswith(b"\x89PNG")


# the search


def run_search(cache, scores, about="one", fails=None):
    asked = []

    def build(candidate, folder):
        folder.mkdir()
        (folder / "scale").write_text(str(candidate["scale"]))

    def score(folder):
        scale = float((folder / "scale").read_text())
        if scale == fails:
            raise RuntimeError("stopped")
        asked.append(scale)
        return scores[scale]

    best = search([{"scale": scale} for scale in scores], build, score, cache, {"about": about})
    return best["scale"], asked


def test_the_first_of_the_best_is_found(tmp_path):
    assert run_search(tmp_path / "search.json", {0.5: 0.6, 1.0: 0.7, 1.5: 0.7}) == (1.0, [0.5, 1.0, 1.5])


def test_a_search_that_was_stopped_goes_on(tmp_path):
    scores = {0.5: 0.6, 1.0: 0.5, 1.5: 0.4}
    with pytest.raises(RuntimeError):
        run_search(tmp_path / "search.json", scores, fails=1.0)
    assert run_search(tmp_path / "search.json", scores) == (0.5, [1.0, 1.5])
    assert run_search(tmp_path / "search.json", scores) == (0.5, [])


def test_figures_of_another_search_are_not_taken(tmp_path):
    run_search(tmp_path / "search.json", {1.0: 0.5})
    with pytest.raises(ValueError, match=r"out: .*search\.json was made with another about; remove it"):
        run_search(tmp_path / "search.json", {1.0: 0.5}, about="another")


# what is refused


@pytest.fixture
def adapter(tmp_path):
    """Folders that say they are adapters: enough for what is found before any weight is read."""

    def make(name, config=None, **fields):
        folder = tmp_path / name
        config = config or LoraConfig(**{"r": 4, "target_modules": ["q_proj"], **fields})
        config.base_model_name_or_path = fields.get("base_model_name_or_path", "clinic:base")
        config.save_pretrained(folder)
        return str(folder)

    return make


def refused(flags, capsys):
    with pytest.raises(SystemExit):
        main([*map(str, flags)])
    return capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method", "linear"], "method: 'linear' is none; choose one of ties, mean, task_arithmetic, dare_linear"),
        (["--density", "0"], "density: 0 is no share to keep; give one above 0 and at most 1"),
        (["--density", "1.2"], "density: 1.2 is no share to keep"),
        (["--density", "nan"], "density: nan is no share to keep"),
        (["--density", "0.5", "--method", "mean"], "density: 0.5, but mean has none; ties, dare_linear, dare_ties"),
        (["--weights", "1"], "weights: 1 of them; give 2, one for each expert"),
        (["--weights", "1", "-1", "--method", "mean"], "weights: [1.0, -1.0] are no shares of a mean"),
        (["--weights", "1", "inf"], "weights: [1.0, inf] are not all finite"),
        (["--scale", "nan"], "scale: nan is not finite"),
        (["--output", "gguf"], "output: 'gguf' is none; choose one of adapter, merged"),
        (["--rank", "0"], "rank: 0; give 1 or more, with --output adapter alone"),
        (["--rank", "4", "--output", "merged"], "rank: 4; give 1 or more, with --output adapter alone"),
        (["--dtype", "int8", "--output", "merged"], "dtype: 'int8' is none; choose one of float32, bfloat16, float16"),
        (["--dtype", "float16"], "dtype: 'float16'; an adapter is always saved in float32"),
        (["--search"], "cases: --search needs validation cases"),
        (["--search", "--cases", "clinic", "--scale", "2"], "density, scale: --search finds them; give --densities"),
        (["--search", "--cases", "clinic", "--method", "mean", "--densities", "1"], "densities: mean has none"),
        (["--search", "--cases", "clinic", "--densities", "1", "2"], "density: 2 is no share to keep"),
        (["--cases", "clinic"], "search: cases is given without it"),
        (["--scales", "1", "2"], "search: scales is given without it"),
    ],
)
def test_flags_that_are_wrong(flags, message, adapter, tmp_path, capsys):
    assert message in refused([adapter("a"), adapter("b"), "--out", tmp_path / "out", *flags], capsys)


def test_nothing_is_searched_for_on_what_is_measured_on(adapter, tmp_path, capsys):
    """Where cases have a test split, the one to search on must be named."""
    row = {"question": "Is it?", "answer": "yes", "options": ["yes", "no"]}
    (tmp_path / "own.jsonl").write_text("".join(json.dumps({**row, "split": s}) + "\n" for s in ("test", "tune")))
    flags = [adapter("a"), adapter("b"), "--out", tmp_path / "out", "--search", "--cases"]
    assert "it would be the one that papers measure on" in refused([*flags, "slake"], capsys)
    assert "name the rows of" in (told := refused([*flags, tmp_path / "own.jsonl"], capsys))
    assert "it has test, tune" in told


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"bias": "lora_only", "modules_to_save": ["lm_head"]}, "bias, modules_to_save"),
        ({"target_parameters": ["experts.weight"]}, "target_parameters"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa"),
    ],
)
def test_adapters_that_are_more_than_their_deltas(fields, what, adapter, tmp_path, capsys):
    odd = adapter("odd", **fields)
    assert f"expert: {odd!r} has {what}, which" in refused([adapter("a"), odd, "--out", tmp_path / "out"], capsys)


def test_experts_that_are_none(adapter, tmp_path, capsys):
    out = ["--out", tmp_path / "out"]
    assert "expert: there is no folder 'nobody'; give that of" in refused([adapter("a"), "nobody", *out], capsys)
    ia3 = adapter("ia3", IA3Config(target_modules=["q_proj"], feedforward_modules=[]))
    assert f"expert: {ia3!r} is an adapter of type IA3; only LORA can" in refused([ia3, *out], capsys)


def test_experts_of_another_base(adapter, tmp_path, capsys):
    theirs = adapter("theirs", base_model_name_or_path="another/base")
    said = refused([adapter("a"), theirs, "--out", tmp_path / "out"], capsys)
    assert f"expert: {theirs!r} is an adapter of 'another/base', not of 'clinic:base'" in said
    said = refused([adapter("a"), "--base", "another/base", "--out", tmp_path / "out"], capsys)
    assert "is an adapter of 'clinic:base', not of 'another/base'; all must be of one base" in said


def test_whole_models_do_not_say_their_base(tmp_path, capsys):
    (tmp_path / "whole").mkdir()
    said = refused([tmp_path / "whole", "--out", tmp_path / "out"], capsys)
    assert "base: None, and whole models do not say theirs; give --base" in said


def test_nothing_is_written_over(adapter, tmp_path, capsys):
    (tmp_path / "out" / "model").mkdir(parents=True)
    assert "is there already; remove it" in refused([adapter("a"), "--out", tmp_path / "out"], capsys)
