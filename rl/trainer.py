"""GRPO with an entropy weight for each sample: the only module that touches TRL's internals.

TRL's `GRPOTrainer` does everything; this subclass adds one term to its loss,

    L = L_GRPO - mean over the batch's tokens of gamma_i * H_t

where gamma_i is the weight of the sample's tier and H_t the entropy of the policy at a completion token, with its
gradient. With the same gamma everywhere it is TRL's own `entropy_coef` (loss - coef * mean token entropy), over all
completion tokens, whatever `top_entropy_quantile` says.

What it relies on in TRL, each point held by a test in `tests/integration/test_trainer.py`: the dictionary of tensors
that `_generate_and_score_completions` returns travels through shuffling and splitting; `_compute_loss`
asks `_get_per_token_logps_and_entropies` exactly once under autograd; and the entropies carry a gradient.
"""

from typing import Any

import torch
from transformers import PreTrainedModel
from trl import GRPOTrainer

GAMMA = "gamma"
"""The dataset's column with a sample's entropy weight."""


class StagedEntropyTrainer(GRPOTrainer):  # type: ignore[misc]
    """`GRPOTrainer` with the dataset column `gamma` as the entropy weight of each sample (MMedAgent-RL, section 3)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.entropy_coef != 0.0:
            raise ValueError(f"entropy_coef: {self.entropy_coef} would be added to the gammas; set gammas alone")
        self._entropies: torch.Tensor | None = None

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

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        output[GAMMA] = torch.tensor([row[GAMMA] for row in inputs], device=self.accelerator.device)
        return output

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if torch.is_grad_enabled():
            self._entropies = result[1]
        return result

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        self._entropies = None
        loss: torch.Tensor = super()._compute_loss(model, inputs)
        if not torch.is_grad_enabled():  # an evaluation
            return loss
        if self._entropies is None or not self._entropies.requires_grad:
            raise RuntimeError("TRL gave no entropies with a gradient: the entropy bonus would silently do nothing")
        bonus = entropy_bonus(self._entropies, inputs["completion_mask"], inputs[GAMMA])
        return loss - bonus / (self.current_gradient_accumulation_steps if self.model.training else 1)


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
