"""Tests of where images come from: which files and hosts may be read, on real files and a real server."""

import contextlib
import datetime
import ipaddress
import os
import socket
import ssl
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fakes import data_url, encoded, image
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmedagent_graph import images, sources
from mmedagent_graph.images import ImageStore

PNG = encoded(image("red"))


@pytest.fixture
def clinic(tmp_path: Path) -> Path:
    """A folder that may be read, in one that may not."""
    allowed = tmp_path / "scans"
    (allowed / "2026").mkdir(parents=True)
    (allowed / "a.png").write_bytes(PNG)
    (allowed / "2026" / "b b.png").write_bytes(PNG)
    (tmp_path / "secret.png").write_bytes(PNG)
    (tmp_path / "scans-2").mkdir()
    (tmp_path / "scans-2" / "a.png").write_bytes(PNG)
    (allowed / "out.png").symlink_to(tmp_path / "secret.png")
    (allowed / "in.png").symlink_to(allowed / "a.png")
    (allowed / "up").symlink_to(tmp_path)
    (allowed / "near").symlink_to(tmp_path / "scans-2")
    (allowed / "round").symlink_to(allowed / "round")
    return tmp_path


def only(clinic: Path) -> ImageStore:
    return ImageStore(clinic / "store", paths=[clinic / "scans"])


# --- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "2026/b b.png", "in.png", "./a.png"])
def test_a_file_in_an_allowed_folder(name: str, clinic: Path) -> None:
    path = clinic / "scans" / name
    store = only(clinic)
    for given_ in (path, str(path), path.as_uri(), "file://localhost" + path.as_uri()[7:]):
        assert store.get(store.put(given_)) == PNG


def test_a_relative_path(clinic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clinic / "scans")
    for folders in (["."], [clinic / "scans"]):
        assert ImageStore(clinic / "store", paths=folders).put("a.png")
        with pytest.raises(ValueError, match="none of the folders"):
            ImageStore(clinic / "store", paths=folders).put("../secret.png")


def test_a_link_from_one_allowed_folder_to_another(clinic: Path) -> None:
    for folders in (["scans", "scans-2"], ["scans-2", "scans"]):
        store = ImageStore(clinic / "store", paths=[clinic / folder for folder in folders])
        assert store.get(store.put(clinic / "scans" / "near" / "a.png")) == PNG
        with pytest.raises(ValueError, match="none of the folders"):
            store.put(clinic / "scans" / "out.png")


def test_a_folder_that_is_a_link(clinic: Path) -> None:
    (clinic / "link").symlink_to(clinic / "scans")
    store = ImageStore(clinic / "store", paths=[clinic / "link"])
    assert store.put(clinic / "link" / "a.png") == store.put(clinic / "scans" / "a.png")
    with pytest.raises(ValueError, match="none of the folders"):
        store.put(clinic / "link" / "out.png")


OUTSIDE = [
    *("secret.png", "missing.png", "scans/out.png", "scans/up/secret.png", "scans/up/missing.png", "scans-2/a.png"),
    *(
        "scans/../secret.png",
        "scans/../scans/a.png",
        "scans/2026/../../secret.png",
        "scans/round",
        "",
        "scans/a\0.png",
        "scans/near/a.png",
        "scans\0/a.png",
    ),
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_file_elsewhere(name: str, clinic: Path) -> None:
    """The same words whether it is there or not."""
    store = only(clinic)
    for given_ in (f"{clinic}/{name}", Path(f"{clinic}/{name}"), f"file://{clinic}/{name}".replace("\0", "%00")):
        with pytest.raises(ValueError) as raised:
            store.put(given_)
        path = str(given_).removeprefix("file://").replace("%00", "\0")
        assert str(raised.value) == (
            f"{path!r} is neither a data URL nor a reference, and in none of the folders that may be read; give the "
            f"path of a file in '{clinic}/scans', bytes, a PIL image, a data URL (data:image/png;base64,...) or a "
            "reference (sha256:...)"
        )
        assert raised.value.__cause__ is None
        assert raised.value.__context__ is None


def test_what_is_elsewhere_is_not_even_looked_at(clinic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = only(clinic)
    looked: list[str] = []
    lstat = os.lstat
    monkeypatch.setattr(os, "lstat", lambda path, **kwargs: looked.append(str(path)) or lstat(path, **kwargs))
    with pytest.raises(ValueError, match="none of the folders"):
        store.put("/mnt/elsewhere/scan.png")
    assert not [path for path in looked if path.startswith("/mnt")]


def test_a_folder_that_becomes_a_link_after_it_was_checked(clinic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who may write where the scans are must not have another file read in their place."""
    store = only(clinic)
    (clinic / "scans-2" / "b b.png").write_bytes(encoded(image("blue")))
    resolve = Path.resolve

    def swapped(path: Path, **kwargs: Any) -> Path:
        resolved = resolve(path, **kwargs)
        if path.name == "b b.png":
            (clinic / "scans" / "2026").rename(clinic / "scans" / "2027")
            (clinic / "scans" / "2026").symlink_to(clinic / "scans-2")
        return resolved

    monkeypatch.setattr(Path, "resolve", swapped)
    with pytest.raises(ValueError, match="cannot read"):
        store.put(clinic / "scans" / "2026" / "b b.png")


def test_what_is_refused_leaves_nothing_open(clinic: Path) -> None:
    stores = [ImageStore(clinic / "store"), only(clinic)]
    before = len(list(Path("/proc/self/fd").iterdir()))
    for store in stores:
        for name in ("scans", "scans/2026", "scans/none.png", "scans/out.png", "scans/a.png/x"):
            if store is stores[1] or name != "scans/out.png":
                with pytest.raises(ValueError):
                    store.put(clinic / name)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.fixture(scope="module")
def secretive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secretive")
    (folder / "scans").mkdir()
    (folder / "scans" / "a.png").write_bytes(PNG)
    (folder / "secret.png").write_bytes(encoded(image("blue")))
    (folder / "scans" / "up").symlink_to(folder)
    return folder


@given(
    st.sampled_from(["{}/scans/", "{}/", "", "file://{}/scans/"]),
    st.lists(st.sampled_from(["..", ".", "scans", "up", "secret.png", "a.png", "", "%2e%2e", "~", "\\"]), max_size=6),
)
def test_no_path_leads_out(secretive: Path, start: str, parts: list[str]) -> None:
    store = ImageStore(secretive / "store", paths=[secretive / "scans"])
    try:
        ref = store.put(start.format(secretive) + "/".join(parts))
    except ValueError:
        return
    assert store.get(ref) == PNG


@pytest.mark.parametrize(
    "given_", ["scan.png", "/etc/hostname", "file:///etc/hostname", Path("scan.png"), "iVBORw0KGgo="]
)
def test_no_path_at_all(given_: Any, tmp_path: Path) -> None:
    store = ImageStore(tmp_path, paths=False)
    with pytest.raises(
        ValueError, match=r"no path is read here; give bytes, a PIL image, a data URL .* or a reference"
    ):
        store.put(given_)
    assert store.put(data_url(PNG)) == store.put(PNG) == store.put(image("red"))


@pytest.mark.parametrize(
    "url", ["file://server/share/a.png", "file:///a.png?x=1", "file:///a.png#x", "file://user@localhost/a.png"]
)
def test_a_file_url_that_names_no_file(url: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not the URL of a file on this machine; give a path, bytes"):
        ImageStore(tmp_path).put(url)


@pytest.mark.parametrize("paths", ["/data", b"/data", Path("/data"), 1, None, iter(["/data"]), [5]])
def test_paths_of_another_form(paths: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="paths: give True, False or a list of folders"):
        ImageStore(tmp_path, paths=paths)


def test_a_folder_that_is_not_there(clinic: Path) -> None:
    for path in (clinic / "none", clinic / "secret.png"):
        with pytest.raises(ValueError, match=r"paths: .* is not a folder"):
            ImageStore(clinic / "store", paths=[path])


def test_no_folder_is_no_path(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no path is read here"):
        ImageStore(tmp_path, paths=[]).put("scan.png")


def soon(step: Callable[[], Any]) -> Any:
    """What a step raises; it must not hang."""
    raised: list[BaseException] = []

    def work() -> None:
        try:
            step()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive(), "it hangs"
    assert raised, "nothing was raised"
    return raised[0]


@pytest.mark.parametrize("kind", ["fifo", "socket", "/dev/zero", "/dev/null"])
def test_what_is_no_file(kind: str, tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "store")
    path = Path(kind) if kind.startswith("/") else tmp_path / kind
    if kind == "fifo":
        os.mkfifo(path)
    with socket.socket(socket.AF_UNIX) as server:
        if kind == "socket":
            server.bind(str(path))
        error = soon(lambda: store.put(path))
    assert isinstance(error, ValueError)
    assert "cannot read" in str(error)
    assert "not a regular file" in str(error) or kind == "socket"


def test_a_file_of_unknown_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its size is said to be 0, and it has bytes."""
    monkeypatch.setattr(images, "MAX_BYTES", 10)
    with pytest.raises(ValueError, match="has more bytes than the 10 that are taken"):
        ImageStore(tmp_path).put("/proc/self/status")


def test_data_urls_are_measured_before_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("base64.b64decode", lambda *_, **__: pytest.fail("decoded"))
    monkeypatch.setattr(images, "MAX_BYTES", 30)
    with pytest.raises(ValueError, match="some 300 bytes, where at most 30 are taken"):
        ImageStore(tmp_path).put("data:image/png;base64," + "A" * 400)


@pytest.mark.parametrize("width", range(1, 8))
def test_exactly_as_many_bytes_as_are_taken(width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.effect_noise((width, 3), 90))
    (tmp_path / "scan.png").write_bytes(data)
    monkeypatch.setattr(images, "MAX_BYTES", len(data))
    store = ImageStore(tmp_path / "store")
    assert store.put(data_url(data)) == store.put(tmp_path / "scan.png") == store.put(data)
    monkeypatch.setattr(images, "MAX_BYTES", len(data) - 1)
    for given_ in (data_url(data), tmp_path / "scan.png", data):
        with pytest.raises(ValueError, match=f"{len(data) - 1}"):
            store.put(given_)


# --- hosts --------------------------------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    """A host of images, and what else a host may do."""

    asked: list[str]

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.path} {sorted(map(str.lower, self.headers))}")  # type: ignore[attr-defined]
        what = self.path.partition("?")[0]
        if what == "/moved":
            self.send_response(302)
            self.send_header("Location", "/scan.png")
            self.end_headers()
            return
        if what == "/silent":
            time.sleep(2)
        self.send_response({"/missing": 404, "/empty": 204}.get(what, 200))
        if what == "/packed":
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        with contextlib.suppress(OSError):  # the other side has heard enough
            self._body(what)

    def _body(self, what: str) -> None:
        if what == "/endless":
            for _ in range(100_000):
                self.wfile.write(bytes(10_000))
        elif what == "/slow":
            for _ in range(40):
                self.wfile.write(b"\0")
                time.sleep(0.05)
        elif what != "/empty":
            self.wfile.write(PNG)

    def log_message(self, *_: Any) -> None: ...


class Server(ThreadingHTTPServer):
    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        if context:
            self.socket = context.wrap_socket(self.socket, server_side=True)

    def handle_error(self, *_: Any) -> None: ...

    def __enter__(self) -> "Server":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.shutdown()
        self.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture
def port(server: Server) -> int:
    return int(server.server_address[1])


@pytest.fixture
def store(tmp_path: Path, port: int) -> ImageStore:
    return ImageStore(tmp_path, paths=False, hosts=[f"127.0.0.1:{port}"])


def test_an_image_of_an_allowed_host(
    store: ImageStore, server: Server, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # an address goes to its host and nowhere else
    ref = store.put(f"http://127.0.0.1:{port}/scan.png?patient=7")
    assert store.get(ref) == PNG
    assert store.put({"image": f"HTTP://127.0.0.1:{port}/scan.png", "frame": 0}) == ref
    assert server.asked == [
        "/scan.png?patient=7 ['accept', 'accept-encoding', 'host']",
        "/scan.png ['accept', 'accept-encoding', 'host']",
    ]


def test_addresses_are_not_logged(store: ImageStore, port: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    store.put(f"http://127.0.0.1:{port}/scan.png?patient=7")
    assert "patient" not in caplog.text


NOT_ALLOWED = [
    *("http://localhost:{port}/scan.png", "http://127.0.0.2:{port}/scan.png", "http://127.0.0.1/scan.png"),
    *("http://127.1:{port}/scan.png", "http://2130706433:{port}/scan.png", "http://0x7f000001:{port}/scan.png"),
    *("http://127.0.0.1.:{port}/scan.png", "http://[::ffff:127.0.0.1]:{port}/scan.png", "http://0:{port}/scan.png"),
    *("http://127.0.0.1:{port}@evil.example/scan.png", "http://evil.example@127.0.0.1:{port}/scan.png"),
    *("http://user:word@127.0.0.1:{port}/scan.png", "http://@127.0.0.1:{port}/scan.png"),
    *("http://evil.example\\@127.0.0.1:{port}/scan.png", "http://evil.example/@127.0.0.1:{port}/scan.png"),
    *("http://evil.example#@127.0.0.1:{port}/scan.png", "http://evil.example?127.0.0.1:{port}"),
    *("ftp://127.0.0.1:{port}/scan.png", "gopher://127.0.0.1:{port}/scan.png", "ws://127.0.0.1:{port}/scan.png"),
    *("http://127.0.0.1:{port}.evil.example/scan.png", "http://127.0.0.1%2eevil.example:{port}/scan.png"),
    *("http://\uff11\uff12\uff17.0.0.1:{port}/scan.png", "http://127.0.0.1\t:{port}/scan.png", "http://"),
    *("http:///127.0.0.1:{port}/scan.png", "http://127.0.0.1:99{port}/scan.png", "http://127.0.0.1:-{port}/"),
]


@pytest.mark.parametrize("address", NOT_ALLOWED)
def test_an_address_that_only_looks_allowed(address: str, store: ImageStore, server: Server, port: int) -> None:
    with pytest.raises(
        ValueError, match=r"remote address that may not be fetched; give bytes.*, an https address at 127"
    ):
        store.put(address.format(port=port))
    assert server.asked == []


@pytest.mark.parametrize(
    ("hosts", "address"),
    [
        (["pacs.example"], "http://pacs.example/scan.png"),  # not encrypted, and not this machine
        (["pacs.example"], "https://pacs.example:8443/scan.png"),  # another service of the same host
        (["pacs.example:8443"], "https://pacs.example/scan.png"),
        (["pacs.example"], "https://evil-pacs.example/scan.png"),
        (["pacs.example"], "https://pacs.example.evil.example/scan.png"),
        (["pacs.example"], "https://pacs.example./scan.png"),
        (["pacs.example"], "https://good@pacs.example/scan.png"),
        (["10.0.0.1"], "http://10.0.0.1/scan.png"),
        ([], "https://pacs.example/scan.png"),
    ],
)
def test_a_host_that_is_not_allowed(
    hosts: list[str], address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_fetched", lambda *_: pytest.fail("fetched"))
    with pytest.raises(ValueError, match="remote address"):
        ImageStore(tmp_path, hosts=hosts).put(address)


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("pacs.example", "https://pacs.example/scan.png"),
        ("pacs.example", "https://pacs.example:443/scan.png"),
        ("pacs.example:443", "https://pacs.example/scan.png"),
        ("PACS.example", "https://pacs.EXAMPLE/scan.png"),
        ("b\u00fccher.example", "https://xn--bcher-kva.example/scan.png"),
        ("pacs.example:8443", "https://pacs.example:8443/scan.png"),
        ("localhost", "http://localhost/scan.png"),
        ("[::1]:8080", "http://[::1]:8080/scan.png"),
        ("127.0.0.3", "http://127.0.0.3:80/scan.png"),
    ],
)
def test_a_host_that_is_allowed(host: str, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_fetched", lambda *_: PNG)
    assert ImageStore(tmp_path, hosts=(host,)).put(address)


@pytest.mark.parametrize(
    "hosts",
    [
        *("pacs.example", b"pacs", None, 5),
        *(["https://pacs.example"], ["pacs.example/scans"], ["user@pacs.example"], ["*.example"], [""], ["a b"]),
        *(["pacs.example?"], ["pacs\\example"], [5], ["pacs:x"], ["::1"], ["pac\u2488s"]),
    ],
)
def test_hosts_of_another_form(hosts: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hosts: "):
        ImageStore(tmp_path, hosts=hosts)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("moved", "'127.0.0.1' answers 302, where 200 is needed"),
        ("missing", "answers 404"),
        ("empty", "answers 204"),
        ("endless", "sends more bytes than the 1000000 that are taken"),
        ("silent", r"cannot fetch the image from '127.0.0.1' \(ReadTimeout\)"),
        ("slow", "takes longer than 0.6 seconds"),
    ],
)
def test_an_answer_that_is_no_image(
    what: str, said: str, store: ImageStore, server: Server, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", 1_000_000)
    monkeypatch.setattr(sources, "TIMEOUT", 0.5)
    monkeypatch.setattr(sources, "DEADLINE", 0.6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        error = soon(lambda: store.put(f"http://127.0.0.1:{port}/{what}?patient=7"))
    assert isinstance(error, ValueError)
    with pytest.raises(ValueError, match=said):
        raise error
    assert "patient" not in str(error)
    assert len(server.asked) == 1


def test_what_is_packed_is_not_unpacked(store: ImageStore, port: int) -> None:
    """A few bytes can be packed that fill the memory; the bytes are taken as they come."""
    assert store.get(store.put(f"http://127.0.0.1:{port}/packed")) == PNG


def test_nobody_there(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(ValueError, match=r"cannot fetch the image from '127.0.0.1' \(ConnectError\)"):
            ImageStore(tmp_path, hosts=[host]).put(f"http://{host}/scan.png")


def test_https_and_who_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cryptography")
    certificate = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with Server(context) as server:
        host = f"127.0.0.1:{server.server_address[1]}"
        store = ImageStore(tmp_path / "store", hosts=[host])
        with pytest.raises(ValueError, match="ConnectError"):
            store.put(f"https://{host}/scan.png")
        assert server.asked == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))  # a clinic's own authority
        assert store.get(store.put(f"https://{host}/scan.png")) == PNG


def self_signed(folder: Path) -> Path:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / "host.pem"
    path.write_bytes(secret + certificate.public_bytes(serialization.Encoding.PEM))
    return path
