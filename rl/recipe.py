"""A recipe of GRPO on consultations: stages, entropy weights and rewards.

Invariant: what cannot work is refused here, when the settings are read, and not an hour later.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from langgraph.cache.base import BaseCache
from trl import GRPOConfig, ModelConfig

from rl.curriculum import MIXED, SCHEDULES, TIERS, Stage
from rl.grading import KEYED, PAPER, Grader, Grading, outcome, overlong_of
from rl.guidelines import PERSPECTIVES, Guideline, read_guideline
from rl.judge import judge_of
from rl.perspectives import checks_of
from rl.settings import Command, Consultations, parse, setting

CHOICES = {
    "loss_type": ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
    "vllm_mode": ("colocate", "server"),
    "importance_sampling_level": ("token", "sequence"),
    "scale_rewards": ("group", "batch", "none"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "vllm_importance_sampling_mode": ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
}
"""What TRL's trainer knows, and its settings do not check."""

ACROSS = 0.5
"""The weight of the advantage across perspectives where none is given."""


@dataclasses.dataclass
class Recipe(Consultations):
    """What is particular to GRPO on consultations; everything else is TRL's `GRPOConfig` and `ModelConfig`."""

    node_shares: list[float] = setting([], "Share of the prompts of each of `nodes`. Default: equal shares.")
    alternate: bool = setting(
        False, "Both nodes in turn, stage by stage, each with a policy of its own (with --use_peft: an adapter)."
    )
    reroll_steps: int = setting(
        20, "One policy in both roles: steps after which its own triage refers the attending's next cases anew."
    )
    tiers: str = setting(
        "labels", "Tiers of cases by the answer key (`labels`), or without it by `disagreement` of opinions and policy."
    )
    stages: list[str] = setting(
        list(TIERS), "The stages in their order, each named by its main tier, or `mixed`: the cases as they come."
    )
    stage_steps: list[int] = setting([100, 100, 100], "Optimizer steps of each stage.")
    rehearsal: list[float] = setting(
        [0.0],
        "Share of a stage's prompts from the tiers of earlier stages, or the shares of easy, medium and hard cases "
        "in each stage, three numbers a stage (paper: pure stages).",
    )
    gammas: list[float] = setting(
        [1e-4, 5e-3, 3e-2],
        "Entropy weights (paper: 1e-4, 5e-3, 3e-2): of easy, medium and hard cases, or, with --gamma_by stage, of each "
        "stage.",
    )
    gamma_by: str = setting("tier", "Whether an entropy weight belongs to a case's `tier` or to the `stage`.")
    gamma_schedule: str = setting("constant", "Within a stage the entropy weights are `constant`, `rise` or `fall`.")
    triage_gammas: list[float] = setting(
        [0.0],
        "Entropy weight of triage's completions, or a specialist's, where weights go by tier: one for all stages, or "
        "one for each.",
    )
    betas: list[float] = setting([1e-3, 4e-3, 1e-2], "KL weight of each stage (paper: 1e-3, 4e-3, 1e-2).")
    rate_scales: list[float] = setting(
        [1.0], "What `learning_rate` is multiplied by: once for all stages, or for each of them."
    )
    graders: list[str] = setting(
        list(PAPER["attending"]),
        "What the attending, or a specialist, is paid for: `name=weight`, or `module:function=weight`.",
    )
    triage_graders: list[str] = setting(list(PAPER["triage"]), "What triage is paid for, likewise.")
    outcome_weight: float = setting(
        0.0, "What triage is paid for the rest of the consultation being right, once for each case and specialty."
    )
    guideline: str | None = setting(
        None,
        "YAML file of clinical reasoning perspectives (`rl/guidelines/general.yaml`): a specialist answers every case "
        "from each, `num_generations` times, with guideline-based advantages (`rl.perspectives`).",
    )
    perspectives: list[str] = setting(list(PERSPECTIVES), "Those of the guideline that are asked for.")
    across: float = setting(
        ACROSS, "Weight of the advantage over all perspectives of a case, beside that within each: 0 to 1."
    )
    judge: str | None = setting(None, "Model string of the judge, for `judge` among the graders.")
    accelerate: str | None = setting(
        None, "Accelerate's file for this recipe's processes, beside the recipe. Default: however many there are."
    )
    gpu_memory: int | None = setting(None, "GiB of each GPU that the recipe is made for; the dry run compares.")
    dry_run: bool = setting(False, "Only check the recipe, without a GPU, and print what it comes to.")

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        super().__post_init__()
        self.check_choices(
            tiers=("labels", "disagreement"), gamma_by=("tier", "stage"), gamma_schedule=tuple(SCHEDULES)
        )
        if self.tiers == "disagreement" and "attending" not in self.nodes:
            only = " and ".join(self.nodes)
            raise ValueError(f"tiers: disagreement, but only {only} learns, whose cases have no tiers; leave it out")
        if self.tiers == "disagreement" and self.rerolls:
            raise ValueError(
                "tiers: disagreement; cases that the policy's own triage refers anew get their tier by the key. Give "
                "--reroll_steps 0 or --alternate true"
            )
        if self.node_shares and (len(self.node_shares) != len(self.nodes) or min(self.node_shares) <= 0):
            raise ValueError(f"node_shares: {self.node_shares}; give a share above 0 for each of {self.nodes}")
        if self.alternate and len(self.nodes) < 2:
            raise ValueError(f"alternate: only {self.nodes[0]} learns; give --nodes triage attending")
        if self.reroll_steps < 0:
            raise ValueError(f"reroll_steps: {self.reroll_steps}; give 0 (never) or a number of steps")
        if self.outcome_weight < 0 or (self.outcome_weight and "triage" not in self.nodes):
            raise ValueError(
                f"outcome_weight: {self.outcome_weight}; it is 0 or more, and pays triage (--nodes triage)"
            )
        self._check_guideline()
        self._check_stages()
        paid_by = {name for grading in self._gradings(self._made()).values() for name in grading.graders}
        if self.judge and "judge" not in paid_by:
            raise ValueError(f"judge: {self.judge!r}, but nobody is paid by its verdict; add judge=1 to --graders")

    def _check_guideline(self) -> None:
        named = self.perspectives
        if not named or len(set(named)) < len(named) or set(named) - set(PERSPECTIVES):
            raise ValueError(f"perspectives: {named}; name some of {', '.join(PERSPECTIVES)}, each once")
        if not 0 <= self.across <= 1:
            raise ValueError(f"across: {self.across} is not a weight from 0 to 1")
        if self.guideline and self.nodes != ["specialist"]:
            raise ValueError(
                f"guideline: {self.guideline!r}, but it is specialists that reason by it; give --nodes specialist"
            )
        self.read_guideline()
        if self.guideline and "checks" not in {grader.partition("=")[0] for grader in self.graders}:
            raise ValueError(
                f"guideline: {self.guideline!r}, but nobody is paid for its checks; add checks=0.5 to --graders"
            )
        if not self.guideline and (named != list(PERSPECTIVES) or self.across != ACROSS):
            raise ValueError("perspectives, across: they are a guideline's; give --guideline, or leave them out")

    def read_guideline(self) -> Guideline | None:
        """The guideline; None without one.

        Raises:
            ValueError: naming the file, and what is wrong in it.
        """
        return read_guideline(self.guideline) if self.guideline else None

    def check_with(self, trainer: Any, model: ModelConfig) -> None:
        """Refuse what TRL's settings and ours would make of each other, and what TRL would refuse an hour later."""
        for field, known in CHOICES.items():
            if (value := getattr(trainer, field)) not in known:
                raise ValueError(f"{field}: {value!r} is unknown; choose one of {', '.join(known)}")
        if trainer.reward_weights is not None:
            raise ValueError(
                f"reward_weights: {trainer.reward_weights}; the graders have the weights: --graders name=weight"
            )
        if trainer.num_train_epochs != GRPOConfig.num_train_epochs:
            raise ValueError(f"num_train_epochs: {trainer.num_train_epochs} would be passed over; give --stage_steps")
        if (model.load_in_4bit or model.load_in_8bit) and not model.use_peft:
            raise ValueError("load_in_4bit, load_in_8bit: quantized weights cannot be trained; set use_peft: true")
        if trainer.use_transformers_continuous_batching:
            raise ValueError("use_transformers_continuous_batching: true works for text alone; set use_vllm instead")
        if trainer.sync_ref_model and (model.use_peft or min(self.betas) == 0):
            raise ValueError("sync_ref_model: true needs a reference of its own: no use_peft, and all betas above 0")
        adaptive = trainer.use_adaptive_entropy
        for field, ours in (("beta", "betas"), *([] if adaptive else [("entropy_coef", "gammas")])):
            if value := getattr(trainer, field, 0):
                raise ValueError(f"{field}: {value} would be overridden in every stage; set {ours} instead")
        if adaptive and any((*self.gammas, *self.triage_gammas)):
            zeros = " ".join(["0"] * len(self.gammas))
            raise ValueError(
                f"use_adaptive_entropy: TRL's controller sets the weight itself; add --gammas {zeros} --triage_gammas 0"
            )
        self._check_generations(trainer)

    @property
    def rerolls(self) -> int:
        """`reroll_steps` where one policy has both roles; 0: nothing is rolled anew inside a stage."""
        return self.reroll_steps if len(self.nodes) > 1 and not self.alternate else 0

    def _check_generations(self, trainer: Any) -> None:
        groups, each = trainer.generation_batch_size // trainer.num_generations, len(self.perspectives)
        if self.guideline and groups % each:
            raise ValueError(
                f"num_generations: {trainer.num_generations}; a generation's {groups} groups do not hold all {each} "
                f"perspectives of each case: give a batch of a multiple of {trainer.num_generations * each}"
            )
        if self.guideline and trainer.multi_objective_aggregation != "sum_then_normalize":
            raise ValueError("multi_objective_aggregation: a guideline's advantages are of the sum; leave it out")
        if self.guideline and trainer.scale_rewards == "batch":
            raise ValueError("scale_rewards: 'batch', but a guideline's advantages are of a case; give group or none")
        self._check_uses(trainer)

    def _check_uses(self, trainer: Any) -> None:
        """A generation may serve several optimizer steps, and between those nothing can be rolled anew or resumed."""
        uses, accumulated = trainer.steps_per_generation * trainer.num_iterations, trainer.gradient_accumulation_steps
        if self.rerolls and accumulated % uses:
            raise ValueError(
                "reroll_steps: a generation serves several optimizer steps (steps_per_generation x num_iterations is "
                "more than gradient_accumulation_steps); it cannot be rolled anew at a step. Give --reroll_steps 0"
            )
        if uses > accumulated and trainer.save_strategy == "steps" and trainer.save_steps * accumulated % uses:
            raise ValueError(
                f"save_steps: {trainer.save_steps}, but a generation serves {uses / accumulated:g} optimizer steps "
                "(steps_per_generation x num_iterations / gradient_accumulation_steps), and a run that is resumed "
                "inside one would differ: give a multiple of it"
            )

    def _check_stages(self) -> None:
        known = ", ".join((*TIERS, MIXED))
        if not self.stages:
            raise ValueError(f"stages: none is given; name at least one of {known}")
        for stage in self.stages:
            if stage not in (*TIERS, MIXED):
                raise ValueError(f"stages: {stage!r} is unknown; stages are named by their main tier: {known}")
        if "attending" not in self.nodes and set(self.stages) != {MIXED}:
            who = " and ".join(self.nodes)
            raise ValueError(f"stages: {self.stages}, but {who} has heard no opinion, hence no tiers; give {MIXED}")
        for field in ("stage_steps", "betas"):
            if len(getattr(self, field)) != len(self.stages):
                given = len(getattr(self, field))
                raise ValueError(f"{field}: {given} values for {len(self.stages)} stages; give 1 for each stage")
        if not all(beta >= 0 for beta in self.betas):
            raise ValueError(f"betas: {self.betas}; a KL weight is 0 or more")
        if len(self.rate_scales) not in (1, len(self.stages)) or not all(scale > 0 for scale in self.rate_scales):
            raise ValueError(
                f"rate_scales: {self.rate_scales}; give one factor above 0 for all stages or for each of them"
            )
        if min(self.stage_steps) < 0 or not sum(self.stage_steps):
            raise ValueError(f"stage_steps: {self.stage_steps}; steps are 0 or more, with at least one in all")
        weights, each = (len(TIERS), ", ".join(TIERS)) if self.gamma_by == "tier" else (len(self.stages), "the stages")
        if len(self.gammas) != weights or not all(gamma >= 0 for gamma in self.gammas):
            raise ValueError(f"gammas: {self.gammas}; give one weight, 0 or more, for each of {each}")
        if len(self.triage_gammas) not in (1, len(self.stages)) or not all(gamma >= 0 for gamma in self.triage_gammas):
            raise ValueError(
                f"triage_gammas: {self.triage_gammas}; give one weight, 0 or more, for all stages or for each of them"
            )
        if any(self.triage_gammas) and (self.gamma_by == "stage" or self.nodes == ["attending"]):
            raise ValueError(
                f"triage_gammas: {self.triage_gammas} would go unused; they need --nodes triage or specialist, and "
                "--gamma_by tier"
            )
        for shares in self._tier_shares():
            if shares and (min(shares.values()) < 0 or sum(shares.values()) <= 0):
                raise ValueError(
                    f"rehearsal: {self.rehearsal}; shares are 0 or more, with a positive sum in each stage"
                )

    def _tier_shares(self) -> list[dict[str, float]]:
        """The shares of the tiers in each stage; none for a mixed one."""
        if len(self.rehearsal) == 1:
            return [self._rehearsing(i) for i in range(len(self.stages))]
        if len(self.rehearsal) != 3 * len(self.stages):
            given = f"{len(self.rehearsal)} values for {len(self.stages)} stages"
            raise ValueError(f"rehearsal: {given}; give one share for all, or 3 for each stage")
        rows = [dict(zip(TIERS, self.rehearsal[3 * i :], strict=False)) for i in range(len(self.stages))]
        return [{} if stage == MIXED else row for stage, row in zip(self.stages, rows, strict=True)]

    def _rehearsing(self, place: int) -> dict[str, float]:
        """One tier, and of the earlier ones the share that is rehearsed."""
        if self.stages[place] == MIXED:
            return {}
        if not 0 <= self.rehearsal[0] < 1:
            raise ValueError(f"rehearsal: {self.rehearsal[0]} is not a share from 0 to below 1")
        earlier = [tier for tier in dict.fromkeys(self.stages[:place]) if tier not in (self.stages[place], MIXED)]
        shares = dict.fromkeys(TIERS, 0.0) | {tier: self.rehearsal[0] / len(earlier) for tier in earlier}
        return shares | {self.stages[place]: 1.0 - sum(shares.values())}

    def gradings(self, longest: int, answers: BaseCache[Any] | None = None) -> dict[str, Grading]:
        """What each of the nodes that learn is paid for.

        Args:
            longest: tokens that a completion may have.
            answers: the cache that keeps the judge's verdicts.
        """
        made: dict[str, Grader] = {"overlong": overlong_of(longest)}
        if self.judge:
            made["judge"] = judge_of(self.judge, answers)
        if guideline := self.read_guideline():
            made["checks"] = checks_of(guideline)
        return self._gradings(made)

    def by_label(self) -> bool:
        """Whether triage is paid for naming the label."""
        return super().by_label() and any(
            entry.partition("=")[0] == "specialty" and entry.partition("=")[2] != "0" for entry in self.triage_graders
        )

    def by_key(self) -> list[str]:
        """The graders that count and need an answer key."""
        weights = [grading.weights for grading in self._gradings(self._made()).values()]
        return [name for name in KEYED if any(of_node.get(name) for of_node in weights)]

    def without_keys(self) -> str | None:
        """What can be done about cases without an answer key; None where they are welcome."""
        if self.tiers == "disagreement":
            return None
        if "attending" in self.nodes:
            return "leave them out, or give --tiers disagreement"
        return "leave them out" if self.by_key() else None

    def _made(self) -> dict[str, Grader]:
        """Stands in for the graders that are yet to be made, where only their names are asked for."""
        named = ["overlong", *(["judge"] if self.judge else []), *(["checks"] if self.guideline else [])]
        return dict.fromkeys(named, outcome)

    def _gradings(self, made: Mapping[str, Grader]) -> dict[str, Grading]:
        given = {"triage": self.triage_graders, "attending": self.graders, "specialist": self.graders}
        if self.outcome_weight:
            given["triage"] = [*self.triage_graders, f"outcome={self.outcome_weight}"]
        return {node: Grading.parse(given[node], made) for node in self.nodes}

    def curriculum(self, max_steps: int) -> list[Stage]:
        """The stages. `max_steps` above 0 caps their sum, each stage keeping its share of the steps."""
        whole = [self._stage(i) for i in range(len(self.stages))]
        if self.alternate:
            whole = [turn for stage in whole for turn in _turns(stage)]
        return _capped(whole, max_steps)

    def _stage(self, place: int) -> Stage:
        triage = self.triage_gammas[place if len(self.triage_gammas) > 1 else 0]
        by_tier = dict(zip(TIERS, self.gammas, strict=False)) | {"triage": triage, "specialist": triage}
        same = dict.fromkeys((*TIERS, "triage", "specialist"), self.gammas[place] if self.gamma_by == "stage" else 0.0)
        return Stage(
            name=f"{place + 1}-{self.stages[place]}",
            steps=self.stage_steps[place],
            beta=self.betas[place],
            shares=self._tier_shares()[place],
            nodes=dict(zip(self.nodes, self.node_shares or [1.0] * len(self.nodes), strict=True)),
            gammas=by_tier if self.gamma_by == "tier" else same,
            schedule=self.gamma_schedule,
            rate_scale=self.rate_scales[place if len(self.rate_scales) > 1 else 0],
        )


def _turns(stage: Stage) -> list[Stage]:
    """A stage of several nodes as one stage for each, its steps shared out."""
    return [
        dataclasses.replace(stage, name=f"{stage.name}-{node}", steps=steps, nodes={node: 1.0})
        for node, steps in zip(stage.nodes, _shared_out(stage.steps, list(stage.nodes.values())), strict=True)
    ]


def _capped(stages: list[Stage], max_steps: int) -> list[Stage]:
    """The stages with at most so many steps in all, where that is above 0; those that are left without any go."""
    total = sum(stage.steps for stage in stages)
    if 0 < max_steps < total:
        shared = _shared_out(max_steps, [stage.steps for stage in stages])
        stages = [dataclasses.replace(stage, steps=steps) for stage, steps in zip(stages, shared, strict=True)]
    return [stage for stage in stages if stage.steps > 0]


def _shared_out(steps: int, shares: Sequence[float]) -> list[int]:
    """So many steps in these shares; they add up, whatever is rounded."""
    ends = [round(steps * end / sum(shares)) for end in itertools.accumulate(shares)]
    return [end - start for start, end in itertools.pairwise([0, *ends])]


def prompts_of(stage: Stage, trainer: GRPOConfig) -> int:
    """How many prompts a stage takes: those of whole generations, or TRL would leave the last one out."""
    groups = int(trainer.generation_batch_size) // int(trainer.num_generations)
    return groups * math.ceil(round(stage.steps * prompts_a_step(trainer) / groups, 9))


def prompts_a_step(trainer: GRPOConfig) -> float:
    """How many prompts an optimizer step takes; fewer than a generation's where that serves several steps."""
    uses = int(trainer.steps_per_generation) * int(trainer.num_iterations)
    groups = int(trainer.generation_batch_size) / int(trainer.num_generations)
    return groups * int(trainer.gradient_accumulation_steps) / uses


def stage_settings(command: Command, arguments: Sequence[str], stage: Stage, out: Path) -> GRPOConfig:
    """The run's GRPO settings for one stage, whose prompts have an order of their own that TRL must not shuffle."""
    own = {"beta": stage.beta, "max_steps": stage.steps, "shuffle_dataset": False, "output_dir": out / "checkpoints"}
    flags = [f"--{name}={value}" for name, value in own.items()]
    trainer: GRPOConfig = parse(command, [*arguments, *flags]).trainer
    trainer.learning_rate *= stage.rate_scale
    return trainer
