"""Policies on disk: a Qwen2.5-VL (or another image-text model of transformers) and its processor, loaded and saved.

Invariant: a saved folder opens with transformers' own `Auto` classes and with vLLM, wherever torchvision is installed;
here it opens without torchvision too.
"""

import dataclasses
import hashlib
import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, PeftType
from safetensors import safe_open
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, PreTrainedModel
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.processing_utils import ProcessorMixin
from trl import ModelConfig, get_peft_config, get_quantization_config

from rl.provenance import WEIGHTS, sampled

BASE = Path(__file__).parent / "clinic" / "base"
"""The clinic's base checkpoint, which ships with the package."""
NAMES = {"clinic:base": BASE}
"""Model names that stand for a folder."""
LANGUAGE_MODEL = r"\.language_model\."


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


def pinned(name: str) -> str:
    """The name of a model, or of another doctor, with the folder that it stands for now."""
    if name in NAMES:
        return name
    prefix = next((prefix for prefix in ("clinic:", "transformers:") if name.startswith(prefix)), "")
    return prefix + folder_of(name)


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


def is_adapter(name: str) -> bool:
    """Whether a folder holds a PEFT adapter rather than a whole model."""
    return (Path(folder_of(name)) / "adapter_config.json").is_file()


def why_not_plain(adapter: str, where: str = LANGUAGE_MODEL) -> str | None:
    """What an adapter has beside LoRA in the language model, where alone rows of a batch may differ in their adapter.

    What is elsewhere is lost without a word in a batch of several adapters, and on a vLLM that is started as usual: the
    rows of a vision tower are patches, and not patients.

    Args:
        adapter: its folder.
        where: a pattern of the modules that may have LoRA.
    """
    folder = Path(folder_of(adapter))
    config = PeftConfig.from_pretrained(folder)
    if config.peft_type != PeftType.LORA:
        return f"{config.peft_type.value} in place of LoRA"
    if config.use_dora:
        return "DoRA"
    if config.modules_to_save:
        return f"whole modules beside LoRA (modules_to_save: {', '.join(config.modules_to_save)})"
    if config.bias != "none":
        return f"trained biases (bias: {config.bias})"
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        return f"no {file.name}"
    with safe_open(file, framework="pt") as weights:
        plain = re.compile(rf"{where}.*\.lora_[AB]\.weight$")
        others = [name for name in weights.keys() if not plain.search(name)]  # noqa: SIM118
    return f"weights that are no LoRA of the language model's layers ({others[0]} first)" if others else None


def load_model(name: str, dtype: torch.dtype | str = "auto") -> PreTrainedModel | PeftModel:
    """The model of a policy, on a GPU if there is one; an adapter beside its base, in 32 bits, as it was trained.

    Raises:
        ValueError: if there is no such folder or hub id.
    """
    folder = folder_of(name)
    if is_adapter(folder):
        base = load_model(PeftConfig.from_pretrained(folder).base_model_name_or_path, dtype)
        return PeftModel.from_pretrained(base, folder)
    try:
        model: PreTrainedModel = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype)
    except OSError as error:
        choices = ", ".join(NAMES)
        raise ValueError(f"model: cannot load {name!r} ({error}); give a folder, a hub id, or {choices}") from error
    return model.to("cuda") if torch.cuda.is_available() else model


def fingerprint(name: str, model: PreTrainedModel | PeftModel) -> str:
    """What tells a policy's weights from others that were in the same folder before: what frozen answers go by."""
    folder = Path(folder_of(name))
    if not folder.is_dir():
        return str(getattr(model.config, "_commit_hash", None))
    files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(folder.glob("*.safetensors"))]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]


def contents(folder: Path) -> str:
    """What tells weights from others wherever they lie: a hash of samples of their bytes, and of an adapter's base."""
    digest = hashlib.sha256()
    if is_adapter(str(folder)):
        base = folder_of(str(PeftConfig.from_pretrained(str(folder)).base_model_name_or_path))
        digest.update((contents(Path(base)) if Path(base).is_dir() else base).encode())
    for file in sorted(folder.glob(f"*{WEIGHTS}")):
        digest.update(sampled(file).encode())
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Start:
    """The policy that a training starts from, and which of its weights are trained."""

    name: str
    """`clinic:base`, a folder (also of an adapter) or a hub id."""
    settings: ModelConfig
    """TRL's: precision, attention, LoRA, quantization."""
    freeze_vision: bool = False

    def trainable(self, grpo: Any) -> tuple[Any, PeftConfig | None]:
        """What TRL's trainers take as `model` and `peft_config`; how to load it is put into their settings.

        Raises:
            ValueError: if an adapter is to be trained on without `use_peft`.
        """
        folder = folder_of(self.name)
        loading = {"attn_implementation": self.settings.attn_implementation, "dtype": self.settings.dtype}
        if quantization := get_quantization_config(self.settings):
            loading |= {"quantization_config": quantization}
        if is_adapter(folder):
            if not self.settings.use_peft:
                raise ValueError(f"model: {self.name!r} is an adapter; train it on with --use_peft, or merge it first")
            base = folder_of(PeftConfig.from_pretrained(folder).base_model_name_or_path)
            dtype = getattr(torch, str(self.settings.dtype), self.settings.dtype)
            model = AutoModelForImageTextToText.from_pretrained(base, **{**loading, "dtype": dtype})
            return PeftModel.from_pretrained(model, folder, is_trainable=True), None
        grpo.model_init_kwargs = loading
        return folder, adapters(self.settings, self.freeze_vision)


def adapters(settings: ModelConfig, freeze_vision: bool) -> PeftConfig | None:
    """The adapters that are trained, none of them in a frozen vision tower; None without `use_peft`."""
    peft_config = get_peft_config(settings)
    if peft_config is not None and freeze_vision:
        peft_config.exclude_modules = r".*\bvisual\b.*"
    return peft_config


def freeze_vision(model: torch.nn.Module) -> None:
    """Leave the vision tower as it is, with the projector that hands on what it sees."""
    for name, parameter in model.named_parameters():
        if "visual" in name.split("."):
            parameter.requires_grad_(False)


def merge(adapter: str, out: Path, dtype: str) -> None:
    """Write an adapter and its base as one model folder.

    In 16 bits it is not the policy that was trained: a change of a weight by less than half of its last bit is lost,
    however the two are added. Simulated with bfloat16 weights of standard deviation 0.02 and an adapter of rank 16, 3 %
    of what it adds is lost where the values of its B are about 1e-2, 32 % at 1e-3, and 89 % at 1e-4.

    Args:
        adapter: the adapter's folder.
        out: the folder to write.
        dtype: precision to save in, such as `bfloat16`; `auto` is float32, in which the two are added.
    """
    part = out.with_name(out.name + ".part")
    merged = load_model(adapter, torch.float32).merge_and_unload()
    merged.to(getattr(torch, dtype, torch.float32)).save_pretrained(part)
    load_processor(adapter).save_pretrained(part)
    part.rename(out)
