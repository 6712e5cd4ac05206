"""Policies on disk: a Qwen2.5-VL (or another image-text model of transformers) and its processor, loaded and saved.

Invariant: a saved folder opens with transformers' own `Auto` classes and with vLLM, wherever torchvision is installed;
here it opens without torchvision too.
"""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, PreTrainedModel
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.processing_utils import ProcessorMixin

BASE = Path(__file__).parent / "clinic" / "base"
"""The clinic's base checkpoint, which ships with the package."""
NAMES = {"clinic:base": BASE}
"""Model names that stand for a folder."""


class ImageTextProcessor(Qwen2_5_VLProcessor):  # type: ignore[misc]
    """Qwen2.5-VL's processor without its video half, which alone needs torchvision."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> Any:
        """Save as what it is a part of: transformers and vLLM then open the folder as Qwen2.5-VL's."""
        saved = super().save_pretrained(save_directory, **kwargs)
        path = Path(save_directory) / "processor_config.json"
        config = json.loads(path.read_text())
        images = config["image_processor"]
        config["processor_class"] = "Qwen2_5_VLProcessor"
        config["video_processor"] = {
            **{key: value for key, value in images.items() if key != "image_processor_type"},
            "video_processor_type": "Qwen2VLVideoProcessor",
        }
        path.write_text(json.dumps(config, indent=2) + "\n")
        return saved


def folder_of(name: str) -> str:
    """The folder or hub id that a name stands for: `clinic:base`, `clinic:DIR`, `transformers:DIR_OR_ID`, or bare."""
    if name in NAMES:
        return str(NAMES[name])
    folder = name.removeprefix("clinic:").removeprefix("transformers:")
    return str(Path(folder).resolve()) if Path(folder).is_dir() else folder  # `runs/latest` moves on


def model_string(model: str) -> str:
    """A policy's folder or hub id as a model string of the graph."""
    return model if model.startswith(("clinic:", "transformers:")) else f"transformers:{model}"


def load_processor(name: str) -> Any:
    """The processor of a model, image-only where torchvision is not installed."""
    folder = folder_of(name)
    if find_spec("torchvision") is not None:
        return AutoProcessor.from_pretrained(folder, padding_side="left")
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    images = AutoImageProcessor.from_pretrained(folder)
    return ImageTextProcessor(images, tokenizer, chat_template=tokenizer.chat_template)


def load_model(name: str, dtype: torch.dtype | str = "auto") -> PreTrainedModel:
    """The model of a policy; on a GPU if there is one.

    Raises:
        ValueError: if there is no such folder or hub id.
    """
    folder = folder_of(name)
    try:
        model: PreTrainedModel = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype)
    except OSError as error:
        choices = ", ".join(NAMES)
        raise ValueError(f"model: cannot load {name!r} ({error}); give a folder, a hub id, or {choices}") from error
    return model.to("cuda") if torch.cuda.is_available() else model
