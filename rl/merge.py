"""Conflict-aware merging: several experts of one base become one agent.

    python -m rl.merge runs/pediatrics/model runs/oncology/model --out runs/merged               # TIES, one adapter
    python -m rl.merge EXPERT EXPERT RL_MODEL --out DIR --output merged --density 0.5 --scale 1.3
    python -m rl.merge EXPERT EXPERT --out DIR --search --cases validation.jsonl                # finds both of them

The paper's (CACI of MMedExpert-R1) is that the experts and the RL model are merged in the manner of TIES. Which density
and lambda it does not tell, and all else is ours. What is merged are the full deltas of each weight, by PEFT's own
functions; never A and B of the adapters each for themselves (PEFT's `linear`, `ties` and `dare_*` without `_svd`): the
product of two sums is not the sum of the products.

- `ties` (arXiv 2306.01708): leave of each task vector its largest entries, `--density` of them, here of every weight;
  elect of each entry the sign with the larger sum; take the mean of those that have it. TIES' lambda, which multiplies
  what comes out, is `--scale`. So would equal weights, since PEFT multiplies with the weights after the election: they
  have no vote, and the mean is divided by how many were taken, not by their weights.
- `mean`: of the task vectors, by the weights as shares of one.
- `task_arithmetic` (2212.04089): their sum, times the weights. Its lambda is `--scale`, too.
- `dare_linear`, `dare_ties` (2311.03099): drop entries at random, all but the density, and divide what is left by it;
  then as task arithmetic, or as TIES.

DIR holds `model`, the agent: an adapter of the base (what TIES and DARE merge has a higher rank than the experts;
`merge.json` says how much of it `--rank` has kept), or with `--output merged` a whole model, of which nothing is lost.
Beside it, `merge.json` says what was done, and `conflicts.*` how far the experts disagree (rl.conflicts).

`--search` takes the density and the scale that answer most validation cases right: as the specialist whom a case's
label names or, where a case has none, as a single doctor. These cases must not be the ones that the agent is measured
on afterwards: of a benchmark, or of a file with splits, the split must be named, and `clinic` and `faint` have
validation cases of their own. What was tried is in `search.json`; the same command goes on.
"""

import argparse
import dataclasses
import json
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.utils.merge_utils import dare_linear, dare_ties, task_arithmetic, ties
from tqdm import tqdm

from rl.cohort import CLINIC, FAINT
from rl.conflicts import Conflict, write_conflicts
from rl.datasets import is_benchmark, splits_of
from rl.experts import Experts
from rl.models import contents, folder_of, load_processor, pinned
from rl.provenance import commit, digest_of, versions
from rl.search import accuracy, role_of, search

METHODS: Mapping[str, Callable[[list[torch.Tensor], torch.Tensor, float], torch.Tensor]] = {
    "ties": ties,
    "mean": lambda deltas, weights, density: task_arithmetic(deltas, weights / weights.sum()),
    "task_arithmetic": lambda deltas, weights, density: task_arithmetic(deltas, weights),
    "dare_linear": dare_linear,
    "dare_ties": dare_ties,
}
TRIMS = ("ties", "dare_linear", "dare_ties")
"""The methods that have a density."""
DENSITY = 0.2
"""What TIES keeps in its paper."""
DENSITIES, SCALES = (0.2, 0.5, 1.0), (0.5, 1.0, 1.5)
"""What a search tries; ours."""
OUTPUTS, DTYPES = ("adapter", "merged"), ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Merging:
    """How to merge.

    Raises:
        ValueError: naming the field, its value and what is valid.
    """

    method: str = "ties"
    density: float | None = None
    """Share of the entries that is kept, in (0, 1]. Default: 0.2 where the method has one."""
    weights: tuple[float, ...] | None = None
    """One for each expert. Default: 1 each."""
    scale: float = 1.0
    """Of what comes out."""
    seed: int = 0
    """Of DARE's draws."""
    output: str = "adapter"
    rank: int | None = None
    """Of the adapter. Default: the sum of the experts'."""
    dtype: str = "float32"
    """Of the whole model; rl.models.merge says what is lost in 16 bits."""

    def __post_init__(self) -> None:
        for field, choices in (("method", (*METHODS,)), ("output", OUTPUTS), ("dtype", DTYPES)):
            if (value := getattr(self, field)) not in choices:
                raise ValueError(f"{field}: {value!r} is none; choose one of {', '.join(choices)}")
        if self.density is not None and self.method not in TRIMS:
            raise ValueError(f"density: {self.density:g}, but {self.method} has none; {', '.join(TRIMS)} have one")
        if self.density is not None and not 0 < self.density <= 1:
            raise ValueError(f"density: {self.density:g} is no share to keep; give one above 0 and at most 1")
        if self.rank is not None and (self.output != "adapter" or self.rank < 1):
            raise ValueError(f"rank: {self.rank}; give 1 or more, with --output adapter alone")
        if self.output == "adapter" and self.dtype != "float32":
            raise ValueError(f"dtype: {self.dtype!r}; an adapter is always saved in float32")
        if self.weights is not None and not all(map(isfinite, self.weights)):
            raise ValueError(f"weights: {[*self.weights]} are not all finite; give such as 1 0.5")
        if not isfinite(self.scale):
            raise ValueError(f"scale: {self.scale} is not finite; give such as 1.5")
        if self.weights is not None and self.method == "mean" and sum(self.weights) == 0:
            raise ValueError(f"weights: {[*self.weights]} are no shares of a mean; give such that do not add up to 0")

    @property
    def kept(self) -> float:
        """The density, 1 where nothing is dropped."""
        return 1.0 if self.method not in TRIMS else DENSITY if self.density is None else self.density

    def check(self, experts: int) -> None:
        """See that there is a weight for each expert.

        Raises:
            ValueError: if not.
        """
        if self.weights is not None and len(self.weights) != experts:
            raise ValueError(f"weights: {len(self.weights)} of them; give {experts}, one for each expert")

    def combine(self, deltas: Sequence[torch.Tensor]) -> torch.Tensor:
        """Merge what the experts have added to one weight."""
        weights = torch.tensor(self.weights or [1.0] * len(deltas), device=deltas[0].device)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The density")  # of 1, at which nothing is dropped
            return self.scale * METHODS[self.method](list(deltas), weights, self.kept)


def write(experts: Experts, how: Merging, folder: Path) -> dict[str, Any]:
    """Merge experts, and write the agent's folder; they are used up by it.

    Returns:
        Of an adapter, its `rank`, and the share of the squared norm of the merged deltas that it has `kept`, of all
        `modules` and `overall`; of a whole model, nothing.

    Raises:
        ValueError: if the experts cannot be merged in this way.
    """
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(how.seed)
        rank = rank_of(experts, how)
        told = _write_whole(experts, how, part) if rank is None else _write_adapter(experts, how, rank, part)
    load_processor(experts.base).save_pretrained(part)
    part.rename(folder)
    return told


def _write_whole(experts: Experts, how: Merging, folder: Path) -> dict[str, Any]:
    for name in tqdm(experts.touched(), "merge", unit="weight"):
        experts.weights[name] += how.combine(experts.deltas(name))
    experts.unload().to(getattr(torch, how.dtype)).save_pretrained(folder)
    return {}


def rank_of(experts: Experts, how: Merging) -> int | None:
    """The rank of the merged adapter, at most that of the largest delta; None of a whole model.

    Raises:
        ValueError: if there are not as many weights as experts, or no adapter can be made of them.
    """
    how.check(len(experts))
    if how.output == "merged":
        return None
    names = experts.touched()
    if lost := [name for name in names if not experts.is_linear(name)]:
        raise ValueError(
            f"output: 'adapter', but the experts have changed {lost[0]}, one of {len(lost)} weights that an adapter "
            "has no place for; give --output merged"
        )
    if (rank := how.rank or experts.rank()) is None:
        raise ValueError("rank: None, and a whole model among the experts has none to go by; give --rank")
    return min(rank, max((min(experts.weights[name].shape) for name in names), default=1))


def _write_adapter(experts: Experts, how: Merging, rank: int, folder: Path) -> dict[str, Any]:
    names = experts.touched()
    factors, kept = {}, {}
    for name in tqdm(names, "merge", unit="weight"):
        *factors[name], kept[name] = factorize(how.combine(experts.deltas(name)), rank)
    # one rank and no scaling for all modules: vLLM does not read the patterns that PEFT has for others
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=[name.removesuffix(".weight") for name in names],
        task_type=experts.task_type,
    )
    adapter = get_peft_model(experts.unload(), config)
    adapter.peft_config["default"].base_model_name_or_path = experts.base
    for name, (a, b) in factors.items():
        layer = adapter.get_base_model().get_submodule(name.removesuffix(".weight"))
        layer.lora_A["default"].weight.copy_(a)
        layer.lora_B["default"].weight.copy_(b)
    adapter.save_pretrained(folder, save_embedding_layers=False)
    overall = sum(part for part, _ in kept.values()) / (sum(whole for _, whole in kept.values()) or 1.0)
    modules = {name: part / whole if whole else 1.0 for name, (part, whole) in kept.items()}
    return {"rank": rank, "kept": {"overall": overall, "modules": modules}}


def factorize(delta: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, tuple[float, float]]:
    """The best A and B of a rank for a delta, zeros beyond what it has, and its squared norm: what is kept, and all."""
    u, sizes, v = torch.linalg.svd(delta, full_matrices=False)
    found = sizes[:rank]
    a, b = delta.new_zeros(rank, delta.shape[1]), delta.new_zeros(delta.shape[0], rank)
    a[: len(found)] = found.sqrt()[:, None] * v[:rank]
    b[:, : len(found)] = u[:, :rank] * found.sqrt()
    squares = sizes.double().square()
    return a, b, (float(squares[:rank].sum()), float(squares.sum()))


def check_out(out: Path) -> None:
    """See that nothing is written over.

    Raises:
        ValueError: if there is a model already.
    """
    if (out / "model").exists():
        raise ValueError(f"out: {out / 'model'} is there already; remove it, or give another --out")


def merge_experts(names: Sequence[str], how: Merging, out: Path, base: str | None = None) -> dict[str, Any]:
    """Merge experts into `out/model`, and write beside it what was done and how far they disagree.

    Args:
        names: folders of the experts.
        how: to merge them.
        out: folder for all that comes of it.
        base: what they were trained from. Default: what the first adapter says.

    Returns:
        What `merge.json` says.

    Raises:
        ValueError: naming what is wrong.
    """
    check_out(out)
    out.mkdir(parents=True, exist_ok=True)
    experts = Experts(names, base)
    rank_of(experts, how)  # what is wrong is found before the work
    if len(experts) > 1:  # who is alone has nobody to disagree with
        density = how.kept if how.method == "ties" else 1.0  # no other trims the smallest
        touched = tqdm(experts.touched(), "conflicts", unit="weight")
        write_conflicts(out, names, density, {name: Conflict.of(experts.deltas(name), density) for name in touched})
    made = out / "model.made"
    shutil.rmtree(made, ignore_errors=True)
    told = {
        "experts": [pinned(name) for name in names],
        "base": experts.base,
        **dataclasses.asdict(how),
        "density": how.kept,
        **write(experts, how, made),
        "versions": versions(),
        "commit": commit(),
    }
    (out / "merge.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    made.rename(out / "model")  # last: where there is a model, it is told how it was made
    return told


def searched(given: argparse.Namespace, how: Merging) -> Merging:
    """What `--search` finds best on the validation cases.

    Raises:
        ValueError: naming the flag that is missing, or was given beside what it searches for.
    """
    if given.cases is None:
        raise ValueError("cases: --search needs validation cases; give a JSONL file, a benchmark, clinic or faint")
    if is_benchmark(given.cases) and given.split is None:
        raise ValueError(f"split: of {given.cases!r} it would be the one that papers measure on; name another")
    if given.cases not in (CLINIC, FAINT) and given.split is None and (there := splits_of(given.cases)):
        raise ValueError(f"split: name the rows of {given.cases!r} to search on; it has {', '.join(there)}")
    if given.density is not None or given.scale != 1:
        raise ValueError("density, scale: --search finds them; give --densities and --scales to choose from")
    if given.densities and how.method not in TRIMS:
        raise ValueError(f"densities: {how.method} has none; {', '.join(TRIMS)} have one")
    densities = (given.densities or DENSITIES) if how.method in TRIMS else [None]
    found = [{"density": density, "scale": scale} for density, scale in product(densities, given.scales or SCALES)]
    tried = [dataclasses.replace(how, **candidate) for candidate in found]  # says what is wrong before the first
    about = {
        "experts": [[pinned(name), contents(Path(folder_of(name)))] for name in given.experts],
        "base": given.base,
        **{field: value for field, value in dataclasses.asdict(tried[0]).items() if field not in found[0]},
        "cases": digest_of(Path(given.cases)) or given.cases,
        "split": given.split,
    }
    role = role_of(given.cases, given.split, given.seed)
    given.out.mkdir(parents=True, exist_ok=True)
    best = search(
        found,
        lambda candidate, folder: write(
            Experts(given.experts, given.base), dataclasses.replace(how, **candidate), folder
        ),
        lambda folder: accuracy(folder, role, given.cases, given.split, given.seed),
        given.out / "search.json",
        about,
    )
    print(f"best of {len(found)}: {', '.join(f'{name} {value}' for name, value in best.items() if value is not None)}")
    return dataclasses.replace(how, **best)


def parser() -> argparse.ArgumentParser:
    """The flags."""
    whole = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    whole.add_argument("experts", nargs="+", metavar="EXPERT", help="folder of a LoRA adapter, or of a whole model")
    whole.add_argument("--out", type=Path, required=True, help="folder for all that comes of it")
    whole.add_argument("--base", help="what they were trained from; default: what the first adapter says")
    whole.add_argument("--method", default="ties", help=f"{', '.join(METHODS)} (ties)")
    whole.add_argument("--density", type=float, help=f"share of entries that ties and dare keep ({DENSITY})")
    whole.add_argument("--weights", type=float, nargs="+", help="one for each expert (1)")
    whole.add_argument("--scale", type=float, default=1.0, help="of what comes out, the lambda of ties (1)")
    whole.add_argument("--seed", type=int, default=0, help="of what dare drops, and of the clinic's cases (0)")
    whole.add_argument("--output", default="adapter", help=f"{' or '.join(OUTPUTS)} (adapter)")
    whole.add_argument("--rank", type=int, help="of the adapter; default: the sum of the experts'")
    whole.add_argument("--dtype", default="float32", help=f"of the whole model, {', '.join(DTYPES)} (float32)")
    whole.add_argument("--search", action="store_true", help="find the density and the scale on validation cases")
    whole.add_argument("--cases", help="that --search asks: a JSONL file, a benchmark, clinic or faint")
    whole.add_argument("--split", help="only its rows of this split")
    whole.add_argument("--densities", type=float, nargs="+", help=f"to choose from ({_many(DENSITIES)})")
    whole.add_argument("--scales", type=float, nargs="+", help=f"to choose from ({_many(SCALES)})")
    return whole


def _many(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line."""
    commands = parser()
    given = commands.parse_args(arguments)
    try:
        fields = {field.name: getattr(given, field.name) for field in dataclasses.fields(Merging)}
        how = Merging(**{**fields, "weights": given.weights and tuple(given.weights)})
        how.check(len(given.experts))
        check_out(given.out)
        unused = [name for name in ("cases", "split", "densities", "scales") if getattr(given, name)]
        if unused and not given.search:
            raise ValueError(f"search: {unused[0]} is given without it; add --search, or leave it out")
        if given.search:
            how = searched(given, how)
        told = merge_experts(given.experts, how, given.out, given.base)
    except ValueError as error:
        commands.error(str(error))
    if "kept" in told:
        kept = f"{100 * told['kept']['overall']:.1f} % of the squared norm of what was merged"
        print(f"{given.out / 'model'}: rank {told['rank']}, which keeps {kept}")
    return told


if __name__ == "__main__":
    main()
