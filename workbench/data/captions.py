"""What there is to know of one caption, in 27 bytes."""

import re
import unicodedata
from enum import IntEnum

import numpy as np

from workbench.data.pictures import hashed
from workbench.tokenizer import tokenizer


class Trait(IntEnum):
    """Bits of `CAPTION`'s traits."""

    EMPTY = 1
    BLANK = 2
    FILE_NAME = 4
    ADDRESS = 8
    MARKUP = 16
    GARBLED = 32


CAPTION = np.dtype([("traits", "u1"), ("tokens", "<u2"), ("text", "<u8"), ("spelling", "<u8"), ("folded", "<u8")])
"""`tokens` counts start and end. The hashes are of the text; of how the tokenizer sees it, in lower case and with
single spaces; and of its letters and digits alone, without accents."""

_LONGEST = np.iinfo(np.uint16).max
_FILE_NAME = re.compile(
    r"\S+\.(jpe?g|png|gif|webp|bmp|tiff?|svg|avif|heic|pdf)|"
    r"(img|dsc[nf]?|dcim|screen ?shot|image|photo)[-_ ]?\d[\d_-]*",
    re.IGNORECASE,
)
_ADDRESS = re.compile(r"\b(https?://|www\.)\S", re.IGNORECASE)
_MARKUP = re.compile(r"</?[a-z][a-z0-9]*(\s[^<>]*)?/?>|&(#\d{2,7}|#x[0-9a-f]{2,6}|[a-z]{2,8});", re.IGNORECASE)
_ACCENTS = re.compile("[\u0300-\u036f]")
_NO_LETTERS = r"[\p{P}\p{S}\p{Z}\p{C}]+"


def examine_caption(text: str | None) -> np.void:
    """Return a `CAPTION`; None counts as the empty text."""
    text = text or ""
    record = np.zeros((), CAPTION)
    record["traits"] = traits(text)
    record["tokens"] = min(len(tokenizer().encode(text)) + 2, _LONGEST)
    record["text"] = hashed(text.encode("utf-8", "surrogatepass"))
    record["spelling"] = hashed(spelling(text).encode("utf-8", "surrogatepass"))
    record["folded"] = hashed(folded(text).encode("utf-8", "surrogatepass"))
    return record[()]


def traits(text: str) -> int:
    """Return the bits of a text."""
    if not text:
        return int(Trait.EMPTY)
    if not text.strip():
        return int(Trait.BLANK)
    found = 0
    if _FILE_NAME.fullmatch(text.strip()):
        found |= Trait.FILE_NAME
    if _ADDRESS.search(text):
        found |= Trait.ADDRESS
    if _MARKUP.search(text):
        found |= Trait.MARKUP
    if not text.isascii() and _is_garbled(text):
        found |= Trait.GARBLED
    return int(found)


def _is_garbled(text: str) -> bool:
    """Return whether bytes of a text were once read in another encoding (mojibake)."""
    from ftfy.badness import is_bad

    return is_bad(text) or "\ufffd" in text


def spelling(text: str) -> str:
    """Return a text in lower case and with single spaces; as `datamodules.grouping.spelling`."""
    return " ".join(text.lower().split())


def folded(text: str) -> str:
    """Return the letters and digits of a text in lower case, its words parted by one space, without accents.

    Marks of scripts in which they are letters of their own stay. A text without letters is itself.
    """
    if text.isascii():
        words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
    else:
        import regex

        plain = _ACCENTS.sub("", unicodedata.normalize("NFKD", text)).casefold()
        words = regex.sub(_NO_LETTERS, " ", unicodedata.normalize("NFC", plain)).split()
    return " ".join(words) or spelling(text)
