"""The benchmarks by their hub ids: a stub of the hub on the loopback, asked by the real `datasets`."""

import http.server
import json
import os
import subprocess
import sys
import threading
from hashlib import sha1
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from tests.unit.rl.test_benchmarks import slake, vqa

PROGRAM = """
import json, sys
from mmedagent_graph.images import ImageStore
from rl.datasets import read_benchmark
store = ImageStore(sys.argv[2])
read = read_benchmark(sys.argv[1], store)
print(json.dumps([[c.id, c.answer, c.options, [store.put(i) for i in c.images]] for c in read.cases]))
"""
COMMIT = "0" * 40


def hub(folder: Path) -> type[http.server.BaseHTTPRequestHandler]:
    """What of the hub's API reading needs; data set `owner/name` is the folder `owner/name`."""

    def told(path: Path, root: Path) -> dict:
        name = path.relative_to(root).as_posix()
        if path.is_dir():
            return {"type": "directory", "path": name, "oid": sha1(name.encode()).hexdigest(), "size": 0}
        return {
            "type": "file",
            "path": name,
            "oid": sha1(path.read_bytes()).hexdigest(),
            "size": path.stat().st_size,
        }

    class Hub(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
            if parts[:2] == ["api", "datasets"]:
                root, rest = folder / parts[2] / parts[3], parts[4:]
                if not root.is_dir():
                    return self.missing("RepoNotFound")
                if rest[:1] == ["tree"]:
                    recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() == "true"
                    inside = root.joinpath(*rest[2:])
                    found = sorted(inside.rglob("*") if recursive else inside.glob("*"))
                    return self.say([told(path, root) for path in found]) if inside.is_dir() else self.missing()
                files = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
                return self.say(
                    {"id": f"{parts[2]}/{parts[3]}", "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
                )
            path = folder.joinpath(parts[1], parts[2], *parts[5:])  # datasets/OWNER/NAME/resolve/REVISION/...
            if not path.is_file():
                return self.missing()
            data = path.read_bytes()
            start, _, end = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
            part = data[int(start) : int(end) + 1 if end else None]
            self.send_response(206 if "Range" in self.headers else 200)
            self.send_header("ETag", f'"{sha1(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Range", f"bytes {start}-{int(start) + len(part) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(part)
            return None

        do_HEAD = do_GET  # noqa: N815  http.server's name

        def do_POST(self) -> None:
            parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            json_body = "json" in self.headers.get("Content-Type", "")
            paths = json.loads(body)["paths"] if json_body else parse_qs(body)["paths"]
            root = folder / parts[2] / parts[3]
            self.say([told(root / path, root) for path in paths if (root / path).exists()])

        def say(self, body: object) -> None:
            data = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def missing(self, what: str = "EntryNotFound") -> None:
            self.send_response(404)
            self.send_header("X-Error-Code", what)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    return Hub


@pytest.fixture
def endpoint(tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), hub(tmp_path / "hub"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def ran(endpoint: str, name: str, tmp_path: Path, offline: bool = False) -> subprocess.CompletedProcess[str]:
    own = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, name, str(tmp_path / "store")],
        env=os.environ | own | {"HF_HUB_OFFLINE": str(int(offline))},
        capture_output=True,
        text=True,
        check=False,
    )


def asked(endpoint: str, name: str, tmp_path: Path, offline: bool = False) -> list:
    run = ran(endpoint, name, tmp_path, offline)
    assert run.returncode == 0, run.stderr
    cases: list = json.loads(run.stdout.splitlines()[-1])
    return cases


NOWHERE = "http://127.0.0.1:9"  # a port of the system's own, where nobody listens


def test_parquet_by_its_hub_id(endpoint, tmp_path):
    rows = [(1, "Is it?", "Yes"), (2, "Where?", "left")]
    local = vqa(tmp_path / "hub" / "flaviagiammarino" / "vqa-rad", "test", rows)
    (case,) = asked(endpoint, "vqa_rad", tmp_path)
    assert case[:3] == ["vqa_rad-test-0", "yes", ["yes", "no"]]
    assert [case] == asked(endpoint, f"vqa_rad:{local}", tmp_path)
    assert [case] == asked(NOWHERE, "vqa_rad", tmp_path, offline=True)  # out of the cache


def test_json_and_an_archive_by_their_hub_id(endpoint, tmp_path):
    folder = tmp_path / "hub" / "BoKelvin" / "SLAKE"
    local = slake(folder, [("Is it normal?", "No", {}), ("Which is bigger, liver or spleen?", "Liver", {})])
    cases = asked(endpoint, "slake", tmp_path)
    assert [case[1:3] for case in cases] == [["no", ["yes", "no"]], ["liver", ["liver", "spleen"]]]
    assert cases == asked(endpoint, local, tmp_path)
    assert cases == asked(NOWHERE, "slake", tmp_path, offline=True)


@pytest.mark.parametrize(("name", "file"), [("vqa_rad", "data/test-*.parquet"), ("slake", "test.json")])
def test_a_hub_that_gives_nothing(endpoint, name, file, tmp_path):
    """There is no such data set, or nobody answers, or nobody is asked."""
    for where, offline in ((endpoint, False), (NOWHERE, False), (NOWHERE, True)):
        run = ran(where, name, tmp_path, offline)
        said = run.stderr.rpartition("ValueError: ")[2]
        assert said.startswith(f"cases: {name} needs {file} of ")
        assert f"{name}:FOLDER" in said
