"""vLLM as a server on a free port of this machine: one for all processes of a test run.

    with served(folder, "--model", "DIR", "--served-model-name", "clinic") as server:
        ChatOpenAI(base_url=server.url, ...)

Whoever comes first starts it, through a keeper. Each user holds a shared lock on a file; the keeper tries for the
exclusive one, and so ends the server with the last of them: the kernel frees the lock of a killed user, too, and no
server is left behind. (`pytest.mark.xdist_group` is for this, but has no effect with pytest 9.2 and pytest-xdist 3.8.)
"""

import contextlib
import dataclasses
import fcntl
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

VENV = Path(__file__).parents[3] / ".venv-vllm"
PATIENCE = 600
"""Seconds that a start may take: 40 where nothing else runs, several times that beside other tests on few cores."""
GRACE = 10
"""Seconds between one way of ending a server and the next, ruder one."""
OPTIONS = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "512"]
SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # it would bind itself to a core, on which another test may run
    "OMP_NUM_THREADS": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
}


@dataclasses.dataclass
class Server:
    """A server that is up."""

    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def kill(self) -> None:
        """Kill it with all its children, as a machine's end would; its keeper goes, too."""
        os.killpg(int(self.log.with_name("pid").read_text()), signal.SIGKILL)


def vllm_python() -> Path:
    """The Python of an environment with vLLM. Without one the test is skipped; one that is named must be there."""
    named = os.environ.get("MMEDAGENT_VLLM_PYTHON")
    if not named and not (VENV / "installed").exists():
        pytest.skip("no vLLM here: run `make .venv-vllm/installed`, or set MMEDAGENT_VLLM_PYTHON")
    return Path(named or VENV / "bin" / "python")


@contextlib.contextmanager
def served(folder: Path, *options: str, at: int | None = None) -> Iterator[Server]:
    """The server of a folder that all its users share, started if it is not up, on any port or a certain one."""
    folder.mkdir(exist_ok=True)
    users, port, log = folder / "users", folder / "port", folder / "server.log"
    with users.open("a") as lock:
        with (folder / "starting").open("a") as starting:
            fcntl.flock(starting, fcntl.LOCK_EX)
            fcntl.flock(lock, fcntl.LOCK_SH)  # waits while a server without users is being ended
            if not port.exists():
                _start(users, port, log, options, at or _free_port())
        yield Server(int(port.read_text()), log)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _start(users: Path, port: Path, log: Path, options: tuple[str, ...], number: int) -> None:
    command = [vllm_python(), "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(number)]
    with log.open("wb") as output:
        keeper = subprocess.Popen(
            [sys.executable, __file__, users, port, *command, *OPTIONS, *options],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **SETTINGS},
            start_new_session=True,
        )
    started = time.monotonic()
    while not _healthy(number):
        if keeper.poll() is not None:
            raise RuntimeError(f"vLLM ended with {keeper.returncode}:\n{log.read_text()}")
        if time.monotonic() - started > PATIENCE:
            raise RuntimeError(f"vLLM was not up after {PATIENCE} s:\n{log.read_text()}")
        time.sleep(0.25)
    port.write_text(str(number))


def _healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def keep(users: Path, port: Path, command: list[str]) -> int:
    """Run a server until nobody uses it, and end it with all its children."""
    server = subprocess.Popen(command, start_new_session=True)
    port.with_name("pid").write_text(str(server.pid))
    with users.open() as lock:
        while server.poll() is None:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(0.2)
        port.unlink(missing_ok=True)
        _end(server)
        return server.wait()


def _end(server: subprocess.Popen) -> None:
    """End a server's process group, by force at last: vLLM does not heed SIGTERM while it starts.

    Its resource tracker does not either, but goes when the others have gone, and frees their shared memory.
    """
    with contextlib.suppress(ProcessLookupError):  # raised once the last of the group is gone
        for stop in (
            lambda: os.killpg(server.pid, signal.SIGTERM),
            server.kill,
            lambda: os.killpg(server.pid, signal.SIGKILL),
        ):
            stop()
            deadline = time.monotonic() + GRACE
            while time.monotonic() < deadline:
                server.poll()
                os.killpg(server.pid, 0)
                time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(keep(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
