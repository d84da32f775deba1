"""CLIP's tokenizer: byte-level BPE on lower-cased text (Radford et al. 2021, section 2.4).

The vocabulary file is OpenAI's (openai/CLIP @ d05afc4, MIT), see the licence beside it. Ids are those of OpenAI's and
OpenCLIP's tokenizers; the two differ only in how special tokens are spelt inside a text, where this one is OpenAI's.

Why it is fast, and why that is exact: the splitting pattern never matches across white space, so a text's ids are those
of its words one after the other, and words repeat; they are kept in a bounded table. The cleaning by ftfy, which is
most of the peers' time, is the identity on plain text, see `_plain`.
"""

import functools
import gzip
import hashlib
import html
import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from workbench.errors import UserError

VOCABULARY = Path(__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
VOCAB_SIZE = 49408
MERGES = VOCAB_SIZE - 2 * 256 - 2
SOT, EOT = VOCAB_SIZE - 2, VOCAB_SIZE - 1
CONTEXT_LENGTH = 77

SPECIAL = {"<|startoftext|>": SOT, "<|endoftext|>": EOT}
_SPLIT = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|{letters}+|{digit}|[^\s{others}]+"
# At most: some 70 MB.
_CACHED_WORDS, _CACHED_LENGTH = 1 << 18, 32


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return symbol -> id without the two special tokens, and the pairs to merge in the order they were learnt."""
    symbols = _byte_symbols()
    ids = {symbol: number for number, symbol in enumerate(symbols)}
    ids |= {f"{symbol}</w>": number for number, symbol in enumerate(symbols, start=256)}
    lines = gzip.decompress(VOCABULARY.read_bytes()).decode("utf-8").split("\n")[1 : MERGES + 1]
    merges = [(left, right) for left, right in map(str.split, lines)]
    ids |= {left + right: number for number, (left, right) in enumerate(merges, start=2 * 256)}
    return ids, merges


class Tokenizer:
    """Text to ids and back. Reads the vocabulary on construction; `tokenizer()` shares one.

    Threads may share it. Pickled, it is a reference to `tokenizer()` of the process that unpickles it.

    Attributes:
        sot: id that starts every text.
        eot: id that ends every text, and the largest of all.
    """

    sot, eot, vocab_size = SOT, EOT, VOCAB_SIZE

    def __init__(self) -> None:
        import regex  # with ftfy a quarter of a second; importing the package should not cost it

        ids, merges = vocabulary()
        self._merges = {(ids[left], ids[right]): ids[left + right] for left, right in merges}
        byte_of = dict(zip(_byte_symbols(), _byte_order(), strict=True))
        self._id_of_byte = {byte: number for number, byte in enumerate(_byte_order())}
        self._bytes_of = {
            number: (bytes(byte_of[c] for c in text.removesuffix("</w>")), text.endswith("</w>"))
            for text, number in ids.items()
        }
        self._ascii = re.compile(_SPLIT.format(letters="[a-z]", digit="[0-9]", others="a-z0-9"))
        self._unicode = regex.compile(
            _SPLIT.format(letters=r"\p{L}", digit=r"\p{N}", others=r"\p{L}\p{N}"), regex.IGNORECASE
        )
        self._words: dict[str, tuple[int, ...]] = {}

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text of any length, without start and end."""
        words = text.lower().split() if _plain(text) else _clean(text).split(" ")
        known = self._words
        ids: list[int] = []
        for word in words:
            found = known.get(word)
            ids.extend(self._encode_word(word) if found is None else found)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the cleaned text of ids up to the end token, without the start; broken characters are replaced."""
        # The padding behind the end is 0, which is also the id of `!`.
        text = itertools.takewhile(lambda number: number != EOT, map(int, ids))
        found = (self._bytes_of[number] for number in text if number in self._bytes_of)
        pieces = [part + b" " if ends else part for part, ends in found]
        return b"".join(pieces).decode("utf-8", errors="replace").strip()

    def _encode_word(self, word: str) -> tuple[int, ...]:
        pattern = self._ascii if word.isascii() else self._unicode
        ids: list[int] = []
        for piece in pattern.findall(word):
            ids.extend([SPECIAL[piece]] if piece in SPECIAL else self._merge(piece.encode("utf-8")))
        found = tuple(ids)
        if len(word) <= _CACHED_LENGTH:  # longer ones, as in scripts without spaces, hardly come back
            if len(self._words) >= _CACHED_WORDS:
                self._words.clear()
            self._words[word] = found
        return found

    def _merge(self, piece: bytes) -> list[int]:
        """Apply merges in the order in which they were learnt. A merge's id grows with its rank, so ids will do."""
        symbols = [self._id_of_byte[byte] for byte in piece]
        symbols[-1] += 256
        while len(symbols) > 1:
            best = min(self._merges.get(pair, VOCAB_SIZE) for pair in itertools.pairwise(symbols))
            if best == VOCAB_SIZE:
                break
            merged, position = [], 0
            while position < len(symbols):
                pair = (symbols[position], symbols[position + 1] if position + 1 < len(symbols) else -1)
                found = self._merges.get(pair) == best
                merged.append(best if found else symbols[position])
                position += 2 if found else 1
            symbols = merged
        return symbols

    def __reduce__(self) -> tuple[Callable[[], "Tokenizer"], tuple[()]]:
        return tokenizer, ()

    def __call__(
        self, texts: str | Sequence[str], context_length: int = CONTEXT_LENGTH, truncate: bool = False
    ) -> Tensor:
        """Tokenize, see `tokenize`."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        encoded = [self.encode(text) for text in texts]
        room = context_length - 2
        for row, ids in enumerate(encoded):
            if len(ids) > room:
                if not truncate:
                    raise UserError(
                        f"Text {row} has {len(ids) + 2} tokens, more than the context length of {context_length}: "
                        f"{_shortened(texts[row])!r}. Shorten it, or pass truncate=True."
                    )
                del ids[room:]
        tokens = np.zeros((len(texts), context_length), dtype=np.int32)
        lengths = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
        columns = np.arange(context_length)
        inside = (columns >= 1) & (columns <= lengths[:, None])
        tokens[inside] = np.fromiter(itertools.chain.from_iterable(encoded), dtype=np.int32, count=lengths.sum())
        tokens[:, 0] = SOT
        tokens[np.arange(len(texts)), lengths + 1] = EOT
        return torch.from_numpy(tokens)


def _plain(text: str) -> bool:
    """Tell whether cleaning cannot change anything but case and white space.

    So it is for printable ASCII in which a space follows every `&`: of ftfy's steps (6.1 to 6.3), encodings and the
    normal form are left alone because ASCII is ASCII in all of them, quotes, ligatures, widths, surrogates and line
    separators are not ASCII, control characters, line breaks and terminal escapes are not printable, and entities, for
    html.unescape as well, start with `&` and something else than a space.
    """
    return text.isascii() and text.isprintable() and ("&" not in text or text.count("&") == text.count("& "))


def _clean(text: str) -> str:
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def _byte_order() -> list[int]:
    """Return the 256 bytes in the vocabulary's order: those that print in Latin-1, then the others."""
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return printing + [byte for byte in range(256) if byte not in printing]


def _byte_symbols() -> list[str]:
    """Return the character that stands for each byte of `_byte_order` in the vocabulary file."""
    printing = 188
    return [chr(byte) for byte in _byte_order()[:printing]] + [chr(256 + n) for n in range(256 - printing)]


def _shortened(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


@functools.cache
def tokenizer() -> Tokenizer:
    """Return the tokenizer of this process."""
    return Tokenizer()


def tokenize(texts: str | Sequence[str], context_length: int = CONTEXT_LENGTH, truncate: bool = False) -> Tensor:
    """Tokenize texts into int32 [N, context_length]: start, ids, end, zeros. One string is a batch of one.

    Args:
        texts: one text or several.
        context_length: positions of a row, start and end included.
        truncate: cut a text that is too long and end it with the end token.

    Raises:
        UserError: a text is too long and `truncate` is off; the message says which.
    """
    return tokenizer()(texts, context_length, truncate)


def count_truncated(texts: Sequence[str], context_length: int = CONTEXT_LENGTH) -> int:
    """Return how many of the texts `tokenize` would have to cut."""
    encode = tokenizer().encode
    return sum(len(encode(text)) > context_length - 2 for text in texts)


def trim(tokens: Tensor) -> Tensor:
    """Cut columns behind the longest text's end token off tokens [N, L]."""
    return tokens[:, : int(tokens.argmax(dim=1).max()) + 1]


@functools.cache
def content_hash() -> str:
    """Return the sha256 of the vocabulary file, by which checkpoints name their tokenizer."""
    return hashlib.sha256(VOCABULARY.read_bytes()).hexdigest()
