"""From the settings of a recipe to its stages: which nodes, tiers and weights, and what is refused by name."""

import dataclasses
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.curriculum import MIXED, TIERS
from rl.recipe import Recipe, prompts_a_step, prompts_of, stage_settings
from rl.settings import CONFIGS, read_settings
from rl.train_attending import COMMAND
from rl.train_triage import COMMAND as TRIAGE

BOTH = ["triage", "attending"]


def read(flags: str = "", command=COMMAND):
    return read_settings(command, flags.split())


def shares_of(recipe):
    return [stage.shares for stage in recipe.curriculum(-1)]


def tiers(*shares):
    return dict(zip(TIERS, shares, strict=True))


def test_the_default_recipe_is_the_clinics():
    recipe, trainer, _ = read()
    assert (recipe.stages, recipe.nodes) == (list(TIERS), ["attending"])
    assert (trainer.num_generations, trainer.learning_rate) == (8, 3e-4)
    assert trainer.beta == trainer.entropy_coef == 0
    stages = recipe.curriculum(int(trainer.max_steps))
    assert [stage.name for stage in stages] == ["1-easy", "2-medium", "3-hard"]


def test_the_papers_recipe_says_what_the_paper_says():
    recipe, trainer, _ = read(f"--config {CONFIGS / 'eight_gpus.yaml'} --use_cpu true")
    assert recipe.gammas == [1e-4, 5e-3, 3e-2]
    assert recipe.betas == [1e-3, 4e-3, 1e-2]
    assert (trainer.learning_rate, trainer.temperature, trainer.num_generations) == (1e-6, 1.0, 8)
    assert trainer.per_device_train_batch_size * trainer.gradient_accumulation_steps * 8 == 128  # on eight GPUs
    assert shares_of(recipe) == [tiers(1, 0, 0), tiers(0, 1, 0), tiers(0, 0, 1)]
    pure = [(stage.beta, stage.gammas[tier]) for stage, tier in zip(recipe.curriculum(-1), TIERS, strict=True)]
    assert pure == [(1e-3, 1e-4), (4e-3, 5e-3), (1e-2, 3e-2)]


def test_what_the_paper_pays_for():
    gradings = read().recipe.gradings(longest=16)
    assert {node: dict(grading.weights) for node, grading in gradings.items()} == {
        "attending": {"format": 0.5, "accuracy": 1.0}
    }
    gradings = read("", TRIAGE).recipe.gradings(longest=16)
    assert {node: dict(grading.weights) for node, grading in gradings.items()} == {
        "triage": {"format": 0.5, "specialty": 1.0}
    }


def test_triage_is_paid_for_the_outcome_on_top():
    gradings = Recipe(nodes=BOTH, outcome_weight=0.5, graders=["accuracy", "overlong=0.1"]).gradings(longest=16)
    assert dict(gradings["triage"].weights) == {"format": 0.5, "specialty": 1.0, "outcome": 0.5}
    assert dict(gradings["attending"].weights) == {"accuracy": 1.0, "overlong": 0.1}


def test_whether_triage_learns_by_its_labels():
    mixed = {"stages": [MIXED], "stage_steps": [1], "betas": [0.0]}
    assert Recipe(nodes=["triage"], **mixed).by_label()
    assert Recipe(nodes=BOTH).by_label()
    assert not Recipe().by_label()
    for unpaid in (["format"], ["format", "specialty=0"]):
        assert not Recipe(nodes=["triage"], triage_graders=unpaid, outcome_weight=1, **mixed).by_label()


def test_a_judge_is_a_grader_where_one_is_named():
    recipe = Recipe(graders=["format=0.5", "judge"], judge="clinic:doctor-1")
    assert set(recipe.gradings(longest=16)["attending"].graders) == {"format", "judge"}


def test_a_stage_has_its_own_settings(tmp_path):
    arguments = ["--learning_rate", "0.1", "--rate_scales", "1", "--max_steps", "9", "--output_dir", "elsewhere"]
    stage = read_settings(COMMAND, arguments).recipe.curriculum(9)[1]
    trainer = stage_settings(COMMAND, arguments, stage, tmp_path)
    assert trainer.learning_rate == 0.1
    assert (trainer.beta, trainer.max_steps) == (stage.beta, stage.steps)
    assert trainer.shuffle_dataset is False  # the curriculum has put the cases in order
    assert trainer.output_dir == str(tmp_path / "checkpoints")


@pytest.mark.parametrize(("scales", "rates"), [("1 0.5 0.25", [0.4, 0.2, 0.1]), ("2", [0.8, 0.8, 0.8])])
def test_a_stage_may_be_slower_than_the_run(tmp_path, scales, rates):
    arguments = ["--learning_rate", "0.4", "--rate_scales", *scales.split()]
    stages = read_settings(COMMAND, arguments).recipe.curriculum(0)
    assert [stage_settings(COMMAND, arguments, stage, tmp_path).learning_rate for stage in stages] == rates


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


# Shares of the tiers


def test_each_stage_has_its_own_shares():
    recipe = Recipe(rehearsal=[1, 0, 0, 0.5, 0.5, 0, 0.2, 0.3, 0.5])
    assert shares_of(recipe) == [tiers(1, 0, 0), tiers(0.5, 0.5, 0), tiers(0.2, 0.3, 0.5)]


def test_stages_are_pure_unless_something_is_rehearsed():
    assert shares_of(Recipe()) == [tiers(1, 0, 0), tiers(0, 1, 0), tiers(0, 0, 1)]


ORDERS = [list(order) for order in itertools.permutations(TIERS)]


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_a_share_of_each_stage_rehearses_the_tiers_of_earlier_ones_in_any_order(order):
    first, second, third = shares_of(Recipe(stages=order, rehearsal=[0.4]))
    assert {tier: share for tier, share in first.items() if share} == {order[0]: 1.0}
    assert second == pytest.approx(dict.fromkeys(TIERS, 0.0) | {order[0]: 0.4, order[1]: 0.6})
    assert third == pytest.approx({order[0]: 0.2, order[1]: 0.2, order[2]: 0.6})


@settings(deadline=None)
@given(
    order=st.lists(st.sampled_from([*TIERS, MIXED]), min_size=1, max_size=6),
    share=st.floats(0, 1, exclude_max=True),
)
def test_shares_sum_to_one_and_the_stages_own_tier_has_the_rest(order, share):
    n = len(order)
    recipe = Recipe(stages=order, stage_steps=[1] * n, betas=[0] * n, rehearsal=[share])
    for place, shares in enumerate(shares_of(recipe)):
        if order[place] == MIXED:
            assert shares == {}
            continue
        assert sum(shares.values()) == pytest.approx(1)
        assert min(shares.values()) >= 0
        earlier = set(order[:place]) - {order[place], MIXED}
        assert shares[order[place]] == pytest.approx(1 - share if earlier else 1)
        for tier in set(TIERS) - earlier - {order[place]}:
            assert shares[tier] == 0


def test_a_mixed_stage_takes_the_cases_as_they_come():
    mixed = {"stages": [MIXED], "stage_steps": [5], "betas": [0.0]}
    assert shares_of(Recipe(**mixed)) == [{}]
    assert shares_of(Recipe(**mixed, rehearsal=[1, 2, 3])) == [{}]
    several = Recipe(stages=["hard", MIXED, "easy"], rehearsal=[0.5])
    assert shares_of(several) == [tiers(0, 0, 1), {}, tiers(0.5, 0, 0.5)]


def test_two_stages_of_one_tier_have_names_of_their_own():
    twice = Recipe(stages=["easy", "easy"], stage_steps=[1, 1], betas=[0, 0], rehearsal=[0.3])
    assert [stage.name for stage in twice.curriculum(-1)] == ["1-easy", "2-easy"]
    assert shares_of(twice) == [tiers(1, 0, 0), tiers(1, 0, 0)]


# Entropy weights


def test_weights_go_by_tier_wherever_the_case_turns_up():
    for stage in Recipe(gammas=[0.1, 0.2, 0.3], nodes=BOTH, triage_gammas=[0.4]).curriculum(-1):
        assert stage.gammas == {**tiers(0.1, 0.2, 0.3), "triage": 0.4, "specialist": 0.4}


def test_triages_weight_may_change_from_stage_to_stage():
    stages = Recipe(nodes=BOTH, triage_gammas=[0.4, 0.2, 0]).curriculum(-1)
    assert [stage.gammas["triage"] for stage in stages] == [0.4, 0.2, 0]


def test_or_by_stage_whatever_the_case():
    recipe = Recipe(gammas=[0.1, 0.2], gamma_by="stage", stages=["hard", MIXED], stage_steps=[1, 1], betas=[0, 0])
    assert [stage.gammas for stage in recipe.curriculum(-1)] == [
        dict.fromkeys((*TIERS, "triage", "specialist"), 0.1),
        dict.fromkeys((*TIERS, "triage", "specialist"), 0.2),
    ]


@pytest.mark.parametrize("schedule", ["constant", "rise", "fall"])
def test_a_schedule_reaches_every_stage(schedule):
    assert {stage.schedule for stage in Recipe(gamma_schedule=schedule).curriculum(-1)} == {schedule}


def test_adaptive_entropy_goes_with_zero_gammas():
    recipe, trainer, _ = read("--use_adaptive_entropy true --entropy_coef 0.01 --gammas 0 0 0")
    assert trainer.use_adaptive_entropy
    assert trainer.entropy_coef == 0.01
    assert not any(recipe.curriculum(-1)[0].gammas.values())


# Nodes


def test_nodes_share_the_prompts_equally_or_as_is_said():
    assert [stage.nodes for stage in Recipe(nodes=BOTH).curriculum(-1)] == [{"triage": 1.0, "attending": 1.0}] * 3
    weighed = Recipe(nodes=BOTH, node_shares=[1, 3])
    assert weighed.curriculum(-1)[0].nodes == {"triage": 1, "attending": 3}


@settings(deadline=None)
@given(
    steps=st.lists(st.integers(1, 60), min_size=3, max_size=3),
    shares=st.lists(st.sampled_from([1.0, 2.0, 0.5, 3.0]), min_size=2, max_size=2),
)
def test_alternating_nodes_take_turns_and_keep_the_steps(steps, shares):
    whole = Recipe(nodes=BOTH, stage_steps=steps, node_shares=shares, alternate=True).curriculum(-1)
    assert all(list(stage.nodes.values()) == [1.0] for stage in whole)
    for place, tier in enumerate(TIERS):
        turns = [stage for stage in whole if stage.name.startswith(f"{place + 1}-{tier}-")]
        assert [stage.name.rpartition("-")[2] for stage in turns] == [next(iter(stage.nodes)) for stage in turns]
        assert sum(stage.steps for stage in turns) == steps[place]
        for stage in turns:  # a node that is left without a step has no turn
            share = shares[BOTH.index(next(iter(stage.nodes)))]
            assert abs(stage.steps - steps[place] * share / sum(shares)) < 1


def test_alternating_stages_are_capped_as_others_are():
    stages = Recipe(nodes=BOTH, stage_steps=[10, 10, 10], alternate=True).curriculum(12)
    assert [(stage.name, stage.steps) for stage in stages] == [
        (f"{place}-{tier}-{node}", 2) for place, tier in enumerate(TIERS, 1) for node in BOTH
    ]


def test_triage_alone_has_one_kind_of_stage():
    recipe = read("", TRIAGE).recipe
    assert [(stage.name, stage.nodes, stage.shares) for stage in recipe.curriculum(-1)] == [
        ("1-mixed", {"triage": 1.0}, {})
    ]


# Prompts


@pytest.mark.parametrize(
    ("flags", "each"),
    [
        ("--per_device_train_batch_size 8 --num_generations 4", 2),
        ("--per_device_train_batch_size 8 --num_generations 4 --gradient_accumulation_steps 3", 6),
        # one generation serves two steps, or two passes, or both
        ("--per_device_train_batch_size 8 --num_generations 4 --steps_per_generation 2", 2),
        ("--per_device_train_batch_size 8 --num_generations 4 --num_iterations 2", 1),
        ("--per_device_train_batch_size 8 --num_generations 4 --steps_per_generation 2 --num_iterations 2", 1),
        ("--per_device_train_batch_size 8 --num_generations 8 --num_iterations 2", 0.5),
    ],
)
def test_how_many_prompts_a_step_takes(flags, each):
    recipe, trainer, _ = read(f"{flags} --save_strategy no")
    assert prompts_a_step(trainer) == each
    groups = trainer.generation_batch_size // trainer.num_generations
    for steps in range(1, 9):
        stage = dataclasses.replace(recipe.curriculum(0)[0], steps=steps)
        assert prompts_of(stage, trainer) % groups == 0  # TRL leaves out the prompts of half a generation
        assert steps * each <= prompts_of(stage, trainer) < steps * each + groups


# What cannot work

REFUSED = {
    "a checkpoint inside a generation": (
        "--num_iterations 2 --save_steps 3",
        ["save_steps: 3", "serves 2 optimizer steps", "a multiple"],
    ),
    "tiers by the key after all": (
        "--nodes triage attending --tiers disagreement",
        ["tiers", "disagreement", "--reroll_steps 0", "--alternate"],
    ),
    "unknown stage": ("--stages easy hardest hard", ["stages", "'hardest'", "easy, medium, hard, mixed"]),
    "tiers for triage alone": ("--nodes triage", ["stages", "'easy'", "no opinion", "mixed"]),
    "steps of a stage missing": ("--stage_steps 10 20", ["stage_steps", "2 values", "3 stages"]),
    "no steps at all": ("--stage_steps 0 0 0", ["stage_steps", "[0, 0, 0]", "at least one"]),
    "negative steps": ("--stage_steps 5 -5 5", ["stage_steps", "[5, -5, 5]", "0 or more"]),
    "a beta too many": ("--betas 0 0 0 0", ["betas", "4 values", "3 stages"]),
    "negative beta": ("--betas 0 -0.1 0", ["betas", "-0.1", "0 or more"]),
    "beta that is no number": ("--betas 0 nan 0", ["betas", "nan", "0 or more"]),
    "a scale missing": ("--rate_scales 1 0.5", ["rate_scales: [1.0, 0.5]", "each"]),
    "no rate": ("--rate_scales 1 0 1", ["rate_scales", "0.0", "above 0"]),
    "shares missing": ("--rehearsal 1 0 0 0", ["rehearsal", "4 values", "3 stages", "one share for all, or 3"]),
    "all rehearsed": ("--rehearsal 1", ["rehearsal", "1.0", "below 1"]),
    "negative rehearsal": ("--rehearsal=-0.1", ["rehearsal", "-0.1", "from 0"]),
    "gammas missing": ("--gammas 0.1 0.2", ["gammas", "[0.1, 0.2]", "easy, medium, hard"]),
    "negative gamma": ("--gammas 0.1 -0.2 0", ["gammas", "-0.2", "easy, medium, hard"]),
    "negative triage_gamma": ("--nodes triage attending --triage_gammas -0.2", ["triage_gammas: [-0.2]", "0 or more"]),
    "triage_gammas missing": ("--nodes triage attending --triage_gammas 1 2", ["triage_gammas: [1.0, 2.0]", "each"]),
    "triage_gammas for nobody": ("--triage_gammas 0.1", ["triage_gammas: [0.1]", "--nodes triage"]),
    "triage_gammas beside stages'": (
        "--nodes triage attending --triage_gammas 0.1 --gamma_by stage",
        ["triage_gammas: [0.1]", "--gamma_by tier"],
    ),
    "gammas of stages missing": (
        "--gamma_by stage --stages mixed --stage_steps 1 --betas 0 --rehearsal 0 --rate_scales 1",
        ["gammas", "each of the stages"],
    ),
    "unknown gamma_by": ("--gamma_by case", ["gamma_by", "'case'", "tier or stage"]),
    "unknown schedule": ("--gamma_schedule cosine", ["gamma_schedule", "'cosine'", "constant or rise or fall"]),
    "unknown tiers": ("--tiers votes", ["tiers", "'votes'", "labels or disagreement"]),
    "tiers that nobody has": (
        "--nodes triage --stages mixed --stage_steps 1 --betas 0 --rate_scales 1 --tiers disagreement",
        ["tiers: disagreement", "only triage learns"],
    ),
    "negative share": ("--rehearsal 1 0 0 0 1 0 1 -1 1", ["rehearsal", "-1", "0 or more"]),
    "a stage without cases": ("--rehearsal 1 0 0 0 0 0 0 0 1", ["rehearsal", "0.0, 0.0, 0.0", "positive sum"]),
    "a share for nobody": ("--node_shares 1 2", ["node_shares", "[1.0, 2.0]", "['attending']"]),
    "no share": ("--nodes triage attending --node_shares 1 0", ["node_shares", "[1.0, 0.0]", "above 0"]),
    "nobody to take turns with": ("--alternate", ["alternate", "only attending", "--nodes triage attending"]),
    "negative reroll": ("--reroll_steps -1", ["reroll_steps", "-1", "0 (never)"]),
    "a generation for several steps": (
        "--nodes triage attending --num_iterations 2",
        ["reroll_steps", "several optimizer steps", "--reroll_steps 0"],
    ),
    "outcome without triage": ("--outcome_weight 0.5", ["outcome_weight", "0.5", "--nodes triage"]),
    "negative outcome": ("--nodes triage attending --outcome_weight -1", ["outcome_weight", "-1.0", "0 or more"]),
    "unknown grader": ("--graders format accurracy", ["graders", "'accurracy'", "accuracy"]),
    "unknown triage grader": (
        "--nodes triage attending --triage_graders speciality=1",
        ["graders", "'speciality=1'", "specialty"],
    ),
    "a judge's verdict without a judge": ("--graders judge=1", ["graders", "'judge=1'", "a model that judges"]),
    "a judge whom nobody asks": ("--judge clinic:doctor-1", ["judge: 'clinic:doctor-1'", "judge=1", "--graders"]),
    "weights beside the graders'": ("--reward_weights 1 2", ["reward_weights: [1.0, 2.0]", "--graders name=weight"]),
    "an aggregation": (
        "--multi_objective_aggregation foo",
        ["multi_objective_aggregation: 'foo'", "sum_then_normalize, normalize_then_sum"],
    ),
    "epochs": ("--num_train_epochs 2", ["num_train_epochs: 2.0", "--stage_steps"]),
    "outcome twice": (
        "--nodes triage attending --triage_graders outcome=1 --outcome_weight 0.5",
        ["graders", "'outcome'", "twice"],
    ),
    "beta": ("--beta 0.25", ["beta", "0.25", "betas"]),
    "entropy_coef": ("--entropy_coef 0.25", ["entropy_coef", "0.25", "gammas"]),
    "two controllers of entropy": ("--use_adaptive_entropy true", ["use_adaptive_entropy", "--gammas 0 0 0"]),
    "two controllers of triage's": (
        "--nodes triage attending --use_adaptive_entropy true --gammas 0 0 0 --triage_gammas 0.1",
        ["use_adaptive_entropy", "controller", "--triage_gammas 0"],
    ),
}


@pytest.mark.parametrize(("flags", "named"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_work_is_refused_by_name(flags, named):
    with pytest.raises(ValueError) as error:
        read(flags)
    assert [part for part in named if part not in str(error.value)] == []


def test_a_recipe_without_stages_is_refused_by_name():
    with pytest.raises(ValueError, match="stages"):
        Recipe(stages=[], stage_steps=[], betas=[], rehearsal=[])


@pytest.mark.parametrize("flags", ["--alternate --num_iterations 2", "--reroll_steps 0 --num_iterations 2"])
def test_a_generation_may_serve_several_steps_where_nothing_is_rolled_anew(flags):
    assert read(f"--nodes triage attending {flags}").recipe.nodes == BOTH
