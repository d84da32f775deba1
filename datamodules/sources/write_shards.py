"""Any source as WebDataset tar shards."""

import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from datamodules.sources.remote import is_remote, local_path
from datamodules.sources.shards import WRITTEN_FORMAT, WRITTEN_INDEX, WRITTEN_METADATA
from datamodules.sources.source import Source
from workbench.atomic import written_atomically
from workbench.errors import UserError

_MOST_SHARDS = 100_000
_BLOCK = tarfile.BLOCKSIZE
_MAGIC = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tif"),
    (b"MM\0*", "tif"),
    (b"P3", "ppm"),
    (b"P6", "ppm"),
)


def write_shards(
    source: Source,
    output: str | Path,
    samples_per_shard: int = 10_000,
    max_bytes: int | None = None,
    prefix: str = "",
) -> list[Path]:
    """Write tar shards that any reader of WebDataset takes; the same source gives the same bytes.

    A sample is `<key>.<ending>`, the picture as it is in the source, `<key>.txt`, its first caption, and, where there
    are several captions, a label or a caption that a text file would not keep as it is, `<key>.json` with
    `{"captions": [...], "label": ...}`. The key is the row, in nine digits. `index.parquet` beside the shards has what
    `read_shards` would find in them.

    Args:
        source: what to write; all its pictures are read.
        output: a folder, which is made, or is empty.
        samples_per_shard: at most.
        max_bytes: of a shard at most, unless one sample takes more; None sets no limit.
        prefix: of the shards' names, `<prefix>00000.tar`.

    Returns:
        The shards, in order.

    Raises:
        UserError: a picture that cannot be read or is of no known format, an empty caption, a folder that is not empty
            or cannot be written. Nothing is left of the shards then.
    """
    if samples_per_shard < 1 or (max_bytes is not None and max_bytes < 1):
        raise UserError(f"samples_per_shard is {samples_per_shard} and max_bytes {max_bytes}; give 1 or more.")
    if "/" in prefix or prefix.startswith("."):
        raise UserError(f"prefix is {prefix!r}; it begins names in the output folder, such as train-00000.tar.")
    if not len(source):
        raise UserError(f"{source.name} has no samples to write.")
    if is_remote(output):
        raise UserError(f"shards are written to this machine; give a folder in place of {output} and copy it there.")
    folder = Path(local_path(output))
    with _all_or_nothing(folder) as paths:
        _write(source, folder, samples_per_shard, max_bytes, prefix, paths)
        return paths[:-1]


@contextmanager
def _all_or_nothing(folder: Path) -> Iterator[list[Path]]:
    """Make an empty folder; on failure the files that were noted in the list go, and the folder if it was made."""
    made, paths = not folder.exists(), []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(f"{folder} is not empty; give a new folder, or delete what is in it.")
        yield paths
    except BaseException as error:
        with suppress(OSError):
            for path in paths:
                path.unlink(missing_ok=True)
            if made:
                folder.rmdir()
        if isinstance(error, OSError):
            free = f", {shutil.disk_usage(folder.parent).free / 1e9:.3g} GB are free" if folder.parent.exists() else ""
            raise UserError(f"shards cannot be written to {folder} ({error.strerror}{free}).") from error
        raise


def _write(
    source: Source, folder: Path, samples_per_shard: int, max_bytes: int | None, prefix: str, paths: list[Path]
) -> None:
    """Write shards and index; `paths` gets what there is, the index last."""
    rows, row = len(source), 0
    members, offsets, sizes, numbers = [], np.empty(rows, np.int64), np.empty(rows, np.int64), np.empty(rows, np.int32)
    with tqdm(total=rows, desc="writing shards", unit="sample", delay=2, leave=False, disable=None) as bar:
        waiting = _sample(source, 0)
        while row < rows:
            if len(paths) == _MOST_SHARDS:
                raise UserError(f"this would make more than {_MOST_SHARDS:,} shards; raise samples_per_shard.")
            path, first = folder / f"{prefix}{len(paths):05d}.tar", row
            with (
                written_atomically(path) as file,
                tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
            ):
                while row < rows and row - first < samples_per_shard:
                    if max_bytes is not None and row > first and _size_with(tar.offset, waiting) > max_bytes:
                        break
                    numbers[row], offsets[row], sizes[row] = len(paths), tar.offset + _BLOCK, len(waiting[0][1])
                    members.append(waiting[0][0])
                    for name, content in waiting:
                        tar.addfile(_header(name, len(content)), io.BytesIO(content))
                    row += 1
                    bar.update()
                    if row < rows:
                        waiting = _sample(source, row)
            paths.append(path)
    _write_index(source, folder / WRITTEN_INDEX, paths, {"member": members, "offset": offsets, "size": sizes}, numbers)
    paths.append(folder / WRITTEN_INDEX)


def _write_index(
    source: Source, path: Path, shards: list[Path], columns: dict[str, object], numbers: np.ndarray
) -> None:
    names = pa.DictionaryArray.from_arrays(pa.array(numbers), pa.array([shard.name for shard in shards]))
    labels = pa.nulls(len(source), pa.large_string()) if source.labels is None else source.labels.array
    keys = [member.partition(".")[0] for member in columns["member"]]
    table = pa.table(
        {"shard": names, "key": keys, **columns, "captions": source.captions.array, "label": labels}
    ).replace_schema_metadata(
        {
            WRITTEN_METADATA: json.dumps(
                {"version": WRITTEN_FORMAT, "sizes": {shard.name: shard.stat().st_size for shard in shards}}
            )
        }
    )
    with written_atomically(path) as file:
        pq.write_table(table, file, compression="zstd")


def _sample(source: Source, row: int) -> list[tuple[str, bytes]]:
    """Return a sample's members and their contents, the picture first."""
    captions = source.captions[row]
    label = None if source.labels is None else source.labels[row]
    if not captions or any(not text.strip() for text in captions):
        raise UserError(f"{source.place(row)} has an empty caption; leave it out before writing shards.")
    if label == "":
        raise UserError(f"{source.place(row)} has an empty label; leave it out before writing shards.")
    picture = source.pictures.read(row)
    ending = ending_of(picture)
    if ending is None:
        raise UserError(
            f"the picture {source.pictures.name(row)} ({source.place(row)}) is in no format that is known by its first "
            f"bytes ({picture[:8]!r}); leave it out before writing shards."
        )
    key, first = f"{row:09d}", captions[0]
    members = [(f"{key}.{ending}", picture), (f"{key}.txt", first.encode())]
    # Readers take a line's end off a text file, and a byte order mark.
    if len(captions) > 1 or label is not None or first[-1] in "\r\n" or first[0] == "\ufeff":
        told = {"captions": captions} | ({} if label is None else {"label": label})
        members.append((f"{key}.json", json.dumps(told, ensure_ascii=False).encode()))
    return members


def _header(name: str, size: int) -> tarfile.TarInfo:
    """Return a header that says the same whenever and whoever writes it."""
    header = tarfile.TarInfo(name)
    header.size, header.mode = size, 0o644
    return header


def _size_with(offset: int, members: list[tuple[str, bytes]]) -> int:
    """Return what a shard would take if it ended after a sample."""
    size = offset + sum(_BLOCK + -(-len(content) // _BLOCK) * _BLOCK for _, content in members)
    return -(-(size + 2 * _BLOCK) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def ending_of(picture: bytes) -> str | None:
    """Return how names of pictures of this format end, by the first bytes; None if it is none that is known."""
    if picture[:4] == b"RIFF" and picture[8:12] == b"WEBP":
        return "webp"
    if picture[4:8] == b"ftyp" and picture[8:12] in (b"avif", b"avis"):
        return "avif"
    return next((ending for magic, ending in _MAGIC if picture.startswith(magic)), None)
