"""A real PostgreSQL from the machine's own packages, for as long as a test wants it."""

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg

MISSING = "PostgreSQL is not installed (no initdb on the PATH or in /usr/lib/postgresql): apt-get install postgresql"
SETTINGS = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "shared_buffers=16MB"]
# Its input ends when the tests end, even if they are killed: no server and no data are left behind.
WATCH = 'read -r _; kill -INT "$1"; while [ -e "$2/postmaster.pid" ]; do sleep 0.1; done; rm -rf "$2"'


def programs() -> Path | None:
    """The folder of initdb and postgres: that on the PATH, or the newest of Debian's."""
    on_path = shutil.which("initdb")
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: float(folder.parent.name))
    folders = [*debian, *([Path(on_path).resolve().parent] if on_path else [])]
    return next((folder for folder in reversed(folders) if (folder / "initdb").exists()), None)


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """The URL of a server of one's own: its folder, its port on the loopback, its password."""
    log = ""
    for _ in range(5):  # somebody else may take the free port before the server does
        with tempfile.TemporaryDirectory(prefix="mmedagent-postgres-", ignore_cleanup_errors=True) as name:
            folder = Path(name)
            with _server(folder) as url:
                if url:
                    yield url
                    return
            log = (folder / "log").read_text()
    raise RuntimeError(f"PostgreSQL does not start:\n{log}")


@contextlib.contextmanager
def _server(folder: Path) -> Iterator[str | None]:
    """None: it did not start."""
    bin_ = programs()
    assert bin_, MISSING
    owner = _owner()
    if owner:
        shutil.chown(folder, owner["user"])
    password = secrets.token_hex(16)
    (folder / "password").write_text(password)
    flags = ["--username=tests", f"--pwfile={folder / 'password'}", "--auth=scram-sha-256", "--no-locale", "--no-sync"]
    initdb = [bin_ / "initdb", "-D", folder / "data", "--encoding=UTF8", *flags]
    subprocess.run(initdb, check=True, cwd=folder, stdout=subprocess.DEVNULL, **owner)

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    settings = [word for setting in SETTINGS for word in ("-c", setting)]
    start = [bin_ / "postgres", "-D", folder / "data", "-p", port, *settings]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(start, cwd=folder, stdout=log, stderr=log, start_new_session=True, **owner)
    watch = ["sh", "-c", WATCH, "watch", str(server.pid), folder / "data"]
    quiet = {"stdin": subprocess.PIPE, "stderr": subprocess.DEVNULL, "start_new_session": True}
    with subprocess.Popen(watch, **quiet, **owner):  # leaving it closes its input, and waits
        url = f"postgresql://tests:{password}@127.0.0.1:{port}"
        try:
            yield url if _answers(server, f"{url}/postgres") else None
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(60)


@contextlib.contextmanager
def database(server: str) -> Iterator[str]:
    """The URL of a new, empty database."""
    name = f"d{uuid.uuid4().hex}"
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield f"{server}/{name}"
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _owner() -> dict[str, Any]:
    """As whom the server runs: root may not."""
    if os.geteuid() != 0:
        return {}
    known = {entry.pw_name for entry in pwd.getpwall()}
    user = pwd.getpwnam("postgres" if "postgres" in known else "nobody")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _answers(server: subprocess.Popen[bytes], url: str) -> bool:
    until = time.monotonic() + 60
    while server.poll() is None and time.monotonic() < until:
        with contextlib.suppress(psycopg.OperationalError):  # starting, or somebody else's server on this port
            psycopg.connect(url, connect_timeout=5).close()
            return True
        time.sleep(0.05)
    return False
