"""Fetch a file over HTTP: whole and checked, or nothing under its name."""

import errno
import hashlib
import os
import re
import shutil
import time
from email.utils import parsedate_to_datetime
from http.client import IncompleteRead
from pathlib import Path

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

_PIECE = 1 << 16
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DownloadError(OSError):
    """A file could not be fetched; the text is the reason, in a few words."""


class _PassingError(Exception):
    """What may be gone at the next try; `wait` are the seconds that the server asks for, if it does."""

    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.wait = wait


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


class _Part:
    """The partial file: what has come so far, its hash and its progress bar."""

    def __init__(self, path: Path, name: str):
        self.path = path
        self.digest = digest_of(path) if path.exists() else hashlib.sha256()
        # Unbuffered: a full disk is noticed where it is written, not once more on closing.
        self.file = path.open("ab", buffering=0)
        self.size = self.file.tell()
        self.pieced = False
        self.bar = tqdm(desc=name, initial=self.size, unit="B", unit_scale=True, leave=False, disable=None)

    def expect(self, total: int | None) -> None:
        self.bar.total = total
        self.bar.refresh()

    def add(self, piece: bytes) -> None:
        rest = memoryview(piece)
        while rest:
            rest = rest[self.file.write(rest) :]
        self.digest.update(piece)
        self.size += len(piece)
        self.bar.update(len(piece))

    def clear(self) -> None:
        self.file.truncate(0)
        self.digest, self.size, self.pieced = hashlib.sha256(), 0, False
        self.bar.reset()

    def take_name(self, path: Path) -> None:
        os.fsync(self.file.fileno())
        os.replace(self.path, path)  # noqa: PTH105 - Path.replace is the same call

    def close(self) -> None:
        self.bar.close()
        self.file.close()
        if not self.size:
            self.path.unlink(missing_ok=True)


def _download_alone(url: str, path: Path, sha256: str) -> None:
    """Fill the partial file and give it its name; the caller holds the lock."""
    part = _Part(Path(f"{path}.part"), path.name)
    try:
        _fill(part, url, sha256)
        part.take_name(path)
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        # A disk left full stops other programs as well, so what came is given up.
        part.clear()
        free, total = shutil.disk_usage(path.parent).free, part.bar.total
        needed = f", the file takes {_bytes(total)}" if total else ""
        raise DownloadError(
            f"the disk is full ({error.strerror}): {_bytes(free)} are free in {path.parent}{needed}"
        ) from error
    finally:
        part.close()


def _fill(part: _Part, url: str, sha256: str) -> None:
    """Fetch until the hash fits. Pieces of two answers may be of two files, which a second start from zero mends."""
    for last in (False, True):
        if part.digest.hexdigest() != sha256:
            _fetch(part, url)
        found, pieced = part.digest.hexdigest(), part.pieced
        if found == sha256:
            return
        part.clear()
        if last or not pieced:
            raise DownloadError(f"what came has the sha256 {found}")


def _fetch(part: _Part, url: str) -> None:
    """Ask until the server has sent all of it; only failures that bring the file no further count."""
    furthest, failed = part.size, 0
    while True:
        try:
            return _ask(part, url)
        except _PassingError as error:
            if part.size > furthest:
                furthest, failed = part.size, 0
            failed += 1
            if failed >= TRIES:
                kept = f"; the {_bytes(part.size)} that came are kept for the next start" if part.size else ""
                raise DownloadError(f"{error}, {failed} times in a row{kept}") from error
            wait = FIRST_WAIT * 2 ** (failed - 1) if error.wait is None else error.wait
            wait = min(wait, LONGEST_WAIT)
            part.bar.set_postfix_str(f"{error}, again in {wait:.0f} s")
        time.sleep(wait)
        part.bar.set_postfix_str("")


def _ask(part: _Part, url: str) -> None:
    """Add what one request brings; on return the file is as long as the server said."""
    headers = {"Accept-Encoding": "identity"}
    if part.size:
        headers["Range"] = f"bytes={part.size}-"
    try:
        with requests.get(url, headers=headers, stream=True, timeout=(CONNECT_TIMEOUT, READ_TIMEOUT)) as answer:
            total = _begin(part, answer)
            part.expect(total)
            for piece in answer.iter_content(_PIECE):
                part.add(piece)
    except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
        raise _PassingError(_reason(error)) from error
    except requests.RequestException as error:
        raise DownloadError(str(error)) from error
    if total is not None and part.size < total:
        raise _PassingError(f"{part.size} of {total} bytes came")


def _begin(part: _Part, answer: requests.Response) -> int | None:
    """Make the partial file ready for an answer's body; return the length of the whole file if the answer tells it."""
    status, said = answer.status_code, f"HTTP {answer.status_code} {answer.reason}"
    if status == 429 or status >= 500:
        raise _PassingError(said, _retry_after(answer))
    if status == 200:  # the server knows no ranges, or was not asked for one
        part.clear()
        length = answer.headers.get("Content-Length", "")
        return int(length) if length.isdecimal() else None
    if not part.size or status not in (206, 416):
        raise DownloadError(said)
    sent = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
    if status == 416 or not sent or int(sent[1]) != part.size:
        part.clear()
        raise _PassingError(said, wait=0)
    part.pieced = True
    return None if sent[2] == "*" else int(sent[2])


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
