"""Experts of the clinic's base, with random LoRAs: what is merged is what PEFT merges, and what is saved is that."""

import asyncio
import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from rl.chat import tokenize
from rl.cohort import clinic_cohort
from rl.conflicts import Conflict
from rl.experts import Experts
from rl.merge import Merging, main, merge_experts
from rl.models import BASE, load_model, load_processor
from rl.models import merge as merge_one
from rl.policy import load_policy
from rl.rollout import roll_upstream
from rl.search import role_of
from rl.systems import System

TOWERS = r".*\.(q_proj|v_proj|up_proj|qkv|mlp\.2)"
"""Modules of both towers and of the projector between them."""
WIDE = 128
"""The rank of the largest delta in the clinic's base."""


def expert(folder: Path, seed: int, **fields) -> str:
    """An adapter that a training might have left, but for its random weights."""
    torch.manual_seed(seed)
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": TOWERS, "task_type": "CAUSAL_LM", **fields})
    model = get_peft_model(load_model("clinic:base", torch.float32), config)
    model.peft_config["default"].base_model_name_or_path = str(BASE)
    for name, weights in model.named_parameters():
        if "lora_B" in name or "lora_embedding_A" in name:
            torch.nn.init.normal_(weights, std=0.05)
    model.save_pretrained(folder)
    load_processor("clinic:base").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    """Three, of ranks, scalings and modules of their own."""
    folder = tmp_path_factory.mktemp("experts")
    return [
        expert(folder / "a", 1),
        expert(folder / "b", 2, r=3, use_rslora=True, rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 3}),
        expert(folder / "c", 3, r=2, target_modules=r".*\.(q_proj|o_proj)"),
    ]


@pytest.fixture(scope="module")
def whole(experts, tmp_path_factory):
    """The first of them as a whole model."""
    out = tmp_path_factory.mktemp("whole") / "model"
    merge_one(experts[0], out, "float32")
    return str(out)


@pytest.fixture(scope="module")
def prompts(rollout, images):
    """What the attending is asked in four cases, with their images."""
    traces = asyncio.run(roll_upstream(rollout, clinic_cohort(4, 99, images).cases, quiet=True))
    return [rollout.prompt(trace) for trace in traces]


@pytest.fixture(scope="module")
def inputs(prompts):
    return tokenize(load_processor("clinic:base"), prompts)


def logits(folder, inputs):
    with torch.no_grad():
        return load_model(str(folder), torch.float32).eval()(**inputs).logits


def merged(names, how):
    """What is added to each weight."""
    loaded = Experts(names)
    return {name: how.combine(loaded.deltas(name)) for name in loaded.touched()}


def of_peft(names, weights, **how):
    """What PEFT adds to each weight, at full rank."""
    labels = [f"e{place}" for place in range(len(names))]
    model = PeftModel.from_pretrained(load_model("clinic:base", torch.float32), names[0], labels[0])
    for label, name in zip(labels[1:], names[1:], strict=True):
        model.load_adapter(name, label)
    model.add_weighted_adapter(labels, weights, "merged", svd_rank=WIDE, svd_full_matrices=False, **how)
    layers = model.get_base_model().named_modules()
    with torch.no_grad():
        return {
            f"{name}.weight": layer.get_delta_weight("merged")
            for name, layer in layers
            if "merged" in getattr(layer, "lora_A", {})
        }


@pytest.mark.parametrize(
    ("how", "weights", "theirs"),
    [
        (Merging(density=0.3), [1.0] * 3, {"combination_type": "ties_svd", "density": 0.3}),
        (Merging(weights=(1, 0.5, 2)), [1, 0.5, 2], {"combination_type": "ties_svd", "density": 0.2}),
        (Merging("mean"), [1 / 3] * 3, {"combination_type": "svd"}),
        (Merging("task_arithmetic", scale=0.7), [0.7] * 3, {"combination_type": "svd"}),
    ],
)
def test_what_is_merged_is_what_peft_merges(how, weights, theirs, experts):
    ours, peft = merged(experts, how), of_peft(experts, weights, **theirs)
    assert ours.keys() == peft.keys()
    assert len(ours) == 17  # q, v, up and o of 3 layers, qkv and up of 2 blocks, and what lies between the towers
    for name, delta in ours.items():
        torch.testing.assert_close(delta, peft[name], atol=1e-5, rtol=1e-4, msg=name)


def test_an_adapter_at_full_rank_answers_as_the_whole_model(experts, inputs, tmp_path):
    told = merge_experts(experts, Merging(rank=1000), tmp_path / "adapter")
    merge_experts(experts, Merging(output="merged"), tmp_path / "whole")
    assert told["rank"] == WIDE
    assert told["kept"]["overall"] == pytest.approx(1)
    plain, expected = logits("clinic:base", inputs), logits(tmp_path / "whole" / "model", inputs)
    assert (plain - expected).abs().max() > 0.1  # the merged ones say something
    torch.testing.assert_close(logits(tmp_path / "adapter" / "model", inputs), expected, atol=1e-3, rtol=1e-3)


def test_an_adapter_of_a_sum_needs_no_more_than_the_sum_of_ranks(experts, tmp_path):
    how = Merging("task_arithmetic", weights=(1, -0.5, 0.3))
    told = merge_experts(experts, how, tmp_path / "sum")
    assert told["rank"] == 4 + 3 + 2
    assert told["kept"]["overall"] == pytest.approx(1)
    assert set(told["kept"]["modules"]) == set(merged(experts, how))
    ties = merge_experts(experts, Merging(), tmp_path / "ties")
    assert 0.3 < ties["kept"]["overall"] < 0.99
    assert min(ties["kept"]["modules"].values()) < ties["kept"]["overall"] < max(ties["kept"]["modules"].values())


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_expert_alone_stays_as_it_is(place, experts, inputs, tmp_path):
    merge_experts([experts[place]], Merging("mean"), tmp_path / "adapter")
    merge_experts([experts[place]], Merging("mean", output="merged"), tmp_path / "whole")
    expected = logits(experts[place], inputs)
    for out in ("adapter", "whole"):
        torch.testing.assert_close(logits(tmp_path / out / "model", inputs), expected, atol=1e-3, rtol=1e-3)
        assert not (tmp_path / out / "conflicts.json").exists()  # with whom?


def test_a_whole_model_counts_as_the_adapter_that_it_was(experts, whole):
    loaded = Experts([*experts[:2], whole])
    assert loaded.base == str(BASE)
    for name in loaded.touched():
        adapter, other, same = loaded.deltas(name)
        torch.testing.assert_close(same, adapter, atol=1e-6, rtol=1e-3)
        assert Conflict.of([other, adapter], 0.2).shares() == pytest.approx(
            Conflict.of([other, same], 0.2).shares(), abs=1e-2
        )


def test_whole_models_alone(experts, whole, inputs, tmp_path):
    merge_experts([whole, whole], Merging("mean", output="merged"), tmp_path, "clinic:base")
    torch.testing.assert_close(logits(tmp_path / "model", inputs), logits(experts[0], inputs), atol=1e-3, rtol=1e-3)


def test_an_agent_opens_as_any_policy(experts, inputs, prompts, tmp_path):
    merge_experts(experts, Merging(), tmp_path)
    folder = tmp_path / "model"
    opened = PeftModel.from_pretrained(load_model("clinic:base", torch.float32), folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(opened(**inputs).logits, logits(folder, inputs))
    said = load_policy(str(folder)).answer(prompts)
    assert all(message.response_metadata["token_ids"] for message in said)
    config = json.loads((folder / "adapter_config.json").read_text())
    # vLLM takes one rank and one scaling for all modules
    assert (config["r"], config["lora_alpha"], config["rank_pattern"], config["alpha_pattern"]) == (9, 9, {}, {})
    weights = load_file(folder / "adapter_model.safetensors")
    assert {tensor.shape["lora_B" in name] for name, tensor in weights.items()} == {9}
    assert "video_processor" in json.loads((folder / "processor_config.json").read_text())


def test_16_bits_are_of_the_whole_model_alone(experts, tmp_path):
    merge_experts(experts, Merging(output="merged", dtype="bfloat16"), tmp_path)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == "bfloat16"
    kinds = {tensor.dtype for tensor in load_file(tmp_path / "model" / "model.safetensors").values()}
    assert kinds == {torch.bfloat16}


def test_the_seed_says_what_dare_drops(experts, tmp_path):
    def weights(out, seed):
        torch.rand(seed + 1)  # whatever was drawn before
        merge_experts(experts, Merging("dare_ties", density=0.5, seed=seed), tmp_path / out)
        return load_file(tmp_path / out / "model" / "adapter_model.safetensors")

    first, again, other = weights("1", 0), weights("2", 0), weights("3", 1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


# what is refused


def test_a_whole_model_of_another_shape(whole, experts, tmp_path):
    config = json.loads((Path(whole) / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 2
    config["text_config"]["layer_types"] = ["full_attention"] * 2
    weights = load_file(Path(whole) / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    kept = {name: tensor for name, tensor in weights.items() if "layers.2" not in name}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ValueError, match=r"expert: .* is no model of .*: model\.language_model\.layers\.2\..* not there"
    ):
        Experts([experts[0], str(tmp_path)])


def test_adapters_that_do_not_fit(experts, tmp_path):
    def changed(name, change):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "adapter_config.json").write_text((Path(experts[0]) / "adapter_config.json").read_text())
        weights = load_file(Path(experts[0]) / "adapter_model.safetensors")
        save_file(dict(change(key, tensor) for key, tensor in weights.items()), folder / "adapter_model.safetensors")
        return str(folder)

    elsewhere = changed("elsewhere", lambda key, tensor: (key.replace("layers.2", "layers.7"), tensor))
    with pytest.raises(ValueError, match=r"expert: '.*elsewhere' has not the modules of .*layers\.\d"):
        Experts([experts[0], elsewhere])
    wider = changed("wider", lambda key, tensor: (key, tensor.repeat(1, 2)))
    with pytest.raises(ValueError, match=r"expert: '.*wider' does not fit on"):
        Experts([experts[0], wider])


def test_adapters_of_embeddings(experts, tmp_path):
    odd = expert(tmp_path, 4, target_modules=["embed_tokens", "q_proj"])
    with pytest.raises(ValueError, match=r"expert: .* adapts model\.language_model\.embed_tokens\.weight, which is no"):
        Experts([experts[0], odd])


def test_what_an_adapter_has_no_place_for(experts, whole, tmp_path):
    model = load_model(whole, torch.float32)
    model.get_input_embeddings().weight.data[0] += 1
    model.save_pretrained(tmp_path / "trained")
    load_processor(whole).save_pretrained(tmp_path / "trained")
    names = [experts[0], str(tmp_path / "trained")]
    with pytest.raises(ValueError, match=r"output: 'adapter', but the experts have changed .*embed_tokens.*; give --o"):
        merge_experts(names, Merging(), tmp_path / "out")
    merge_experts(names, Merging("task_arithmetic", output="merged"), tmp_path / "out")
    learned = load_model(str(tmp_path / "out" / "model"), torch.float32).get_input_embeddings().weight
    base = load_model("clinic:base", torch.float32).get_input_embeddings().weight
    assert torch.allclose((learned - base)[0], torch.ones(WIDE), atol=1e-6)
    with pytest.raises(ValueError, match=r"rank: None, and a whole model among the experts has none to go by; give"):
        merge_experts([experts[0], whole], Merging(), tmp_path / "other")


def test_an_unknown_base(whole, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([whole, "--base", str(tmp_path / "gone"), "--out", str(tmp_path / "out")])
    assert "base: cannot load" in capsys.readouterr().err


# the command line


@pytest.fixture
def questions(tmp_path):
    """Four cases in a file."""
    rows = [
        {"id": str(n), "question": "What is it?", "options": ["nodule", "cyst"], "answer": "cyst"} for n in range(4)
    ]
    (tmp_path / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "validation.jsonl"


def test_the_command_line_searches_and_merges(experts, questions, tmp_path, capsys):
    flags = [*experts, "--out", str(tmp_path / "out"), "--seed", "5"]
    searching = ["--search", "--cases", str(questions), "--densities", "0.2", "1", "--scales", "0", "1"]
    told = main([*flags, *searching])
    out = tmp_path / "out"
    found = json.loads((out / "search.json").read_text())
    tried = [(one["density"], one["scale"]) for one in found["tried"]]
    assert tried == [(0.2, 0), (0.2, 1), (1, 0), (1, 1)]
    best = max(found["tried"], key=lambda one: one["score"])
    assert (told["density"], told["scale"], told["experts"]) == (best["density"], best["scale"], experts)
    assert found["tried"][0]["score"] == found["tried"][2]["score"]  # nothing is merged: the base
    assert json.loads((out / "merge.json").read_text()) == json.loads(json.dumps(told))
    made = ["conflicts.json", "conflicts.md", "conflicts.png", "merge.json", "model", "search.json"]
    assert sorted(path.name for path in out.iterdir()) == made
    assert "% of the squared norm of what was merged" in capsys.readouterr().out
    conflicts = json.loads((out / "conflicts.json").read_text())
    assert conflicts["density"] == best["density"]
    assert conflicts["overall"]["conflict"] == pytest.approx(0.5, abs=0.05)  # the experts are random


@pytest.mark.parametrize(
    ("labels", "system"), [(["Surgeon", "Oncologist"], "one_specialist"), (["Surgeon", None], "single")]
)
def test_the_search_asks_as_the_experts_were_trained(tmp_path, labels, system):
    rows = [{"question": "What?", "options": ["a", "b"], "answer": "a", "specialty": label} for label in labels]
    (tmp_path / "cases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = role_of(str(tmp_path / "cases.jsonl"), None, 0)("transformers:here")
    assert told["system"] == system
    assert System(**told).system == system  # which takes what is said
