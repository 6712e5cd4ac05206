"""A contest: several systems on the same cases.

Invariant: whatever can be found wrong is found before anybody is asked, and all answers of an entry are of one system,
one set of weights, one seed and the cases as they are now.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from mmedagent_graph.consultation import Consultation
from mmedagent_graph.images import ImageStore
from rl.datasets import LabeledCase
from rl.prices import Budget, price_of
from rl.systems import Models, System
from rl.traces import Trace
from rl.trials import Trial


@dataclasses.dataclass(frozen=True)
class Means:
    """What all entries share."""

    images: ImageStore
    models: Models
    budget: Budget
    concurrency: int
    seed: int
    common: Mapping[str, Any]
    """Of every graph: cache, retries, timeout."""

    def know_prices(self, names: Sequence[str]) -> None:
        """See that a ceiling can be kept.

        Args:
            names: the models that will be asked, as strings.

        Raises:
            ValueError: if there is a ceiling, and the price of one is not known.
        """
        if self.budget.ceiling is None:
            return
        models = {getattr(self.models(name), "model_name", None) for name in names}
        prices = self.budget.prices or {}
        if unknown := sorted(name for name in models if name and price_of(name, prices) is None):
            raise ValueError(f"max_dollars: the price of {', '.join(unknown)} is not in --prices")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One system on the cases."""

    title: str
    """Of its progress bar."""
    system: System
    trial: Trial
    cases: Sequence[LabeledCase]
    means: Means

    def begin(self, samples: int | None = None) -> Consultation:
        """The graph, once nothing speaks against running it.

        Args:
            samples: of self-consistency, in place of its own.

        Raises:
            ValueError: if a model cannot be loaded, its price is not known, or the trial was begun otherwise.
        """
        means = self.means
        graph = self.system.build(self.cases, means.images, means.models, samples, **means.common)
        means.know_prices(self.system.named)
        self.trial.begin(
            {
                "system": self.system.model_dump(exclude_none=True),
                "weights": means.models.weights(self.system.named),
                "seed": means.seed,
                "samples": samples,
            }
        )
        self.trial.check(self.cases)
        return graph

    async def run(self, graph: Consultation) -> None:
        """Consult on the cases that have no trace yet."""
        means = self.means
        await self.trial.run(graph, self.cases, means.images, means.concurrency, means.budget, self.title)

    def traces(self) -> Iterator[Trace]:
        """What is known of the cases."""
        wanted = {case.id for case in self.cases}
        return (trace for trace in self.trial.traces() if trace.case in wanted)

    def counts(self) -> dict[str, Any]:
        """Of all shards: how many of the cases are `done`, `failed` (why, in `failed_cases`), and `left`."""
        wanted = {case.id for case in self.cases}
        known = {case: error for case, error in self.trial.outcomes().items() if case in wanted}
        failed = {case: error for case, error in known.items() if error is not None}
        left = len(wanted) - len(known)
        counts = {"done": len(known) - len(failed), "failed": len(failed), "left": left, "failed_cases": failed}
        samples = (self.trial.settings or {}).get("samples")
        return counts if samples is None else {**counts, "samples": samples}


class Contest:
    """All entries on the same cases.

    Args:
        entries: by the names of the systems.

    Raises:
        ValueError: as `Entry.begin`.
    """

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self.entries = entries
        matching = {name: entry for name, entry in entries.items() if entry.system.match_tokens}
        self._graphs = {name: entry.begin() for name, entry in entries.items() if name not in matching}
        self._ones = {name: self._one(entry) for name, entry in matching.items()}
        self._graphs_of_one = {name: entry.begin() for name, entry in self._ones.items()}
        for entry in matching.values():
            if known := entry.trial.settings:  # begun before: with as many samples
                entry.begin(known["samples"])

    async def run(self) -> None:
        """Run all; last come those that must know what others cost."""
        for name, graph in self._graphs.items():
            await self.entries[name].run(graph)
        for name, one in self._ones.items():
            entry = self.entries[name]
            if (samples := (entry.trial.settings or {}).get("samples")) is None:
                await one.run(self._graphs_of_one[name])
                samples = self._samples(entry, one)
            if samples is None:
                waits = f"note: {name} must know what {entry.system.match_tokens} costs on all cases, and not all are "
                print(f"{waits}done or have failed; once they are (in all shards), the same command goes on")
            else:
                await entry.run(entry.begin(samples))

    @staticmethod
    def _one(entry: Entry) -> Entry:
        """A single sample of a system that matches tokens."""
        single = System(system="single", model=entry.system.model)
        trial = Trial(entry.trial.folder / "one", entry.trial.shard)
        return dataclasses.replace(entry, title=f"{entry.title}: one sample", system=single, trial=trial)

    def _samples(self, entry: Entry, one: Entry) -> int | None:
        """How many samples cost as many tokens a case, read and written, as another system does.

        Of the cases that both have done; None until every case has an outcome in both.

        Raises:
            ValueError: if a model tells no tokens.
        """
        other = self.entries[str(entry.system.match_tokens)]
        if other.counts()["left"] or one.counts()["left"]:
            return None
        theirs, ours = ({trace.case: _tokens(trace) for trace in known.traces()} for known in (other, one))
        both = theirs.keys() & ours.keys()
        if not both:
            return None
        mean = fmean(ours[case] for case in both)
        if not mean:
            raise ValueError(f"match_tokens: {entry.system.model} does not tell how many tokens it reads and writes")
        return max(1, round(fmean(theirs[case] for case in both) / mean))


def _tokens(trace: Trace) -> int:
    return sum((call.input_tokens or 0) + (call.output_tokens or 0) for call in trace.calls)
