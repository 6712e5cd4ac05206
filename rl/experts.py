"""The experts of a merge, and what each has learned: its task vector, one weight of their base at a time.

Invariant: a task vector is whole. Of a LoRA adapter it is PEFT's own full delta, `scaling * B @ A`, of a whole model
`W - W_base`, both in 32 bits, and of a weight that an expert has left alone it is 0. Who has learned something that a
sum of these would lose is refused by name.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel, PeftType
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from rl.models import contents, folder_of, is_adapter, load_model

SUMS = {
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "runtime_config", "megatron_core", "qalora_group_size", "ensure_weight_tying"),
    *("r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern", "use_rslora", "init_lora_weights"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out"),
}
"""What a LoRA may be told and still be nothing but a delta for each of its modules."""
INITS = (True, False, "gaussian", "orthogonal")
"""First values that leave the base as it is; `pissa`, `olora` and others take something out of it."""


class Experts:
    """Some experts of one base.

    Args:
        names: folders, each of a LoRA adapter or of a whole model.
        base: what they were trained from. Default: what the first adapter says.

    Raises:
        ValueError: naming the expert, and what is wrong with it.
    """

    def __init__(self, names: Sequence[str], base: str | None = None) -> None:
        self.names = list(names)
        configs = {name: _adapter(name) for name in names if _is_adapter(name)}
        self.base = _base(configs, base)
        self.model: PreTrainedModel = _whole("base", self.base)
        self.weights = dict(self.model.named_parameters())
        """Of the base, by their names."""
        self._whole = {place: self._other(name) for place, name in enumerate(names) if name not in configs}
        adapters = {_label(place): name for place, name in enumerate(names) if name in configs}
        self._layers = self._load(adapters, configs) if adapters else {}
        self.task_type = next((config.task_type for config in configs.values()), None) or "CAUSAL_LM"

    def touched(self) -> list[str]:
        """The weights that any expert has changed."""
        return [name for name, weight in self.weights.items() if name in self._layers or self._differs(name, weight)]

    def _differs(self, name: str, weight: torch.Tensor) -> bool:
        return any(not torch.equal(whole.get_parameter(name), weight) for whole in self._whole.values())

    @torch.no_grad()
    def deltas(self, name: str) -> list[torch.Tensor]:
        """What each expert has added to a weight."""
        return [self._delta(place, name) for place in range(len(self.names))]

    def _delta(self, place: int, name: str) -> torch.Tensor:
        weight, layer = self.weights[name].detach(), self._layers.get(name)
        delta = torch.zeros_like(weight)
        if place in self._whole:
            delta = self._whole[place].get_parameter(name).detach() - weight
        elif layer is not None and _label(place) in layer.lora_A:
            delta = layer.get_delta_weight(_label(place)).float()
        return delta

    def is_linear(self, name: str) -> bool:
        """Whether a weight is of a linear layer that an adapter can be put beside."""
        module = self.model.get_submodule(name.rpartition(".")[0])
        plain = module.get_base_layer() if isinstance(module, LoraLayer) else module
        embeddings = self.model.get_input_embeddings().weight
        return isinstance(plain, torch.nn.Linear) and name.endswith(".weight") and plain.weight is not embeddings

    def rank(self) -> int | None:
        """The sum of the adapters' ranks, which no weighted sum of them exceeds; None with a whole model among them."""
        if self._whole:
            return None
        labels = [_label(place) for place in range(len(self))]
        largest = [max(int(layer.r.get(label, 0)) for layer in self._layers.values()) for label in labels]
        return sum(largest)

    def __len__(self) -> int:
        """How many they are."""
        return len(self.names)

    def unload(self) -> PreTrainedModel:
        """The base alone, without its adapters; there are no deltas after it."""
        if self._layers:
            self.model = self._adapted.unload()
            self._layers = {}
        return self.model

    def _other(self, name: str) -> PreTrainedModel:
        model = _whole("expert", name)
        shapes = {key: tuple(weight.shape) for key, weight in model.named_parameters()}
        ours = {key: tuple(weight.shape) for key, weight in self.weights.items()}
        if shapes != ours:
            key = min(key for key in {*shapes, *ours} if shapes.get(key) != ours.get(key))
            raise ValueError(
                f"expert: {name!r} is no model of {self.base!r}: {key} is {shapes.get(key, 'not there')} in it, and "
                f"{ours.get(key, 'not there')} in the base"
            )
        return model

    def _load(self, adapters: dict[str, str], configs: dict[str, LoraConfig]) -> dict[str, LoraLayer]:
        """Put the adapters beside the base; the layers that have one, by the names of their weights."""
        first, name = next(iter(adapters.items()))
        self._adapted = PeftModel(self.model, dataclasses.replace(configs[name], inference_mode=True), first)
        for label, name in adapters.items():
            try:
                found = self._adapted.load_adapter(folder_of(name), label)
            except (RuntimeError, ValueError) as error:
                raise ValueError(f"expert: {name!r} does not fit on {self.base!r}: {error}") from error
            if lost := [*found.unexpected_keys, *found.missing_keys]:
                raise ValueError(
                    f"expert: {name!r} has not the modules of {self.base!r}: {lost[0]}, one of {len(lost)}"
                )
        layers = {f"{key}.weight": layer for key, layer in self.model.named_modules() if isinstance(layer, LoraLayer)}
        for key, layer in layers.items():
            if not self.is_linear(key):
                label = next(label for label in adapters if label in layer.r)
                raise ValueError(
                    f"expert: {adapters[label]!r} adapts {key}, which is no linear layer or is tied to the embeddings; "
                    "only adapters of linear layers are merged"
                )
        return layers


def _label(place: int) -> str:
    """The name of an adapter beside the base."""
    return f"expert{place}"


def _is_adapter(name: str) -> bool:
    if not Path(folder_of(name)).is_dir():
        raise ValueError(f"expert: there is no folder {name!r}; give that of a LoRA adapter or of a whole model")
    return is_adapter(name)


def _adapter(name: str) -> LoraConfig:
    """What an adapter is, if it is nothing but a delta for each of its modules."""
    config = PeftConfig.from_pretrained(folder_of(name))
    if not isinstance(config, LoraConfig):
        kind = PeftType(config.peft_type).value
        raise ValueError(f"expert: {name!r} is an adapter of type {kind}; only LORA can be merged")
    plain = LoraConfig()
    fields = {field.name for field in dataclasses.fields(config)} - SUMS
    lost = sorted(field for field in fields if getattr(config, field) != getattr(plain, field))
    if config.init_lora_weights not in INITS:
        lost.append(f"init_lora_weights={config.init_lora_weights}")
    if lost:
        raise ValueError(f"expert: {name!r} has {', '.join(lost)}, which a sum of deltas would lose; train it without")
    return config


def _base(configs: dict[str, LoraConfig], given: str | None) -> str:
    """What all were trained from."""
    names = {name: str(config.base_model_name_or_path) for name, config in configs.items()}
    base = given or next(iter(names.values()), None)
    if base is None:
        raise ValueError("base: None, and whole models do not say theirs; give --base, a folder or a hub id")
    for name, theirs in names.items():
        if not _same(theirs, base):
            raise ValueError(f"expert: {name!r} is an adapter of {theirs!r}, not of {base!r}; all must be of one base")
    return base


def _same(one: str, other: str) -> bool:
    """Whether two names stand for one model, wherever it lies."""
    folders = [Path(folder_of(name)) for name in (one, other)]
    return folders[0] == folders[1] or (all(map(Path.is_dir, folders)) and contents(folders[0]) == contents(folders[1]))


def _whole(field: str, name: str) -> PreTrainedModel:
    try:
        model = load_model(name, torch.float32)
    except ValueError as error:
        raise ValueError(f"{field}: {str(error).removeprefix('model: ')}") from error
    if isinstance(model, PeftModel):
        raise ValueError(f"{field}: {name!r} is an adapter; give the folder or hub id of the whole model beneath it")
    return model
