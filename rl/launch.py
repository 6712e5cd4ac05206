"""How a run is launched, by a file of `accelerate launch` or as this process was: what is split, and what cannot work.

Invariant: what `read_launch` accepts, the launched processes accept: the values go through accelerate's own launcher
and its own FSDP plugin, which both work without a GPU. Keys that the launcher would pass over in silence are refused.
"""

import dataclasses
import os
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from trl import GRPOConfig

from mmedagent_graph.images import ImageStore
from rl.models import is_adapter
from rl.settings import Settings
from rl.shapes import image_patches, meta_policy, refuse_adapted_head
from rl.traces import Trace

ZERO = {0: (), 1: ("optimizer",), 2: ("optimizer", "gradients"), 3: ("optimizer", "gradients", "weights")}
"""What each stage of DeepSpeed's ZeRO splits over the processes; FSDP splits what stage 3 does."""


@dataclasses.dataclass(frozen=True)
class Launch:
    """How a run is launched. The default is a plain `python -m`."""

    processes: int = 1
    machines: int = 1
    mixed_precision: str = ""
    """Accelerate's word for it, or nothing where the launcher is not asked."""
    splits: tuple[str, ...] = ()
    """What each process holds only its share of: weights, gradients, optimizer."""
    fsdp: Any = None
    """Accelerate's `FullyShardedDataParallelPlugin`, where FSDP is used."""


def processes() -> int:
    """How many processes there are, as every launcher tells each of them.

    Accelerate's own state would fix how they talk to each other, which TRL's settings have to say.
    """
    return int(os.environ.get("WORLD_SIZE", 1))


def launcher(processes: int, file: str | None) -> str:
    """What starts so many processes, by a file of `accelerate launch` if there is one: what stands before `-m`."""
    if processes == 1:
        return "python"
    return f"accelerate launch {f'--config_file {file}' if file else f'--multi_gpu --num_processes {processes}'}"


def read_launch(path: Path) -> Launch:
    """What a file of `accelerate launch --config_file` asks for.

    Raises:
        ValueError: naming the file and what in it cannot work.
    """
    try:
        config = load_config_from_file(str(path))
        parser = launch_command_parser()
        known = {action.dest for action in parser._actions}
        for section in ("fsdp_config", "deepspeed_config"):
            for key in getattr(config, section):
                if key not in known:
                    ours = ", ".join(sorted(name for name in known if name.startswith(section[:4])))
                    raise ValueError(f"{section}: {key!r} is unknown to accelerate; it knows {ours}")
        arguments, *_ = _validate_launch_command(parser.parse_args(["--config_file", str(path), "a_script.py"]))
        if not arguments.num_processes or arguments.num_processes % arguments.num_machines:
            raise ValueError(
                f"num_processes: {arguments.num_processes} processes cannot be shared by "
                f"num_machines: {arguments.num_machines}; give a multiple of it"
            )
        fsdp = _fsdp_plugin(arguments) if arguments.use_fsdp else None
        stage = 3 if fsdp else int(config.deepspeed_config.get("zero_stage", 0))
        splits = ZERO[stage]
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"accelerate: {str(path)!r} cannot be launched: {error}") from error
    return Launch(arguments.num_processes, arguments.num_machines, arguments.mixed_precision, splits, fsdp)


def _fsdp_plugin(arguments: Any) -> Any:
    """The plugin that a launched process makes of the environment which the launcher gives it."""
    if arguments.fsdp_version not in (1, 2):
        raise ValueError(f"fsdp_version: {arguments.fsdp_version!r} is unknown; choose 1 or 2")
    arguments.main_process_port = 0  # any free one: a check must not need the run's own port
    environment = prepare_multi_gpu_env(arguments)
    with patch.dict(os.environ, environment):
        return FullyShardedDataParallelPlugin()


def launched() -> Launch:
    """How this process was launched, as the launcher has told it."""
    mixed = os.environ.get("ACCELERATE_MIXED_PRECISION", "")
    fsdp = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    # the launcher says "no" where nobody has said anything: then it is the recipe that says it
    return Launch(
        mixed_precision="" if mixed == "no" else mixed, fsdp=FullyShardedDataParallelPlugin() if fsdp else None
    )


def refuse_launch(trainer: Any, launch: Launch) -> None:
    """Refuse what does not go together between a run and its launch.

    Raises:
        ValueError: naming the launch file's field, its value and what would do.
    """
    mixed = "bf16" if trainer.bf16 else "fp16" if trainer.fp16 else "no"
    if launch.mixed_precision not in ("", mixed):
        raise ValueError(
            f"mixed_precision: {launch.mixed_precision!r} in the launch, and the recipe's is {mixed!r}; "
            "make them the same"
        )
    if launch.fsdp and "FULL" not in str(launch.fsdp.state_dict_type):
        raise ValueError(
            f"fsdp_state_dict_type: with {launch.fsdp.state_dict_type.name} the trainer saves no model for the next "
            "stage; choose FULL_STATE_DICT"
        )


def refuse_here(settings: Settings) -> None:
    """Refuse what cannot run here, before anybody is asked: its launch, its adapters, a vLLM that is missing.

    Raises:
        ValueError: naming the field, its value and what would do.
    """
    recipe, trainer, model = settings
    refuse_launch(trainer, launched())
    if getattr(trainer, "use_vllm", False) and find_spec("vllm") is None:
        raise ValueError("use_vllm: true, and there is no vllm here; pip install 'mmedagent-graph[rl,vllm]'")
    if model.use_peft and not is_adapter(recipe.model):
        shape = meta_policy(recipe.model, model, recipe.freeze_vision)
        if isinstance(trainer, GRPOConfig):
            refuse_adapted_head(shape, model)


def refuse_large_images(settings: Settings, traces: Iterable[Trace], images: ImageStore) -> None:
    """Refuse images that leave no room for words in vLLM, which would end the run at the first of them.

    Raises:
        ValueError: naming the case, its tokens and the room there is.
    """
    recipe, trainer, _ = settings
    longest = trainer.vllm_max_model_length
    if not (trainer.use_vllm and longest):
        return
    room = longest - trainer.max_completion_length
    for trace in traces:
        tokens = sum(image_patches(recipe.model, *images.open(ref).size) // 4 for ref in trace.images)
        if tokens >= room:
            raise ValueError(
                f"vllm_max_model_length: {longest}, of which a completion takes {trainer.max_completion_length}, and "
                f"the images of case {trace.case!r} take {tokens}; give more, or smaller images"
            )
