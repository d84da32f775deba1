"""Pictures that lie in tar archives, each read at its place."""

import os
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datamodules.sources.remote import is_remote, open_copy
from datamodules.sources.source import Column
from workbench.errors import UserError
from workbench.weights.download import Version

MOST_OPEN = 64
"""Archives that a process keeps open."""
MOST_COPIES_OPEN = 24
"""Of remote archives fewer: the copies that are open are what the cache cannot delete."""


@dataclass(frozen=True)
class Shard:
    """An archive, as it was when it was indexed.

    Attributes:
        location: path or address.
        size: in bytes; None where a server does not tell.
        stamp: of a file, when it was modified, in ns; of a remote one, its version's tag.
    """

    location: str
    size: int | None
    stamp: str

    def open(self, show: bool = False) -> int:
        """Return a file descriptor of it, or of a copy if it is remote, which is fetched if there is none.

        Raises:
            UserError: it is not there, may not be read, or changed.
        """
        if is_remote(self.location):
            return open_copy(self.location, Version(self.size, self.stamp), show=show)
        try:
            descriptor = os.open(self.location, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"{self.location} cannot be read ({error.strerror}).") from error
        try:
            self.require_unchanged(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def require_unchanged(self, descriptor: int) -> None:
        """Refuse a file that was written since.

        Raises:
            UserError: it was.
        """
        now = os.fstat(descriptor)
        changed = now.st_size != self.size and self.size is not None
        if changed or (not is_remote(self.location) and str(now.st_mtime_ns) != self.stamp):
            raise UserError(f"{self.location} changed since it was indexed; start again, and it is indexed anew.")


class _Open:
    """An open archive; closed with the last reference, so never while another thread reads from it."""

    def __init__(self, shard: Shard):
        self.shard = shard
        self.remote = is_remote(shard.location)
        self.descriptor = shard.open()

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):  # it could not be opened
            os.close(self.descriptor)

    def read(self, offset: int, size: int) -> bytes:
        if not self.remote:  # a copy cannot change
            self.shard.require_unchanged(self.descriptor)
        content = os.pread(self.descriptor, size, offset)
        while len(content) < size and (more := os.pread(self.descriptor, size - len(content), offset + len(content))):
            content += more
        return content


class TarMembers:
    """Pictures in tar archives; a remote archive is read from its copy.

    Args:
        shards: the archives.
        numbers: of each row's archive among them, int32.
        offsets: of each row's picture in the archive in bytes, int64.
        sizes: of the pictures in bytes, int64.
        members: what they are called in the archive.
    """

    def __init__(self, shards: Sequence[Shard], numbers: Column, offsets: Column, sizes: Column, members: Column):
        self.shards = list(shards)
        self.numbers, self.offsets, self.sizes, self.members = numbers, offsets, sizes, members
        self._open: OrderedDict[int, _Open] = OrderedDict()
        self._process = os.getpid()

    def __len__(self) -> int:
        return len(self.numbers)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}

    def read(self, row: int) -> bytes:
        """Read a member.

        Raises:
            UserError: the archive is not there, cannot be read, or changed since it was indexed.
        """
        number, offset, size = self.numbers[row], self.offsets[row], self.sizes[row]
        try:
            content = self._opened(number).read(offset, size)
        except (OSError, OverflowError) as error:
            self._open.pop(number, None)
            raise UserError(f"{self.name(row)} cannot be read ({error}).") from error
        if len(content) < size:
            raise UserError(f"{self.name(row)} is cut short: {size - len(content):,} bytes of {size:,} are missing.")
        return content

    def _opened(self, number: int) -> _Open:
        """Return an archive, opened if it is not; those used last stay open."""
        if self._process != os.getpid():  # forked: what is open is the parent's
            self._open, self._process = OrderedDict(), os.getpid()
        # Without a lock, which a fork could copy locked: each step is one operation, and a loser opens the file anew.
        file = self._open.pop(number, None) or _Open(self.shards[number])
        self._open[number] = file
        with suppress(KeyError):
            while len(self._open) > (MOST_COPIES_OPEN if file.remote else MOST_OPEN):
                self._open.popitem(last=False)
        return file

    def name(self, row: int) -> str:
        """Return `shard.tar/member`, with the shard's path or address."""
        return f"{self.shards[self.numbers[row]].location}/{self.members[row]}"

    def names(self) -> pa.Array:
        """Return `number of the shard/member` for all rows."""
        numbers = self.numbers.array.cast(pa.large_string())
        return pc.binary_join_element_wise(
            numbers, self.members.array.cast(pa.large_string()), pa.scalar("/", pa.large_string())
        )

    def missing(self, rows: Sequence[int]) -> list[int]:
        """Return the rows whose archive is not there, or not as it was; copies of remote ones can be fetched again."""
        gone = {number for number in {self.numbers[row] for row in rows} if self._is_gone(self.shards[number])}
        return [row for row in rows if gone and self.numbers[row] in gone]

    @staticmethod
    def _is_gone(shard: Shard) -> bool:
        if is_remote(shard.location):
            return False
        try:
            os.close(shard.open())
        except UserError:
            return True
        return False

    def take(self, rows: Sequence[int] | np.ndarray) -> "TarMembers":
        """Return those of some rows."""
        columns = (self.numbers, self.offsets, self.sizes, self.members)
        return TarMembers(self.shards, *(column.take(rows) for column in columns))


@dataclass(frozen=True)
class MemberPlaces:
    """Row -> the picture's name, for messages."""

    pictures: TarMembers

    def __call__(self, row: int) -> str:
        """Return a row's place."""
        return self.pictures.name(row)

    def take(self, rows: Sequence[int] | np.ndarray) -> "MemberPlaces":
        """Return the places of some rows."""
        return MemberPlaces(self.pictures.take(rows))
