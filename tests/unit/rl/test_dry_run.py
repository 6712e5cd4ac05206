"""Recipes are checked without a GPU: shapes, options, launch, memory, and the table that the README shows."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from peft import get_peft_model
from transformers import AutoModelForImageTextToText
from trl import GRPOConfig, ModelConfig, get_peft_config

from rl import dry_run, train_attending
from rl.dry_run import report, shipped, table
from rl.launch import Launch, read_launch
from rl.memory import GIB, Load, Part, activations, block_bytes, cache_bytes, layer_bytes, peak, states
from rl.models import BASE
from rl.settings import CONFIGS
from rl.shapes import PUBLISHED, image_patches, meta_policy, policy_config
from rl.train_attending import COMMAND


def check(config: Path, *flags: str) -> dry_run.Checked:
    return dry_run.check(COMMAND, ["--config", str(config), *flags])


def parse(config: Path, *flags: str) -> tuple:
    settings, launch = dry_run.parse(COMMAND, ["--config", str(config), *flags])
    return settings.trainer, launch


LANGUAGE = [r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"]
QWEN_3B, QWEN_7B = PUBLISHED
README = Path(__file__).parents[3] / "README.md"


@pytest.fixture(scope="module")
def checked():
    return {path.stem: check(path) for path in shipped()}


def parts_of(one):
    return {part.name: part for part in one.parts}


# shapes


@pytest.mark.parametrize(("name", "count"), [(QWEN_3B, 3_754_622_976), (QWEN_7B, 8_292_166_656)])
def test_the_published_models_have_their_published_size(name, count):
    model = meta_policy(name, ModelConfig(dtype="bfloat16"))
    assert sum(weight.numel() for weight in model.parameters()) == model.num_parameters() == count
    assert {(weight.device.type, weight.dtype) for weight in model.parameters()} == {("meta", torch.bfloat16)}


def test_adapters_are_counted_as_peft_counts_them():
    how = ModelConfig(use_peft=True, lora_r=4, lora_target_modules=LANGUAGE)
    ours = meta_policy("clinic:base", how)
    theirs = get_peft_model(AutoModelForImageTextToText.from_pretrained(BASE), get_peft_config(how))
    assert ours.get_nb_trainable_parameters() == theirs.get_nb_trainable_parameters()
    assert not any("visual" in name for name, weight in ours.named_parameters() if weight.requires_grad)


def test_adapters_leave_a_frozen_vision_tower_alone():
    how = ModelConfig(use_peft=True, lora_r=4, lora_target_modules="all-linear")
    named = {
        frozen: {name for name, _ in meta_policy("clinic:base", how, frozen).named_parameters() if "lora_" in name}
        for frozen in (False, True)
    }
    assert named[True] == {name for name in named[False] if "visual" not in name.split(".")}
    assert named[True] != named[False]


def test_a_frozen_vision_tower_is_not_counted_as_trained():
    model = meta_policy("clinic:base", ModelConfig(), freeze_vision=True)
    assert not any(weight.requires_grad for weight in model.model.visual.parameters())
    assert any(weight.requires_grad for weight in model.parameters())


def test_an_image_has_as_many_patches_as_its_processor_makes():
    assert image_patches(QWEN_7B, 1024, 1024) == 74 * 74  # 1024 is 36.6 x 28: 37 tokens a side
    assert image_patches(QWEN_7B, 10, 10) == 16  # no image is smaller than 56 x 56
    assert image_patches("clinic:base", 1024, 1024) == 16


def test_a_model_that_nothing_describes_is_named():
    with pytest.raises(ValueError, match="'nobody/nothing'") as error:
        policy_config("nobody/nothing")
    assert QWEN_3B in str(error.value)


# memory, against torch's own account and against numbers worked out by hand


def saved_bytes(model, run):
    """Bytes that torch keeps for the backward pass, the weights left out."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(size for size, _ in kept.values())


TOKENS = 256


@pytest.mark.parametrize(
    ("how", "autocast"),
    [
        (ModelConfig(dtype="bfloat16"), False),
        (ModelConfig(dtype="float32"), True),
        (ModelConfig(dtype="bfloat16", use_peft=True, lora_dropout=0.0, lora_target_modules=LANGUAGE), True),
        (ModelConfig(dtype="bfloat16", use_peft=True, lora_dropout=0.05, lora_target_modules=LANGUAGE), True),
    ],
    ids=["16 bits", "32 bits under autocast", "LoRA", "LoRA with dropout"],
)
def test_what_a_layer_saves_is_what_torch_saves(how, autocast):
    dtype = getattr(torch, how.dtype)
    model = AutoModelForImageTextToText.from_pretrained(BASE, dtype=dtype).train()
    text, language = model.config.text_config, model.model.language_model
    if how.use_peft:
        get_peft_model(model, get_peft_config(how)).train()
    inputs = torch.randn(1, TOKENS, text.hidden_size, dtype=dtype, requires_grad=True)
    places = language.rotary_emb(inputs, torch.arange(TOKENS)[None].expand(3, 1, TOKENS))

    def run():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            language.layers[0](inputs, position_embeddings=places, attention_mask=None)

    measured = saved_bytes(model, run)
    if autocast and not how.use_peft:  # autocast's copies of the weights; a GPU's are as large, once a layer
        measured -= 2 * sum(weight.numel() for weight in language.layers[0].parameters() if weight.ndim == 2)
    expected = layer_bytes(text, how, 4 if how.dtype == "float32" else 2) * TOKENS
    assert measured == pytest.approx(expected, rel=0.1)


def test_what_checkpointing_saves_is_one_input_a_layer():
    model = AutoModelForImageTextToText.from_pretrained(BASE, dtype=torch.bfloat16).train()
    model.gradient_checkpointing_enable()
    language, text = model.model.language_model, model.config.text_config
    inputs = torch.randn(1, TOKENS, text.hidden_size, dtype=torch.bfloat16, requires_grad=True)
    layers = list(language.layers)
    measured = []
    for count in (1, 3):
        language.layers = torch.nn.ModuleList(layers[:count])
        measured.append(saved_bytes(model, lambda: language(inputs_embeds=inputs, use_cache=False)))
    assert (measured[1] - measured[0]) / 2 == TOKENS * text.hidden_size * 2


def test_what_a_block_of_the_vision_tower_saves_is_what_torch_saves():
    model = AutoModelForImageTextToText.from_pretrained(BASE, dtype=torch.bfloat16).train()
    tower, vision = model.model.visual, model.config.vision_config
    patches = torch.randn(64, 3 * 2 * 14 * 14, dtype=torch.bfloat16)
    blocks, measured = list(tower.blocks), []
    for count in (1, 2):
        tower.blocks = torch.nn.ModuleList(blocks[:count])
        measured.append(saved_bytes(model, lambda: tower(patches, grid_thw=torch.tensor([[1, 8, 8]]))))
    assert measured[1] - measured[0] == pytest.approx(64 * block_bytes(vision, 2), rel=0.1)


def test_weights_gradients_and_optimizer_are_what_torch_allocates():
    model = AutoModelForImageTextToText.from_pretrained(BASE, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters())
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    moments = [moment for state in optimizer.state.values() for moment in state.values() if moment.ndim]
    settings = GRPOConfig(output_dir="unused", use_cpu=True)
    found = states(meta_policy("clinic:base", ModelConfig()), ModelConfig(), settings, Launch(), True)
    size = {part.name: part.bytes for part in found}
    assert size["weights"] == size["reference"] == sum(weight.nbytes for weight in model.parameters())
    assert size["gradients"] == sum(weight.grad.nbytes for weight in model.parameters())
    assert size["optimizer"] == sum(moment.nbytes for moment in moments)


def test_the_memory_of_seven_billion_by_hand(checked):
    count = 8_292_166_656
    full, both = parts_of(checked["eight_gpus"]), parts_of(checked["two_nodes"])
    for name, each in (("weights", 4), ("gradients", 4), ("optimizer", 8), ("reference", 4)):
        assert full[name].bytes == count * each / 8
        assert both[name].bytes == count * each / 16
    assert full["vLLM"].bytes == 0.35 * 80 * GIB
    assert full["reference, gathered"].bytes == count * 2
    assert full["saved, language"].bytes == 28 * (4 * 2905) * 3584 * 2
    assert full["saved, vision"].bytes == 32 * (4 * 5476) * 1280 * 2
    lora = parts_of(checked["one_80gb"])
    adapters = 28 * 16 * (3584 * 4 + 512 * 2 + 3584 * 2 + 3 * (3584 + 18944))  # q, o; k, v; gate, up, down
    assert adapters == 40_370_176
    assert lora["weights"].bytes == count * 2 + adapters * 4
    assert (lora["gradients"].bytes, lora["optimizer"].bytes) == (adapters * 4, adapters * 8)
    assert lora["reference"].bytes == adapters * 4
    assert cache_bytes(checked["one_24gb"].model.config) == 36 * 2 * 2 * 128 * 2


def test_four_bits_pack_the_linear_layers_alone():
    how = ModelConfig(dtype="bfloat16", use_peft=True, load_in_4bit=True, lora_target_modules=LANGUAGE)
    model = meta_policy(QWEN_3B, how)
    settings = GRPOConfig(output_dir="unused", use_cpu=True)
    weights = states(model, how, settings, Launch(), False)[0]
    adapters = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    outside = 151_936 * 2048 + 3 * 2 * 14 * 14 * 1280  # the embedding, and the patches' convolution
    assert weights.bytes - adapters * 4 == pytest.approx((3_754_622_976 - outside) * 4.5 / 8 + outside * 2, rel=0.001)


def test_gradients_stay_whole_where_they_are_reduced_once_a_step():
    launch = read_launch(CONFIGS / "accelerate" / "eight_gpus.yaml")
    model, how = meta_policy(QWEN_7B, ModelConfig()), ModelConfig()
    given = {"output_dir": "unused", "use_cpu": True, "bf16": True, "gradient_accumulation_steps": 8}
    whole = states(model, how, GRPOConfig(**given), launch, False)[1]
    assert whole.bytes == 8_292_166_656 * (2 + 4 / 8)
    assert "sync_each_batch" in whole.how
    once = states(
        model, how, GRPOConfig(**given | {"gradient_accumulation_steps": 1, "num_generations": 8}), launch, False
    )
    assert once[1].bytes == 8_292_166_656 * 4 / 8


def test_activations_grow_with_the_batch_and_without_checkpoints():
    model, how = meta_policy("clinic:base", ModelConfig()), ModelConfig()

    def size(trained, checkpointing):
        settings = GRPOConfig(output_dir="unused", use_cpu=True, gradient_checkpointing=checkpointing)
        parts = activations(model, how, settings, Launch(), Load(100, 20, 16, trained, 8))
        return sum(part.bytes for part in parts if part.name.startswith("saved"))

    assert size(4, True) == 2 * size(2, True)
    assert size(4, False) > 5 * size(4, True)


def test_the_phases_take_turns():
    parts = [Part("a", 5, ""), Part("b", 3, "", "rollout"), Part("c", 2, "", "training"), Part("d", 7, "", "start")]
    assert peak(parts) == 8
    assert peak([*parts, Part("e", 2, "", "start")]) == 9


# recipes


def test_every_recipe_for_gpus_fits_its_gpu_and_keeps_the_papers_numbers(checked):
    assert list(checked) == ["one_24gb", "one_80gb", "eight_gpus", "two_nodes"]
    for name, one in checked.items():
        assert peak(one.parts) < 0.9 * one.recipe.gpu_memory * GIB, name  # with room for what is not reckoned
        settings = one.settings
        assert settings.generation_batch_size % settings.num_generations == 0
        completions = one.load.trained * one.launch.processes * settings.gradient_accumulation_steps
        assert (completions, settings.num_generations, settings.temperature) == (128, 8, 1.0)
        assert (one.recipe.gammas, one.recipe.betas) == ([1e-4, 5e-3, 3e-2], [1e-3, 4e-3, 1e-2])
        assert settings.learning_rate == (1e-5 if one.how.use_peft else 1e-6)


def test_no_recipe_rounds_away_what_an_adapter_has_learned(checked):
    for one in checked.values():
        assert not one.how.use_peft or one.how.dtype == "float32" or one.recipe.output == "adapter"


def test_a_recipe_says_how_it_is_launched(checked):
    for name, one in checked.items():
        comment = (CONFIGS / f"{name}.yaml").read_text()
        assert f"--config rl/configs/{name}.yaml" in comment
        assert ("pip install -e '.[rl,vllm]'" in comment) == one.settings.use_vllm
        assert (f"--config_file rl/configs/{one.recipe.accelerate}" in comment) == (one.launch.processes > 1)


def test_the_report_has_parameters_memory_tokens_and_steps(checked):
    text = report(checked["eight_gpus"])
    for part in ("8,292,166,656", "8 GPUs of 80 GiB", "2393 tokens", "both assumed", "65,536", "38,400", "of 80"):
        assert part in text
    assert "100 1-easy + 100 2-medium + 100 3-hard = 300" in text
    assert all(part.name in text and part.how in text for part in checked["eight_gpus"].parts)


def test_the_readme_shows_the_table_as_it_is_printed(checked, capsys, monkeypatch):
    monkeypatch.setattr(dry_run, "check", lambda command, arguments: checked[Path(arguments[1]).stem])
    dry_run.main([])
    printed = capsys.readouterr().out.strip()
    assert printed == table(list(checked.values()))
    assert len(printed.splitlines()) == 2 + len(checked)
    assert printed in README.read_text()


def test_the_clinics_recipe_can_be_checked_too(capsys):
    dry_run.main(["--config", str(CONFIGS / "clinic.yaml"), "--max_steps", "12"])
    text = capsys.readouterr().out
    assert "821,056" in text
    assert "= 12" in text


FORMS = [["--dry_run"], ["--dry_run", "true"], ["--dry_run=true"], ["--dry-run"], ["--dry_run", "--seed", "1"]]


@pytest.mark.parametrize("form", FORMS, ids=" ".join)
def test_a_dry_run_trains_nothing_however_it_is_written(form, monkeypatch, capsys):
    monkeypatch.setattr("rl.train.main", lambda *_: pytest.fail("trained"))
    assert train_attending.main([*form, "--max_steps", "12"]) == {}
    assert "parameters " in capsys.readouterr().out


def test_a_dry_run_may_be_asked_for_by_the_recipe(own, monkeypatch, capsys):
    monkeypatch.setattr("rl.train.main", lambda *_: {"trained": True})
    config = ["--config", str(own("clinic", dry_run=True))]
    assert train_attending.main(config) == {}
    assert "parameters " in capsys.readouterr().out
    for form in (["--dry_run", "false"], ["--dry_run=false"]):
        assert train_attending.main([*config, *form]) == {"trained": True}


def test_a_word_that_is_no_boolean_is_refused():
    with pytest.raises(ValueError, match=r"dry_run.*'perhaps'|dry_run.*perhaps"):
        train_attending.main(["--dry_run", "perhaps"])


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(SystemExit, match=r"nowhere\.yaml"):
        dry_run.main(["--config", "nowhere.yaml"])


# refusals


@pytest.fixture
def own(tmp_path):
    """A copy of a recipe and its launch, with lines changed."""

    def write(name, **changes):
        shutil.copytree(CONFIGS / "accelerate", tmp_path / "accelerate", dirs_exist_ok=True)
        given = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) | changes
        path = tmp_path / "own.yaml"
        path.write_text(yaml.safe_dump(given))
        return path

    return write


REFUSED = {
    "misspelt": ("one_24gb", {"learning_rat": 1e-5}, ["--learning_rat"]),
    "misspelt, of the model": ("one_24gb", {"lora_rank": 8}, ["--lora_rank"]),
    "a word for a number": ("one_24gb", {"learning_rate": "fast"}, ["learning_rate", "'fast'"]),
    "half a batch": ("one_24gb", {"per_device_train_batch_size": 4.5}, ["per_device_train_batch_size", "'4.5'"]),
    "an unknown schedule": ("one_24gb", {"lr_scheduler_type": "flat"}, ["flat"]),
    "an unknown optimizer": ("one_24gb", {"optim": "adam_thing"}, ["adam_thing"]),
    "an unknown dtype": ("one_24gb", {"dtype": "bf16"}, ["dtype", "'bf16'", "bfloat16"]),
    "an impossible batch": ("eight_gpus", {"num_generations": 12}, ["generation_batch_size (128)", "(12)"]),
    "a loss": ("one_24gb", {"loss_type": "ppo"}, ["loss_type", "'ppo'", "dapo"]),
    "a mode": ("one_80gb", {"vllm_mode": "beside"}, ["vllm_mode", "'beside'", "colocate"]),
    "another name for the policy": ("one_24gb", {"model_name_or_path": "x"}, ["model_name_or_path", "--model"]),
    "no adapters in 4 bits": ("one_24gb", {"use_peft": False, "load_in_4bit": True}, ["load_in_4bit", "use_peft"]),
    "no such target": ("one_24gb", {"lora_target_modules": ["nope"]}, ["lora_target_modules", "nope"]),
    "the head": ("one_80gb", {"lora_target_modules": ["q_proj", "lm_head"]}, ["lora_target_modules", "lm_head"]),
    "a stage": ("one_24gb", {"stages": ["easy", "harder", "hard"]}, ["stages", "'harder'"]),
    "too large for its GPU": ("one_24gb", {"per_device_train_batch_size": 16}, ["gpu_memory: 24 GiB", "prefill"]),
    "a reference that LoRA has not": ("one_24gb", {"sync_ref_model": True}, ["sync_ref_model", "use_peft"]),
    "a small share": ("one_80gb", {"vllm_gpu_memory_utilization": 0.2}, ["vllm_gpu_memory_utilization", "0.2"]),
    "a short model": ("one_80gb", {"vllm_max_model_length": 1024}, ["vllm_max_model_length", "1024", "2393"]),
    "three in a row": ("eight_gpus", {"vllm_tensor_parallel_size": 3}, ["vllm_tensor_parallel_size", "3", "8"]),
    "another precision": ("eight_gpus", {"bf16": False, "fp16": True}, ["mixed_precision", "'bf16'", "'fp16'"]),
    "no launch file": ("eight_gpus", {"accelerate": "accelerate/nine.yaml"}, ["accelerate", "nine.yaml"]),
    "text alone": (
        "one_24gb",
        {"use_transformers_continuous_batching": True},
        ["use_transformers_continuous_batching", "use_vllm"],
    ),
}


@pytest.mark.parametrize(("name", "changes", "named"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_work_is_refused_by_name(own, name, changes, named):
    with pytest.raises(ValueError) as error:
        check(own(name, **changes))
    assert [part for part in named if part not in str(error.value)] == []


def test_flags_win_over_the_file_and_are_checked_alike():
    config = CONFIGS / "one_24gb.yaml"
    assert parse(config, "--learning_rate", "0.5")[0].learning_rate == 0.5
    with pytest.raises(ValueError, match="--learning_rat"):
        parse(config, "--learning_rat", "0.5")  # no abbreviations: TRL would take it for one of learning_rate


def test_the_batch_is_that_of_all_processes():
    assert parse(CONFIGS / "two_nodes.yaml")[0].generation_batch_size == 128
    assert parse(CONFIGS / "two_nodes.yaml", "--accelerate", "accelerate/eight_gpus.yaml")[1].processes == 8


WRONG = {
    "a misspelt key": ("fsdp_version: 2", "fsdp_versoin: 2", ["fsdp_versoin", "fsdp_version"]),
    "a misspelt field": ("num_machines", "num_machine", ["num_machine"]),
    "an unknown kind": ("distributed_type: FSDP", "distributed_type: FSPD", ["FSPD"]),
    "no truth value": ("after_forward: true", "after_forward: often", ["often"]),
    "an unknown policy": ("TRANSFORMER_BASED_WRAP", "LAYERS", ["LAYERS"]),
    "an unknown version": ("fsdp_version: 2", "fsdp_version: 3", ["fsdp_version", "3"]),
    "an unknown precision": ("mixed_precision: bf16", "mixed_precision: bf17", ["bf17"]),
    "processes that no two machines can share": ("num_processes: 16", "num_processes: 15", ["15", "num_machines: 2"]),
    "nothing": (None, "", []),
}


@pytest.mark.parametrize(("old", "new", "named"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_launch_is_refused_by_name(tmp_path, old, new, named):
    right = (CONFIGS / "accelerate" / "two_nodes.yaml").read_text()
    path = tmp_path / "launch.yaml"
    path.write_text(right.replace(old, new) if old else new)
    with pytest.raises(ValueError) as error:
        read_launch(path)
    assert [part for part in [*named, "launch.yaml"] if part not in str(error.value)] == []


def test_a_launch_that_saves_no_model_is_refused(own):
    config = own("eight_gpus")
    launch = config.parent / "accelerate" / "eight_gpus.yaml"
    launch.write_text(launch.read_text().replace("FULL_STATE_DICT", "SHARDED_STATE_DICT"))
    with pytest.raises(ValueError, match=r"fsdp_state_dict_type.*FULL_STATE_DICT"):
        check(config)


def test_deepspeed_splits_what_its_stage_says(tmp_path):
    path = tmp_path / "zero.yaml"
    text = "distributed_type: DEEPSPEED\nnum_processes: 8\nnum_machines: 1\nmixed_precision: bf16\n"
    path.write_text(text + "deepspeed_config: {zero_stage: 2}\n")
    assert read_launch(path).splits == ("optimizer", "gradients")
    path.write_text(text + "deepspeed_config: {zero_stag: 2}\n")
    with pytest.raises(ValueError, match="zero_stag"):
        read_launch(path)
