"""Pairs in tar shards, as WebDataset and img2dataset write them.

Every shard is read once, its headers and captions only, for an index of where its pictures lie. From then on a sample
is read at its place, in any order.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from lightning.pytorch.utilities import rank_zero_info
from tqdm import tqdm

from datamodules.sources.remote import cache_limit, current_version, expand, is_remote, local_copy, user_cache
from datamodules.sources.shard_samples import INDEX, NAMED, Findings, Scan
from datamodules.sources.source import CAPTIONS, Column, ReadOptions, Source
from datamodules.sources.tar import TarReader
from datamodules.sources.tar_members import MemberPlaces, Shard, TarMembers
from workbench.atomic import written_atomically
from workbench.errors import Notice, UserError

WRITTEN_INDEX = "index.parquet"
"""Beside shards of ours: what indexing them would find."""
WRITTEN_METADATA = b"clip_workbench_shards"
WRITTEN_FORMAT = 1
T = TypeVar("T")
R = TypeVar("R")
_FORMAT = 1  # of an index that is kept
_THREADS = 8


def read_shards(location: str, options: ReadOptions) -> Source:
    """Read where the samples of tar shards are, and their captions; a shard's samples are a block.

    Names up to the first dot of their last part are a sample's key; its members follow one another. Its picture is the
    member that ends like one. Its captions are those of the list `captions` in its `.json`, else its `.txt`, else what
    the `.json` has under one of `CAPTION_KEYS`. What img2dataset could not fetch (`status` in the `.json`, and no
    picture) is left out.

    Args:
        location: a shard, a folder of shards, or a pattern that `expand` takes.
        options: `image_column` names the pictures' ending; `caption_column` and `label_column` an ending, or a key of
            the `.json`; with `sidecar` `all` every line of a `.txt` is a caption, otherwise its whole text is one.

    Raises:
        UserError: no shards, no whole tar archives of plain files, or samples without what was asked for.
    """
    if not options.captions and options.label_column is None:
        options = replace(options, label_column="cls")  # WebDataset's name for it
    shards = _in_threads(_shard, find_shards(location))
    index = _written_index(shards, options)
    if index is None:
        tables = _indexed(location, shards, options)
        numbers = np.repeat(np.arange(len(tables), dtype=np.int32), [len(table) for table in tables])
        index = pa.concat_tables(tables).append_column("number", pa.array(numbers))
    if not len(index):
        raise UserError(f"{location} has no samples but those that img2dataset could not fetch.")
    _note_size(location, shards)
    numbers = np.asarray(index["number"])
    pictures = TarMembers(shards, *(Column(index[name]) for name in ("number", "offset", "size", "member")))
    return Source(
        location,
        pictures,
        Column(index["captions"], CAPTIONS),
        MemberPlaces(pictures),
        Column(index["label"]) if options.label_column else None,
        np.flatnonzero(np.diff(numbers, prepend=-1)),
    )


# Which shards


def find_shards(location: str) -> list[str]:
    """Return the shards that a location stands for, sorted.

    Raises:
        UserError: there are none.
    """
    if is_remote(location):
        name = urlsplit(location).path.rpartition("/")[2]
        if "." not in name and "*" not in name and "}" not in name:  # a folder
            folder = location.rstrip("/")
            written = _read_written(folder)
            names = written[1] if written else None
            return [f"{folder}/{name}" for name in sorted(names)] if names else expand(f"{folder}/*.tar")
        return _tars(expand(location))
    found = expand(location)
    if len(found) == 1 and os.path.isdir(found[0]):  # noqa: PTH112 - paths stay as they are written
        folder = found[0].rstrip("/") or "/"
        try:
            names = sorted(name for name in os.listdir(folder) if name[0] != ".")  # noqa: PTH208
        except OSError as error:
            raise UserError(f"{folder} cannot be read ({error.strerror}).") from error
        tars = [name for name in names if name.endswith((".tar", ".tgz")) or ".tar." in name]
        if not tars:
            raise UserError(f"there are no tar shards in {location}, but {', '.join(names[:5]) or 'nothing'}.")
        found = [os.path.join(folder, name) for name in tars]  # noqa: PTH118
    return _tars(found)


def _tars(found: list[str]) -> list[str]:
    """Leave out what lies beside shards, such as img2dataset's statistics."""
    return [name for name in found if (urlsplit(name).path if is_remote(name) else name).endswith(".tar")] or found


def _shard(location: str) -> Shard:
    if is_remote(location):
        version = current_version(location)
        return Shard(location, version.size, version.tag)
    try:
        told = os.stat(location)  # noqa: PTH116
    except OSError as error:
        raise UserError(f"{location} cannot be read ({error.strerror}).") from error
    return Shard(location, told.st_size, str(told.st_mtime_ns))


def _note_size(location: str, shards: list[Shard]) -> None:
    """Say it where shards do not fit the cache, so that each epoch fetches them again."""
    size = sum(shard.size or 0 for shard in shards if is_remote(shard.location))
    if size > cache_limit():
        warnings.warn(
            Notice(
                f"{location} has {size / 1e9:.3g} GB and the cache holds {cache_limit() / 1e9:.3g} GB, so every epoch "
                "fetches shards again; CLIP_WORKBENCH_REMOTE_CACHE_GB raises that."
            ),
            stacklevel=3,
        )


# The index beside shards of ours


def _read_written(folder: str) -> tuple[pa.Table, dict[str, int]] | None:
    """Return the index that `write_shards` left in a folder, and its shards' sizes; None if there is none."""
    path = f"{folder}/{WRITTEN_INDEX}"
    try:
        table = pq.ParquetFile(local_copy(path, show=False) if is_remote(path) else path).read()
        told = json.loads(table.schema.metadata[WRITTEN_METADATA])
        sizes = {str(name): int(size) for name, size in told["sizes"].items()}
        known = told["version"] == WRITTEN_FORMAT and all("/" not in name for name in sizes)
        return (table, sizes) if known else None
    except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException):
        return None


def _written_index(shards: list[Shard], options: ReadOptions) -> pa.Table | None:
    """Return what the index beside the shards says of them, with their numbers; None if it does not fit them."""
    folders = {shard.location.rpartition("/")[0] if "/" in shard.location else "." for shard in shards}
    asked = (options.image_column, options.caption_column, options.sidecar)
    if (
        not options.captions
        or len(folders) > 1
        or asked != (None, None, "first")
        or options.label_column not in (None, "label")
    ):
        return None
    (folder,) = folders
    written = _read_written(folder)
    if written is None:
        return None
    table, sizes = written
    names = [shard.location.rpartition("/")[2] for shard in shards]
    if any(sizes.get(name) != shard.size for name, shard in zip(names, shards, strict=True)):
        return None
    if not is_remote(folder):  # a caption may change and the size stay
        written_at = os.stat(f"{folder}/{WRITTEN_INDEX}").st_mtime_ns  # noqa: PTH116
        if any(int(shard.stamp) > written_at for shard in shards):
            return None
    try:
        numbers = pc.index_in(table["shard"].cast(pa.large_string()), value_set=pa.array(names, pa.large_string()))
        table = table.select(INDEX.names).cast(INDEX).append_column("number", numbers)
        table = table.filter(pc.is_valid(table["number"])).combine_chunks()
    except (pa.ArrowException, KeyError):
        return None
    return table if _is_sound(table, shards, options) else None


def _is_sound(table: pa.Table, shards: list[Shard], options: ReadOptions) -> bool:
    """Say whether an index that came with its shards can be one of them."""
    required = [name for name in INDEX.names if name != "label" or options.label_column]
    if not len(table) or any(table[name].null_count for name in required):
        return False
    captions = table["captions"].combine_chunks()
    if pc.min(pc.list_value_length(captions)).as_py() < 1 or captions.flatten().null_count:
        return False
    numbers, offsets, sizes = (np.asarray(table[name]) for name in ("number", "offset", "size"))
    lengths = np.array([shard.size for shard in shards])[numbers]
    inside = (offsets >= 0) & (sizes >= 0) & (sizes <= lengths) & (offsets <= lengths - sizes)
    every = len(np.unique(numbers)) == len(shards)
    return bool(inside.all() and every and (np.diff(numbers) >= 0).all())


# The index of shards


def _indexed(location: str, shards: list[Shard], options: ReadOptions) -> list[pa.Table]:
    """Return every shard's index, from the cache or made now."""
    kept = _in_threads(lambda shard: _kept_index(shard, options), shards)
    fresh = [shard for shard, table in zip(shards, kept, strict=True) if table is None]
    remote = [shard for shard in fresh if is_remote(shard.location)]
    if remote:
        size = sum(shard.size or 0 for shard in remote)
        rank_zero_info(
            f"{len(remote):,} shards ({size / 1e9:.3g} GB) of {location} are fetched once, to {user_cache('remote')}."
        )
    made = iter(_in_threads(lambda shard: _make_index(shard, options), fresh, "indexing shards"))
    tables = [table if table is not None else next(made) for table in kept]
    found = [Findings(**json.loads(table.schema.metadata[b"found"])) for table in tables]
    if not options.lenient:
        _require_complete(location, found)
    failed, open_ended = sum(each.failed for each in found), [not each.ended for each in found]
    if failed:
        warnings.warn(
            Notice(f"{failed:,} samples of {location} are left out: img2dataset could not fetch their picture."),
            stacklevel=3,
        )
    if any(open_ended):
        first = shards[open_ended.index(True)].location
        warnings.warn(
            Notice(
                f"{sum(open_ended):,} shards of {location} have no end mark, the first {first}: they may have been cut "
                "short after a whole member."
            ),
            stacklevel=3,
        )
    return [table.replace_schema_metadata() for table in tables]


def _require_complete(location: str, found: list[Findings]) -> None:
    lacking = sum(each.lacking for each in found)
    if lacking:
        first = [text for each in found for text in each.first_lacking][:NAMED]
        samples = sum(each.samples for each in found)
        raise UserError(
            f"{lacking:,} of the {samples:,} samples in {location} lack something: {'; '.join(first)}"
            f"{'; ...' if lacking > len(first) else ''}. Leave them out of the shards, or name what they have with "
            "--data.image_column or --data.caption_column."
        )


def _kept_path(shard: Shard, options: ReadOptions) -> Path:
    """Return where a shard's index is kept; that of a changed shard takes the place of the one before."""
    place = shard.location if is_remote(shard.location) else os.path.abspath(shard.location)  # noqa: PTH100
    asked = (
        *(options.image_column, options.caption_column, options.label_column, options.sidecar),
        *(() if options.captions else (False,)),
        *(("lenient",) if options.lenient else ()),
    )
    text = json.dumps([_FORMAT, place, *asked])
    return user_cache("shards") / f"{hashlib.sha256(text.encode()).hexdigest()[:40]}.arrow"


def _kept_index(shard: Shard, options: ReadOptions) -> pa.Table | None:
    with suppress(OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        table = pa.ipc.open_file(pa.BufferReader(_kept_path(shard, options).read_bytes())).read_all()
        same = table.schema.metadata[b"of"] == _of(shard) and table.schema.remove_metadata() == INDEX
        return table if same else None
    return None


def _of(shard: Shard) -> bytes:
    return json.dumps([shard.size, shard.stamp]).encode()


def _make_index(shard: Shard, options: ReadOptions) -> pa.Table:
    descriptor = shard.open(show=True)
    try:
        table, found = Scan(TarReader(descriptor, shard.location), options).table()
        if not is_remote(shard.location):
            shard.require_unchanged(descriptor)
    finally:
        os.close(descriptor)
    table = table.replace_schema_metadata({"of": _of(shard), "found": json.dumps(found.__dict__)})
    written = pa.BufferOutputStream()
    with pa.ipc.new_file(written, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    with suppress(OSError), written_atomically(_kept_path(shard, options)) as file:  # not kept, it is made again
        file.write(written.getvalue())
    return table


def _in_threads(function: Callable[[T], R], items: list[T], title: str | None = None) -> list[R]:
    """Apply a function that waits for disks and servers; a bar shows when it takes longer."""
    with ThreadPoolExecutor(_THREADS) as pool:
        bar = tqdm(total=len(items), desc=title, unit="shard", delay=2, leave=False, disable=None if title else True)
        try:
            results = []
            for future in [pool.submit(function, item) for item in items]:
                results.append(future.result())
                bar.update()
            return results
        finally:
            bar.close()
            pool.shutdown(cancel_futures=True)
