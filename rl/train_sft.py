"""Supervised fine-tuning on the prompts that GRPO trains on: the baseline, and a warm start.

    python -m rl.train_sft                                                  # gold answers, the clinic
    python -m rl.train_sft --imitate own                                    # the policy's own right answers
    python -m rl.train_sft --nodes triage attending --cases cases.jsonl     # both roles, cases of one's own
    python -m rl.train_attending --model runs/<name>/model                  # go on from there with GRPO

`gold` writes the key into the format, with nothing thought; `own` samples the policy several times and keeps what is
right and well-formed (rejection sampling, as in RFT, arXiv 2308.01825), so that it keeps its own reasoning. Either is
read as every answer is, and what is not read as the key is left out. The upstream of an attending's prompt is rolled as
for GRPO. Any field of `Imitation` and of TRL's `SFTConfig` and `ModelConfig` is a flag; what a run leaves behind is
described in `rl/train_attending.py`.
"""

import asyncio
import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from datasets import Dataset, Features, Image, List, Value
from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback
from trl import ModelConfig, SFTConfig

from mmedagent_graph.answers import LETTERS, letter, read_answer
from mmedagent_graph.state import Referral
from rl.chat import text_turns
from rl.cohort import rehearsed
from rl.datasets import LabeledCase
from rl.duplicates import Seen, Tests
from rl.experiment import Experiment
from rl.experiment import main as run
from rl.expert_traces import ExpertTrace, read_expert_traces
from rl.grading import Grading
from rl.models import freeze_vision, load_processor
from rl.policy import forget_policies, load_policy
from rl.rollout import Rollout
from rl.settings import CONFIGS, Command, Consultations, setting
from rl.stage import forget_log_after, last_checkpoint, step_of
from rl.store import read_traces
from rl.traces import Trace
from rl.trainer import ImitationTrainer
from rl.watch import StageProgress, tensorboard_in

RIGHT = {
    "triage": Grading.parse(["format", "specialty"]),
    **dict.fromkeys(("attending", "specialist"), Grading.parse(["format", "accuracy"])),
}
"""What an answer must be worth imitating."""
STAGE = "sft"


@dataclasses.dataclass
class Imitation(Consultations):
    """What is particular to supervised fine-tuning."""

    imitate: str = setting("gold", "Learn from the `gold` answers, or from the policy's `own` right ones.")
    samples: int = setting(8, "How often the policy is asked for an answer of its `own`.")
    traces: str | None = setting(
        None, "Where a specialist learns: folder of `rl.build_traces`, whose traces are imitated instead."
    )

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        super().__post_init__()
        self.check_choices(imitate=("gold", "own"))
        if self.samples < 1:
            raise ValueError(f"samples: {self.samples} is not a number of samples; give 1 or more")
        if self.traces and "specialist" not in self.nodes:
            raise ValueError(f"traces: {self.traces!r} are a specialist's; give --nodes specialist")

    def check_with(self, trainer: Any, model: ModelConfig) -> None:
        """Refuse what would be passed over."""
        if trainer.completion_only_loss is False:
            raise ValueError("completion_only_loss: false; what is imitated is the answer alone: true, or leave it out")


COMMAND = Command("rl.train_sft", CONFIGS / "clinic_sft.yaml", Imitation, SFTConfig)


class Imitating(Experiment):
    """One stage of supervised fine-tuning."""

    def learn(self) -> list[str]:
        """Collect what to imitate, and imitate it."""
        out = self.run.folder / "stages" / STAGE
        if not (out / "model").is_dir():
            with self.run.phase("examples"):
                examples = self.examples(out / "examples.parquet")
            forget_policies()
            with self.run.phase(STAGE):
                self._train(examples, out)
        self.policies = dict.fromkeys(self.policies, str(out / "model"))
        return [STAGE]

    def examples(self, path: Path) -> list[Trace]:
        """Traces whose `text` is to be imitated."""
        if not path.exists():
            upstream = [] if self.recipe.traces else [trace for node in self.policies for trace in self.upstream(node)]
            learned = self._learned(self._mine(upstream))
            self.gather_to(path, [*learned, *self._rehearsed(len(learned))])
            if self.state.is_main_process and upstream:
                self._note_left_out(upstream, list(read_traces(path)))
        examples = list(read_traces(path))
        if not examples and self.recipe.traces:
            whose = self.recipe.specialty or "any specialty"
            raise ValueError(f"traces: none of {self.recipe.traces!r} is of {whose} and not of a held-out case")
        if not examples and self.recipe.imitate == "gold":
            raise ValueError("imitate: no key can be read where it stands as an answer; give the cases other keys")
        if not examples:
            raise ValueError(f"imitate: no answer of {self.recipe.model!r} was right in {self.recipe.samples} samples")
        return examples

    def _mine(self, traces: Sequence[Trace]) -> Sequence[Trace]:
        """This process's part."""
        return traces[self.state.process_index :: self.state.num_processes]

    def _learned(self, upstream: Sequence[Trace]) -> list[Trace]:
        if self.recipe.traces:
            return list(self._mine(self._traces()))
        return self._gold(upstream) if self.recipe.imitate == "gold" else self._own(upstream)

    def _rehearsed(self, learned: int) -> list[Trace]:
        """What the policy says, right or wrong, of the cases that it rehearses: this process's part."""
        together = sum(gather_object([learned]))
        cases = rehearsed(self.recipe, together, self.trainer.seed, self.images, self.held_out)
        asked = self._mine(self._before(cases))
        policy = load_policy(self.recipe.model).model_copy(update={"max_tokens": self.room})
        rollout, said = Rollout(images=self.images), []
        for start in tqdm(range(0, len(asked), policy.max_batch), "rehearsal", unit="batch"):
            batch = asked[start : start + policy.max_batch]
            said += [str(message.text) for message in policy.answer([rollout.prompt(trace) for trace in batch])]
        return [dataclasses.replace(trace, text=text) for trace, text in zip(asked, said, strict=True)]

    def _note_left_out(self, upstream: Sequence[Trace], examples: Sequence[Trace]) -> None:
        asked = {(trace.case, trace.node) for trace in upstream}
        left_out = len(asked - {(example.case, example.node) for example in examples})
        if left_out:
            why = "no key that can be read" if self.recipe.imitate == "gold" else "never answered right"
            print(f"note: {left_out} of {len(asked)} prompts are left out: {why}")

    def _gold(self, upstream: Sequence[Trace]) -> list[Trace]:
        """The prompts with their gold answers, those that are read as right."""
        golden = gold(upstream)
        return asyncio.run(_right(Rollout(images=self.images), golden, [str(trace.text) for trace in golden]))

    def _traces(self) -> list[Trace]:
        """The specialty's expert traces, without those of held-out cases: by their pictures, or else their words."""
        measured_on = Tests.held_out(self.held_out, self.images)
        told = read_expert_traces(str(self.recipe.traces), "train", self.images)
        mine = [one for one in told if self.recipe.specialty in (None, one.specialty)]
        kept = [one for one in mine if not measured_on.why(Seen.of(case_of_expert(one), self.images))]
        if self.state.is_main_process and len(kept) < len(mine):
            print(f"note: {len(mine) - len(kept)} of {len(mine)} traces are left out: their cases are held out")
        return [trace_of_expert(one) for one in kept]

    def _own(self, upstream: Sequence[Trace]) -> list[Trace]:
        """The different right answers of the policy to each prompt."""
        policy = load_policy(self.recipe.model)
        sampler = policy.model_copy(update={"temperature": 1.0, "max_tokens": self.room})
        rollout = Rollout(images=self.images)
        each = max(1, sampler.max_batch // self.recipe.samples)
        found: list[Trace] = []
        for start in tqdm(range(0, len(upstream), each), "samples", unit="batch"):
            asked = [trace for trace in upstream[start : start + each] for _ in range(self.recipe.samples)]
            said = [str(message.text) for message in sampler.answer([rollout.prompt(trace) for trace in asked])]
            found += asyncio.run(_right(rollout, asked, said))
        return found

    def _train(self, examples: Sequence[Trace], out: Path) -> None:
        start, settings = self.start(self.recipe.nodes[0]), self.trainer
        settings.output_dir = str(out / "checkpoints")
        last = last_checkpoint(out / "checkpoints")
        self.state.wait_for_everyone()  # all have seen the same checkpoint before any can write the next
        if self.state.is_main_process:
            forget_log_after(out / "metrics.jsonl", step_of(last))
        model, peft_config = start.trainable(settings)
        with tensorboard_in(out / "tensorboard"):
            trainer = ImitationTrainer(
                model=model,
                peft_config=peft_config,
                args=settings,
                train_dataset=self.dataset(examples),
                processing_class=load_processor(start.name),
                callbacks=[StageProgress(out / "metrics.jsonl", STAGE)],
            )
        if start.freeze_vision:
            freeze_vision(trainer.model)
        for callback in (ProgressCallback, PrinterCallback):  # one bar is enough
            trainer.remove_callback(callback)
        trainer.train(resume_from_checkpoint=str(last) if last else None)
        trainer.save_model(str(out / "model.part"))
        self.state.wait_for_everyone()
        if self.state.is_main_process:
            (out / "model.part").rename(out / "model")
            shutil.rmtree(out / "checkpoints", ignore_errors=True)
        self.state.wait_for_everyone()

    def dataset(self, examples: Sequence[Trace]) -> Dataset:
        """The rows that SFT trains on: the node's prompt, its images, and what to say."""
        rollout = Rollout(images=self.images)
        rows = {
            "prompt": [text_turns(rollout.prompt(trace)) for trace in examples],
            "completion": [[{"role": "assistant", "content": trace.text}] for trace in examples],
            "images": [[str(self.images.path(ref)) for ref in trace.images] for trace in examples],
        }
        turns = List({"role": Value("string"), "content": Value("string")})
        return Dataset.from_dict(rows, Features({"prompt": turns, "completion": turns, "images": List(Image())}))


def trace_of_expert(one: ExpertTrace) -> Trace:
    """An expert trace as a rollout of the specialist."""
    return Trace(
        case=one.case,
        question=one.question,
        options=one.options,
        images=one.images,
        context=one.context,
        answer=one.answer,
        specialty=one.specialty,
        referral=Referral(specialty=one.specialty, reasoning=""),
        node="specialist",
        text=one.text,
    )


def case_of_expert(one: ExpertTrace) -> LabeledCase:
    """The case that an expert trace is about."""
    return LabeledCase(one.case, one.question, one.answer, one.options, one.images, one.context, one.specialty)


def gold(upstream: Sequence[Trace]) -> list[Trace]:
    """The prompts with the right answers in the format; those without a key or label are left out."""
    keys = [trace.specialty if trace.node == "triage" else trace.answer for trace in upstream]
    pairs = zip(upstream, keys, strict=True)
    return [
        dataclasses.replace(trace, text=gold_answer(key, () if trace.node == "triage" else trace.options))
        for trace, key in pairs
        if key is not None
    ]


def gold_answer(key: str, options: Sequence[str] = (), reasoning: str = "") -> str:
    """The right answer as the format has it, with nothing thought where no reasoning is given.

    Its letter stands in front where the text alone could be that of another option: in "O, A, B, AB" an "A" is the
    first option's letter, and the second's text.
    """
    text = f"<think>{reasoning}</think><answer>{key}</answer>"
    if key in options[: len(LETTERS)] and read_answer(text, options) is None:
        return f"<think>{reasoning}</think><answer>{letter(options.index(key))}) {key}</answer>"
    return text


async def _right(rollout: Rollout, asked: Sequence[Trace], said: Sequence[str]) -> list[Trace]:
    """The right and well-formed ones among some answers, equal ones of a prompt once."""
    different = dict.fromkeys((trace.case, trace.node, text) for trace, text in zip(asked, said, strict=True))
    traces = {(trace.case, trace.node): trace for trace in asked}
    ended = [await RIGHT[node].grade(await rollout.finish(traces[case, node], text)) for case, node, text in different]
    return [trace for trace in ended if trace.reward == len(trace.rewards)]


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line; returns the summary."""
    return run(Imitating, COMMAND, arguments)


if __name__ == "__main__":
    main()
