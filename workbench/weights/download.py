"""Fetch a file over HTTP: whole and checked, or nothing under its name."""

import errno
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import IncompleteRead
from pathlib import Path
from typing import TypeVar

import requests
from filelock import FileLock
from tqdm import tqdm

CONNECT_TIMEOUT = 10.0
"""Seconds until a server that does not answer is given up."""
READ_TIMEOUT = 30.0
"""Seconds without a byte that count as a dropped connection."""
TRIES = 5
"""Failures in a row, none of which brought the file further, after which to give up."""
FIRST_WAIT = 1.0
"""Seconds before the second try; they double from try to try."""
LONGEST_WAIT = 60.0
"""The most seconds between two tries, whatever the server's Retry-After says."""

T = TypeVar("T")
_PIECE = 1 << 16
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DownloadError(OSError):
    """A file could not be fetched; the text is the reason, in a few words."""


class RefusedError(DownloadError):
    """The server answers, and will not give the file: it is not there, or not for us."""


class ChangedError(DownloadError):
    """The server has another version of the file than the one that was asked for."""


class DiskFullError(DownloadError):
    """There is no room for it here."""


class PassingError(Exception):
    """What may be gone at the next try; `wait` are the seconds that the server asks for, if it does."""

    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class Version:
    """What a server says of a file; a file of which it says the same is the same file.

    Attributes:
        size: in bytes; None where the server does not tell it.
        tag: its ETag, else when it was last modified, in whatever form; empty where the server tells neither.
    """

    size: int | None
    tag: str = ""

    def differs(self, other: "Version") -> bool:
        """Say whether the two cannot be one file, as far as both are told."""
        return any(a and b and a != b for a, b in ((self.tag, other.tag), (self.size, other.size)))


def download(url: str, path: str | Path, sha256: str) -> None:
    """Fetch a file unless it is there; of many processes that ask at once, one fetches and the others wait for it.

    What has come is kept in `<path>.part`, from which a later call goes on; `<path>.lock` keeps other processes out.
    A file at `path` with another hash stays until the right one takes its place. On a terminal, stderr shows progress.

    Args:
        url: where it is; proxies and certificates are those of the environment, as `requests` reads them.
        path: the name that it takes; missing folders are made.
        sha256: hash of the right file, in hexadecimal.

    Raises:
        DownloadError: it cannot be had, or the disk does not take it.
    """
    path = Path(path)
    lock = Path(f"{path}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            if path.is_dir():
                raise DownloadError(f"{path} is a folder")
            if not path.exists() or digest_of(path).hexdigest() != sha256:
                _download_alone(url, path, sha256)
            # Only after success: whoever holds or makes another lock from now on finds the file.
            lock.unlink(missing_ok=True)
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(str(error)) from error


def digest_of(path: Path) -> "hashlib._Hash":
    """Return the sha256 object of a file's content, to which more can be added."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest


def version_of(url: str, tries: int | None = None) -> Version:
    """Ask a server for a file's version, by asking for its first byte: not all that answer GET answer HEAD.

    Raises:
        RefusedError: the server does not give it.
        DownloadError: there was no answer, `tries` times (None: `TRIES`).
    """

    def ask() -> Version:
        with _answer(url, {"Range": "bytes=0-0"}) as answer:
            _raise_passing(answer)
            if answer.status_code not in (200, 206, 416):
                raise RefusedError(_said(answer))
            return _version_told(answer)

    return with_retries(ask, tries=tries)


def fetch_version(url: str, path: Path, version: Version, show: bool = True) -> None:
    """Fetch a version of a file; like `download`, but known by length and version, and without its lock.

    Args:
        url: where it is.
        path: the name that it takes; `<path>.part` must be of this version too, and the caller keeps others out.
        version: as `version_of` returned it.
        show: show progress on a terminal.

    Raises:
        ChangedError: the server has another version by now.
        DownloadError: it cannot be had, or the disk does not take it.
    """
    fill_part(path, version.size, lambda part: _ask(part, url, version), show)


def fill_part(path: Path, size: int | None, ask: Callable[["Part"], None], show: bool = True) -> None:
    """Fill `<path>.part` up to a length by asking, as often as it takes, for what comes after it; then name it `path`.

    Args:
        path: the name that it takes in the end.
        size: in bytes; None ends with the first `ask` that returns.
        ask: adds to the part, and returns when nothing is left to add, or raises `PassingError`.
        show: show progress on a terminal.

    Raises:
        DownloadError: it cannot be had, or the disk does not take it.
    """
    with _part_of(path, hashed=False, show=show) as part:
        if size is not None and part.size > size:
            part.clear()
        part.expect(size)
        if size is None or part.size < size:
            with_retries(lambda: ask(part), part)
        if size not in (None, part.size):
            came = part.size
            part.clear()
            raise DownloadError(f"{came} bytes came and {size} were announced")
        part.take_name(path)


class Part:
    """The partial file: what has come so far, its hash and its progress bar."""

    def __init__(self, path: Path, name: str, hashed: bool = True, show: bool = True):
        self.path, self.hashed = path, hashed
        self.digest = digest_of(path) if hashed and path.exists() else hashlib.sha256()
        # Unbuffered: a full disk is noticed where it is written, not once more on closing.
        self.file = path.open("ab", buffering=0)
        self.size = self.file.tell()
        self.pieced = False
        self.bar = tqdm(
            desc=name, initial=self.size, unit="B", unit_scale=True, leave=False, disable=None if show else True
        )

    def expect(self, total: int | None) -> None:
        """Show the whole length, where it is known."""
        self.bar.total = total
        self.bar.refresh()

    def add(self, piece: bytes) -> None:
        """Append bytes."""
        rest = memoryview(piece)
        while rest:
            rest = rest[self.file.write(rest) :]
        if self.hashed:
            self.digest.update(piece)
        self.size += len(piece)
        self.bar.update(len(piece))

    def clear(self) -> None:
        """Give up what came."""
        self.file.truncate(0)
        self.digest, self.size, self.pieced = hashlib.sha256(), 0, False
        self.bar.reset()

    def take_name(self, path: Path) -> None:
        """Rename the file, once it is on the disk."""
        os.fsync(self.file.fileno())
        os.replace(self.path, path)  # noqa: PTH105 - Path.replace is the same call

    def close(self) -> None:
        """End the bar; an empty file goes."""
        self.bar.close()
        self.file.close()
        if not self.size:
            self.path.unlink(missing_ok=True)


@contextmanager
def _part_of(path: Path, **options: bool) -> Iterator[Part]:
    """Open the partial file of `path`; a disk that it fills is an error that names the room there is."""
    part = Part(Path(f"{path}.part"), path.name, **options)
    try:
        yield part
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        # A disk left full stops other programs as well, so what came is given up.
        part.clear()
        free, total = shutil.disk_usage(path.parent).free, part.bar.total
        needed = f", the file takes {_bytes(total)}" if total else ""
        raise DiskFullError(
            f"the disk is full ({error.strerror}): {_bytes(free)} are free in {path.parent}{needed}"
        ) from error
    finally:
        part.close()


def _download_alone(url: str, path: Path, sha256: str) -> None:
    """Fill the partial file and give it its name; the caller holds the lock."""
    with _part_of(path) as part:
        _fill(part, url, sha256)
        part.take_name(path)


def _fill(part: Part, url: str, sha256: str) -> None:
    """Fetch until the hash fits. Pieces of two answers may be of two files, which a second start from zero mends."""
    for last in (False, True):
        if part.digest.hexdigest() != sha256:
            with_retries(lambda: _ask(part, url), part)
        found, pieced = part.digest.hexdigest(), part.pieced
        if found == sha256:
            return
        part.clear()
        if last or not pieced:
            raise DownloadError(f"what came has the sha256 {found}")


def with_retries(ask: Callable[[], T], part: Part | None = None, tries: int | None = None) -> T:
    """Ask until that succeeds, ever later; only failures that bring the file no further count.

    Args:
        ask: raises `PassingError` for what may be gone at the next try.
        part: the file that it adds to, if any.
        tries: failures in a row after which to give up; None takes `TRIES`.

    Raises:
        DownloadError: it was given up.
    """
    furthest, failed = part.size if part else 0, 0
    while True:
        try:
            return ask()
        except PassingError as error:
            if part and part.size > furthest:
                furthest, failed = part.size, 0
            failed += 1
            if failed >= (tries or TRIES):
                kept = f"; the {_bytes(part.size)} that came are kept for the next start" if part and part.size else ""
                times = f", {failed} times in a row" if failed > 1 else ""
                raise DownloadError(f"{error}{times}{kept}") from error
            wait = FIRST_WAIT * 2 ** (failed - 1) if error.wait is None else error.wait
            wait = min(wait, LONGEST_WAIT)
            if part:
                part.bar.set_postfix_str(f"{error}, again in {wait:.0f} s")
        time.sleep(wait)
        if part:
            part.bar.set_postfix_str("")


def _ask(part: Part, url: str, version: Version | None = None) -> None:
    """Add what one request brings; on return the file is as long as the server said."""
    headers = {"Range": f"bytes={part.size}-"} if part.size else {}
    with _answer(url, headers) as answer:
        total = _begin(part, answer, version)
        if total is None and version is not None:
            total = version.size
        part.expect(total)
        for piece in answer.iter_content(_PIECE):
            part.add(piece)
    if total is not None and part.size < total:
        raise PassingError(f"{part.size} of {total} bytes came")


@contextmanager
def _answer(url: str, headers: dict[str, str]) -> Iterator[requests.Response]:
    """Send one request; `PassingError` is what goes wrong with its connection, until the end of the block."""
    headers = {"Accept-Encoding": "identity", **headers}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=(CONNECT_TIMEOUT, READ_TIMEOUT)) as answer:
            yield answer
    except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
        raise PassingError(_reason(error)) from error
    except requests.RequestException as error:
        raise DownloadError(str(error)) from error


def _begin(part: Part, answer: requests.Response, version: Version | None) -> int | None:
    """Make the partial file ready for an answer's body; return the length of the whole file if the answer tells it."""
    status, told = answer.status_code, _version_told(answer)
    _raise_passing(answer)
    if version is not None and status in (200, 206) and told.differs(version):
        raise ChangedError("it changed on the server")
    if status == 200:  # the server knows no ranges, or was not asked for one
        part.clear()
        return told.size
    if not part.size or status not in (206, 416):
        raise RefusedError(_said(answer))
    sent = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    if status == 416 or not sent or int(sent[1]) != part.size:
        part.clear()
        raise PassingError(_said(answer), wait=0)
    part.pieced = True
    return told.size


def _said(answer: requests.Response) -> str:
    return f"HTTP {answer.status_code} {answer.reason}"


def _raise_passing(answer: requests.Response) -> None:
    """Raise what a busy server answers."""
    if answer.status_code == 429 or answer.status_code >= 500:
        raise PassingError(_said(answer), _retry_after(answer))


def _version_told(answer: requests.Response) -> Version:
    """Return what an answer's head says of the whole file, of which it may bring a part."""
    headers = answer.headers
    if answer.status_code == 200:
        length = headers.get("Content-Length", "")
    else:
        length = headers.get("Content-Range", "").rpartition("/")[2]
    return Version(int(length) if length.isdecimal() else None, headers.get("ETag") or headers.get("Last-Modified", ""))


def _retry_after(answer: requests.Response) -> float | None:
    """Read the header's two forms, seconds and a date."""
    told = answer.headers.get("Retry-After", "")
    if told.isdecimal():
        return float(told)
    try:
        return max(0.0, parsedate_to_datetime(told).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _reason(error: BaseException) -> str:
    """Return what the innermost exception says: those around it repeat the whole address."""
    proxy = "proxy: " if isinstance(error, requests.exceptions.ProxyError) else ""
    while inner := error.__cause__ or next((arg for arg in error.args if isinstance(arg, BaseException)), None):
        error = inner
    if isinstance(error, TimeoutError):
        return f"{proxy}timed out"
    if isinstance(error, IncompleteRead):
        return f"{proxy}the connection was dropped"
    text = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}".strip()
    return f"{proxy}{text}"


def _bytes(count: int) -> str:
    return f"{tqdm.format_sizeof(count)}B"
