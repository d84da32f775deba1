"""A table to read, on this machine or on another."""

import gzip
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from datamodules.sources.remote import current_version, is_remote, local_path, open_copy
from datamodules.sources.source import ReadOptions
from workbench.weights.download import Version


@dataclass(frozen=True)
class TableFile:
    """A file with a table; can be pickled.

    Attributes:
        location: path, or address.
        name: what it is called in messages.
        folder: where relative picture paths start when `ReadOptions.root` is None; a path, or an address.
        version: of a remote file, which is fetched when it is opened.
    """

    location: str
    name: str
    folder: str
    version: Version | None = None

    @classmethod
    def at(cls, location: str, folder: str | None = None) -> "TableFile":
        """Return the file at a path or an address; picture paths start from its own folder unless one is named.

        Raises:
            UserError: it is remote, and its server does not give it.
        """
        version = current_version(location) if is_remote(location) else None
        if folder is None:
            folder = os.path.dirname(location.partition("?")[0] if version else location)  # noqa: PTH120 - addresses too
        return cls(location, location, folder or ".", version)

    def open(self) -> BinaryIO:
        """Open it for reading; a remote one is fetched, if it is not here.

        Raises:
            OSError: it cannot be opened.
            UserError: it is remote and cannot be had in this version any more.
        """
        if self.version is None:
            return Path(self.location).open("rb")
        return os.fdopen(open_copy(self.location, self.version), "rb")

    def open_text(self) -> BinaryIO:
        """Open it for reading the bytes of its text, for which gzip is undone."""
        file = self.open()
        compressed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        return gzip.GzipFile(fileobj=file) if compressed else file

    def root(self, options: ReadOptions) -> str:
        """Return where relative picture paths start."""
        root = self.folder if options.root is None else options.root
        return root if is_remote(root) else local_path(root)
