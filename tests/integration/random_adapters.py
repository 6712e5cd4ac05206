"""Adapters that nobody trained: seeded, of the language model, and so large that their answers differ."""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from rl.models import BASE, load_model

LANGUAGE_MODEL = r".*\.language_model\..*\.(q|k|v|o|gate|up|down)_proj"


def random_adapter(folder: Path, seed: int, spread: float = 0.2, **config) -> Path:
    """Write an adapter of the clinic's base."""
    settings = {"r": 8, "lora_alpha": 16, "target_modules": LANGUAGE_MODEL, **config}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = get_peft_model(load_model(str(BASE), torch.float32), LoraConfig(**settings))
        for name, weights in model.named_parameters():
            if "lora_B" in name:  # which begins at zero
                torch.nn.init.normal_(weights, std=spread)
    model.save_pretrained(folder)
    return folder
