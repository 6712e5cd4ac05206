"""Check a recipe without a GPU: every option, the launch, and whether it fits the memory it names.

    python -m rl.dry_run                                  # the table of all shipped recipes, as in the README
    python -m rl.dry_run --config rl/configs/X.yaml ...   # one of them, with flags as for training

Invariant: whatever does not depend on a GPU being there is checked by those who will read it: types, spelling and
combinations by TRL's own settings (told how many processes there will be), the launch by accelerate's own launcher,
the adapters by peft on the policy's own shape. What is checked here, TRL would refuse only once the weights are loaded,
or not at all. The memory is an estimate, the prompt's length an assumption; both are printed as such.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from trl import GRPOConfig, ModelConfig

from rl.curriculum import Stage
from rl.launch import Launch, read_launch, refuse_launch
from rl.memory import GIB, Load, Part, engine_tokens, memory, peak
from rl.printed import markdown
from rl.recipe import Recipe
from rl.settings import CONFIGS, Command, Settings, config_name, ignore_renamed, launch_file
from rl.settings import check as check_settings
from rl.settings import parse as parse_settings
from rl.shapes import image_patches, meta_policy, refuse_adapted_head
from rl.train_attending import COMMAND

IMAGE = (1024, 1024)
"""The image that is assumed, in pixels: one a case."""
TEXT = 1024
"""The tokens of text that are assumed in a prompt: instructions, question, options, three opinions with reasons."""
COLUMNS = {
    "weights": ("weights",),
    "gradients, Adam": ("gradients", "optimizer"),
    "reference": ("reference", "reference, gathered"),
    "vLLM": ("vLLM",),
    "rollout": ("KV cache", "prefill", "scoring"),
    "training": ("saved, language", "saved, vision", "one layer", "head", "gathered"),
    "other": ("images", "overhead"),
}
"""The table's columns, and the parts that each adds up."""


@dataclasses.dataclass(frozen=True)
class Checked:
    """A recipe that has passed."""

    name: str
    recipe: Recipe
    settings: GRPOConfig
    how: ModelConfig
    launch: Launch
    stages: list[Stage]
    model: Any
    load: Load
    parts: list[Part]


def parse(command: Command, arguments: Sequence[str] = ()) -> tuple[Settings, Launch]:
    """A recipe's settings as they will be on its own machine.

    `use_cpu` is set, without which `bf16` is refused where there is no GPU.

    Raises:
        ValueError: naming the option and its value.
    """
    here = [*arguments, "--use_cpu", "true"]
    file = launch_file(command, arguments)
    launch = read_launch(file) if file else Launch()
    return parse_settings(command, here, launch.processes), launch


def check(command: Command, arguments: Sequence[str] = ()) -> Checked:
    """Check the recipe that a command of training would run.

    Args:
        command: the command.
        arguments: its `--config FILE.yaml` and flags, as for training.

    Raises:
        ValueError: naming the option, its value and what would do.
    """
    given, launch = parse(command, arguments)
    check_settings(given)
    recipe, settings, how = given
    refuse_launch(settings, launch)
    model = meta_policy(recipe.model, how, recipe.freeze_vision)
    refuse_adapted_head(model, how)
    patches = image_patches(recipe.model, *IMAGE)
    batch = int(settings.per_device_train_batch_size)
    load = Load(
        prompt=TEXT + patches // 4,
        completion=int(settings.max_completion_length),
        patches=patches,
        trained=batch,
        generated=batch * int(settings.steps_per_generation),
    )
    gpu = (recipe.gpu_memory or 0) * GIB
    if settings.use_vllm and settings.vllm_mode == "colocate":
        _refuse_engine(recipe, settings, launch, model, load)
    parts = memory(model, how, settings, launch, load, gpu, max(recipe.betas) > 0)
    if gpu and peak(parts) > gpu:
        raise ValueError(
            f"gpu_memory: {recipe.gpu_memory} GiB, and the run takes {peak(parts) / GIB:.1f}\n{_memory_lines(parts)}"
        )
    stages = recipe.curriculum(int(settings.max_steps))
    return Checked(config_name(command, arguments), recipe, settings, how, launch, stages, model, load, parts)


def _refuse_engine(recipe: Recipe, settings: GRPOConfig, launch: Launch, model: Any, load: Load) -> None:
    """A colocated vLLM that could not start, or not take the prompts."""
    if launch.processes % settings.vllm_tensor_parallel_size:
        raise ValueError(
            f"vllm_tensor_parallel_size: {settings.vllm_tensor_parallel_size} does not divide the {launch.processes} "
            "processes"
        )
    if not recipe.gpu_memory:
        raise ValueError("gpu_memory: none is given; vLLM takes a share of it")
    longest = settings.vllm_max_model_length
    if longest is None:
        raise ValueError(f"vllm_max_model_length: none is given; {load.sequence} tokens or more hold a consultation")
    if longest < load.sequence:
        raise ValueError(
            f"vllm_max_model_length: {longest} is too short for a prompt of {load.prompt} tokens (assumed) and "
            f"max_completion_length {load.completion}"
        )
    room = engine_tokens(model, settings, recipe.gpu_memory * GIB)
    if room < longest:
        raise ValueError(
            f"vllm_gpu_memory_utilization: {settings.vllm_gpu_memory_utilization} of {recipe.gpu_memory} GiB leaves "
            f"vLLM a cache of {max(room, 0):.0f} tokens, less than vllm_max_model_length {longest}"
        )


def report(checked: Checked) -> str:
    """What a recipe comes to, in words and numbers."""
    recipe, settings, launch, load = checked.recipe, checked.settings, checked.launch, checked.load
    count = sum(weight.numel() for weight in checked.model.parameters())
    trained = sum(weight.numel() for weight in checked.model.parameters() if weight.requires_grad)
    completions = load.trained * launch.processes * int(settings.gradient_accumulation_steps)
    prompts = completions // int(settings.num_generations)
    steps = sum(stage.steps for stage in checked.stages)
    lines = [
        f"{checked.name}: {recipe.model}, {_what(checked.how)}, {_machine(recipe, launch)}",
        f"parameters  {count:,}, of which trained {trained:,} ({trained / count:.2%})",
        f"prompt      {load.prompt} tokens: {load.patches // 4} of an image of {IMAGE[0]} x {IMAGE[1]} and {TEXT} of "
        f"text, both assumed; completion at most {load.completion}",
        f"step        {prompts} prompts x {settings.num_generations} completions = {completions}, "
        f"at most {completions * load.completion:,} tokens generated; {load.generated} at once on each GPU",
        f"steps       {' + '.join(f'{stage.steps} {stage.name}' for stage in checked.stages)} = {steps}",
        f"run         {steps * prompts:,} prompts, {steps * completions:,} completions, at most "
        f"{steps * completions * load.completion:,} tokens generated",
        "memory      of one GPU, in GiB, estimated:",
        _memory_lines(checked.parts),
    ]
    limit = f" of {recipe.gpu_memory}" if recipe.gpu_memory else ""
    lines.append(f"  {'at most':22}{peak(checked.parts) / GIB:7.1f}{limit}")
    if settings.use_vllm and settings.vllm_mode == "colocate" and recipe.gpu_memory:
        room = int(engine_tokens(checked.model, settings, recipe.gpu_memory * GIB))
        lines.append(f"vLLM        a cache of {room:,} tokens: {room // load.sequence} completions at a time")
    if launch.fsdp:  # transformers 5.23 loads the weights in every process, whatever cpu_ram_efficient_loading says
        copies = 2 if max(recipe.betas) > 0 and not checked.how.use_peft else 1
        size = next(checked.model.parameters()).element_size()
        host = launch.processes // launch.machines * copies * count * size / GIB
        lines.append(f"host        {host:,.0f} GiB of a machine's own memory while its processes load the weights")
    return "\n".join(lines)


def _what(how: ModelConfig) -> str:
    bits = ", 4 bits" if how.load_in_4bit else ", 8 bits" if how.load_in_8bit else ""
    return f"LoRA of rank {how.lora_r}{bits}" if how.use_peft else "full"


def _machine(recipe: Recipe, launch: Launch) -> str:
    gpus = f"{launch.processes} GPU{'s' if launch.processes > 1 else ''}"
    nodes = f" on {launch.machines} machines" if launch.machines > 1 else ""
    return gpus + (f" of {recipe.gpu_memory} GiB" if recipe.gpu_memory else "") + nodes


def _memory_lines(parts: Sequence[Part]) -> str:
    whens = ["" if part.when == "always" else f"{part.when}: " for part in parts]
    lines = zip(parts, whens, strict=True)
    return "\n".join(f"  {part.name:22}{part.bytes / GIB:7.1f}  {when}{part.how}" for part, when in lines)


def table(checked: Sequence[Checked]) -> str:
    """The memory of one GPU for each recipe, in GiB, as Markdown."""
    head = ["recipe", "GPUs", "policy", *COLUMNS, "at most"]
    rows = []
    for one in checked:
        sums = [sum(part.bytes for part in one.parts if part.name in names) / GIB for names in COLUMNS.values()]
        size = one.recipe.model.rpartition("-VL-")[2].removesuffix("-Instruct")
        gpus = f"{one.launch.processes} x {one.recipe.gpu_memory} GB"
        cells = [f"{value:.1f}" if value else "-" for value in sums]
        rows.append([f"`{one.name}.yaml`", gpus, f"{size}, {_what(one.how)}", *cells, f"{peak(one.parts) / GIB:.1f}"])
    return markdown(head, rows, numbers=len(head) - 3)


def shipped() -> list[Path]:
    """The recipes that name a GPU, the smallest machine first."""
    named = [(path, yaml.safe_load(path.read_text())) for path in CONFIGS.glob("*.yaml")]
    for_gpus = [(bool(given.get("accelerate")), path) for path, given in named if given.get("gpu_memory")]
    return [path for _, path in sorted(for_gpus, key=lambda row: (row[0], row[1].stem != "one_24gb", row[1].stem))]


def show(command: Command, arguments: Sequence[str]) -> None:
    """Check the recipe that a command of training would run, and print what it comes to.

    Args:
        command: the command.
        arguments: `--config FILE.yaml` (default: the clinic's) and flags, as for training.

    Raises:
        SystemExit: saying what cannot work.
    """
    ignore_renamed()
    try:
        print(report(check(command, arguments)))
    except ValueError as error:
        raise SystemExit(str(error)) from None


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given:
        show(COMMAND, given)
        return
    ignore_renamed()
    print(table([check(COMMAND, ["--config", str(path)]) for path in shipped()]))


if __name__ == "__main__":
    main()
