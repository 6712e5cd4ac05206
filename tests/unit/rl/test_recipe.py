"""Every shipped recipe parses, flags win over YAML, and what cannot work is refused by name."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.curriculum import TIERS
from rl.recipe import CONFIGS, Recipe, read_recipe, recipe_name, stage_settings

YAMLS = sorted(CONFIGS.glob("*.yaml"))


def test_the_default_recipe_is_the_clinics(tmp_path):
    recipe, settings = read_recipe([])
    assert recipe_name([]) == "clinic"
    assert (recipe.model, recipe.cases, recipe.stages) == ("clinic:base", None, list(TIERS))
    assert settings.num_generations == 8
    assert settings.learning_rate == 1.5e-4
    assert settings.beta == settings.entropy_coef == 0
    assert len(recipe.curriculum(int(settings.max_steps))) == 3


@pytest.mark.parametrize("config", YAMLS, ids=lambda path: path.name)
def test_every_shipped_recipe_parses(config, tmp_path):
    arguments = ["--config", str(config), "--use_cpu", "true"]  # without it bf16 is refused where there is no GPU
    recipe, settings = read_recipe(arguments)
    assert recipe_name(arguments) == config.stem
    assert [stage.name.partition("-")[2] for stage in recipe.curriculum(-1)] == list(TIERS)
    stage = recipe.curriculum(-1)[0]
    assert stage_settings(arguments, stage, tmp_path).num_generations == settings.num_generations == 8


def test_the_papers_recipe_says_what_the_paper_says():
    recipe, settings = read_recipe(["--config", str(CONFIGS / "eight_gpus.yaml"), "--use_cpu", "true"])
    assert recipe.gammas == [1e-4, 5e-3, 3e-2]
    assert recipe.betas == [1e-3, 4e-3, 1e-2]
    assert (settings.learning_rate, settings.temperature, settings.num_generations) == (1e-6, 1.0, 8)
    assert settings.per_device_train_batch_size * settings.gradient_accumulation_steps * 8 == 128  # on eight GPUs
    assert [[stage.shares[tier] for tier in TIERS] for stage in recipe.curriculum(-1)] == [
        [1, 0, 0],
        [0, 1, 0],
        [0, 0, 1],
    ]


def test_flags_override_the_yaml(tmp_path):
    config = tmp_path / "own.yaml"
    config.write_text("train_size: 5\ngammas: [1, 2, 3]\nlearning_rate: 0.5\nuse_cpu: true\n")
    recipe, settings = read_recipe(["--config", str(config)])
    assert (recipe.train_size, recipe.gammas, settings.learning_rate) == (5, [1, 2, 3], 0.5)
    flags = ["--train_size", "7", "--gammas", "0", "0", "1", "--learning_rate=0.25"]
    recipe, settings = read_recipe(["--config", str(config), *flags])
    assert (recipe.train_size, recipe.gammas, settings.learning_rate) == (7, [0, 0, 1], 0.25)


def test_a_stage_has_its_own_settings(tmp_path):
    arguments = ["--learning_rate", "0.1", "--max_steps", "9", "--output_dir", "elsewhere"]
    stage = read_recipe(arguments)[0].curriculum(9)[1]
    settings = stage_settings(arguments, stage, tmp_path)
    assert settings.learning_rate == 0.1
    assert (settings.beta, settings.max_steps) == (stage.beta, stage.steps)
    assert settings.shuffle_dataset is False  # the curriculum has put the cases in order
    assert settings.output_dir == str(tmp_path / "checkpoints")


@settings(deadline=None)
@given(steps=st.lists(st.integers(0, 400), min_size=1, max_size=3).filter(any), cap=st.integers(-1, 1300))
def test_max_steps_caps_the_sum_and_keeps_the_order(steps, cap):
    n = len(steps)
    recipe = Recipe(stages=list(TIERS[:n]), stage_steps=steps, betas=[0.1, 0.2, 0.3][:n], rehearsal=[1, 2, 3] * n)
    stages = recipe.curriculum(cap)
    total = sum(steps)
    wanted = min(cap, total) if cap > 0 else total
    assert sum(stage.steps for stage in stages) == wanted
    assert [stage.name for stage in stages] == sorted(stage.name for stage in stages)
    for stage in stages:
        place = int(stage.name[0]) - 1
        assert stage.name == f"{place + 1}-{TIERS[place]}"
        assert stage.beta == [0.1, 0.2, 0.3][place]
        assert stage.shares == {"easy": 1, "medium": 2, "hard": 3}
        assert stage.steps > 0
        assert abs(stage.steps - steps[place] * wanted / total) <= 1


def test_each_stage_has_its_own_shares():
    recipe = Recipe(rehearsal=[1, 0, 0, 0.5, 0.5, 0, 0.2, 0.3, 0.5])
    assert [tuple(stage.shares.values()) for stage in recipe.curriculum(-1)] == [
        (1, 0, 0),
        (0.5, 0.5, 0),
        (0.2, 0.3, 0.5),
    ]


REFUSED = {
    "unknown stage": ("--stages easy hardest hard", ["stages", "'hardest'", "easy, medium, hard"]),
    "steps of a stage missing": ("--stage_steps 10 20", ["stage_steps", "2 values", "3 stages"]),
    "no steps at all": ("--stage_steps 0 0 0", ["stage_steps", "[0, 0, 0]", "at least one"]),
    "negative steps": ("--stage_steps 5 -5 5", ["stage_steps", "[5, -5, 5]", "0 or more"]),
    "a beta too many": ("--betas 0 0 0 0", ["betas", "4 values", "3 stages"]),
    "shares missing": ("--rehearsal 1 0 0", ["rehearsal", "3 values", "3 stages", "give 3"]),
    "gammas missing": ("--gammas 0.1 0.2", ["gammas", "[0.1, 0.2]", "easy, medium, hard"]),
    "negative gamma": ("--gammas 0.1 -0.2 0", ["gammas", "-0.2", "easy, medium, hard"]),
    "negative share": ("--rehearsal 1 0 0 0 1 0 1 -1 1", ["rehearsal", "-1", "0 or more"]),
    "a stage without cases": ("--rehearsal 1 0 0 0 0 0 0 0 1", ["rehearsal", "0.0, 0.0, 0.0", "positive sum"]),
    "unknown free_text": ("--free_text judge", ["free_text", "'judge'", "skip", "exact_match"]),
    "nothing held out": ("--holdout 0", ["holdout", "0.0", "between 0 and 1"]),
    "all held out": ("--holdout 1", ["holdout", "1.0", "between 0 and 1"]),
    "split without cases": ("--split train", ["split", "train", "--cases"]),
    "eval_split without cases": ("--eval_split test", ["eval_split", "test", "--cases"]),
    "beta": ("--beta 0.25", ["beta", "0.25", "betas"]),
    "entropy_coef": ("--entropy_coef 0.25", ["entropy_coef", "0.25", "gammas"]),
    "adaptive entropy": ("--use_adaptive_entropy true", ["use_adaptive_entropy", "True", "gammas"]),
    "unknown config": ("--config nowhere.yaml", ["config", "'nowhere.yaml'", "clinic.yaml", "eight_gpus.yaml"]),
    "config, joined": ("--config=nowhere.yaml", ["config", "'nowhere.yaml'", "clinic.yaml"]),
    "unknown flag": ("--learning_speed 3", ["--learning_speed"]),
}


@pytest.mark.parametrize(("flags", "named"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_work_is_refused_by_name(flags, named):
    with pytest.raises(ValueError) as error:
        read_recipe(flags.split())
    assert [part for part in named if part not in str(error.value)] == []


@pytest.mark.parametrize(
    ("line", "named"),
    [("beta: 0.25", "beta: 0.25"), ("learning_speed: 3", "learning_speed"), ("stages: [hardest]", "'hardest'")],
)
def test_yaml_is_checked_as_flags_are(tmp_path, line, named):
    config = tmp_path / "own.yaml"
    config.write_text(f"use_cpu: true\n{line}\n")
    with pytest.raises(ValueError, match=named):
        read_recipe(["--config", str(config)])


def test_a_recipe_without_stages_is_refused_by_name():
    with pytest.raises(ValueError, match="stages"):
        Recipe(stages=[], stage_steps=[], betas=[], rehearsal=[])
