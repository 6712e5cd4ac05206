"""A whole hospital through one vLLM on a CPU, beside the same graph in process.

    make .venv-vllm/installed                                   # vLLM has an environment of its own
    python benchmarks/hospital.py runs/specialists              # 200 of the clinic's faint cases
    python benchmarks/hospital.py runs/specialists --cases 50 --concurrency 16

Each way is a process of its own that warms up on other cases and is then measured by `rl.evaluate`; the model has one
thread for its arithmetic either way, here or in the server. Prints calls, tokens a second, the most memory that the
evaluation and the server have held (resident, all processes of each), and the accuracies, which differ by chance alone:
specialists are sampled.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from mmedagent_graph.hospital import open_hospital
from rl.evaluate import main as evaluate
from rl.printed import markdown
from rl.serve import serving

sys.path.append(str(Path(__file__).parents[1]))
from tests.integration.servers.vllm_server import served

WARM_UP = 16
HOUSE = "house"


def measured(hospital: str, cases: int, concurrency: int) -> dict[str, Any]:
    """The evaluation of a hospital in this process."""
    with tempfile.TemporaryDirectory() as folder:
        systems = Path(folder) / "systems.yaml"
        systems.write_text(yaml.safe_dump({"systems": {HOUSE: {"system": "mmedagent", "hospital": hospital}}}))
        flags = ["--systems", str(systems), "--cases", "faint", "--concurrency", str(concurrency)]
        evaluate([*flags, "--out", f"{folder}/warm-up", "--size", str(WARM_UP), "--seed", "1"])
        begun = time.monotonic()
        report = evaluate([*flags, "--out", f"{folder}/measured", "--size", str(cases)])
        seconds = time.monotonic() - begun
    (result,) = (by_system[HOUSE] for by_system in report["results"].values())
    cost = {kind: result["done"] * result["cost"][kind] for kind in ("calls", "input_tokens", "output_tokens")}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    told = {kind: result[kind] for kind in ("done", "failed")} | {"accuracy": result["accuracy"]["value"]}
    return {**told, **cost, "seconds": seconds, "mib": memory}


def peak(group: int) -> float:
    """The most resident memory of each process of a group, in MiB, added up."""
    whole = 0.0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            if os.getpgid(int(status.parent.name)) == group:
                (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
                whole += int(line.split()[1]) / 1024
        except (OSError, ValueError):  # it has ended
            continue
    return whole


def child(hospital: str, given: argparse.Namespace) -> dict[str, Any]:
    """`measured` in a process of its own."""
    flags = ["--cases", str(given.cases), "--concurrency", str(given.concurrency), "--measure"]
    done = subprocess.run(
        [sys.executable, __file__, hospital, *flags],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def compared(given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Both ways, one after the other."""
    found = {"in process": child(given.hospital, given)}
    with tempfile.TemporaryDirectory() as folder, served(Path(folder) / "server", *_flags(given.hospital)) as server:
        found["one vLLM"] = child(server.url, given)
        found["one vLLM"]["server_mib"] = peak(int(server.log.with_name("pid").read_text()))
    return found


def _flags(hospital: str) -> list[str]:
    return serving(Path(hospital)).flags()


def table(found: dict[str, dict[str, Any]]) -> str:
    """The two ways side by side."""
    rows = [
        [
            name,
            f"{told['done']} ({told['failed']} failed)",
            f"{told['calls']:.0f}",
            f"{told['seconds']:.1f}",
            f"{told['calls'] / told['seconds']:.1f}",
            f"{told['output_tokens'] / told['seconds']:.0f}",
            f"{told['input_tokens'] / told['seconds']:.0f}",
            f"{told['mib']:.0f}",
            f"{told['server_mib']:.0f}" if "server_mib" in told else "-",
            f"{100 * told['accuracy']:.1f}",
        ]
        for name, told in found.items()
    ]
    each = [
        "cases",
        "calls",
        "seconds",
        "calls/s",
        "tokens written/s",
        "tokens read/s",
        "MiB",
        "server's MiB",
        "right, %",
    ]
    return markdown(["", *each], rows, len(each))


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hospital", help="folder with hospital.json, such as rl.train_specialists makes")
    parser.add_argument("--cases", type=int, default=200, help="of the clinic's faint ones (200)")
    parser.add_argument("--concurrency", type=int, default=64, help="consultations at a time (64)")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measured(given.hospital, given.cases, given.concurrency)))
    else:
        print(f"{len(open_hospital(given.hospital).doctors)} doctors on one base\n\n{table(compared(given))}")


if __name__ == "__main__":
    main()
