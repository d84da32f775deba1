"""The samples of one tar shard: which members make a pair, by WebDataset's rule.

The name of a member up to the first dot is its sample's, what follows is what it is; members of a sample come one after
another.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

import pyarrow as pa

from datamodules.sources.source import CAPTIONS, ReadOptions
from datamodules.sources.tar import Member, TarReader
from workbench.errors import UserError

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "avif", "bmp", "tif", "tiff", "ppm")
CAPTION_KEYS = ("caption", "captions", "text", "texts", "title", "description", "alt")
"""Keys of a sample's JSON that hold captions, the first that is there."""
LONGEST_TEXT = 16 << 20
"""Bytes of a caption or a sample's JSON."""

INDEX = pa.schema(
    [
        ("member", pa.large_string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("captions", CAPTIONS),
        ("label", pa.large_string()),
    ]
)
"""A shard's samples in order; offset and size, in bytes, are of the picture."""

NAMED = 5
"""Samples that a message names."""


@dataclass
class Findings:
    """What was found in a shard beside samples; goes with its index."""

    samples: int = 0
    failed: int = 0
    lacking: int = 0
    first_lacking: list[str] = field(default_factory=list)
    ended: bool = True


class Scan:
    """The samples of one archive.

    Args:
        reader: the archive.
        options: see `read_shards`.
    """

    def __init__(self, reader: TarReader, options: ReadOptions):
        self.reader, self.options = reader, options
        self.image, self.caption, self.label = (
            name and name.lower().removeprefix(".")
            for name in (options.image_column, options.caption_column, options.label_column)
        )
        self.found = Findings()

    def table(self) -> tuple[pa.Table, Findings]:
        """Return the index, and what else there is."""
        columns: list[list[Any]] = [[] for _ in INDEX]
        for key, sample in self._samples():
            self.found.samples += 1
            row = self._row(key, sample)
            if row is not None:
                for column, value in zip(columns, row, strict=True):
                    column.append(value)
        if not self.found.samples:
            raise UserError(f"{self.reader.name} has no samples: no member is called key.ending.")
        self.found.ended = self.reader.ended
        return pa.table(columns, schema=INDEX), self.found

    def _samples(self) -> Iterator[tuple[str, dict[str, Member]]]:
        """Group members by WebDataset's rule, which leaves names without an ending and `__meta__` out."""
        current, sample, seen = None, {}, set()
        for member in self.reader:
            folder, slash, base = member.name.rpartition("/")
            stem, dot, ending = base.partition(".")
            if not stem or not dot or (member.name[0] == "_" and re.match("__[^/]*__(/|$)", member.name)):
                continue
            key, ending = f"{folder}{slash}{stem}", ending.lower()
            if key != current:
                if sample:
                    yield current, sample
                if key in seen:
                    self._refuse(member, "comes after other samples: a sample's members must follow one another")
                current, sample = key, {}
                seen.add(key)
            elif ending in sample:
                self._refuse(member, f"is the second {ending} of its sample")
            sample[ending] = member
        if sample:
            yield current, sample

    def _row(self, key: str, sample: dict[str, Member]) -> tuple[Any, ...] | None:
        """Return a sample's row; None if it lacks something, which is noted."""
        picture = self._picture(key, sample)
        told = self._told(sample, picture)
        if picture is None and told.get("status", "success") != "success":
            self.found.failed += 1
            return None
        label = self._label(sample, told) if self.label else ""
        captions = [text for text in self._captions(sample, told) if text.strip()] if self.options.captions else [label]
        if self.options.lenient and not captions:
            captions = [""]
        for what, lacks in (("picture", picture is None), ("caption", not captions), ("label", label is None)):
            if lacks:
                self.found.lacking += 1
                if len(self.found.first_lacking) < NAMED:
                    has = ", ".join(sample)
                    self.found.first_lacking.append(f"{self.reader.name}/{key} has no {what} ({has})")
                return None
        assert picture is not None
        return picture.name, picture.offset, picture.size, captions, label if self.label else None

    def _picture(self, key: str, sample: dict[str, Member]) -> Member | None:
        if self.image:
            return sample.get(self.image)
        pictures = [member for ending, member in sample.items() if ending in PICTURES]
        if len(pictures) > 1:
            names = ", ".join(member.name for member in pictures)
            raise UserError(
                f"{self.reader.name} has several pictures of the sample {key} ({names}); --data.image_column names the "
                "ending of the one to take."
            )
        return pictures[0] if pictures else None

    def _captions(self, sample: dict[str, Member], told: dict[str, Any]) -> list[str]:
        if self.options.caption_column:
            if self.caption in sample:
                return self._lines(sample[self.caption])
            return self._texts(sample, told, self.options.caption_column)
        several = told.get("captions")
        if "txt" in sample and not (isinstance(several, list) and several):
            return self._lines(sample["txt"])
        keys = ("captions", *CAPTION_KEYS) if isinstance(several, list) else CAPTION_KEYS
        return self._texts(sample, told, next((key for key in keys if key in told), None))

    def _lines(self, member: Member) -> list[str]:
        text = self._text(member)
        if self.options.sidecar == "all":
            return text.splitlines()
        return [text.removesuffix("\n").removesuffix("\r")]

    def _texts(self, sample: dict[str, Member], told: dict[str, Any], key: str | None) -> list[str]:
        """Return what the JSON has under a key: one caption or a list."""
        if key is None or key not in told:
            return []
        texts = told[key] if isinstance(told[key], list) else [told[key]]
        for text in texts:
            if not _is_text(text):
                self._refuse(
                    sample["json"],
                    f"has {json.dumps(text)[:60]} for {key!r}, which is no text; --data.caption_column names another",
                )
        return texts

    def _label(self, sample: dict[str, Member], told: dict[str, Any]) -> str | None:
        if self.label in sample:
            return self._text(sample[self.label]).strip() or None
        value = told.get(self.options.label_column)
        if isinstance(value, bool) or not (value is None or isinstance(value, int) or _is_text(value)):
            self._refuse(
                sample["json"], f"has {json.dumps(value)[:60]} for {self.options.label_column!r}, which is no class"
            )
        return None if value is None or value == "" else str(value)

    def _told(self, sample: dict[str, Member], picture: Member | None) -> dict[str, Any]:
        """Return a sample's JSON, read only if something in it could matter."""
        if "json" not in sample:
            return {}
        content = self._bytes(sample["json"])
        named = all(name is None or name in sample for name in (self.caption, self.label))
        if picture and named and (self.caption or ("txt" in sample and b'"captions"' not in content)):
            return {}
        try:
            told = json.loads(content)
        except (ValueError, RecursionError) as error:
            self._refuse(sample["json"], f"is no JSON ({error})")
        return told if isinstance(told, dict) else {}

    def _text(self, member: Member) -> str:
        try:
            return self._bytes(member).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            self._refuse(member, f"is not in UTF-8 ({error.reason} at byte {error.start})")

    def _bytes(self, member: Member) -> bytes:
        if member.size > LONGEST_TEXT:
            self._refuse(member, f"has {member.size:,} bytes, more than any caption")
        return self.reader.read(member.offset, member.size)

    def _refuse(self, member: Member, why: str) -> NoReturn:
        raise UserError(f"{self.reader.name}/{member.name} {why}.")


def _is_text(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(value.encode() or True)
    except UnicodeEncodeError:  # half of a pair, as `\ud83d` in JSON: no character
        return False
