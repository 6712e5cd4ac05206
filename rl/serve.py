r"""One vLLM for a hospital, or for a trained run: the command that starts it.

    python -m rl.serve hospitals/one --make --base clinic:base --triage runs/triage/model \
        --attending runs/attending/model --specialist Radiologist=runs/radiologist/model --specialist Surgeon
    python -m rl.serve hospitals/one --print        # or a run, runs/<name>; without --print it becomes the server
    python -m rl.serve hospitals/one --compose > compose.yaml
    build_graph(hospital="http://127.0.0.1:8000/v1")

`--make` copies nothing: `hospital.json` names the adapters where they lie. Who has none is the base itself. A run's
policies are called `triage` and `attending` where it has two, else `model`. Flags that are not known here are vLLM's.

Invariant: what is served answers as it does in process, or it is refused. vLLM's LoRA is the language model's: of an
adapter that also has weights in the vision tower it takes what it can, and leaves out the rest without an error, unless
it is started with its experimental `--enable-tower-connector-lora`: then an adapter's eyes are its own. (vLLM 0.31, on
the clinic's base: without it an adapter of the tower alone is the base; with it log-probabilities agree within 1e-4.)
"""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from peft import PeftConfig

from mmedagent_graph.hospital import FILE, HospitalFile, open_hospital
from rl.models import LANGUAGE_MODEL, contents, folder_of, is_adapter, why_not_plain

MODULE = "vllm.entrypoints.openai.api_server"
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What `--max-lora-rank` may be (vLLM 0.31, `MaxLoRARanks`)."""
IMAGE = "vllm/vllm-openai:v0.31.0"
HOST, PORT = "127.0.0.1", 8000
"""Whoever shall reach it from elsewhere comes through a proxy that asks who they are: vLLM does not."""
ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
TOWER = "--enable-tower-connector-lora"
RELOADING = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}


@dataclass(frozen=True)
class Serving:
    """What one server serves: a model under one or more names, and its adapters by theirs."""

    base: str
    names: Sequence[str]
    adapters: Mapping[str, str]
    rank: int = 0
    """The largest of the adapters."""

    def flags(self) -> list[str]:
        """What vLLM is told of it."""
        named = ["--model", self.base, "--served-model-name", *self.names]
        if not self.adapters:
            return named
        rank = next(rank for rank in RANKS if rank >= self.rank)
        modules = [f"{name}={folder}" for name, folder in self.adapters.items()]
        # A batch may have them all. One place more stays empty: on a CPU, vLLM asks whoever has the last place for the
        # base whenever an adapter is in the same batch (its pull request 48421).
        room = ["--max-lora-rank", str(rank), "--max-loras", str(len(modules) + 1)]
        return [*named, "--enable-lora", *room, "--lora-modules", *modules]


def serving(folder: Path, tower: bool = False) -> Serving:
    """What a hospital's folder or a run's is served as.

    Args:
        folder: the hospital's or the run's.
        tower: whether vLLM is told to take LoRA in the vision tower.

    Raises:
        ValueError: if it is neither, or has what would not answer there as it does in process.
    """
    if (folder / FILE).is_file():
        base, policies = _of_hospital(folder)
    elif (folder / "model").is_dir():
        base, policies = _of_run(folder.resolve())
    else:
        raise ValueError(f"serve: {str(folder)!r} is no hospital (no {FILE}) and no finished run (no model)")
    adapters = {name: policy for name, policy in policies.items() if is_adapter(policy)}
    refused = {name: _refusal(adapter, base, tower) for name, adapter in adapters.items()}
    if told := [f"{name}: {adapters[name]!r} has {why}" for name, why in refused.items() if why]:
        raise ValueError("serve: " + "; ".join(told))
    rank = max((int(PeftConfig.from_pretrained(adapter).r) for adapter in adapters.values()), default=0)
    return Serving(base, [name for name in policies if name not in adapters], adapters, rank)


def _of_hospital(folder: Path) -> tuple[str, dict[str, str]]:
    hospital = open_hospital(folder)
    if hospital.base is None:
        raise ValueError(f"serve: {str(folder)!r} is the hospital of a server that is there already, {hospital.where}")
    base = folder_of(str(hospital.base))
    return base, {"base": base, **{name: folder_of(doctor) for name, doctor in hospital.doctors.items()}}


def _of_run(folder: Path) -> tuple[str, dict[str, str]]:
    """A run with two policies has `model-triage` and `model-attending`."""
    links = sorted(folder.glob("model-*")) or [folder / "model"]
    policies = {link.name.removeprefix("model-"): str(link.resolve()) for link in links}
    whole = [name for name, policy in policies.items() if not is_adapter(policy)]
    if not whole:
        first = next(iter(policies.values()))
        base = folder_of(str(PeftConfig.from_pretrained(first).base_model_name_or_path))
        return base, {"base": base, **policies}
    if len(policies) > 1:
        raise ValueError(
            f"serve: {folder} has two whole models, {', '.join(policies)}, and a server has one: train "
            "with --use_peft --output adapter"
        )
    return policies["model"], policies


def _refusal(adapter: str, base: str, tower: bool) -> str | None:
    """Why vLLM would not answer as an adapter does in process, and what to do."""
    merged = "serve it as a whole model (--output merged)"
    if why := why_not_plain(adapter, rf"(?:{LANGUAGE_MODEL}|\.visual\.)" if tower else LANGUAGE_MODEL):
        eyes = f"train it with --freeze_vision, add vLLM's experimental {TOWER}, or " if ".visual." in why else ""
        return f"{why}, which vLLM does not serve; {eyes}{merged}"
    config: Any = PeftConfig.from_pretrained(adapter)
    if config.rank_pattern or config.alpha_pattern:
        return f"ranks or alphas of some modules (rank_pattern, alpha_pattern), which vLLM does not read; {merged}"
    if config.r > RANKS[-1]:
        return f"rank {config.r}, and vLLM takes {RANKS[-1]} at most; {merged}"
    return (
        None
        if _same(config.base_model_name_or_path, base)
        else (f"another base, {config.base_model_name_or_path!r}; one server has one base, and here it is {base!r}")
    )


def _same(trained_on: str, base: str) -> bool:
    """Whether two names stand for one model, as far as can be told here: a hub id may be a folder elsewhere."""
    one, other = folder_of(trained_on), folder_of(base)
    if Path(one).is_dir() and Path(other).is_dir():
        return one == other or contents(Path(one)) == contents(Path(other))
    return one == other or Path(one).is_absolute() or Path(other).is_absolute()


def compose(told: Serving, environment: Mapping[str, str], more: Sequence[str], host: str, port: int) -> str:
    """A Compose file for vLLM's own image, on a GPU; what is served is mounted read-only."""
    mounts = {f"/adapters/{name}": folder for name, folder in told.adapters.items()}
    inside = replace(told, adapters={name: f"/adapters/{name}" for name in told.adapters})
    volumes = []
    if Path(told.base).is_dir():
        mounts, inside = {"/base": told.base, **mounts}, replace(inside, base="/base")
    else:
        volumes = ["${HF_HOME:-~/.cache/huggingface}:/root/.cache/huggingface"]
    bound = [
        {"type": "bind", "source": source, "target": target, "read_only": True} for target, source in mounts.items()
    ]
    gpus = {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    service = {
        "image": IMAGE,
        "entrypoint": ["python3", "-m", MODULE],
        "command": [*inside.flags(), "--host", "0.0.0.0", "--port", str(PORT), *more],
        "environment": dict(environment),
        "volumes": [*bound, *volumes],
        "ports": [f"{host}:{port}:{PORT}"],
        "ipc": "host",
        "deploy": {"resources": {"reservations": {"devices": [gpus]}}},
    }
    return yaml.safe_dump({"services": {"hospital": service}}, sort_keys=False, width=120)


def make(folder: Path, base: str, triage: str | None, attending: str | None, specialists: Sequence[str]) -> Path:
    """Write a hospital's file.

    Args:
        folder: the hospital's.
        base: `clinic:base`, a folder or a hub id.
        triage: the adapter's folder; None: the base itself.
        attending: the same.
        specialists: `SPECIALTY=ADAPTER`, or `SPECIALTY` alone for the base itself.

    Raises:
        ValueError: naming what is no adapter, or one of another base, or there twice.
    """
    given = [specialist.partition("=")[::2] for specialist in specialists]
    told = {"triage": triage, "attending": attending, **{name: adapter or None for name, adapter in given}}
    for name, adapter in told.items():
        if adapter and not is_adapter(adapter):
            raise ValueError(f"{name}: no adapter in {adapter!r}; give a folder with adapter_config.json")
        if adapter and not _same(str(PeftConfig.from_pretrained(adapter).base_model_name_or_path), base):
            raise ValueError(f"{name}: {adapter!r} is an adapter of another base than {base!r}")
    if len(told) < len(given) + 2:
        raise ValueError(f"specialist: {', '.join(name for name, _ in given)}; each specialty goes once")

    def path(named: str | None) -> str | None:
        """Relative where it moves with the folder."""
        found = Path(named).resolve() if named and Path(named).is_dir() else None
        inside = found is not None and found.is_relative_to(folder.resolve())
        return os.path.relpath(found, folder.resolve()) if found and inside else str(found) if found else named

    paths = {name: path(adapter) for name, adapter in told.items()}
    names = {name: paths.pop(name) for name in ("triage", "attending")}
    hospital = HospitalFile(base=str(path(base)), **names, specialists=paths)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(json.dumps(hospital.model_dump(), indent=2) + "\n")
    return folder / FILE


def parser() -> argparse.ArgumentParser:
    """The flags."""
    whole = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    whole.add_argument("folder", type=Path, help="a hospital's folder, or a run's")
    whole.add_argument("--print", action="store_true", help="print the command, and leave it at that")
    whole.add_argument("--compose", action="store_true", help="print a Compose file instead")
    whole.add_argument(
        "--reload", action="store_true", help="let adapters be loaded while it runs: for a closed network"
    )
    whole.add_argument("--host", default=HOST, help=f"whence it is reached ({HOST}: from this machine alone)")
    whole.add_argument("--port", type=int, default=PORT, help=f"({PORT})")
    made = whole.add_argument_group("a hospital is made")
    made.add_argument("--make", action="store_true", help="write the folder's hospital.json")
    made.add_argument("--base", help="clinic:base, a folder or a hub id")
    made.add_argument("--triage", help="folder of the triage doctor's adapter; default: the base itself")
    made.add_argument("--attending", help="folder of the attending's adapter; default: the base itself")
    made.add_argument("--specialist", action="append", default=[], help="SPECIALTY=ADAPTER, or SPECIALTY for the base")
    return whole


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    commands = parser()
    given, more = commands.parse_known_args(arguments)
    try:
        if given.make:
            if more or not given.base:
                raise ValueError(f"make: {' '.join(more) or 'no --base'}; it takes --base, and who is who")
            print(make(given.folder, given.base, given.triage, given.attending, given.specialist))
            return
        told = serving(given.folder, tower=TOWER in more)
    except ValueError as error:
        commands.error(str(error))
    environment = {**ENVIRONMENT, **(RELOADING if given.reload else {})}
    command = ["-m", MODULE, *told.flags(), "--host", given.host, "--port", str(given.port), *more]
    if given.compose:
        print(compose(told, environment, more, given.host, given.port), end="")
    elif given.print:
        print(*(f"{name}={value}" for name, value in environment.items()), shlex.join(["python", *command]))
    elif find_spec("vllm") is None:
        commands.error("vLLM is not installed here; --print the command for where it is, or take --compose")
    else:
        os.execve(sys.executable, [sys.executable, *command], {**os.environ, **environment})


if __name__ == "__main__":
    main()
