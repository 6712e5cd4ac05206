"""GRPO on whole consultations: what `rl.train_triage` and `rl.train_attending` do."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trl import GRPOConfig

from rl.cohort import rehearsed
from rl.curriculum import Stage, count_tiers, draw_prompts
from rl.curves import draw_curves
from rl.environment import Environment
from rl.experiment import Experiment, drawn_often, main
from rl.launch import refuse_large_images
from rl.perspectives import from_each
from rl.policy import forget_policies, load_policy
from rl.recipe import prompts_a_step, prompts_of, stage_settings
from rl.rollout import Rollout
from rl.settings import Command, flags_of, read_early
from rl.stage import train_stage
from rl.store import Rollouts, read_traces
from rl.traces import Trace
from rl.unlabeled import stratify

OFTEN = 20
"""A stage that draws a tier's cases more often than this is likely to learn them by heart, and says so."""


class Training(Experiment):
    """A curriculum of GRPO stages."""

    tiers: dict[str, int] | None = None
    """How many training cases of each tier there were at the start; None where only triage learns."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        seed = int(self.trainer.seed)
        self.cases = [*self.cases, *rehearsed(self.recipe, len(self.cases), seed, self.images, self.held_out)]
        if self.trainer.use_vllm:
            refuse_large_images(self.settings, self._first, self.images)

    def learn(self) -> list[str]:
        """Stage after stage; each starts from what the one before has made of its nodes' policy."""
        stages = self.recipe.curriculum(int(self.trainer.max_steps))
        folders = [self.run.folder / "stages" / stage.name for stage in stages]
        # all before the first trainer: making TRL's settings resets the state of accelerate's plugins
        run = self.run
        told = [stage_settings(run.command, run.flags, *pair) for pair in zip(stages, folders, strict=True)]
        with self.run.phase("rollout"):
            if "attending" in self.recipe.nodes:
                self.tiers = count_tiers(self.upstream("attending"))
            for place, stage in enumerate(stages):  # a stage without cases is refused before any is trained
                for note in drawn_often(self.plan(place, stage), OFTEN) if self.state.is_main_process else ():
                    print(f"note: stage {stage.name} {note}")
        for place, (stage, out, settings) in enumerate(zip(stages, folders, told, strict=True)):
            if not (out / "model").is_dir():
                self._train(place, stage, out, settings)
            Rollouts(out / "rollouts", self.state.process_index).close(out / "rollouts.parquet")
            self.state.wait_for_everyone()
            self.policies |= dict.fromkeys(stage.nodes, str(out / "model"))
        return [stage.name for stage in stages]

    def plan(self, place: int, stage: Stage) -> list[Trace]:
        """The stage's prompts in training order."""
        upstream = {node: self.upstream(node) for node in stage.nodes}
        prompts, seed = prompts_of(stage, self.trainer), self.trainer.seed * 1000 + place
        if self.recipe.guideline:
            drawn = draw_prompts(upstream, stage, prompts // len(self.recipe.perspectives), seed)
            return from_each(drawn, self.recipe.perspectives)
        return draw_prompts(upstream, stage, prompts, seed)

    def label(self, traces: list[Trace], rollout: Rollout) -> None:
        """Set the tiers by disagreement, if that is asked for."""
        if self.recipe.tiers == "disagreement":
            stratify(traces, load_policy(self.policies["attending"]), rollout, self.room)

    def _train(self, place: int, stage: Stage, out: Path, settings: GRPOConfig) -> None:
        prompts = self.plan(place, stage)
        rollout = self._beside(stage)
        forget_policies()  # what has rolled the upstream makes room for what is trained
        with self.run.phase(stage.name):
            environment = Environment(
                stage,
                prompts,
                rollout,
                self.recipe.gradings(self.room, self.answers),
                Rollouts(out / "rollouts", self.state.process_index),
                out,
                self.recipe.rerolls,
                round(prompts_a_step(self.trainer)),
                (len(self.recipe.perspectives), self.recipe.across) if self.recipe.guideline else (1, 0.0),
            )
            train_stage(environment, self.start(next(iter(stage.nodes))), out, settings)

    def _beside(self, stage: Stage) -> Rollout:
        """The consultations of a stage, with the frozen doctors that are asked while it trains, and no others."""
        if self.recipe.outcome_weight and "triage" in stage.nodes:
            return self.rollout(attending=self.asked("attending"))
        if self.recipe.rerolls:  # its own triage's patients hear specialists
            return self.rollout()
        return Rollout(images=self.images, guideline=self.recipe.read_guideline())

    def findings(self, stages: list[str]) -> dict[str, Any]:
        """The tiers of the training cases, and the tokens that were generated: those trained on, and upstream's."""
        found: dict[str, Any] = {"tokens": {"trained": 0, "upstream": 0}, "tiers": self.tiers}
        run = self.run.folder
        rolled = [*run.glob("upstream-train*.parquet"), *run.glob("stages/*/upstream-*.parquet")]
        for trace in (trace for path in rolled for trace in read_traces(path)):
            own = [call for call in trace.calls if call.node == "triage"]
            found["tokens"]["upstream"] += sum(len(call.completion_ids or []) for call in own)
        for stage in stages:
            for trace in read_traces(run / "stages" / stage / "rollouts.parquet"):
                found["tokens"]["trained"] += len(trace.completion_ids or [])
        return found

    def draw(self, stages: list[str], summary: dict[str, Any]) -> None:
        """Draw the curves of reward, entropy and accuracy."""
        draw_curves(self.run.folder, stages, summary)


def train(command: Command, arguments: Sequence[str] | None) -> dict[str, Any]:
    """A command line of training, or with `dry_run` a look at what it comes to; returns the summary."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # before the settings are read as a whole, which is refused where the recipe's GPUs are not there
    if read_early(flags_of(command, given), [], ["dry_run"])[0].dry_run:
        from rl.dry_run import show  # only then: it reads more of TRL, accelerate and peft than training does

        show(command, given)
        return {}
    return main(Training, command, given)
