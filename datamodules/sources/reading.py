"""From a location to a source: what is there is found by looking at it."""

import codecs
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from datamodules.sources.columns import listed, picture_suffixes
from datamodules.sources.delimited import read_delimited
from datamodules.sources.folder import read_folder
from datamodules.sources.hugging_face import is_saved_dataset, read_saved_dataset, splits_of
from datamodules.sources.json_lines import read_json_lines
from datamodules.sources.parquet import SPLITS, SUFFIXES, parquet_files, read_parquet, require_one_split
from datamodules.sources.remote import expand, is_remote, local_path
from datamodules.sources.source import ReadOptions, Source
from datamodules.sources.table_file import TableFile
from workbench.errors import UserError

_JSON = (".jsonl", ".ndjson", ".jsonlines", ".json", ".jsonl.gz", ".ndjson.gz", ".json.gz")
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_TAR_MAGIC = slice(257, 262), b"ustar"
# First bytes of files that are no table, and what to say of them.
_FOREIGN = {
    b"PK\x03\x04": "is a zip archive; unpack it, or export the sheet of a workbook as CSV UTF-8",
    b"7z\xbc\xaf": "is a 7z archive; unpack it",
    b"Rar!": "is a rar archive; unpack it",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd; unpack it",
    b"\xfd7zXZ": "is compressed with xz; unpack it",
    b"BZh": "is compressed with bzip2; unpack it",
    b"ARROW1": "is an Arrow file; write it as Parquet",
    b"SQLite format 3": "is a database; export the table as CSV",
    b"version https://git-lfs": "is a pointer of Git LFS and not the file itself; run `git lfs pull`",
    b"<!doctype html": "is a web page and not the file itself; download it again",
    b"<html": "is a web page and not the file itself; download it again",
}


def read_source(location: str | Path, options: ReadOptions) -> Source:
    """Read captions, and where the pictures are, from a place of any known kind.

    Kinds are: delimited text with a header (CSV, TSV, ...) and JSON lines, plain or with gzip; Parquet, one file or
    several; a folder of pictures with captions in `.txt` files, or with a `metadata.csv`; tar shards; a folder that
    Hugging Face `datasets` saved. Rows come in the order in which they are written, files sorted by name.

    Args:
        location: path, address, or a pattern with `{000..010}` or `*` of shards or Parquet files.
        options: what the user says where looking is not enough.

    Raises:
        UserError: there is nothing, nothing that can be read, or something in it is wrong.
    """
    location = str(location)
    if is_remote(location):
        return _read_remote(location, options)
    path = local_path(location)
    if not os.path.lexists(path):
        _require_split(path)
    found = expand(location)
    if len(found) > 1:
        return _read_several(location, found, options)
    if Path(found[0]).is_dir():
        return _read_folder(found[0], options)
    if not Path(found[0]).is_file():  # Pipes and devices are read once, and tables twice.
        raise UserError(f"{location} is neither a file nor a folder; write what comes from it into a file first.")
    return _read_file(found[0], options)


def _read_file(location: str, options: ReadOptions) -> Source:
    """Read the one file at a path or an address."""
    table = TableFile.at(location)
    try:
        with table.open() as file:
            start = file.read(1024)
        with table.open_text() as file:
            text = file.read(1024)
    except (OSError, EOFError) as error:
        raise UserError(f"{location} cannot be read ({error}).") from error
    where, magic = _TAR_MAGIC
    name = _file_name(location)
    if name.endswith(".tar") or start[where] == magic:
        return _read_shards(location, options)
    _require_no_foreign(location, name, start, text)
    if start.startswith(b"PAR1") or name.endswith(SUFFIXES):
        return read_parquet(location, [table], options)
    first = text.removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    if first == b"[":
        raise UserError(
            f"{location} is one JSON list; write an object a line instead, for example with: jq -c '.[]' old.json > "
            "new.jsonl."
        )
    if first == b"{" or name.endswith(_JSON):
        return read_json_lines(table, options)
    return read_delimited(table, options)


def _require_no_foreign(location: str, name: str, start: bytes, text: bytes) -> None:
    if not start:
        raise UserError(f"{location} is empty.")
    for magic, said in _FOREIGN.items():
        if start.lower().startswith(magic.lower()):
            raise UserError(f"{location} {said}.")
    where, magic = _TAR_MAGIC
    if text[where] == magic:
        raise UserError(f"{location} is a tar archive that is compressed as a whole; unpack it with gunzip.")
    if Path(name).suffix in picture_suffixes():
        raise UserError(f"{location} is a picture; name the folder, or the table that names it with its caption.")


def _read_several(location: str, found: Sequence[str], options: ReadOptions) -> Source:
    """Read the files of a pattern as one."""
    names = [_file_name(file) for file in found]
    if any(name.endswith(".tar") for name in names):
        return _read_shards(location, options)
    if all(name.endswith(SUFFIXES) for name in names):
        return read_parquet(location, _with_common_folder(found), options)
    raise UserError(
        f"{location} stands for {len(found)} files ({listed(found, 3)}); only tar shards and Parquet are read by "
        "pattern, other tables as a list: [one.csv, two.csv]."
    )


def _with_common_folder(files: Sequence[str]) -> list[TableFile]:
    folder = None if is_remote(files[0]) else os.path.commonpath([Path(file).parent for file in files])
    return [TableFile.at(file, folder) for file in files]


def _read_shards(location: str, options: ReadOptions) -> Source:
    from datamodules.sources.shards import read_shards

    return read_shards(location, options)


def _file_name(location: str) -> str:
    """Return the name of a file, in lower case."""
    path = urlsplit(location).path if is_remote(location) else location
    return path.rpartition("/")[2].lower()


# Servers


def _read_remote(location: str, options: ReadOptions) -> Source:
    name = _file_name(location)
    if "." not in name and not any(sign in name for sign in "*{"):
        return _read_remote_folder(location, options)
    if name.endswith((".tar", ".tar}")):
        return _read_shards(location, options)  # It looks the names up itself.
    found = expand(location)
    return _read_several(location, found, options) if len(found) > 1 else _read_file(found[0], options)


def _read_remote_folder(location: str, options: ReadOptions) -> Source:
    """Read Parquet files or shards of a folder on a server, where folders can be listed."""
    folder = location.rstrip("/")
    if not folder.lower().startswith(("http://", "https://")):
        try:
            names = expand(f"{folder}/*")
        except UserError:
            names = []
        if not any(_file_name(name).endswith(".tar") for name in names):
            parquet = [name for name in names if _file_name(name).endswith(SUFFIXES)]
            if parquet:
                require_one_split(folder, parquet)
                return read_parquet(location, _with_common_folder(parquet), options)
    return _read_shards(location, options)


# Folders


def _read_folder(folder: str, options: ReadOptions) -> Source:
    path = Path(folder)
    try:
        if is_saved_dataset(path):
            return read_saved_dataset(folder, options)
        if (path / "snapshots").is_dir():  # of the hub's cache
            return _read_folder(str(_snapshot(path)), options)
        _require_no_splits(path)
        where, kind = _first_thing(path)
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be read ({error}).") from error
    if kind == "parquet":
        files = parquet_files(path)
        require_one_split(folder, files)
        return read_parquet(folder, _with_common_folder(files), options)
    if kind is None:
        return read_folder(folder, options)
    if where != path:
        raise UserError(f"{folder} itself has nothing that is read, but {where} has; name that.")
    return _read_shards(folder, options) if kind == "tar" else _read_file(str(path / kind), options)


def _first_thing(top: Path) -> tuple[Path, str | None]:
    """Return the first folder with something to read, and what: `tar`, `parquet`, the name of a table, or None.

    None stands for pictures, and for nothing.
    """
    waiting = [top]
    while waiting:
        folder = waiting.pop(0)
        with os.scandir(folder) as found:
            entries = [entry for entry in found if not entry.name.startswith(".")]
        folders = {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)}
        names = {entry.name for entry in entries if entry.is_file()}
        for table in _METADATA:
            if table in names:
                return folder, table
        if any(name.endswith(".tar") for name in names):
            return folder, "tar"
        if any(name.endswith(SUFFIXES) and name.rpartition(".")[0] not in folders for name in names):
            return folder, "parquet"  # Not those of img2dataset, which lie beside folders of pictures.
        if any(os.path.splitext(name)[1].lower() in picture_suffixes() for name in names):  # noqa: PTH122 - many
            break
        waiting += [folder / name for name in sorted(folders)]
        if folder != top and is_saved_dataset(folder):
            raise UserError(f"{top} is no data set that `datasets` saved, but {folder} is; name that.")
    return top, None


def _require_no_splits(folder: Path) -> None:
    inside = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if len(inside) > 1 and set(inside) <= set(SPLITS):
        raise UserError(f"{folder} holds the splits {listed(inside)}; name one, such as {folder / inside[0]}.")


def _require_split(path: str) -> None:
    """Say which splits there are where one is named that is not."""
    folder = Path(path).parent
    splits = splits_of(folder)
    if splits is not None:
        raise UserError(f"{folder} has no split {Path(path).name!r}; it has {listed(splits)}.")


def _snapshot(folder: Path) -> Path:
    """Return the snapshot in the hub's cache that `main` is, or the only one."""
    found = sorted(entry.name for entry in (folder / "snapshots").iterdir() if entry.is_dir())
    main = folder / "refs" / "main"
    revision = main.read_text(errors="replace").strip() if main.is_file() else None
    if revision not in found and len(found) != 1:
        raise UserError(f"{folder} has {len(found)} snapshots; name one, such as {folder / 'snapshots' / '...'}.")
    return folder / "snapshots" / (revision if revision in found else found[0])
