"""Pictures in files on a server, named by a table."""

import posixpath
import urllib.parse
from collections.abc import Sequence

import fsspec
import numpy as np
import pyarrow as pa

from datamodules.sources.columns import shown_as
from datamodules.sources.remote import is_remote
from datamodules.sources.source import Column
from workbench.errors import UserError
from workbench.weights.download import DownloadError, PassingError, RefusedError, with_retries

TRIES = 4
"""How often a picture is asked for, ever later, where the server does not answer."""
_BUSY = (408, 425, 429)  # of http: come back later


class RemotePictures:
    """Pictures in files under a folder on a server, each fetched when it is read.

    Args:
        paths: of each row, relative to `root`, or whole addresses under it.
        root: address of the folder; no path may lead out of it.
    """

    def __init__(self, paths: Column, root: str):
        self.paths, self.root = paths, root.rstrip("/")

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, row: int) -> str:
        """Return the address."""
        return f"{self.root}/{self._inside(self.paths[row])}"

    def names(self) -> pa.Array:
        """Return the paths as written."""
        return self.paths.array

    def read(self, row: int) -> bytes:
        """Fetch a file, again after a pause where the server does not answer.

        Raises:
            UserError: it is not there, may not be read, or the server did not answer several times.
        """
        path, name = self.paths[row], self.name(row)
        fault = self.fault(path, self.root)
        if fault is not None:
            raise UserError(fault)
        try:
            return with_retries(lambda: self._fetch(self._inside(path)), tries=TRIES)
        except RefusedError as error:
            raise UserError(
                f"there is no picture {name} for us ({error}); relative paths start from {self.root} (--data.root "
                "changes it)."
            ) from error
        except DownloadError as error:
            raise UserError(f"Picture {name} cannot be fetched ({error}).") from error
        except ImportError as error:
            raise UserError(
                f"Picture {name} cannot be fetched; install the package that is named here: {error}"
            ) from error

    def _fetch(self, inside: str) -> bytes:
        # fsspec keeps one file system for each process and address, so none is carried into a forked worker. The path
        # of a picture never goes where addresses are parsed: there `a::file:///b` would name a file of this machine.
        http = self.root.lower().startswith(("http://", "https://"))
        files, folder = fsspec.core.url_to_fs(self.root, **({"client_kwargs": {"trust_env": True}} if http else {}))
        inside = urllib.parse.quote(inside) if http else inside
        try:
            return files.cat_file(f"{folder.rstrip('/')}/{inside}")
        except FileNotFoundError as error:
            raise RefusedError("it is not there") from error
        except (PermissionError, IsADirectoryError) as error:
            raise RefusedError(str(error) or type(error).__name__) from error
        except Exception as error:  # the file systems have no common base
            status = getattr(error, "status", None)  # aiohttp's
            said = f"{type(error).__name__}: {error}"[:300]
            refused = isinstance(status, int) and 400 <= status < 500 and status not in _BUSY
            raise (RefusedError if refused else PassingError)(said) from error

    def _inside(self, path: str) -> str:
        return posixpath.normpath(path.removeprefix(self.root + "/"))

    @staticmethod
    def fault(path: str, root: str) -> str | None:
        """Return what is wrong with a path under a root, or None."""
        root = root.rstrip("/")
        inside = path.removeprefix(root + "/")
        if is_remote(inside):
            return (
                f"{shown_as(path)} is not under {root}; name the folder that it is under with --data.root, or download "
                "the pictures first, for example with img2dataset."
            )
        if "\0" in path:
            return f"{path[:100]!r} cannot be a path (a zero byte)."
        if inside.startswith("/") or posixpath.normpath(inside).split("/")[0] == "..":
            return f"{shown_as(path)} leads out of {root}; name a folder above it with --data.root."
        return None

    def missing(self, rows: Sequence[int]) -> list[int]:
        """Return none: to ask the server for each would take as long as reading it."""
        return []

    def take(self, rows: Sequence[int] | np.ndarray) -> "RemotePictures":
        """Return those of some rows."""
        return RemotePictures(self.paths.take(rows), self.root)
