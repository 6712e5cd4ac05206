"""Every shipped recipe parses for its command, flags win over YAML, and what cannot work is refused by name."""

import dataclasses

import pytest

from rl import train_attending, train_sft, train_triage
from rl.settings import CONFIGS, SEEDS, Command, Consultations, config_name, read_settings

COMMANDS = {command.module: command for command in (train_attending.COMMAND, train_triage.COMMAND, train_sft.COMMAND)}
ATTENDING, TRIAGE, SFT = COMMANDS.values()
SHIPPED = {
    "clinic.yaml": ATTENDING,
    "clinic_sft.yaml": SFT,
    "clinic_triage.yaml": TRIAGE,
    "one_24gb.yaml": ATTENDING,
    "one_80gb.yaml": ATTENDING,
    "eight_gpus.yaml": ATTENDING,
    "two_nodes.yaml": ATTENDING,
}


def recipe_of(flags: str = "", command: Command = ATTENDING):
    return read_settings(command, flags.split()).recipe


def test_every_shipped_recipe_is_some_commands():
    """The list above would miss a new file: it is held to the folder."""
    others = {path.name for path in CONFIGS.glob("*.yaml")} - set(SHIPPED)
    for name in others:
        assert any(_reads(command, name) for command in COMMANDS.values()), name


def _reads(command, name):
    try:
        read_settings(command, ["--config", str(CONFIGS / name), "--use_cpu", "true"])
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(("name", "command"), SHIPPED.items())
def test_every_shipped_recipe_parses(name, command):
    arguments = ["--config", str(CONFIGS / name), "--use_cpu", "true"]  # bf16 is refused where there is no GPU
    assert config_name(command, arguments) == name.removesuffix(".yaml")
    recipe, trainer, model = read_settings(command, arguments)
    assert isinstance(recipe, command.recipe)
    assert isinstance(trainer, command.trainer)
    assert model.model_name_or_path is None


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
def test_a_command_has_a_recipe_of_its_own_by_default(command):
    assert command.config.is_file()
    assert config_name(command, []) == command.config.stem
    recipe = read_settings(command, []).recipe
    assert (recipe.model, recipe.cases) == ("clinic:base", None)


def test_which_nodes_learn_by_default():
    assert {name: read_settings(command, []).recipe.nodes for name, command in COMMANDS.items()} == {
        "rl.train_attending": ["attending"],
        "rl.train_triage": ["triage"],
        "rl.train_sft": ["attending"],
    }


def test_flags_override_the_yaml(tmp_path):
    config = tmp_path / "own.yaml"
    config.write_text("train_size: 5\ngammas: [1, 2, 3]\nlearning_rate: 0.5\nuse_cpu: true\n")
    recipe, trainer, _ = read_settings(ATTENDING, ["--config", str(config)])
    assert (recipe.train_size, recipe.gammas, trainer.learning_rate) == (5, [1, 2, 3], 0.5)
    flags = ["--train_size", "7", "--gammas", "0", "0", "1", "--learning_rate=0.25"]
    for named in (["--config", str(config)], [f"--config={config}"]):
        recipe, trainer, _ = read_settings(ATTENDING, [*named, *flags])
        assert (recipe.train_size, recipe.gammas, trainer.learning_rate) == (7, [0, 0, 1], 0.25)


@pytest.mark.parametrize("field", ["vllm_importance_sampling_clip_max", "lora_target_modules", "judge"])
def test_null_is_none_and_not_the_default(tmp_path, field):
    """In YAML and on the command line; the last word wins, as ever."""
    config = tmp_path / "own.yaml"
    config.write_text(f"use_cpu: true\n{field}: null\n")
    for flags in (["--config", str(config)], [f"--{field}", "null"], [f"--{field}=3", f"--{field}=null"]):
        settings = read_settings(ATTENDING, flags)
        assert [getattr(one, field) for one in settings if hasattr(one, field)] == [None]
    trainer = read_settings(ATTENDING, ["--config", str(config), "--vllm_importance_sampling_clip_max=2"]).trainer
    assert trainer.vllm_importance_sampling_clip_max == 2


def test_null_is_refused_where_it_is_no_value(tmp_path):
    config = tmp_path / "own.yaml"
    config.write_text("use_cpu: true\nper_device_train_batch_size: null\n")
    with pytest.raises(ValueError, match=r"per_device_train_batch_size: null.*leave it out"):
        read_settings(ATTENDING, ["--config", str(config)])
    with pytest.raises(ValueError, match="stages: null"):
        read_settings(ATTENDING, ["--stages", "null"])


def test_the_clinics_imitation_has_no_limit_of_length():
    assert read_settings(SFT, []).trainer.max_length is None


def test_lora_has_a_default_that_fits_every_model():
    """PEFT has none for Qwen2.5-VL, and says so when the cases are rolled out already."""
    assert read_settings(ATTENDING, ["--use_peft", "true"]).model.lora_target_modules == "all-linear"
    given = read_settings(ATTENDING, ["--use_peft", "true", "--lora_target_modules", "q_proj", "v_proj"]).model
    assert given.lora_target_modules == ["q_proj", "v_proj"]
    assert read_settings(ATTENDING, []).model.lora_target_modules is None


def test_every_field_tells_what_it_is():
    for command in COMMANDS.values():
        assert [f.name for f in dataclasses.fields(command.recipe) if not f.metadata.get("help")] == []


@pytest.mark.parametrize("nodes", [["attending"], ["triage"], ["triage", "attending"], ["attending", "triage"]])
def test_either_node_or_both_learn(nodes):
    assert Consultations(nodes=nodes).nodes == nodes


def test_somebody_must_learn():
    with pytest.raises(ValueError, match=r"nodes: \[\]; name some of triage, attending, specialist"):
        Consultations(nodes=[])


def test_a_frozen_doctor_is_the_clinics_or_the_policy_itself():
    clinic = Consultations(model="some/model")
    own = Consultations(model="some/model", cases="cases.jsonl")
    named = Consultations(cases="cases.jsonl", triage="vllm:other")
    assert (clinic.frozen("triage"), own.frozen("triage")) == ("clinic:base", "transformers:some/model")
    assert (named.frozen("triage"), named.frozen("attending")) == ("vllm:other", "clinic:base")


REFUSED = {
    "unknown node": ("--nodes porter", ["nodes", "'porter'", "triage, attending, specialist"]),
    "a specialist and another": ("--nodes specialist triage", ["nodes", "a specialist learns alone"]),
    "nobody's specialty": ("--specialty Surgeon", ["specialty: 'Surgeon'", "--nodes specialist"]),
    "a node twice": ("--nodes triage triage", ["nodes", "each once"]),
    "frozen, but it learns": ("--attending vllm:x", ["attending", "'vllm:x'", "learns", "--model", "--nodes"]),
    "frozen triage, but it learns": (
        "--nodes triage attending --triage vllm:x",
        ["triage: 'vllm:x'", "learns"],
    ),
    "unknown free_text": ("--free_text exact_match", ["free_text", "'exact_match'", "skip or grade"]),
    "unknown output": ("--output both", ["output", "'both'", "merged or adapter"]),
    "nothing held out": ("--holdout 0", ["holdout", "0.0", "between 0 and 1"]),
    "all held out": ("--holdout 1", ["holdout", "1.0", "between 0 and 1"]),
    "no training case": ("--train_size 0", ["train_size", "0", "1 or more"]),
    "no held-out case": ("--eval_size -3", ["eval_size", "-3", "1 or more"]),
    "split without cases": ("--split train", ["split", "'train'", "--cases"]),
    "eval_split without cases": ("--eval_split test", ["eval_split", "'test'", "--cases"]),
    "seed too large": (f"--seed {SEEDS}", ["seed", str(SEEDS), f"0 to {SEEDS - 1}"]),
    "negative seed": ("--seed=-1", ["seed", "-1", "overlap"]),
    "TRL's name of the model": ("--model_name_or_path x/y", ["model_name_or_path", "'x/y'", "--model"]),
    "an evaluation": ("--eval_strategy steps --eval_steps 5", ["eval_strategy: 'steps'", "leave it out"]),
    "a first evaluation": ("--eval_on_start true", ["eval_on_start: True", "before and after"]),
    "TRL's way to resume": ("--resume_from_checkpoint x", ["resume_from_checkpoint: 'x'", "--resume"]),
    "TRL's way to load": ('--model_init_kwargs {"a":1}', ["model_init_kwargs: {'a': 1}", "--attn_implementation"]),
    "a revision": ("--model_revision v2", ["model_revision: 'v2'", "download", "--model"]),
    "unknown config": ("--config nowhere.yaml", ["config", "'nowhere.yaml'", "clinic.yaml", "eight_gpus.yaml"]),
    "config, joined": ("--config=nowhere.yaml", ["config", "'nowhere.yaml'", "clinic.yaml"]),
    "config without a name": ("--seed 1 --config", ["config", "expected one argument", "YAML"]),
    "unknown flag": ("--learning_speed 3", ["--learning_speed"]),
}


@pytest.mark.parametrize("command", [ATTENDING, SFT], ids=["grpo", "sft"])
@pytest.mark.parametrize(("flags", "named"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_work_is_refused_by_name(command, flags, named):
    with pytest.raises(ValueError) as error:
        read_settings(command, flags.split())
    assert [part for part in named if part not in str(error.value)] == []


@pytest.mark.parametrize(
    ("line", "named"),
    [("beta: 0.25", "beta: 0.25"), ("learning_speed: 3", "learning_speed"), ("stages: [hardest]", "'hardest'")],
)
def test_yaml_is_checked_as_flags_are(tmp_path, line, named):
    config = tmp_path / "own.yaml"
    config.write_text(f"use_cpu: true\n{line}\n")
    with pytest.raises(ValueError, match=named):
        read_settings(ATTENDING, ["--config", str(config)])


IMITATION = {
    "unknown teacher": ("--imitate others", ["imitate", "'others'", "gold or own"]),
    "no sample": ("--samples 0", ["samples", "0", "1 or more"]),
    "loss on the prompts": ("--completion_only_loss false", ["completion_only_loss: false", "true, or leave it out"]),
}


@pytest.mark.parametrize(("flags", "named"), IMITATION.values(), ids=IMITATION.keys())
def test_what_cannot_be_imitated_is_refused_by_name(flags, named):
    with pytest.raises(ValueError) as error:
        recipe_of(flags, SFT)
    assert [part for part in named if part not in str(error.value)] == []
