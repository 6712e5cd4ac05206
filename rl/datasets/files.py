"""Where a benchmark's files come from: the hub, or a folder that is laid out as there."""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset, DownloadManager, Image, load_dataset

SCHEME = "hf://datasets/"


class Files:
    """The files of one data set.

    Args:
        hub: its id on the hub.
        folder: a copy of the hub's files, in the same layout. Default: the hub itself (files are kept by `datasets`).

    Raises:
        ValueError: if the folder is not there.
    """

    def __init__(self, hub: str, folder: Path | None = None) -> None:
        if folder is not None and not folder.is_dir():
            raise ValueError(f"cases: no folder {str(folder)!r}; give a copy of {hub}'s files, or leave it out")
        self.hub, self.folder = hub, folder
        self._root = f"{SCHEME}{hub}" if folder is None else str(folder)
        self._manager = DownloadManager()

    def parquet(self, pattern: str) -> Dataset:
        """The rows of the Parquet files whose names match; images as `{"bytes": ..., "path": ...}`.

        Raises:
            ValueError: if the folder has none.
        """
        if self.folder is not None and not list(self.folder.glob(pattern)):
            raise self._missing(pattern)
        rows = load_dataset("parquet", data_files={"rows": f"{self._root}/{pattern}"}, split="rows")
        for name, feature in rows.features.items():
            if isinstance(feature, Image):
                rows = rows.cast_column(name, Image(decode=False))
        return rows

    def text(self, name: str) -> str:
        """A text file.

        Raises:
            ValueError: if the folder does not have it.
        """
        return self._local(name).read_text(encoding="utf-8")

    def json(self, name: str) -> Any:
        """A JSON file.

        Raises:
            ValueError: if the folder does not have it, or it is not JSON.
        """
        try:
            return json.loads(self.text(name))
        except json.JSONDecodeError as error:
            raise ValueError(f"cases: {name} of {self._root} is not JSON ({error})") from error

    def unpacked(self, name: str, folder: str) -> Path:
        """The folder that an archive holds, unpacked by `datasets`; a local copy may be unpacked already.

        Args:
            name: of the archive.
            folder: within it. Archives differ in whether they hold the folder or its content; both will do.

        Raises:
            ValueError: if the local folder has neither.
        """
        if self.folder is not None and (self.folder / folder).is_dir():
            return self.folder / folder
        inside = Path(self._manager.extract(str(self._local(name))))
        return inside / folder if (inside / folder).is_dir() else inside

    def _local(self, name: str) -> Path:
        if self.folder is None:
            return Path(self._manager.download(f"{self._root}/{name}"))
        if not (self.folder / name).is_file():
            raise self._missing(name)
        return self.folder / name

    def _missing(self, name: str) -> ValueError:
        return ValueError(f"cases: {self._root!r} has no {name}; give a folder laid out as {self.hub} is on the hub")
