"""Where an image's bytes come from, and what may be read at all.

Invariant: no file outside the allowed folders is opened and no host but the allowed ones is spoken to, whoever asks;
and what is refused is refused in the same words whether it is there or not.
"""

import base64
import ipaddress
import os
import re
import stat
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from mmedagent_graph.pictures import ImageError

if TYPE_CHECKING:
    import httpx

SHOWN = 200
"""At most so many characters of what was given are repeated in an error."""
TIMEOUT = 10.0
"""Seconds that a host may be silent."""
DEADLINE = 60.0
"""Seconds that a host may take for an answer's body."""
URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE | re.ASCII)
PORTS = {"https": 443, "http": 80}


class Sources:
    """What may be read.

    Args:
        paths: True for any file, False for none, or the folders whose files may be read.
        hosts: the hosts whose images may be fetched, each as `name` (the usual port) or `name:port`.

    Raises:
        ValueError: if `paths` or `hosts` is of another form, or a folder is not there.
    """

    def __init__(self, paths: bool | Collection[str | os.PathLike[str]], hosts: Collection[str]) -> None:
        self._any_path = paths is True
        self._folders = [] if isinstance(paths, bool) else [Path.cwd() / folder for folder in _several(paths, "paths")]
        for folder in self._folders:
            if not folder.is_dir():
                raise ValueError(f"paths: {str(folder)!r} is not a folder")
        self._hosts = {_host(name) for name in _several(hosts, "hosts")}
        self.valid = _valid(self._any_path, [str(folder) for folder in self._folders], list(hosts))
        """The choices there are, for errors."""

    def read(self, image: Any, limit: int) -> bytes:
        """The bytes of what was given.

        Args:
            image: bytes, a base64 data URL, a path or URL of a file, a URL of an allowed host.
            limit: how many bytes are taken at most.

        Raises:
            ImageError: if it is of another type, may not be read, cannot be read, or is too large.
        """
        if isinstance(image, bytes | bytearray | memoryview):
            data = bytes(image)
        elif isinstance(image, str) and image[:5].lower() == "data:":
            data = self._data_url(image, limit)
        elif isinstance(image, str) and image[:7].lower() == "file://":
            data = self._file(self._path_of_url(image), limit)
        elif isinstance(image, str) and URL.match(image):
            data = self._remote(image, limit)
        elif isinstance(image, str) or (isinstance(image, os.PathLike) and isinstance(os.fspath(image), str)):
            data = self._file(os.fspath(image), limit)
        else:
            raise ImageError(f"cannot use a {type(image).__name__} as an image; {self.valid}")
        if len(data) > limit:
            raise ImageError(f"the image has {len(data)} bytes, where at most {limit} are taken")
        return data

    def _data_url(self, url: str, limit: int) -> bytes:
        head, comma, payload = url.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise ImageError(f"{head[:SHOWN]!r} is not a base64 data URL; {self.valid}")
        if len(payload) > 4 * (limit // 3 + 1):
            raise ImageError(f"the data URL holds some {len(payload) // 4 * 3} bytes, where at most {limit} are taken")
        try:
            return base64.b64decode(payload, validate=True)
        except ValueError as error:
            raise ImageError(f"the data URL's base64 is broken ({error}); {self.valid}") from error

    def _path_of_url(self, url: str) -> str:
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
            raise ImageError(f"{url[:SHOWN]!r} is not the URL of a file on this machine; {self.valid}")
        return unquote(parts.path)

    def _file(self, given: str, limit: int) -> bytes:
        name = repr(given[:SHOWN])  # it may be an image in base64, which no log should hold
        allowed = self._allowed(given)
        if allowed is None:
            where = "in none of the folders that may be read" if self._folders else "no path is read here"
            raise ImageError(f"{name} is neither a data URL nor a reference, and {where}; {self.valid}")
        try:
            data = _read(*allowed, limit)
        except (OSError, ValueError) as error:
            raise ImageError(f"cannot read {name} ({getattr(error, 'strerror', error)}); {self.valid}") from error
        if len(data) > limit:
            raise ImageError(f"{name} has more bytes than the {limit} that are taken")
        return data

    def _allowed(self, given: str) -> tuple[Path | None, Path] | None:
        """A folder that may be read (None: any) and the file in it that a path names; None if it may not be read.

        Outside the folders, the disk is not even looked at.
        """
        if self._any_path:
            return None, Path(given)
        path = Path.cwd() / given
        if "\0" in given or ".." in path.parts:
            return None
        real = [folder.resolve() for folder in self._folders]
        if not any(path.is_relative_to(folder) for folder in (*self._folders, *real)):
            return None
        try:
            resolved = path.resolve()
        except (OSError, RuntimeError):  # links in a circle
            return None
        return next(((folder, resolved) for folder in real if resolved.is_relative_to(folder)), None)

    def _remote(self, address: str, limit: int) -> bytes:
        if not self._hosts:
            raise ImageError(f"{address[:SHOWN]!r} is a remote address, which is never fetched; {self.valid}")
        import httpx

        try:
            url = httpx.URL(address)
        except (httpx.InvalidURL, ValueError, TypeError):
            url = httpx.URL()
        port = url.port or PORTS.get(url.scheme)
        named = (url.host, port) in self._hosts or ((url.host, None) in self._hosts and port == PORTS.get(url.scheme))
        secure = url.scheme == "https" or (url.scheme == "http" and _is_loopback(url.host))
        if not (named and secure) or "@" in address.partition("//")[2].partition("/")[0]:
            raise ImageError(f"{address[:SHOWN]!r} is a remote address that may not be fetched; {self.valid}")
        return _fetched(url, limit)


def _several(given: Any, field: str) -> list[str]:
    """The entries of a list of names or paths."""
    if isinstance(given, Collection) and not isinstance(given, str | bytes | Mapping):
        entries = [os.fspath(entry) if isinstance(entry, os.PathLike) else entry for entry in given]
        if all(isinstance(entry, str) for entry in entries):
            return entries
    valid = {"paths": "True, False or a list of folders", "hosts": "a list of host names"}
    raise ValueError(f"{field}: give {valid[field]}")


def _read(folder: Path | None, path: Path, limit: int) -> bytes:
    """A file's bytes; one more than `limit` where it has more. A pipe that nobody writes into is not waited for."""

    def opener(name: str, flags: int) -> int:
        flags |= getattr(os, "O_NONBLOCK", 0)
        return os.open(name, flags) if folder is None else _walked(folder, path.relative_to(folder).parts, flags)

    with open(path, "rb", opener=opener) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("not a regular file")
        return file.read(limit + 1)


def _walked(folder: Path, parts: Sequence[str], flags: int) -> int:
    """A file opened step by step from a folder, and by no link: one may have been put there since it was checked."""
    at = os.open(folder, flags)
    for part in parts:
        above = at
        try:
            at = os.open(part, flags | os.O_NOFOLLOW, dir_fd=above)
        finally:
            os.close(above)
    return at


def _valid(any_path: bool, folders: list[str], hosts: list[str]) -> str:
    """The choices there are. A user of a server cannot know what its operator allows."""
    path = ["a path"] if any_path else [f"the path of a file in {' or '.join(map(repr, folders))}"] if folders else []
    host = [f"an https address at {' or '.join(hosts)}"] if hosts else []
    rest = ["bytes", "a PIL image", "a data URL (data:image/png;base64,...)"]
    return f"give {', '.join([*path, *rest, *host])} or a reference (sha256:...)"


def _host(name: str) -> tuple[str, int | None]:
    """A host as an operator names it: what an address's host and port must be, read by the same reader."""
    import httpx

    try:
        url = httpx.URL(f"https://{name}")
        if url.host and url.netloc.decode() and not re.search(r"[/?#@\\%*\s]", name):
            return url.host, url.port
    except (httpx.InvalidURL, ValueError):
        pass
    raise ValueError(f"hosts: {name!r} is not the name of a host; give 'name' or 'name:port', without https://")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _fetched(url: "httpx.URL", limit: int) -> bytes:
    """The body of an answer. A bare transport: it follows no redirect, keeps no cookie and logs no address."""
    import httpx

    data, deadline = bytearray(), time.monotonic() + DEADLINE
    request = httpx.Request(
        "GET",
        url,
        headers={"Accept": "image/*, application/dicom", "Accept-Encoding": "identity"},
        extensions={"timeout": httpx.Timeout(TIMEOUT).as_dict()},
    )
    try:
        with httpx.HTTPTransport() as transport:
            response = transport.handle_request(request)
            try:
                if response.status_code != 200:
                    raise ImageError(f"{url.host!r} answers {response.status_code}, where 200 is needed")
                for chunk in response.iter_raw():
                    data += chunk
                    if len(data) > limit:
                        raise ImageError(f"{url.host!r} sends more bytes than the {limit} that are taken")
                    if time.monotonic() > deadline:
                        raise ImageError(f"{url.host!r} takes longer than {DEADLINE:g} seconds")
            finally:
                response.close()
    except (httpx.HTTPError, OSError) as error:
        raise ImageError(f"cannot fetch the image from {url.host!r} ({type(error).__name__})") from error
    return bytes(data)
