"""Where a benchmark's files come from: the hub, or a folder that is laid out as there.

Invariant: an unpacked archive is whole, and that of the file as it is now. What once came from the hub is read from its
cache afterwards, without a network, too (`HF_HUB_OFFLINE=1`).
"""

import json
import shutil
import zipfile
import zlib
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, Image, load_dataset
from filelock import FileLock
from huggingface_hub import hf_hub_download, snapshot_download


class Files:
    """The files of one benchmark.

    Args:
        name: of the benchmark, for errors.
        hub: its id on the hub.
        folder: a copy of the hub's files, in the same layout. Default: the hub itself.

    Raises:
        ValueError: if the folder is not there.
    """

    def __init__(self, name: str, hub: str, folder: Path | None = None) -> None:
        if folder is not None and not folder.is_dir():
            raise ValueError(f"cases: no folder {str(folder)!r}; give a copy of {hub}'s files, or leave it out")
        self.name, self.hub, self.folder = name, hub, folder

    def parquet(self, pattern: str) -> Dataset:
        """The rows of the Parquet files whose names match; images as `{"bytes": ..., "path": ...}`.

        Raises:
            ValueError: if there are none.
        """
        folder = self.folder or Path(self._from_hub(snapshot_download, pattern, allow_patterns=pattern))
        found = sorted(str(path.absolute()) for path in folder.glob(pattern))
        if not found:
            raise self._missing(pattern)
        rows = load_dataset("parquet", data_files={"rows": found}, split="rows")
        for name, feature in rows.features.items():
            if isinstance(feature, Image):
                rows = rows.cast_column(name, Image(decode=False))
        return rows

    def text(self, name: str) -> str:
        """A text file.

        Raises:
            ValueError: if there is none.
        """
        return self._local(name).read_text(encoding="utf-8")

    def json(self, name: str) -> Any:
        """A JSON file.

        Raises:
            ValueError: if there is none, or it is not JSON.
        """
        try:
            return json.loads(self.text(name))
        except json.JSONDecodeError as error:
            raise ValueError(f"cases: {name} of {self.folder or self.hub} is not JSON ({error})") from error

    def unpacked(self, name: str, folder: str) -> Path:
        """The folder that an archive holds, unpacked in the cache; a local copy may be unpacked already.

        Args:
            name: of the archive.
            folder: within it. Archives differ in whether they hold the folder or its content; both will do.

        Raises:
            ValueError: if there is neither, or the archive is broken.
        """
        if self.folder is not None and (self.folder / folder).is_dir():
            return self.folder / folder
        inside = _unpacked(self._local(name))
        return inside / folder if (inside / folder).is_dir() else inside

    def _local(self, name: str) -> Path:
        if self.folder is None:
            return Path(self._from_hub(hf_hub_download, name, filename=name))
        if not (self.folder / name).is_file():
            raise self._missing(name)
        return self.folder / name

    def _from_hub(self, download: Callable[..., str], what: str, **which: str) -> str:
        try:
            return download(self.hub, repo_type="dataset", **which)
        except Exception as error:  # its own, of its cache, and whatever its HTTP client raises
            raise ValueError(
                f"cases: {self.name} needs {what} of {self.hub}, which did not come from the hub "
                f"({type(error).__name__}: {error}); {self._folder()}"
            ) from error

    def _missing(self, name: str) -> ValueError:
        where = self.hub if self.folder is None else str(self.folder)
        return ValueError(f"cases: {self.name} needs {name}, which {where!r} does not have; {self._folder()}")

    def _folder(self) -> str:
        return f"give a folder laid out as {self.hub} is on the hub: {self.name}:FOLDER"


def _unpacked(archive: Path) -> Path:
    """What a zip file holds. It gets its name when it is whole, and one process does it for all on the machine."""
    archive = archive.resolve()
    state = archive.stat()
    key = sha256(f"{archive}\0{state.st_size}\0{state.st_mtime_ns}".encode()).hexdigest()
    whole = Path(datasets.config.EXTRACTED_DATASETS_PATH) / key
    half = whole.with_suffix(".half")
    whole.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(whole.with_suffix(".lock")):
        if not whole.is_dir():
            shutil.rmtree(half, ignore_errors=True)  # left by a kill
            half.mkdir()
            try:
                with zipfile.ZipFile(archive) as packed:
                    packed.extractall(half)
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise ValueError(f"cases: {str(archive)!r} cannot be unpacked ({error}); fetch it again") from error
            half.rename(whole)
    return whole
