"""The shape of a policy without its weights: the model on torch's meta device, and what an image costs it.

Invariant: nothing is read but a configuration. A folder or the hub gives it; for the two models that the recipes name,
the published numbers stand here, so that a recipe can be checked offline. Their parameter counts prove them.
"""

import functools
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, Qwen2_5_VLConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from trl import ModelConfig

from rl import models
from rl.models import adapters, folder_of

PUBLISHED: dict[str, dict[str, int]] = {
    "Qwen/Qwen2.5-VL-3B-Instruct": {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "Qwen/Qwen2.5-VL-7B-Instruct": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
}
"""The language models; the rest of their configurations is what transformers takes for Qwen2.5-VL."""
VISION = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
"""The vision tower of both."""
PIXELS = (56 * 56, 16384 * 28 * 28)
"""The least and the most pixels of an image for the published models' processor."""


def policy_config(name: str) -> Any:
    """The configuration of a policy.

    Args:
        name: as in `Recipe.model`: a name of ours, a folder or a hub id.

    Raises:
        ValueError: if nothing gives the model's configuration.
    """
    folder = folder_of(name)
    if folder in PUBLISHED:
        text = PUBLISHED[folder]
        vision = VISION | {"out_hidden_size": text["hidden_size"]}
        tied = bool(text["tie_word_embeddings"])
        return Qwen2_5_VLConfig(text_config=dict(text), vision_config=vision, tie_word_embeddings=tied)
    try:
        return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        known = ", ".join(PUBLISHED)
        raise ValueError(f"model: no configuration for {name!r}; give a folder, a hub id, or one of {known}") from error


def meta_policy(name: str, how: ModelConfig, freeze_vision: bool = False) -> Any:
    """The policy as it would be trained, on the meta device: adapters in place, frozen what is frozen.

    Args:
        name: as in `Recipe.model`.
        how: TRL's settings of the model: its `dtype` and its adapters.
        freeze_vision: whether the vision tower is not trained.

    Raises:
        ValueError: naming the field, if the adapters do not fit the model.
    """
    dtype = torch.bfloat16 if how.dtype == "auto" else getattr(torch, how.dtype or "float32")
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(policy_config(name), dtype=dtype)
        if freeze_vision:
            models.freeze_vision(model)
        if not how.use_peft:
            return model
        try:
            return get_peft_model(model, adapters(how, freeze_vision))
        except ValueError as error:
            raise ValueError(
                f"lora_target_modules: {how.lora_target_modules!r} does not fit {name}: {error}"
            ) from error


def refuse_adapted_head(model: Any, how: ModelConfig) -> None:
    """Refuse adapters on the head, which GRPO's trainer does not train.

    Raises:
        ValueError: naming the field.
    """
    if any("lora_" in part for part, _ in model.get_output_embeddings().named_modules()):
        raise ValueError(f"lora_target_modules: {how.lora_target_modules!r} takes in lm_head, which TRL cannot train")


def image_patches(name: str, width: int, height: int) -> int:
    """How many patches of the vision tower an image has; four of them are one token of the prompt."""
    tall, wide = smart_resize(height, width, 28, *_pixels(folder_of(name)))
    return int(tall // 14 * (wide // 14))


@functools.cache
def _pixels(folder: str) -> tuple[int, int]:
    """The least and the most pixels that a policy's processor leaves an image."""
    if not Path(folder).is_dir():
        return PIXELS
    size = AutoImageProcessor.from_pretrained(folder).size
    return size["shortest_edge"], size["longest_edge"]
