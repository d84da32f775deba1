"""Where the files in a tar archive lie: its headers, and nothing between them.

ustar, GNU and pax archives and their common ancestor (v7). What is no plain file or folder is refused: links, devices
and sparse files have no bytes of their own at any place.
"""

import os
import re
from collections.abc import Iterator
from typing import NamedTuple, NoReturn
from zlib import adler32

from workbench.errors import UserError

BLOCK = 512
MOST_MEMBERS = 10_000_000
LONGEST_EXTENSION = 1 << 20
"""Bytes of a long name or of a pax header."""

_AHEAD = 8192
_ZEROS = bytes(BLOCK)
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_REFUSED = {
    b"1": "a hard link; pack the files themselves (tar --hard-dereference)",
    b"2": "a symbolic link; pack the files themselves (tar --dereference)",
    b"3": "a device",
    b"4": "a device",
    b"6": "a FIFO",
    b"S": "a sparse file; pack it anew without --sparse",
    b"M": "the rest of a file in another volume; pack it in one",
}
_RECORD = re.compile(rb"(\d{1,7}) ([^=\0]+)=")


class Member(NamedTuple):
    """A file in an archive: its name, and where its bytes lie in the archive."""

    name: str
    offset: int
    size: int


class TarReader:
    """The members of an archive, in order, found by seeking over their contents.

    An archive should end with a block of zeros. Where it just ends after a whole member, that may be all of it or not:
    `ended` is False then. Bytes of names that are not UTF-8 are written as `\\xNN`.

    Args:
        descriptor: of the file; stays open, and its position is not used.
        name: what messages call it.

    Attributes:
        ended: after the last member, whether the archive has its end.
    """

    def __init__(self, descriptor: int, name: str):
        self.descriptor, self.name = descriptor, name
        self.size = os.fstat(descriptor).st_size
        self.ended = False
        self._ahead, self._ahead_at = b"", 0

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes of the archive, fewer where it ends."""
        begin = offset - self._ahead_at
        if begin >= 0 and begin + size <= len(self._ahead):
            return self._ahead[begin : begin + size]
        return _pread(self.descriptor, offset, size)

    def __iter__(self) -> Iterator[Member]:
        """Yield every file.

        Raises:
            UserError: what is no whole tar archive of plain files, with the archive and the member.
        """
        position, headers, size_told = 0, 0, None
        name_told: str | None = None
        while True:
            header = self._header(position)
            if len(header) < BLOCK or header == _ZEROS:
                self._require_end(position, header, extended=name_told is not None or size_told is not None)
                return
            headers += 1
            if headers > MOST_MEMBERS:
                self._refuse(f"has more than {MOST_MEMBERS:,} members")
            if not _sums_up(header):
                self._refuse_header(position, header)
            kind = header[156:157]
            size = self._number(header[124:136], position)
            offset = position + BLOCK
            if kind in b"xXgLK":
                if size > LONGEST_EXTENSION:
                    self._refuse(f"has a header of {size:,} bytes at byte {position:,}, more than any name takes")
                text = self._whole(offset, size, f"the header at byte {position:,}")
                position = offset + _padded(size)
                if kind == b"L":
                    name_told = name_told or self._decoded(text.split(b"\0", 1)[0])
                elif kind != b"K":
                    path, length = self._pax(text, kind == b"g", offset)
                    name_told, size_told = name_told or path, size_told if length is None else length
                continue
            name = name_told or self._name(header)
            if size_told is not None:
                size = size_told
            name_told = size_told = None
            self._require_plain(name, kind, position)
            if kind == b"5" or (kind == b"\0" and name.endswith("/")):  # a folder, which has no contents
                position = offset
                continue
            if offset + size > self.size:
                missing = offset + size - self.size
                self._refuse(f"is cut short: {missing:,} bytes of {name!r} are missing; write or fetch it again")
            position = offset + _padded(size)
            yield Member(name, offset, size)

    def _header(self, position: int) -> bytes:
        begin = position - self._ahead_at
        if not 0 <= begin <= len(self._ahead) - BLOCK:
            # Captions are short and lie together: one call reads them, with their headers and that of the next picture.
            self._ahead, self._ahead_at, begin = _pread(self.descriptor, position, _AHEAD), position, 0
        return self._ahead[begin : begin + BLOCK]

    def _whole(self, offset: int, size: int, what: str) -> bytes:
        content = self.read(offset, size)
        if len(content) < size:
            self._refuse(f"is cut short: {size - len(content):,} bytes of {what} are missing; write or fetch it again")
        return content

    def _require_end(self, position: int, header: bytes, extended: bool) -> None:
        """Refuse an archive that ends in the middle of something, or has more after its end."""
        if self.size == 0:
            self._refuse("is empty")
        if extended or header.strip(b"\0"):
            if position == 0:
                self._refuse_header(position, header)
            self._refuse(f"is cut short in the header at byte {position:,}; write or fetch it again")
        self.ended = header == _ZEROS
        while piece := _pread(self.descriptor, position, 1 << 20):
            if piece.strip(b"\0"):
                self._refuse(
                    f"goes on after its end at byte {position:,}, which would be left out; archives are joined by "
                    "tar --concatenate"
                )
            position += len(piece)

    def _require_plain(self, name: str, kind: bytes, position: int) -> None:
        if kind not in (b"\0", b"0", b"5", b"7"):
            what = _REFUSED.get(kind, f"of the unknown kind {kind!r}")
            self._refuse(f"has the member {name!r} at byte {position:,}, which is {what}")
        if not name or "\0" in name:
            self._refuse(f"has a member without a name at byte {position:,}")
        if name[0] == "/" or (".." in name and ".." in name.split("/")):
            self._refuse(f"has the member {name!r}, which leads out of the archive")

    def _refuse_header(self, position: int, header: bytes) -> NoReturn:
        if position == 0:
            for magic, name in _COMPRESSED.items():
                if header.startswith(magic):
                    self._refuse(f"is compressed ({name}); decompress it, as samples are read at their place in it")
            self._refuse("is no tar archive, as the checksum of its first header is wrong")
        self._refuse(f"is damaged: the checksum of the header at byte {position:,} is wrong; write or fetch it again")

    def _number(self, field: bytes, position: int) -> int:
        """Read a size: octal digits, or, marked by the first bit, binary."""
        if field[0] == 0x80:
            return int.from_bytes(field[1:], "big")
        size = _octal(field)
        if size is None:
            self._refuse(f"has a member at byte {position:,} whose size is no number: {field!r}")
        return size

    def _name(self, header: bytes) -> str:
        name = header[:100].split(b"\0", 1)[0]
        if header[257:263] == b"ustar\0" and header[345]:  # GNU's archives have times there
            name = header[345:500].split(b"\0", 1)[0] + b"/" + name
        return self._decoded(name)

    @staticmethod
    def _decoded(name: bytes) -> str:
        return name.decode("utf-8", "backslashreplace")

    def _pax(self, text: bytes, of_all: bool, offset: int) -> tuple[str | None, int | None]:
        """Return the path and the size that a pax header has for the next member."""
        told, position = {}, 0
        while position < len(text) and text[position]:
            match = _RECORD.match(text, position)
            end = position + int(match[1]) if match else 0  # beyond the text, what should end a line is nothing
            if not match or not match.end() < end or text[end - 1 : end] != b"\n":
                self._refuse(f"has a damaged pax header at byte {offset:,}; write or fetch it again")
            told[match[2]] = text[match.end() : end - 1]
            position = end
        if any(key.startswith(b"GNU.sparse") for key in told):
            self._refuse(f"has a member after byte {offset:,}, which is {_REFUSED[b'S']}")
        size = told.get(b"size")
        if of_all and (size is not None or b"path" in told):
            self._refuse(f"has a pax header at byte {offset:,} that gives all members one name or size")
        if size is not None and not re.fullmatch(rb"\d{1,19}", size):
            self._refuse(f"has a pax header at byte {offset:,} whose size is no number: {size[:40]!r}")
        path = self._decoded(told[b"path"]) if b"path" in told else None
        return path, None if size is None else int(size)

    def _refuse(self, why: str) -> NoReturn:
        raise UserError(f"{self.name} {why}.")


def _pread(descriptor: int, offset: int, size: int) -> bytes:
    """Read all that is asked for, unless the file ends; one call may return less."""
    content = os.pread(descriptor, size, offset)
    while len(content) < size and (more := os.pread(descriptor, size - len(content), offset + len(content))):
        content += more
    return content


def _octal(field: bytes) -> int | None:
    """Read octal digits among spaces, up to a zero byte; none at all are 0, and anything else is None."""
    digits = field.split(b"\0", 1)[0].strip(b" ")
    if not digits:
        return 0
    try:
        return int(digits, 8) if digits.isdigit() else None
    except ValueError:  # 8 and 9
        return None


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _sums_up(header: bytes) -> bool:
    """Compare a header with its checksum: the sum of its bytes, with the checksum's own taken as spaces."""
    stored = _octal(header[148:156])
    # The low half of Adler-32 is 1 + the sum, modulo 65521, which the sum of 256 bytes does not reach. Fast.
    total = (adler32(header[:256]) & 0xFFFF) + (adler32(header[256:]) & 0xFFFF) - 2
    own = sum(header[148:156]) - 8 * 32
    if total - own == stored:
        return True
    # Some old programs added signed bytes.
    negative = sum(byte > 127 for byte in header[:148] + header[156:])
    return total - own - 256 * negative == stored
