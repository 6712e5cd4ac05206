"""Evaluations that last: many cases against a stub server, killed in the middle, and in two shards.

    python benchmarks/evaluation.py                 # 10,000 cases
    python benchmarks/evaluation.py --cases 1000

Three evaluations of one consultation by `python -m rl.evaluate` in processes of their own, over HTTP, every model a
stub whose answer depends on what it is asked alone:

- `whole`: to its end. The most memory that it has held is read at a tenth of the cases and at the end.
- `killed`: SIGKILL after half of the cases, then the same command again.
- `shards`: two processes, each with half of the cases.

Prints how much memory has grown, how many requests were made more than once, and whether the figures are the same.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))
from tests.stub_server import Request, StubServer

OPTIONS = ["nodule", "cyst", "scar", "normal"]
CALLS = 5
"""Of a consultation."""
CONCURRENCY = 32
SETTLED = 1.0
SYSTEMS = {
    "systems": {
        "full": {
            "system": "mmedagent",
            "triage": "vllm:triage",
            "specialists": [f"vllm:doctor-{number}" for number in (1, 2, 3)],
            "attending": "vllm:attending",
        }
    }
}


def says(messages: list[dict[str, Any]], model: str) -> str:
    """An answer that depends on the case and the model alone."""
    if model == "triage":
        return "<answer>Radiologist</answer>"
    drawn = hashlib.sha256(json.dumps([model, messages]).encode()).digest()[0]
    return f"<answer>{OPTIONS[drawn % len(OPTIONS)]}</answer>"


def prepare(folder: Path, cases: int) -> list[str]:
    """Write the cases and the systems; the flags for them."""
    rows = [
        {"id": f"case-{i}", "question": f"What does image {i} show?", "options": OPTIONS, "answer": OPTIONS[i % 4]}
        for i in range(cases)
    ]
    (folder / "cases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "systems.yaml").write_text(json.dumps(SYSTEMS))  # JSON is YAML
    return ["--systems", str(folder / "systems.yaml"), "--cases", str(folder / "cases.jsonl")]


class Run:
    """An evaluation in a process of its own."""

    def __init__(self, server: StubServer, flags: Sequence[str], out: Path) -> None:
        self.out = out
        command = [sys.executable, "-m", "rl.evaluate", *flags, "--out", str(out), "--concurrency", str(CONCURRENCY)]
        own = {"VLLM_BASE_URL": server.url, "HF_HUB_OFFLINE": "1"}
        out.parent.mkdir(parents=True, exist_ok=True)
        self._log = out.with_suffix(".log").open("a")
        self.process = subprocess.Popen(command, env=os.environ | own, stdout=self._log, stderr=self._log)

    @property
    def done(self) -> int:
        """How many cases have a line."""
        files = (self.out / "trials" / "cases" / "full").glob("traces*.jsonl")
        return sum(file.read_bytes().count(b"\n") for file in files)

    def until(self, reached: Callable[["Run"], bool]) -> float:
        """Wait for something to come true, or the end; the most MiB that the process has held so far."""
        most = 0.0
        while self.process.poll() is None and not reached(self):
            _, held, status = Path(f"/proc/{self.process.pid}/status").read_text().partition("VmHWM:")
            most = int(status.split()[0]) / 1024 if held else most  # one that has just ended holds nothing
            time.sleep(0.05)
        return most

    def end(self) -> dict[str, Any]:
        """Wait for the end; the results."""
        if code := self.process.wait():
            raise RuntimeError(f"the evaluation ended with {code}; see {self._log.name}")
        self._log.close()
        told: dict[str, Any] = json.loads((self.out / "evaluation.json").read_text())["results"]["cases"]["full"]
        return {**told, "cost": {**told["cost"], "seconds": None}}  # which no two runs have in common


def measure(folder: Path, cases: int) -> dict[str, Any]:
    """The three evaluations.

    Returns:
        `memory`: the most MiB up to a tenth of the cases, and to the end; of the run that was killed, `repeated`:
        requests that were made again, and `lost`: those of them that had been answered `SETTLED` seconds or more before
        the kill, long enough to be on disk; `same`: whether the killed and the sharded runs have the figures of the
        whole one.
    """
    flags = prepare(folder, cases)
    with StubServer(says) as server:
        whole = Run(server, flags, folder / "whole")
        memory = [whole.until(lambda run: run.done >= cases // 10), whole.until(lambda _: False)]
        expected = whole.end()
        asked = len(server.requests)
    with StubServer(says) as server:
        first = Run(server, flags, folder / "killed")
        first.until(lambda run: run.done >= cases // 2)
        killed_at = time.monotonic()
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
        kept = first.done
        killed = Run(server, flags, folder / "killed").end()
        asked_again = _again(server.requests)
    with StubServer(says) as server:
        shards = [Run(server, [*flags, "--shard", f"{i}/2"], folder / "shards") for i in range(2)]
        for shard in shards:
            shard.process.wait()
        merged = Run(server, [*flags, "--shard", "0/2"], folder / "shards").end()
        sharded = len(server.requests)
    return {
        "requests": asked,
        "memory": memory,
        "kept": kept,
        "repeated": len(asked_again),
        "lost": sum(one.finished is not None and one.finished < killed_at - SETTLED for one in asked_again),
        "sharded": sharded,
        "same": {
            "killed": killed == expected,
            "shards": merged == expected,
        },
    }


def _again(requests: Sequence[Request]) -> list[Request]:
    """The first requests of those that were made again."""
    first: dict[tuple[str, str], Request] = {}
    again = []
    for request in requests:
        key = (request.model, json.dumps(request.messages))
        if key in first:
            again.append(first[key])
        else:
            first[key] = request
    return again


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        told = measure(Path(folder), given.cases)
    early, late = told["memory"]
    print(f"{given.cases} cases, {told['requests']} requests")
    print(f"most memory up to a tenth and to the end: {early:.0f} and {late:.0f} MiB ({late / early:.2f})")
    again, lost = told["repeated"], told["lost"]
    print(f"killed at {told['kept']} cases: {again} requests were under way and made again, {lost} answers lost")
    print(f"two shards: {told['sharded']} requests")
    print(f"the same figures as of the whole run: killed {told['same']['killed']}, shards {told['same']['shards']}")


if __name__ == "__main__":
    main()
