"""GRPO on consultations: the only module that touches TRL's internals.

TRL's `GRPOTrainer` does everything; this subclass adds

1. an entropy weight for each sample,

       L = L_GRPO - mean over the batch's tokens of gamma_i * H_t

   where gamma_i is the weight of the sample (its tier's, or its stage's) and H_t the entropy of the policy at a
   completion token, with its gradient. With the same gamma everywhere it is TRL's own `entropy_coef`, over all
   completion tokens, whatever `top_entropy_quantile` says;
2. prompts that are made when they are needed: an attending's prompt holds what the policy's own triage led to, which
   changes as the policy does;
3. the same weight for what every node is paid, however many rows it has (the KL term and the entropy bonus are
   means over all tokens);
4. a record of every rollout with its token ids and log-probabilities, and what there is to watch;
5. one vLLM for all stages.

What it relies on in TRL, each point held by a test in `tests/integration/test_trainer.py`: the dictionary of tensors
that `_generate_and_score_completions` returns travels through shuffling and splitting; `_compute_loss` asks
`_get_per_token_logps_and_entropies` exactly once under autograd; the entropies carry a gradient; and
`_tokenize_prompts` and `_generate_single_turn` answer prompts as the policy stands. vLLM's part has been read, and
tested with a stand-in, but not run: there was no GPU.
"""

import logging
import time
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from accelerate.utils import gather_object
from transformers import PreTrainedModel, Trainer
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from trl.data_utils import prepare_multimodal_messages
from trl.generation.vllm_generation import VLLMGeneration
from trl.trainer import grpo_trainer
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from rl import models
from rl.environment import Environment
from rl.perspectives import across

SWAP_EVERY = 100
"""Optimizer steps between two looks at whether the images matter."""


class _PublishedNames(Trainer):  # type: ignore[misc]
    """Resumes from weights that are saved under other names than they have in memory."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load a checkpoint's weights, as `from_pretrained` does.

        Qwen2.5-VL is saved under its published names (`model.layers...`) and has others in memory
        (`model.language_model.layers...`). `Trainer` passes over names that do not match, so that a resumed run would
        silently go on from its *first* weights (transformers 5.23).
        """
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if isinstance(self.model, PreTrainedModel) and not self.is_fsdp_enabled:
            saved = type(self.model).from_pretrained(resume_from_checkpoint, dtype=self.model.dtype)
            self.model.load_state_dict(saved.state_dict())

    def _save_rng_state(self, output_dir: str) -> None:
        """Save each process's random numbers, before the first one writes what says that a checkpoint is whole."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()


class SharedVLLM(VLLMGeneration):  # type: ignore[misc]
    """One vLLM for all stages of a run: a second engine beside the first, or a second link to a server, cannot start.

    A trainer pushes its weights before it first generates, so the engine of the stage before serves the next as well.
    """

    _last: ClassVar["SharedVLLM | None"] = None

    def _init_vllm(self) -> None:
        last, SharedVLLM._last = SharedVLLM._last, self
        if last is None:
            super()._init_vllm()
            return
        for name in ("llm", "tp_group", "vllm_client", "_llm_weights_sleeping"):
            if hasattr(last, name):
                setattr(self, name, getattr(last, name))

    @classmethod
    def let_go(cls) -> None:
        """Forget the last stage's weights and optimizer; the engine stays."""
        if cls._last is not None:
            cls._last.model = cls._last.accelerator = None


grpo_trainer.VLLMGeneration = SharedVLLM


class _UpToTheEnd(DataCollatorForVisionLanguageModeling):  # type: ignore[misc]
    """Labels end where an answer ends: Qwen's template has a line break after it, which no model ever generates."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super().torch_call(examples)
        if not (batch["labels"] != -100).any(dim=1).all():
            raise ValueError(f"max_length: {self.max_length} cuts off a whole answer; give more, or null for no limit")
        end = (batch["labels"] == self.processor.tokenizer.eos_token_id).int()
        batch["labels"][end.cumsum(dim=1) - end > 0] = -100
        return batch


class ImitationTrainer(_PublishedNames, SFTTrainer):  # type: ignore[misc]
    """TRL's `SFTTrainer` on prompts with images and their completions, resumable; the loss is on the completions."""

    def __init__(self, *, args: SFTConfig, processing_class: Any, **kwargs: Any) -> None:
        collator = _UpToTheEnd(processing_class, max_length=args.max_length, completion_only_loss=True)
        super().__init__(args=args, processing_class=processing_class, data_collator=collator, **kwargs)


class ConsultationTrainer(_PublishedNames, GRPOTrainer):  # type: ignore[misc]
    """`GRPOTrainer` over an `Environment` (MMedAgent-RL, section 3).

    Args:
        environment: where the prompts come from and the completions go; its dataset is trained on, in its order.
        args: GRPO's settings.
        freeze_vision: leave the vision tower as it is.
        kwargs: as `GRPOTrainer`'s, without `reward_funcs` and `train_dataset`.
    """

    def __init__(
        self, *, environment: Environment, args: GRPOConfig, freeze_vision: bool = False, **kwargs: Any
    ) -> None:
        # TRL's warning of completions that cannot be graded prints the whole case
        logging.getLogger("trl.trainer.grpo_trainer").addFilter(_says_nothing_of_a_case)
        super().__init__(args=args, reward_funcs=environment.reward, train_dataset=environment.dataset(), **kwargs)
        if self.entropy_coef != 0.0 and not self.use_adaptive_entropy:
            raise ValueError(f"entropy_coef: {self.entropy_coef} would be added to the gammas; set gammas alone")
        if freeze_vision:
            models.freeze_vision(self.model)
        self.environment = environment
        environment.ends = frozenset(self.eos_token_ids)
        self._scored: tuple[torch.Tensor, torch.Tensor] | None = None

    def complete(self, prompts: Sequence[Any]) -> list[tuple[str, list[int]]]:
        """One completion for each prompt, sampled from the policy as it stands, the work shared by all processes.

        Args:
            prompts: pairs of a conversation of text turns and its images; the same in every process.

        Returns:
            Text and token ids of each, in the prompts' order, the same in every process.
        """
        mine = list(range(self.accelerator.process_index, len(prompts), self.accelerator.num_processes))
        share = -(-len(prompts) // self.accelerator.num_processes)
        asked = [prompts[i] for i in (mine + [0] * share)[:share]]  # every process generates as often as the others
        said: list[tuple[str, list[int]]] = []
        batch = self.args.per_device_train_batch_size * self.args.steps_per_generation
        for start in range(0, share, batch):
            part = [prepare_multimodal_messages(turns, images) for turns, images in asked[start : start + batch]]
            ids, images, fields = self._tokenize_prompts(part)
            answers, _ = self._generate_single_turn(ids, images, fields, 1)
            said += zip(self._tokenizer.batch_decode(answers, skip_special_tokens=True), answers, strict=True)
        everybodys = dict(gather_object(list(zip(mine, said, strict=False))))
        return [everybodys[i] for i in range(len(prompts))]

    def _tokenize_prompts(self, prompts: list[Any]) -> Any:
        """TRL marks a prompt without images among others by None, which the processor refuses (TRL 1.16)."""
        ids, images, fields = super()._tokenize_prompts(prompts)
        return ids, images and [of_prompt or [] for of_prompt in images], fields

    def _generate(self, prompts: list[Any]) -> Any:
        start = time.perf_counter()
        generated = super()._generate(prompts)
        self._metrics["train"]["seconds/generate"].append(time.perf_counter() - start)
        return generated

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        environment, step = self.environment, self.state.global_step
        inputs = environment.rows(inputs, step, self.complete)
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        traces = environment.batch
        for i, trace in enumerate(traces):
            trace.prompt_ids = output["prompt_ids"][i][output["prompt_mask"][i].bool()].tolist()
        gammas = environment.gammas(step / max(1, self.state.max_steps))
        output["gamma"] = torch.tensor(gammas, dtype=torch.float32, device=self.accelerator.device)
        self._metrics["train"]["gamma"].append(output["gamma"].mean().item())
        output["row"] = torch.arange(len(traces), device=self.accelerator.device)
        kinds, rewards = self._rewards()
        self._note_lost_groups(kinds, rewards)
        if environment.perspectives > 1:
            output["advantages"] = self._stratified(output["advantages"], rewards)
        output["advantages"] = output["advantages"] * torch.tensor(
            [environment.stage.weight(trace.node) for trace in traces], device=self.accelerator.device
        )
        return output

    def _rewards(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the last generation in all processes: the kind of each group, (groups,), and its rewards, (groups, G)."""
        kinds = self.environment.kinds()
        rows = [(kinds.index(trace.kind), trace.reward) for trace in self.environment.batch]
        mine = torch.tensor([[kind, torch.nan if reward is None else reward] for kind, reward in rows])
        groups = self.accelerator.gather(mine.to(self.accelerator.device)).view(-1, self.num_generations, 2)
        return groups[:, 0, 0], groups[..., 1]

    def _stratified(self, within: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
        """TRL's advantages, each within its perspective, with those across all perspectives of a case."""
        environment, rank = self.environment, self.accelerator.process_index
        of_cases = across(
            rewards.view(-1, environment.perspectives, self.num_generations), self.scale_rewards != "none"
        )
        mine = of_cases.flatten()[rank * len(within) : (rank + 1) * len(within)]
        return (1 - environment.across) * within + environment.across * mine.to(within)

    def _note_lost_groups(self, kind: torch.Tensor, rewards: torch.Tensor) -> None:
        """The share of groups whose completions all got one reward, and so teach nothing; also by kind of case."""
        kinds, lost, kind = self.environment.kinds(), flat(rewards.cpu()), kind.cpu()
        self._metrics["train"]["no_variance"].append(lost.float().mean().item())
        for i, name in enumerate(kinds):
            if (kind == i).any():
                self._metrics["train"][f"no_variance/{name}"].append(lost[kind == i].float().mean().item())

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self.environment.record.flush()  # a resumed run forgets only what came after
        super()._save_checkpoint(*args, **kwargs)

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if torch.is_grad_enabled():
            self._scored = result[:2]
        return result

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        self._scored = None
        loss: torch.Tensor = super()._compute_loss(model, inputs)
        if not torch.is_grad_enabled():  # an evaluation
            return loss
        if self._scored is None or not self._scored[1].requires_grad:
            raise RuntimeError("TRL gave no entropies with a gradient: the entropy bonus would silently do nothing")
        logps, entropies = self._scored
        self._keep_logprobs(inputs, logps)
        if self.state.global_step % SWAP_EVERY == 0:
            self._note_image_effect(model, inputs)
        bonus = entropy_bonus(entropies, inputs["completion_mask"], inputs["gamma"])
        return loss - bonus / (self.current_gradient_accumulation_steps if self.model.training else 1)

    def _keep_logprobs(self, inputs: dict[str, Any], logps: torch.Tensor) -> None:
        """Give the recorded rollouts the log-probabilities under the policy that wrote them."""
        written = inputs.get("old_per_token_logps", logps).detach().float().cpu()
        measured = inputs["completion_mask"].any(dim=1)  # TRL masks what was cut off, if asked to
        for row, values, known in zip(inputs["row"].tolist(), written.tolist(), measured.tolist(), strict=True):
            self.environment.scored(row, values if known else None)

    @torch.no_grad()
    def _note_image_effect(self, model: Any, inputs: dict[str, Any]) -> None:
        """How much a token's log-probability changes, in nats, where every row is shown another row's images.

        The other row is of the same prompt now and then. Images of different sizes cannot change places; they are made
        grey instead.
        """
        effect = torch.tensor(torch.nan, device=self.accelerator.device)  # nothing to swap
        if "pixel_values" in inputs:
            shown = other_images(inputs["pixel_values"], inputs["image_grid_thw"])
            if not torch.equal(shown, inputs["pixel_values"]):
                model.eval()  # dropout would change them, too
                own, other = (self._logprobs(model, inputs, pixels) for pixels in (inputs["pixel_values"], shown))
                model.train()
                effect = (other - own)[inputs["completion_mask"].bool()].abs().mean()
        effects = self.accelerator.gather(effect)  # by every process, whether it has images or not
        if not effects.isnan().all():
            self._metrics["train"]["image_effect"].append(effects.nanmean().item())

    def _logprobs(self, model: Any, inputs: dict[str, Any], pixels: torch.Tensor) -> torch.Tensor:
        """(B, T) log-probabilities of the completions, given these images."""
        logps: torch.Tensor
        logps, *_ = super()._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            inputs["completion_ids"].size(1),
            pixel_values=pixels,
            **{name: inputs.get(name) for name in ("image_grid_thw", "num_images", "mm_token_type_ids")},
        )
        return logps


def entropy_bonus(entropies: torch.Tensor, mask: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    """The weighted mean token entropy of a batch.

    Args:
        entropies: (B, T) entropy of the policy at each completion token, in nats.
        mask: (B, T) 1 where there is a token.
        gamma: (B,) weight of each sample.

    Returns:
        A scalar: the sum of gamma_i * H_it over the tokens, divided by their number.
    """
    return (gamma.unsqueeze(1) * entropies * mask).sum() / mask.sum().clamp(min=1)


def flat(rewards: torch.Tensor) -> torch.Tensor:
    """(groups,) whether a group's rewards are all the same, those that are missing (NaN) left aside.

    Args:
        rewards: (groups, G).
    """
    missing = rewards.isnan()
    spread = rewards.masked_fill(missing, -torch.inf).amax(dim=1) - rewards.masked_fill(missing, torch.inf).amin(dim=1)
    return ~(spread > 1e-6)


def other_images(pixels: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
    """The images of a batch in the reverse order; grey where they are not all of one size.

    Args:
        pixels: (patches of all images, values of a patch).
        grids: (images, 3) patches of each image in time, height and width.
    """
    if len(grids) < 2 or (grids != grids[0]).any():
        return torch.zeros_like(pixels)
    return pixels.view(len(grids), -1, pixels.size(1)).flip(0).flatten(0, 1)


def _says_nothing_of_a_case(record: logging.LogRecord) -> bool:
    return "All reward functions returned None" not in str(record.msg)  # accelerate puts the rank in front
