"""How much memory of a GPU a training run takes, part by part, each with how it was worked out.

Invariant: a part is a formula over the model's shape and the settings, and nothing is measured. Weights, gradients and
optimizer are exact; what is saved for the backward pass is held to torch's own account by the tests, on a small model;
the rest are bounds from above, or constants that say so. Against a real GPU none of it has been held.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from trl import GRPOConfig, ModelConfig

from rl.launch import Launch

GIB = 2**30
OVERHEAD = 2 * GIB
"""For the CUDA context, cuBLAS, NCCL and what the allocator cannot use: a rule of thumb."""
ENGINE = 2 * GIB
"""For vLLM's own activations and CUDA graphs, inside its share: a rule of thumb."""
TILE = 4096 * 32768
"""Logits that TRL holds at a time (`trl.kernels.chunked_logprob`), tokens x vocabulary."""


@dataclasses.dataclass(frozen=True)
class Load:
    """What one GPU works on."""

    prompt: int
    """Tokens of a prompt, its image's included."""
    completion: int
    """Tokens of a completion, at most."""
    patches: int
    """Patches of the vision tower in a prompt's image."""
    trained: int
    """Sequences of a micro-batch."""
    generated: int
    """Sequences generated at once."""

    @property
    def sequence(self) -> int:
        """Tokens of a prompt and its completion, at most."""
        return self.prompt + self.completion


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the memory: what it is, how large, why, and when it is taken."""

    name: str
    bytes: float
    how: str
    when: str = "always"
    """`always`, or in one of the two phases that take turns, `rollout` and `training`; or at the `start`, alone."""


def peak(parts: Iterable[Part]) -> float:
    """The most bytes at a time: what is always there with the larger of the two phases, or the start."""
    taken = dict.fromkeys(("always", "rollout", "training", "start"), 0.0)
    for part in parts:
        taken[part.when] += part.bytes
    return max(taken["always"] + max(taken["rollout"], taken["training"]), taken["start"])


def memory(
    model: Any, how: ModelConfig, settings: GRPOConfig, launch: Launch, load: Load, gpu: float, reference: bool
) -> list[Part]:
    """The parts of the memory of one GPU.

    Args:
        model: the policy on the meta device (`rl.shapes.meta_policy`).
        how: TRL's settings of the model.
        settings: TRL's settings of the training.
        launch: how many processes there are, and what is split over them.
        load: what one GPU works on.
        gpu: bytes of the GPU's memory, of which vLLM takes its share.
        reference: whether any stage has a KL term.
    """
    parts = [*states(model, how, settings, launch, reference), *activations(model, how, settings, launch, load)]
    engine = rollout(model, settings, load, gpu)
    parts += engine
    if reference and launch.fsdp and not how.use_peft:
        count, loaded = _count(model.parameters()), next(model.parameters()).element_size()
        text = "for its forward pass: TRL splits it as one piece, not layer by layer"
        parts.append(Part("reference, gathered", count * _computed(how, settings, launch), text, "rollout"))
        share = sum(part.bytes for part in engine if part.when == "always")
        text = "the reference is moved to the GPU before it is split, beside vLLM; the policy comes later"
        parts.append(Part("reference, whole", count * loaded + share + OVERHEAD, text, "start"))
    patch = 3 * 2 * 14 * 14 * 4
    pixels = load.generated * load.patches * patch
    parts.append(Part("images", pixels, f"{load.generated} images x {load.patches} patches x {patch} bytes"))
    return [*parts, Part("overhead", OVERHEAD, "CUDA, NCCL and fragments: a rule of thumb")]


def states(model: Any, how: ModelConfig, settings: GRPOConfig, launch: Launch, reference: bool) -> list[Part]:
    """Weights, gradients, Adam's moments and the KL reference."""
    weights, gradients, optimizer = (launch.processes if name in launch.splits else 1 for name in _SPLIT)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    count = _count(trained)
    # FSDP2 keeps its own master weights in 32 bits under mixed precision, whatever was loaded
    mastered = bool(launch.fsdp) and launch.mixed_precision not in ("", "no")
    size = 4 if mastered else (trained[0].element_size() if trained else 0)
    frozen, frozen_how = _frozen_bytes(model, how)
    share = f" / {launch.processes} processes"
    parts = [
        Part(
            "weights",
            (count * size + frozen) / weights,
            f"{count:,} trained x {size} bytes{frozen_how}" + (share if weights > 1 else ""),
        )
    ]
    accumulates = settings.gradient_accumulation_steps > 1 and not _syncs_each_batch(settings)
    if gradients > 1 and launch.fsdp and accumulates:  # accelerate's `no_sync` defers the reduction, and the split
        whole = _computed(how, settings, launch)
        text = f"{count:,} x {whole} bytes: accumulated whole, for want of sync_each_batch, + {size} bytes{share}"
        parts.append(Part("gradients", count * (whole + size / gradients), text))
    else:
        text = f"{count:,} x {size} bytes" + (share if gradients > 1 else "")
        parts.append(Part("gradients", count * size / gradients, text))
    moment = 1 if "8bit" in settings.optim else size
    text = f"two moments: {count:,} x 2 x {moment} bytes" + (share if optimizer > 1 else "")
    parts.append(Part("optimizer", count * 2 * moment / optimizer, text))
    if reference and how.use_peft:
        parts.append(Part("reference", count * size, "from the second stage on: a copy of the adapters"))
    elif reference:
        total, loaded = _count(model.parameters()), next(model.parameters()).element_size()
        text = f"a copy of the policy: {total:,} x {loaded} bytes" + (share if weights > 1 else "")
        parts.append(Part("reference", total * loaded / weights, text))
    return parts


_SPLIT = ("weights", "gradients", "optimizer")


def activations(model: Any, how: ModelConfig, settings: GRPOConfig, launch: Launch, load: Load) -> list[Part]:
    """What a micro-batch takes: saved for the backward pass, computed again within it, and gathered for it."""
    text, vision = model.config.text_config, model.config.vision_config
    tokens, patches = load.trained * load.sequence, load.trained * load.patches
    size = _computed(how, settings, launch)
    layer, block = layer_bytes(text, how, size) * tokens, block_bytes(vision, size) * patches
    if settings.gradient_checkpointing:
        saved = text.num_hidden_layers * tokens * text.hidden_size * size
        seen = vision.depth * patches * vision.hidden_size * size
        name, at_once = "inputs of {} layers", max(layer, block)
    else:
        saved, seen, name, at_once = text.num_hidden_layers * layer, vision.depth * block, "all of {} layers", 0
    flight = 6 * max(text.intermediate_size * tokens, vision.intermediate_size * patches)
    parts = [
        Part("saved, language", saved, f"{name.format(text.num_hidden_layers)}, {tokens} tokens", "training"),
        Part("saved, vision", seen, f"{name.format(vision.depth)}, {patches} patches", "training"),
        Part("one layer", at_once + flight, "computed again, and its gradients in flight", "training"),
    ]
    head = text.vocab_size * text.hidden_size
    trained = model.get_output_embeddings().weight.requires_grad
    logits = TILE * 4 + (head * 4 if trained else 0)
    text_of = "TRL's tile of logits" + (" and the head's gradient" if trained else "")
    parts.append(Part("head", logits, text_of, "training"))
    if "weights" in launch.splits:
        layers = _count(model.parameters()) - head * (1 if text.tie_word_embeddings else 2)
        each = layers / text.num_hidden_layers
        # two layers in 16 bits, the embedding and the head; TRL gathers the head once more, in its own precision
        held = 2 * each * size + head * (2 * size + 4)
        if launch.fsdp and not launch.fsdp.reshard_after_forward:
            held = (_count(model.parameters())) * size + head * 4
        parts.append(Part("gathered", held, "two layers, embedding and head, whole for computing", "training"))
    return parts


def rollout(model: Any, settings: GRPOConfig, load: Load, gpu: float) -> list[Part]:
    """What generation takes: vLLM's share of the GPU, or the cache and the prefill of transformers' `generate`."""
    text, vision = model.config.text_config, model.config.vision_config
    token = 2 * (3 * text.intermediate_size + 4 * text.hidden_size)
    patch = 2 * (3 * vision.intermediate_size + 8 * vision.hidden_size)
    if settings.use_vllm:
        passed = load.trained * max(load.sequence * token, load.patches * patch) + TILE * 4
        scoring = Part("scoring", passed, "log-probabilities of what was generated, a micro-batch at a time", "rollout")
        if settings.vllm_mode == "server":
            return [scoring]
        share = settings.vllm_gpu_memory_utilization
        when = "rollout" if settings.vllm_enable_sleep_mode else "always"
        return [Part("vLLM", share * gpu, f"vllm_gpu_memory_utilization {share} of the GPU", when), scoring]
    cache = load.generated * load.sequence * cache_bytes(model.config)
    prefill = load.generated * max(load.prompt * token, load.patches * patch)
    each = f"{load.generated} completions at once"
    return [
        Part("KV cache", cache, f"{each} x {load.sequence} tokens x {cache_bytes(model.config)} bytes", "rollout"),
        Part("prefill", prefill, f"{each}: the widest layer over their prompts", "rollout"),
    ]


def cache_bytes(config: Any) -> int:
    """The KV cache of one token: keys and values of every layer, in 16 bits."""
    text = config.text_config
    head = text.hidden_size // text.num_attention_heads
    return int(2 * 2 * text.num_hidden_layers * text.num_key_value_heads * head)


def engine_tokens(model: Any, settings: GRPOConfig, gpu: float) -> float:
    """How many tokens vLLM's cache has room for, in what its weights (in 16 bits) leave of its share."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    adapters = sum(weight.numel() for name, weight in base.named_parameters() if "lora_" in name)
    weights = 2 * (_count(base.parameters()) - adapters) / settings.vllm_tensor_parallel_size
    room = settings.vllm_gpu_memory_utilization * gpu - weights - ENGINE
    return float(room / cache_bytes(model.config) * settings.vllm_tensor_parallel_size)


def layer_bytes(text: Any, how: ModelConfig, size: int) -> int:
    """What a decoder layer saves for its backward pass, per token, with a fused attention."""
    hidden, wide = text.hidden_size, text.intermediate_size
    keys = hidden // text.num_attention_heads * text.num_key_value_heads
    saved = (20 if size == 2 else 32) * hidden + 4 * keys + 8 * wide
    if how.use_peft:  # inputs of the adapters; with dropout also a copy in 32 bits of each
        saved += 6 * hidden + (4 * (6 * hidden + wide) if how.lora_dropout else 0)
    return int(saved)


def block_bytes(vision: Any, size: int) -> int:
    """What a block of the vision tower saves for its backward pass, per patch."""
    return int((30 if size == 2 else 42) * vision.hidden_size + 8 * vision.intermediate_size)


def _count(weights: Iterable[torch.Tensor]) -> int:
    return sum(weight.numel() for weight in weights)


def _computed(how: ModelConfig, settings: GRPOConfig, launch: Launch) -> int:
    """Bytes of a number between the layers: autocast leaves those of a model in 32 bits as they are, FSDP does not."""
    mixed = bool(settings.bf16 or settings.fp16)
    return 4 if how.dtype in (None, "float32") and not (mixed and launch.fsdp) else 2


def _syncs_each_batch(settings: GRPOConfig) -> bool:
    """Whether gradients are reduced, and so split, after every micro-batch."""
    own = settings.accelerator_config.gradient_accumulation_kwargs or {}
    return bool(own.get("sync_each_batch"))


def _frozen_bytes(model: Any, how: ModelConfig) -> tuple[float, str]:
    """Bytes of the frozen weights, and in words; in 4 bits, every linear layer but the head's is packed."""
    frozen = [weight for weight in model.parameters() if not weight.requires_grad]
    if not frozen:
        return 0.0, ""
    plain, size = _count(frozen), frozen[0].element_size()
    if not (how.load_in_4bit or how.load_in_8bit):
        return float(plain * size), f" + {plain:,} frozen x {size} bytes"
    head = model.get_output_embeddings()
    linear = [part for part in model.modules() if type(part) is torch.nn.Linear and part is not head]
    packed = _count(part.weight for part in linear if not part.weight.requires_grad)
    bits = 8.0 if how.load_in_8bit else 4.5 if not how.use_bnb_nested_quant else 4.127  # with the scales of each block
    text = f" + {packed:,} frozen x {bits} bits + {plain - packed:,} x {size} bytes"
    return packed * bits / 8 + (plain - packed) * size, text
