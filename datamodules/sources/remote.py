"""Places on other machines: which they are, what a pattern stands for, and a copy on this one.

Copies lie in `clip-workbench/remote` in the user's cache folder, `CLIP_WORKBENCH_REMOTE_CACHE_GB` gigabytes of them at
most (default 100); those that were not used for longest go first, and none that is in use.
"""

import fcntl
import glob
import hashlib
import itertools
import json
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from filelock import FileLock, Timeout

from datamodules.sources.braces import expand_braces
from workbench.atomic import written_atomically
from workbench.errors import Notice, UserError
from workbench.weights.download import (
    ChangedError,
    DiskFullError,
    DownloadError,
    Part,
    PassingError,
    RefusedError,
    Version,
    fetch_version,
    fill_part,
    version_of,
    with_retries,
)

CACHE_GB = 100.0
"""Size of the cache unless `CLIP_WORKBENCH_REMOTE_CACHE_GB` says otherwise; in 10^9 bytes."""
_PIECE = 1 << 20
_TIMES = 3
# Of what file systems call the version of a file: s3, gs, az, hf, ftp and sftp, memory.
_TAGS = ("ETag", "etag", "e_tag", "blob_id", "LastModified", "last_modified", "updated", "modify", "mtime", "created")
_unreachable: set[str] = set()


def is_remote(location: str | Path) -> bool:
    """Say whether a location is an address on another machine: `scheme://...` but for `file://`, and no `C:` drive."""
    match = re.match(r"(?:[a-z][\w+.-]+::)*([a-z][\w+.-]+)://", str(location), re.IGNORECASE)
    return match is not None and match[1].lower() not in ("file", "local")


def local_path(location: str | Path) -> str:
    """Return the path of a location that is not remote: without `file://`."""
    location = str(location)
    if re.match(r"(file|local)://", location, re.IGNORECASE):
        return unquote(location.partition("://")[2])
    return os.path.expanduser(location)  # noqa: PTH111 - as written but for this


def user_cache(*names: str) -> Path:
    """Return a folder in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "clip-workbench", *names)


# Patterns


def expand(location: str | Path) -> list[str]:
    """Return the files that a location stands for, sorted.

    `{000..010}` and `{0..10..2}` are numbers, as wide as they are written, `{a,b}` alternatives; `*`, `?`, `[ab]` and
    `**` are looked up, in remote addresses through fsspec, where a `?` of http starts the query. A local file that is
    called what the pattern says is meant itself. A remote address without `*` is taken to be there.

    Args:
        location: path, address or pattern.

    Raises:
        UserError: there is nothing, or something of what braces name is missing.
    """
    location = str(location)
    if location.startswith("pipe:"):
        raise UserError(f"{location} would run a program; give the address that it reads from (https://..., s3://...).")
    if is_remote(location):
        names = expand_braces(location)
        return sorted({found for name in names for found in (_remote_glob(name) if _is_pattern(name) else [name])})
    path = local_path(location)
    if _exists(path):
        return [path]
    names, missing = expand_braces(path), []
    found = set()
    for name in names:
        if _exists(name):
            found.add(name)
        elif glob.has_magic(name):
            found.update(glob.glob(name, recursive=True))  # noqa: PTH207 - paths stay as they are written
        else:
            missing.append(name)
    if missing and (found or len(names) > 1):
        raise UserError(
            f"{len(missing):,} of the {len(names):,} files that {location} names are not there, the first {missing[0]}."
            f"{_beside(missing[0])}"
        )
    if not found:
        raise UserError(f"there is nothing at {location}.{_beside(names[0])}")
    return sorted(found)


def _exists(path: str) -> bool:
    try:
        return os.path.exists(path)  # noqa: PTH110 - a path that cannot be one is not there
    except ValueError:  # a zero byte
        return False


def _beside(path: str) -> str:
    """Return a sentence on what is in the folder where a file is missing."""
    folder = os.path.dirname(path) or "."  # noqa: PTH120
    while glob.has_magic(os.path.basename(folder)):  # noqa: PTH119
        folder = os.path.dirname(folder) or "."  # noqa: PTH120
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in itertools.islice(entries, 10_000)]
    except (OSError, ValueError):
        return f" There is no folder {folder} either."
    return _listed(folder, names)


def _listed(folder: str, names: list[str]) -> str:
    if not names:
        return f" {folder} is empty."
    return f" {folder} has {', '.join(sorted(names)[:5])}{', ...' if len(names) > 5 else ''}."


# What servers say


def _is_pattern(url: str) -> bool:
    return "*" in urlsplit(url).path if _is_http(url) else glob.has_magic(url)


def _is_http(url: str) -> bool:
    return url.lower().startswith(("http://", "https://"))


def _file_system(url: str) -> tuple[Any, str]:
    """Return fsspec's file system of an address, and the path there.

    Raises:
        UserError: the protocol is not known, or the package that speaks it is not there.
    """
    from fsspec.core import url_to_fs

    try:
        # Proxies of the environment, as for what `requests` fetches.
        return url_to_fs(url, **({"client_kwargs": {"trust_env": True}} if _is_http(url) else {}))
    except ImportError as error:
        scheme = url.partition("://")[0].rpartition("::")[2].lower()
        package = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
        package |= {"http": "aiohttp", "https": "aiohttp", "sftp": "paramiko", "ssh": "paramiko"}
        hint = f"pip install {package[scheme]}" if scheme in package else "install the package that it names"
        raise UserError(f"{url} cannot be read: {hint} ({error}).") from error
    except ValueError as error:
        raise UserError(f"{url} cannot be read ({error}).") from error


@contextmanager
def _spoken_to(url: str) -> Iterator[None]:
    """Sort what fsspec's file systems raise, which has no common base."""
    try:
        yield
    except FileNotFoundError as error:
        raise RefusedError("it is not there") from error
    except (PermissionError, IsADirectoryError, NotADirectoryError) as error:
        raise RefusedError(str(error) or type(error).__name__) from error
    except (UserError, DownloadError, PassingError):
        raise
    except Exception as error:
        raise PassingError(f"{type(error).__name__}: {error}"[:300]) from error


def _remote_glob(pattern: str) -> list[str]:
    """Look a pattern up where it is."""
    system, path = _file_system(pattern)

    def ask(what: str, *args: Any) -> list[str]:
        with _spoken_to(pattern):
            return [str(name) for name in getattr(system, what)(*args)]

    try:
        found = with_retries(lambda: ask("glob", path))
    except DownloadError as error:
        raise UserError(
            f"{pattern} cannot be looked up ({error}); name the files with {{000..010}} instead."
        ) from error
    if not found:
        folder, beside = path[: re.search(r"[*?\[]", path).start()].rpartition("/")[0] + "/", ""  # type: ignore[union-attr]
        with suppress(DownloadError):
            names = with_retries(lambda: ask("ls", folder, False))
            beside = _listed(folder, [name.rstrip("/").rpartition("/")[2] for name in names])
        raise UserError(f"there is nothing at {pattern}.{beside}")
    return [system.unstrip_protocol(name) if "://" not in name else name for name in found]


def remote_version(url: str, tries: int | None = None) -> Version:
    """Ask where it is for a file's size and version.

    Raises:
        DownloadError: it is not there, not for us, or there is no answer.
    """
    if _is_http(url):
        return version_of(url, tries)
    system, path = _file_system(url)

    def ask() -> Version:
        with _spoken_to(url):
            system.invalidate_cache()
            told = system.info(path)
            if told.get("type") == "directory":
                raise RefusedError("it is a folder")
            tag = next((str(told[key]) for key in _TAGS if told.get(key)), "")
            return Version(told.get("size"), tag)

    return with_retries(ask, tries=tries)


def _fetch(url: str, path: Path, version: Version, show: bool) -> None:
    """Fetch a version of a file to `path`, by way of `<path>.part`."""
    if _is_http(url):
        return fetch_version(url, path, version, show)
    system, inside = _file_system(url)

    def ask(part: Part) -> None:
        with _spoken_to(url):
            if Version(system.info(inside).get("size")).differs(version):
                raise ChangedError("it changed on the server")
            file = system.open(inside, "rb")
        try:
            with _spoken_to(url):
                file.seek(part.size)
            while True:
                with _spoken_to(url):
                    piece = file.read(_PIECE)
                if not piece:
                    break
                part.add(piece)  # its errors are of this machine's disk
        finally:
            with suppress(Exception):
                file.close()
        if version.size is not None and part.size < version.size:
            raise PassingError(f"{part.size} of {version.size} bytes came")

    return fill_part(path, version.size, ask, show)


# Copies


def current_version(url: str, cache_dir: str | Path | None = None) -> Version:
    """Return a remote file's version; where its server cannot be reached, that of the copy which is here.

    Args:
        url: the remote file.
        cache_dir: of the copies; None takes the user's.

    Raises:
        UserError: it is not there, or it cannot be reached and was never fetched.
    """
    folder = _folder(cache_dir)
    with _explained(url, folder):
        return _current_version(url, folder)


def local_copy(
    url: str, cache_dir: str | Path | None = None, version: Version | None = None, show: bool = True
) -> Path:
    """Return a copy of a remote file, fetched if there is none of its version; of many that ask at once, one fetches.

    The copy may be deleted for others' sake at any time, so it is to be opened at once; see `open_copy`.

    Args:
        url: the remote file.
        cache_dir: of the copies; None takes `clip-workbench/remote` in the user's cache folder.
        version: the one that is wanted; None asks the server for its present one. With it, a copy that is here is
            returned without asking anyone.
        show: show progress on a terminal.

    Raises:
        UserError: it cannot be had or kept, or the server has another version than the one that is wanted.
    """
    folder = _folder(cache_dir)
    with _explained(url, folder):
        for _ in range(_TIMES):
            wanted = version or _current_version(url, folder)
            path = _path(folder, url, wanted)
            if _is_whole(path, wanted):
                return path
            with FileLock(_lock(folder, path)):
                if _is_whole(path, wanted):
                    return path
                try:
                    _fetch_into(folder, url, path, wanted, show)
                    return path
                except ChangedError:
                    _part(path).unlink(missing_ok=True)
                    if version is not None:
                        raise
        raise ChangedError("it changes while it is fetched")


def open_copy(url: str, version: Version, cache_dir: str | Path | None = None, show: bool = False) -> int:
    """Return a file descriptor of a version's copy, which is not deleted while that is open; see `local_copy`."""
    for _ in range(100):
        path = local_copy(url, cache_dir, version, show)
        with suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:  # it is about to be deleted
                os.close(descriptor)
                continue
            except OSError:  # a file system without locks: deleted or not, what is open can be read
                pass
            return descriptor
    raise UserError(f"{url} is fetched and deleted again and again; raise CLIP_WORKBENCH_REMOTE_CACHE_GB.")


def cache_limit() -> int:
    """Return the bytes that copies may take.

    Raises:
        UserError: `CLIP_WORKBENCH_REMOTE_CACHE_GB` is no positive number.
    """
    told = os.environ.get("CLIP_WORKBENCH_REMOTE_CACHE_GB", str(CACHE_GB))
    try:
        limit = float(told)
    except ValueError:
        limit = 0.0
    if not 0 < limit < float("inf"):
        raise UserError(f"CLIP_WORKBENCH_REMOTE_CACHE_GB is {told!r}; give gigabytes, above 0 (100).")
    return int(limit * 1e9)


def _folder(cache_dir: str | Path | None) -> Path:
    return Path(cache_dir) if cache_dir is not None else user_cache("remote")


@contextmanager
def _explained(url: str, folder: Path) -> Iterator[None]:
    """Turn what fetching raises into a sentence."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{url} is no address ({error}).") from error
    except DiskFullError as error:
        raise UserError(
            f"{url} could not be fetched: {error}. Make room, lower CLIP_WORKBENCH_REMOTE_CACHE_GB, or let "
            "XDG_CACHE_HOME name a folder on a larger disk."
        ) from error
    except ChangedError as error:
        raise UserError(f"{url} is not what it was: {error}. Start again; it is then looked at anew.") from error
    except RefusedError as error:
        raise UserError(
            f"{url} could not be fetched ({error}); check the address, and that you may read it."
        ) from error
    except DownloadError as error:
        raise UserError(f"{url} could not be fetched ({error}); check the connection and try again.") from error
    except OSError as error:
        raise UserError(
            f"{url} cannot be kept in {folder} ({error}); let XDG_CACHE_HOME name a folder that can be written."
        ) from error


def _current_version(url: str, folder: Path) -> Version:
    kept, host = _kept(folder, url), url.partition("://")[0] + "://" + urlsplit(url).netloc
    if kept is not None and host in _unreachable:
        return kept
    try:
        return remote_version(url, tries=1 if kept or host in _unreachable else None)
    except RefusedError:
        raise
    except DownloadError as error:
        if kept is None:
            raise
        # Said, and waited for, once: there may be thousands of files.
        _unreachable.add(host)
        warnings.warn(Notice(f"{host} cannot be asked ({error}); what was fetched before is used."), stacklevel=2)
        return kept


def _path(folder: Path, url: str, version: Version) -> Path:
    """Return where a version's copy lies: other versions have other names."""
    tail = re.sub(r"[^\w.-]+", "_", urlsplit(url).path.rpartition("/")[2])[-60:]
    return folder / f"{_name_of(url)}-{_hash(f'{version.size} {version.tag}', 8)}-{tail}"


def _name_of(url: str) -> str:
    return _hash(url, 24)


def _hash(text: str, digits: int) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:digits]


def _part(path: Path) -> Path:
    return Path(f"{path}.part")


def _told(path: Path) -> Path:
    return Path(f"{path}.version")


def _lock(folder: Path, path: Path) -> Path:
    """Return the lock of a copy or its part. It stays: who waits for a deleted lock would not keep others out."""
    locks = folder / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    return locks / f"{path.name[:24]}.lock"


def _is_whole(path: Path, version: Version) -> bool:
    """Say whether a copy is there, which then counts as used now."""
    try:
        if version.size not in (None, path.stat().st_size):
            return False
    except FileNotFoundError:
        return False
    with suppress(OSError):  # another user's
        os.utime(path)
    return True


def _kept(folder: Path, url: str) -> Version | None:
    """Return the version of the copy of a remote file that was used last."""
    versions = []
    for told in folder.glob(f"{_name_of(url)}-*.version"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            said = json.loads(told.read_bytes())
            versions.append((told.with_suffix("").stat().st_mtime, Version(said["size"], said["tag"])))
    return max(versions, key=lambda item: item[0])[1] if versions else None


def _fetch_into(folder: Path, url: str, path: Path, version: Version, show: bool) -> None:
    """Fetch a version, with room made for it; the caller holds its lock."""
    part = _part(path)
    if not version.tag:  # so what came earlier may be of another file
        part.unlink(missing_ok=True)
    limit = cache_limit()
    if version.size is not None and version.size > limit:
        raise UserError(
            f"{url} has {version.size / 1e9:.3g} GB, more than all copies may have together ({limit / 1e9:.3g} GB); "
            "raise CLIP_WORKBENCH_REMOTE_CACHE_GB."
        )
    came = part.stat().st_size if part.exists() else 0
    _make_room(folder, limit - max(0, (version.size or 0) - came))
    _fetch(url, path, version, show)
    with written_atomically(_told(path), "w") as file:
        json.dump({"size": version.size, "tag": version.tag}, file)
    _make_room(folder, limit)  # others may have fetched as well


def _make_room(folder: Path, limit: int) -> None:
    """Delete the copies that were not used for longest, until the rest has at most `limit` bytes."""
    with FileLock(folder / "locks" / "room.lock"):
        copies = []
        with os.scandir(folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if entry.is_file(follow_symlinks=False) and not entry.name.endswith((".version", ".tmp")):
                        copies.append((entry.stat().st_mtime, entry.stat().st_size, Path(entry.path)))
        total = sum(size for _, size, _ in copies)
        for _, size, path in sorted(copies):
            if total <= limit:
                break
            if _delete_unused(folder, path):
                total -= size


def _delete_unused(folder: Path, path: Path) -> bool:
    """Delete a copy, or the part of one, unless it is being fetched or read."""
    try:
        with FileLock(_lock(folder, path), timeout=0):
            descriptor = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(descriptor)
            _told(path).unlink(missing_ok=True)
    except (Timeout, OSError):
        return False
    return True
