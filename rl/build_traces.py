r"""The data of a specialist's training: questions with the reasoning by which a teacher came to the right answer.

    python -m rl.build_traces --teacher clinic:teacher --guideline rl/guidelines/clinic.yaml --samples 1 \
        --cases faint --out traces/faint                 # made-up, on the clinic's faint images
    python -m rl.build_traces --teacher openai:gpt-4o --cases slake --exclude vqa_rad path_vqa \
        --out traces/slake --prices prices.yaml --max_dollars 20
    python -m rl.build_traces --teacher vllm:Qwen/Qwen2.5-VL-72B-Instruct --cases cases.jsonl --split train \
        --specialty Pediatrician --out traces/pediatrics --shard 0/2                 # on each machine

MMedExpert-R1 (arXiv 2601.10949) trains its experts on questions, images and step-by-step traces by specialty; how they
were made is not published. Here the teacher gets the specialist's own prompt with a guideline (`rl.guidelines`) behind
it, once for each perspective and sample. Kept is what the strict reader finds right.

`OUT/making` holds the pictures, all answers and what they cost; it is no part of the data set and not to be published.

Invariant: no case of its own test split, or of one that is named, gets as far as the teacher, no picture is in both
splits, and the same command goes on from wherever it was stopped, without making a finished call again.
"""

import argparse
import asyncio
import dataclasses
import fcntl
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean

from transformers import set_seed

from mmedagent_graph.answers import well_formed
from mmedagent_graph.images import ImageStore
from mmedagent_graph.nodes.base import stated
from rl.cohort import CLINIC, FAINT, HELD_OUT, TRAIN, Cohort, clinic_cohort, hold_out, named_split, own_cohort
from rl.contest import Means
from rl.data_card import Making, card
from rl.datasets import LabeledCase, is_benchmark, splits_of
from rl.duplicates import Seen, Tests, distinct, words_of
from rl.evaluate import add_means, at_least, means_of
from rl.expert_traces import ExpertTrace, parquet_of, write_expert_traces
from rl.guidelines import GENERAL, PERSPECTIVES, Guideline, Name, checks_passed, read_guideline
from rl.prices import read_prices
from rl.systems import labelled
from rl.teacher import perspective_of, teacher
from rl.traces import Trace, is_right
from rl.train_sft import gold_answer
from rl.trials import Trial

ALL, TEST = "all", "test"


def parser() -> argparse.ArgumentParser:
    """The flags."""
    whole = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    who = whole.add_argument_group("who teaches")
    who.add_argument("--teacher", required=True, help="a model string, such as openai:gpt-4o")
    who.add_argument("--guideline", type=Path, default=GENERAL, help="YAML file of what it is told (general.yaml)")
    who.add_argument(
        "--perspectives", nargs="+", choices=[*PERSPECTIVES, ALL], default=[ALL], help="from where it reasons (all)"
    )
    who.add_argument("--samples", type=at_least(1), default=4, help="answers of it from each perspective (4)")
    cases = whole.add_argument_group("on what")
    cases.add_argument("--cases", required=True, help="clinic, faint (its faint images), a JSONL file, or a benchmark")
    cases.add_argument("--split", help="only the rows of this split (a benchmark's train, all of a file)")
    cases.add_argument("--free_text", choices=["skip", "grade"], default="skip", help="rows without options")
    cases.add_argument("--size", type=at_least(1), default=1000, help="how many of the clinic's cases (1000)")
    cases.add_argument("--limit", type=at_least(1), help="only so many cases, from the first that can be used")
    cases.add_argument("--specialty", help="of all cases; default: each one's label")
    cases.add_argument(
        "--exclude",
        nargs="+",
        default=[],
        metavar="TEST",
        help="test splits that must not be trained on, besides that of the cases themselves: as --cases; another split "
        "than a benchmark's test as NAME@SPLIT",
    )
    kept = whole.add_argument_group("what is kept")
    kept.add_argument("--out", type=Path, required=True, help="folder of the data set")
    kept.add_argument("--keep", type=at_least(1), default=4, help="at most so many traces a case (4)")
    kept.add_argument("--require_checks", action="store_true", help="only what passes all of the guideline's checks")
    kept.add_argument("--holdout", type=float, default=0.1, help="share of the images for validation (0.1); 0: none")
    add_means(whole.add_argument_group("how"))
    return whole


def main(arguments: Sequence[str] | None = None) -> Making:
    """The command line."""
    commands = parser()
    given = commands.parse_args(arguments)
    try:
        return asyncio.run(build(given))
    except ValueError as error:
        commands.error(str(error))


async def build(given: argparse.Namespace) -> Making:
    """Make the data set that the flags ask for.

    Raises:
        ValueError: naming the flag, the value and what is valid.
    """
    if not 0 <= given.holdout < 1:
        raise ValueError(f"holdout: {given.holdout} is no share of the images; give 0 or more, and less than 1")
    given.exclude = list(dict.fromkeys([*own_test(given.cases, given.split), *given.exclude]))
    set_seed(given.seed)
    guideline = read_guideline(given.guideline)
    perspectives = [name for name in PERSPECTIVES if {name, ALL}.intersection(given.perspectives)]
    folder = given.out / "making"
    means = means_of(argparse.Namespace(**{**vars(given), "out": folder}), read_prices(given.prices))
    making = Making(given)
    cases = chosen(given, means.images, making)
    parts = parted(cases, given.holdout, given.seed)
    trial = Trial(folder / "trial", given.shard)
    await _ask(trial, [seen.case for seen in cases], given, guideline, perspectives, means)
    with (folder / "writing").open("a") as alone:
        fcntl.flock(alone, fcntl.LOCK_EX)  # a shard that ends at once would write what it knew before this one's end
        known = {trace.case: trace for trace in trial.traces()}
        for name, ids in parts.items():
            for trace in (known[case] for case in ids if case in known):
                making.models |= {str(call.model) for call in trace.calls}
                making.splits[name] += picked(right_answers(trace, guideline, making), given.keep, making.dropped)
        making.dropped = +making.dropped
        _undone(trial, cases, making)
        _write(making, means.images)
    _tell(making, means)
    return making


def _write(making: Making, images: ImageStore) -> None:
    """The data set, in the place of a former one."""
    for name, traces in making.splits.items():
        path = parquet_of(making.given.out, name)
        if traces:
            write_expert_traces(path, traces, images)
        else:
            path.unlink(missing_ok=True)  # `datasets` reads no data set with an empty split
    readme = making.given.out / "README.md"
    if making.traces:
        readme.write_text(card(making), encoding="utf-8")
    else:
        readme.unlink(missing_ok=True)


def chosen(given: argparse.Namespace, images: ImageStore, making: Making) -> list[Seen]:
    """The cases that the teacher is asked, their images as references; the others are counted in `making`.

    Raises:
        ValueError: if none is left.
    """
    source = _source(given, images)
    making.left_out["no options, or they cannot be used"] += source.skipped
    tests = excluded(given.exclude, given.size, given.seed)
    usable = []
    for case in source.cases:
        case = dataclasses.replace(case, specialty=given.specialty or case.specialty)
        if not case.specialty:
            making.left_out["no specialty"] += 1
            continue
        try:
            seen = Seen.of(case, images)
        except ValueError:
            making.left_out["an image cannot be read"] += 1
            continue
        if why := tests.why(seen):
            making.left_out[why] += 1
        else:
            usable.append(seen)
    cases = distinct(usable)
    making.left_out["it repeats another case"] += len(usable) - len(cases)
    making.left_out = +making.left_out  # what is none is no reason
    if not cases:
        why = "; ".join(f"{why}: {count}" for why, count in sorted(making.left_out.items()))
        raise ValueError(f"cases: none of {given.cases!r} is left ({why}); give others, or --specialty where it lacks")
    making.cases = len(cases[: given.limit])
    return cases[: given.limit]


def _source(given: argparse.Namespace, images: ImageStore) -> Cohort:
    if given.cases in (CLINIC, FAINT):
        return clinic_cohort(given.size, TRAIN + given.seed, images, given.cases == FAINT)
    split = given.split or ("train" if is_benchmark(given.cases) else None)
    return own_cohort(given.cases, split, given.free_text, images=images)


def own_test(cases: str, split: str | None) -> list[str]:
    """The test split of the cases themselves, which is never trained on; of a file, `test` where it has such rows."""
    if cases in (CLINIC, FAINT) or is_benchmark(cases):
        return [cases]
    return [f"{cases}@{TEST}"] if split != TEST and TEST in splits_of(cases) else []


def excluded(names: Sequence[str], size: int, seed: int) -> Tests:
    """The test splits of these names.

    Args:
        names: clinic, faint, JSONL files and benchmarks, with `@SPLIT` where another split than usual is meant.
        size: how many of the clinic's cases.
        seed: of these.
    """
    tests = Tests()
    for name in names:
        path, split = (name, None) if is_benchmark(name) else named_split(name)
        with tempfile.TemporaryDirectory(prefix="mmedagent-tests-") as folder:
            store = ImageStore(folder)
            if path in (CLINIC, FAINT):
                cases = clinic_cohort(size, HELD_OUT + seed, store, path == FAINT).cases
            else:
                cases = own_cohort(path, split, "grade", None, store).cases
            if unreadable := tests.add(name, cases, store):
                print(f"note: {unreadable} images of {name} cannot be read, and no case can have them")
    return tests


def parted(cases: Sequence[Seen], share: float, seed: int) -> dict[str, list[str]]:
    """The ids of the cases of each split, which share no picture.

    Raises:
        ValueError: if they cannot be split.
    """
    held: set[str] = set()
    if share:
        by_pixels = [dataclasses.replace(seen.case, images=sorted(seen.pictures)) for seen in cases]
        try:
            held = {case.id for case in hold_out(by_pixels, share, seed)[1]}
        except ValueError:
            raise ValueError("holdout: all cases share their images and cannot be split; give --holdout 0") from None
    ids = [seen.case.id for seen in cases]
    return {"train": [case for case in ids if case not in held], "validation": [case for case in ids if case in held]}


async def _ask(
    trial: Trial,
    cases: Sequence[LabeledCase],
    given: argparse.Namespace,
    guideline: Guideline,
    perspectives: Sequence[Name],
    means: Means,
) -> None:
    """Have the teacher answer the cases that have no answers yet."""
    model = means.models(given.teacher)
    means.know_prices([given.teacher])
    triage = labelled(cases, means.images)
    graph = teacher(model, guideline, perspectives, given.samples, triage, images=means.images, **means.common)
    trial.begin(
        {
            "teacher": given.teacher,
            "weights": means.models.weights([given.teacher]),
            "guideline": {name: guideline.perspectives[name].prompt for name in perspectives},
            "specialties": guideline.specialties,
            "samples": given.samples,
            "specialty": given.specialty,
            "seed": given.seed,
        }
    )
    trial.check(cases)
    await trial.run(graph, cases, means.images, means.concurrency, means.budget, "teacher")


def right_answers(trace: Trace, guideline: Guideline, making: Making) -> Iterator[ExpertTrace]:
    """The teacher's right answers to a case, each text once; the others are counted in `making`."""
    said, key = set(), str(trace.answer)
    for opinion in trace.opinions:
        making.answers += 1
        if opinion["answer"] is None or not is_right(opinion["answer"], key):
            making.dropped["unreadable" if opinion["answer"] is None else "wrong"] += 1
            continue
        perspective = perspective_of(opinion["doctor"])
        checks = checks_passed(opinion["reasoning"], trace.options, guideline.perspectives[perspective])
        answer = opinion["answer"] if trace.options else key.strip()  # in the options' spelling, or the key's
        text = gold_answer(answer, trace.options, opinion["reasoning"])
        if not opinion["reasoning"]:
            making.dropped["no reasoning in <think>"] += 1
        elif not (well_formed(text) and is_right(stated(text, trace.options)[0], key)):
            making.dropped["tags inside its reasoning"] += 1
        elif making.given.require_checks and not all(checks.values()):
            making.dropped["not all checks pass"] += 1
        elif (words := tuple(words_of(text))) in said:
            making.dropped["said twice"] += 1
        else:
            said.add(words)
            yield ExpertTrace(
                case=trace.case,
                **trace.fields(),
                answer=answer,
                specialty=opinion["specialty"],
                perspective=perspective,
                reasoning=opinion["reasoning"],
                text=text,
                checks=checks,
                teacher=making.given.teacher,
            )


def picked(traces: Iterable[ExpertTrace], most: int, dropped: Counter[str]) -> list[ExpertTrace]:
    """At most so many traces of a case: from as many perspectives as there are, first what passes most checks."""
    rank: Counter[str] = Counter()
    ranked = []
    for trace in sorted(traces, key=lambda trace: -fmean(trace.checks.values() or [1])):
        ranked.append((rank[trace.perspective], PERSPECTIVES.index(trace.perspective), trace))
        rank[trace.perspective] += 1
    ranked.sort(key=lambda one: one[:2])
    dropped["more than are kept"] += max(0, len(ranked) - most)
    return [trace for _, _, trace in ranked[:most]]


def _undone(trial: Trial, cases: Sequence[Seen], making: Making) -> None:
    """Count the cases of all shards that have no answers."""
    known = trial.outcomes()
    for case in (seen.case.id for seen in cases):
        if error := known.get(case):
            making.failed[case] = error
        making.left += case not in known


def _tell(making: Making, means: Means) -> None:
    """Say what there is, and what would go on."""
    print(making)
    if making.failed:
        print(f"note: {len(making.failed)} cases failed, {', '.join(making.failed):.200}; the same command tries again")
    if making.left:
        print(f"note: {making.left} cases are still to be asked; the same command goes on (in all shards)")
    if means.budget.gone:
        print(f"note: {means.budget.spent:.2f} dollars are spent; a larger --max_dollars goes on from here")
    if not making.traces:
        print("note: there is no trace, hence no data set")


if __name__ == "__main__":
    main()
