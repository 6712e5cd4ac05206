"""Train the attending physician: roll out, stratify, three stages of GRPO, measure before and after.

    python -m rl.train_attending                                            # the clinic, on any two cores
    python -m rl.train_attending --cases cases.jsonl --split train          # cases of one's own
    python -m rl.train_attending --config rl/configs/one_24gb.yaml --cases ...    # a real model, on a GPU
    python -m rl.train_attending --resume                                   # go on with the last run

Writes `runs/<name>/`: `summary.json`, `metrics.jsonl`, `curves.png`, `model/`, and the traces (`upstream-*.jsonl`,
`before.jsonl`, `after.jsonl`, `stages/*/completions.jsonl`). Any field of `rl.recipe.Recipe` or of TRL's `GRPOConfig`
is a flag.
"""

import asyncio
import os
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import set_seed
from transformers.utils.logging import disable_progress_bar
from trl import GRPOConfig

from mmedagent_graph.images import ImageStore
from rl.clinic.cases import ClinicCase
from rl.clinic.ideal import ideal_answers
from rl.cohort import HELD_OUT, TRAIN, Cohort, clinic_cohort, hold_out, own_cohort, panel, shared_images
from rl.curriculum import TIERS, Stage, draw_cases
from rl.curves import draw_curves
from rl.datasets import LabeledCase
from rl.evaluate import Figure, by_tier, decide, decided, print_table, unparsed
from rl.policy import load_policy
from rl.recipe import Recipe, frozen_triage, read_recipe, stage_settings
from rl.rollout import AttendingRollout, roll_upstream
from rl.run import Run
from rl.stage import train_stage
from rl.traces import Trace, append_traces, read_traces

OFTEN = 20
"""A stage that draws a tier's cases more often than this is likely to learn them by heart, and says so."""
PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "langgraph", "langchain-core")
Cohorts = tuple[Sequence[LabeledCase], Sequence[LabeledCase], int]
"""Training cases, held-out cases, and how many rows were skipped."""


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line; returns the summary."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SystemExit("rl.train_attending runs in one process; start it without a launcher")
    run = Run.open(list(sys.argv[1:] if arguments is None else arguments))
    recipe, settings = read_recipe(run.arguments)
    seed = int(settings.seed)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # renamed settings of TRL's own
    disable_progress_bar()  # of loading weights; the bars of the run itself stay
    set_seed(seed)
    try:
        images = ImageStore(run.folder / "images")
        with run.phase("cases"), run.abandoned_if_refused():
            cases = cohorts(recipe, seed, images)
            rollout = AttendingRollout(
                frozen_triage(recipe), panel(recipe.specialists, recipe.cases, recipe.model), images
            )
        return train(run, recipe, settings, cases, rollout)
    except KeyboardInterrupt:
        go_on = f"python -m rl.train_attending --resume --runs {recipe.runs} --name {run.folder.name}"
        print(f"\ninterrupted; go on with: {go_on}", file=sys.stderr)
        raise SystemExit(130) from None


def train(run: Run, recipe: Recipe, settings: GRPOConfig, cases: Cohorts, rollout: AttendingRollout) -> dict[str, Any]:
    """The whole run; every part that is already finished in the run's folder is passed over."""
    learn, held_out, skipped = cases
    images, seed, limit = rollout.images, int(settings.seed), int(settings.max_completion_length)
    with run.phase("rollout"):
        upstream = roll(rollout, learn, run.folder / "upstream-train.jsonl", "rollout, training cases")
        measured = roll(rollout, held_out, run.folder / "upstream-held-out.jsonl", "rollout, held-out cases")
    with run.phase("before"):
        before = measure(rollout, measured, recipe.model, limit, run.folder / "before.jsonl")
    with run.phase("ideal"):
        ideal = run.once("ideal.json", lambda: ideal_of(recipe, held_out, measured, images))
    stages = recipe.curriculum(int(settings.max_steps))
    # all are planned before any is trained: a stage without cases is refused at once
    plans = [plan(run, stage, upstream, seed * 1000 + i) for i, stage in enumerate(stages)]
    model = recipe.model
    for stage, (configured, drawn) in zip(stages, plans, strict=True):
        out = run.folder / "stages" / stage.name
        if not (out / "model").is_dir():
            with run.phase(stage.name):
                train_stage(stage, model, out, drawn, rollout, configured, recipe.gammas)
        model = str(out / "model")
    run.link("model", model)
    run.collect_metrics([stage.name for stage in stages])
    with run.phase("after"):
        after = measure(rollout, measured, model, limit, run.folder / "after.jsonl")
    summary = summarize(run, seed, before, after, ideal)
    summary["cases"] = {
        "train": {tier: sum(trace.tier == tier for trace in upstream) for tier in TIERS},
        "held_out": len(measured),
        "skipped": skipped,
    }
    run.finish(summary)
    draw_curves(run.folder, [stage.name for stage in stages], summary)
    rows = {name: summary[name] for name in ("before", "after", "ideal") if summary[name]}
    print_table(rows, f"attending, held-out cases, accuracy in % with 95 % intervals (seed {seed})")
    if summary["gap_closed"] is not None:
        print(f"share of the way from the base to the ideal: {summary['gap_closed']:.0%}")
    print(f"model: {run.folder / 'model'}   summary: {run.folder / 'summary.json'}")
    return summary


def cohorts(recipe: Recipe, seed: int, images: ImageStore) -> Cohorts:
    """The cases that the recipe asks for."""
    if recipe.cases is None:
        learn = clinic_cohort(recipe.train_size, TRAIN + seed, images)
        return learn.cases, clinic_cohort(recipe.eval_size, HELD_OUT + seed, images).cases, 0
    cohort = own_cohort(recipe.cases, recipe.split, recipe.free_text)
    if recipe.eval_split is None:
        learning, held_out = hold_out(cohort.cases, recipe.holdout, seed)
    else:
        other: Cohort = own_cohort(recipe.cases, recipe.eval_split, recipe.free_text)
        learning, held_out = list(cohort.cases), list(other.cases)
        if shared := shared_images(learning, held_out):
            print(f"note: {shared} images are in both {recipe.split} and {recipe.eval_split}, as the data set has it")
    print(f"{len(learning)} training and {len(held_out)} held-out cases; {cohort.skipped} rows without options skipped")
    return learning, held_out, cohort.skipped


def plan(run: Run, stage: Stage, upstream: Sequence[Trace], seed: int) -> tuple[GRPOConfig, list[Trace]]:
    """A stage's settings and its cases in training order; refuses a stage that has no cases to train on."""
    settings = stage_settings(run.arguments, stage, run.folder / "stages" / stage.name)
    prompts = stage.steps * int(settings.generation_batch_size) // int(settings.num_generations)
    drawn = draw_cases(upstream, stage, prompts, seed)
    for tier in TIERS:
        ids = [trace.case for trace in drawn if trace.tier == tier]
        if len(ids) > OFTEN * len(set(ids)):
            print(f"note: stage {stage.name} draws its {len(set(ids))} {tier} cases {len(ids)} times in all")
    return settings, drawn


def roll(rollout: AttendingRollout, cases: Sequence[LabeledCase], record: Path, title: str) -> list[Trace]:
    """The upstream of every case with its tier, in the order of the cases; what is on record is not rolled again."""
    known = {trace.case: trace for trace in read_traces(record)}

    def done(trace: Trace) -> None:
        known[trace.case] = trace
        append_traces(record, [trace])

    missing = [case for case in cases if case.id not in known]
    if missing:
        asyncio.run(roll_upstream(rollout, missing, done, title))
    return [known[case.id] for case in cases]


def measure(
    rollout: AttendingRollout, upstream: Sequence[Trace], model: str, max_tokens: int, record: Path
) -> list[Trace]:
    """The model's greedy decisions on the held-out cases, with as much room for an answer as in training."""
    if not record.exists():
        policy = load_policy(model).model_copy(update={"max_tokens": max_tokens})
        finished = asyncio.run(decide(rollout, upstream, policy, record.stem))
        part = record.with_suffix(".part")
        part.unlink(missing_ok=True)
        append_traces(part, finished)
        part.rename(record)
    return list(read_traces(record))


def ideal_of(
    recipe: Recipe, cases: Sequence[LabeledCase], upstream: Sequence[Trace], images: ImageStore
) -> dict[str, Figure] | None:
    """The ideal attending's accuracy, where the cases are the clinic's; nobody knows it elsewhere."""
    clinic = [case for case in cases if isinstance(case, ClinicCase)]
    if len(clinic) != len(cases) or recipe.specialists:
        return None
    return by_tier(upstream, ideal_answers(load_policy(recipe.model), clinic, upstream, images))


def summarize(
    run: Run, seed: int, before: list[Trace], after: list[Trace], ideal: dict[str, Figure] | None
) -> dict[str, Any]:
    """What `summary.json` says."""
    was, now = by_tier(before, decided(before)), by_tier(after, decided(after))
    gap = ideal["overall"]["accuracy"] - was["overall"]["accuracy"] if ideal else 0
    return {
        "before": was,
        "after": now,
        "ideal": ideal,
        "gap_closed": (now["overall"]["accuracy"] - was["overall"]["accuracy"]) / gap if gap > 0 else None,
        "unparsed": {"before": unparsed(before), "after": unparsed(after)},
        "seconds": run.seconds,
        "seed": seed,
        "recipe": run.recipe,
        "arguments": run.arguments,
        "versions": {package: version(package) for package in PACKAGES},
    }


if __name__ == "__main__":
    main()
