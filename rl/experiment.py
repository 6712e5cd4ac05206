"""What every training has in common: cases are rolled out, something learns, and consultations are measured.

Invariant: every part that is finished in the run's folder is passed over, so that a run that was killed anywhere goes
on. Several processes share the work; the first alone writes.
"""

import asyncio
import functools
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from langchain_core.language_models import BaseChatModel
from transformers import set_seed
from transformers.utils.logging import disable_progress_bar

from mmedagent_graph.images import ImageStore
from mmedagent_graph.models import load_model
from mmedagent_graph.nodes import Swappable
from mmedagent_graph.nodes.staff import Panel
from rl.answers import answers_file, shared_answers
from rl.clinic.cases import ClinicCase
from rl.clinic.ideal import ideal_answers
from rl.cohort import Cohorts, cohorts, panel
from rl.curriculum import count_tiers
from rl.datasets import LabeledCase
from rl.held_out import by_tier, decide, decided, print_confusion, print_table, referred, unparsed
from rl.launch import refuse_here
from rl.models import Start, merge, model_string
from rl.policy import PolicyChatModel, load_policy
from rl.provenance import commit, versions
from rl.rollout import Rollout, roll_upstream
from rl.run import Run
from rl.settings import Command, Settings, ignore_renamed
from rl.store import read_traces, write_traces
from rl.traces import Trace


class Experiment:
    """A run of a training command. What it trains, and how, a subclass says in `learn`.

    Args:
        run: its folder.
        settings: what it is told.
        cases: whom it treats.
        images: where their images are.
    """

    def __init__(self, run: Run, settings: Settings, cases: Cohorts, images: ImageStore) -> None:
        self.run, self.settings, self.images = run, settings, images
        self.recipe, self.trainer = settings.recipe, settings.trainer
        self.cases, self.held_out, self.skipped = cases
        self.policies: dict[str, str] = dict.fromkeys(self.recipe.nodes, self.recipe.model)
        """The policy of each node that learns, as it stands."""
        self.state = PartialState()
        self.answers = shared_answers(answers_file(Path(self.recipe.runs)))
        self.room = getattr(self.trainer, "max_completion_length", None)
        """Tokens of an answer, in training and when it is measured; None: as many as the model likes."""
        self.alone = self.recipe.nodes == ["specialist"]
        """Whether nobody else is asked."""
        for node in self.recipe.nodes if self.alone else ("triage", "attending"):
            load_model(self.doctor(node))  # one that cannot be had is refused here, not an hour later
        if not self.alone:
            self.panel()

    def learn(self) -> list[str]:
        """Train, and let `policies` say what came of it; returns the names of the stages."""
        raise NotImplementedError

    def doctor(self, node: str) -> str:
        """Model string of a node as it stands."""
        return model_string(self.policies[node]) if node in self.policies else self.recipe.frozen(node)

    def asked(self, node: str) -> BaseChatModel:
        """Who answers for a node as it stands; where it learns, with as much room as in training."""
        model = load_model(self.doctor(node))
        learns = isinstance(model, PolicyChatModel) and node in self.policies
        return model.model_copy(update={"max_tokens": self.room}) if learns else model

    def panel(self) -> Panel | Mapping[str, Panel]:
        """The frozen specialists, whom the run itself does not hold: a policy among them makes room for training."""
        return panel(self.recipe.specialists, self.recipe.cases, self.recipe.model)

    def start(self, node: str) -> Start:
        """A node's policy, to be trained."""
        return Start(self.policies[node], self.settings.model, self.recipe.freeze_vision)

    def rollout(self, triage: Swappable | None = None, attending: Swappable | None = None) -> Rollout:
        """Consultations with these frozen doctors beside the specialists."""
        return Rollout(
            triage=triage, specialists=self.panel(), attending=attending, images=self.images, answers=self.answers
        )

    def go(self) -> dict[str, Any]:
        """The whole run; returns the summary."""
        before = self.measure("before")
        stages = self.learn()
        after = self.measure("after")
        self._finish_models()
        return self._report(stages, before, after) if self.state.is_main_process else {}

    def upstream(self, node: str) -> list[Trace]:
        """The training cases as they pause at a node, which for the attending depends on who is triage."""
        if node != "attending":
            return self._first
        who = f"-{_version(self.policies['triage'], self.run.folder)}" if "triage" in self.policies else ""
        return self.roll(self.cases, f"upstream-train{who}", "rollout, training cases")

    @functools.cached_property
    def _first(self) -> list[Trace]:
        """The training cases before anybody has been asked."""
        return self._before(self.cases)

    def _before(self, cases: Sequence[LabeledCase]) -> list[Trace]:
        node = "specialist" if self.alone else "triage"
        return asyncio.run(roll_upstream(Rollout(images=self.images), cases, node=node, quiet=True))

    def roll(self, cases: Sequence[LabeledCase], name: str, title: str) -> list[Trace]:
        """The attending's upstream of every case, in their order; what is on record is not rolled again."""
        path = self.run.folder / f"{name}.parquet"
        if not path.exists():
            mine = cases[self.state.process_index :: self.state.num_processes]
            rollout = self.rollout(triage=self.asked("triage"))
            traces = asyncio.run(roll_upstream(rollout, mine, title, quiet=not self.state.is_main_process))
            self.label(traces, rollout)
            self.gather_to(path, traces, [case.id for case in cases])
        return list(read_traces(path))

    def label(self, traces: list[Trace], rollout: Rollout) -> None:
        """Set the traces' tiers, where it is not the answer key that says them."""

    def measure(self, when: str) -> list[Trace]:
        """The held-out cases' whole consultations as the doctors stand; greedy, with as much room as in training.

        Of a specialist, its own answers.
        """
        path = self.run.folder / f"{when}.parquet"
        with self.run.phase(when):
            upstream = self._held_out(when)
            if not path.exists():
                mine = upstream[self.state.process_index :: self.state.num_processes]
                last = self.asked("specialist" if self.alone else "attending")
                found = asyncio.run(decide(Rollout(images=self.images), mine, last, when))
                self.gather_to(path, found, [trace.case for trace in upstream])
        return list(read_traces(path))

    def _held_out(self, when: str) -> list[Trace]:
        """The held-out cases as they pause at the last node."""
        if self.alone:
            return self._before(self.held_out)
        name = f"upstream-{when if 'triage' in self.policies else 'held-out'}"
        return self.roll(self.held_out, name, "rollout, held-out cases")

    def gather_to(self, path: Path, mine: list[Trace], order: Sequence[str] | None = None) -> None:
        """Write what all processes have found, in the order of the cases' ids if one is given."""
        found = gather_object(mine)
        if order is not None:
            by_case = {trace.case: trace for trace in found}
            found = [by_case[case] for case in order]
        if self.state.is_main_process:
            write_traces(path, found)
        self.state.wait_for_everyone()

    def _finish_models(self) -> None:
        """Let `model` stand for what was trained; where there are two policies, `model-<node>` for each."""
        two = len(set(self.policies.values())) > 1
        for node, policy in self.policies.items():
            if self.settings.model.use_peft and self.recipe.output == "merged":
                merged = Path(policy).with_name("merged")
                if self.state.is_main_process and not merged.is_dir():
                    merge(policy, merged, str(self.settings.model.dtype))
                self.policies[node] = str(merged)
            self.run.link("model", self.policies[node])
            if two:
                self.run.link(f"model-{node}", self.policies[node])
        self.state.wait_for_everyone()

    def _report(self, stages: list[str], before: list[Trace], after: list[Trace]) -> dict[str, Any]:
        """Write and print what was found."""
        run = self.run
        with run.phase("ideal"):
            ideal = run.once("ideal.json", lambda: self._ideal(after))
        run.collect_metrics(stages)
        summary = summarize(run, int(self.trainer.seed), before, after, ideal)
        summary["cases"] = {"train": len(self.cases), "held_out": len(before), "skipped": self.skipped}
        summary |= self.findings(stages)
        run.finish(summary)
        self.draw(stages, summary)
        rows = {name: summary[name] for name in ("before", "after", "ideal") if summary[name]}
        print_table(rows, f"held-out cases, accuracy in % with 95 % intervals (seed {self.trainer.seed})")
        if "triage" in self.policies:
            print_confusion(summary["confusion"]["after"], "whom the trained triage refers the cases to")
        if summary["gap_closed"] is not None:
            print(f"share of the way from the base to the ideal: {summary['gap_closed']:.0%}")
        print(f"model: {run.folder / 'model'}   summary: {run.folder / 'summary.json'}")
        return summary

    def findings(self, stages: list[str]) -> dict[str, Any]:
        """What else the summary says."""
        return {}

    def draw(self, stages: list[str], summary: dict[str, Any]) -> None:
        """Draw the run's figure."""

    def _ideal(self, upstream: list[Trace]) -> dict[str, Any] | None:
        """The ideal attending's accuracy, where the cases are the clinic's; nobody knows it elsewhere."""
        clinic = [case for case in self.held_out if isinstance(case, ClinicCase)]
        if self.alone or len(clinic) != len(self.held_out) or self.recipe.specialists:
            return None
        return by_tier(upstream, ideal_answers(load_policy("clinic:base"), clinic, upstream, self.images))


def main(kind: type[Experiment], command: Command, arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """A training command line; returns the summary."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    ignore_renamed()
    disable_progress_bar()  # of loading weights; the bars of the run itself stay
    run = Run.open(command, list(sys.argv[1:] if arguments is None else arguments))
    settings = run.settings
    set_seed(settings.trainer.seed)
    try:
        with run.phase("cases"), run.acceptance():
            images = ImageStore(run.folder / "images")
            refuse_here(settings)
            experiment = kind(run, settings, cohorts(settings.recipe, int(settings.trainer.seed), images), images)
        return experiment.go()
    except KeyboardInterrupt:
        if run.main:
            print(f"\ninterrupted; go on with: {run.go_on()}", file=sys.stderr)
        raise SystemExit(130) from None


def _version(policy: str, run: Path) -> str:
    """A policy's name as a part of a file's: the stage that made it, or `start`."""
    return Path(policy).parent.name if Path(policy).is_relative_to(run) else "start"


def summarize(
    run: Run, seed: int, before: list[Trace], after: list[Trace], ideal: dict[str, Any] | None
) -> dict[str, Any]:
    """What `summary.json` says of every run."""
    triage = {"before": referred(before), "after": referred(after)}
    was = {**by_tier(before, decided(before)), "triage": triage["before"]["triage"]}
    now = {**by_tier(after, decided(after)), "triage": triage["after"]["triage"]}
    gap = ideal["overall"]["accuracy"] - was["overall"]["accuracy"] if ideal else 0
    return {
        "before": was,
        "after": now,
        "ideal": ideal,
        "gap_closed": (now["overall"]["accuracy"] - was["overall"]["accuracy"]) / gap if gap > 0 else None,
        "confusion": {when: found["confusion"] for when, found in triage.items()},
        "unparsed": {"before": unparsed(before), "after": unparsed(after)},
        "seconds": run.seconds,
        "seed": seed,
        "recipe": run.told.recipe,
        "arguments": run.told.arguments,
        "versions": versions(),
        "commit": commit(),
    }


def drawn_often(drawn: Sequence[Trace], limit: int) -> list[str]:
    """What there is to say of tiers whose cases are drawn more than `limit` times each."""
    notes = []
    for tier, n in count_tiers(drawn).items():
        ids = {trace.case for trace in drawn if trace.tier == tier}
        if n > limit * len(ids):
            notes.append(f"draws its {len(ids)} {tier} cases {n} times in all")
    return notes
