"""Columns of text that grow piece by piece, without a second copy of everything when they are finished."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from workbench.errors import UserError

ROWS_AT_ONCE = 256
"""Rows to gather as Python objects between two appends: with thousands, Python's collector looks at them so often that
reading takes three times as long."""
_TEXTS, _BYTES = 1 << 16, 1 << 22
_MOST_TEXTS = (1 << 31) - 1  # the lists' offsets have 32 bits


class TextBuilder:
    """A growing large_string array.

    Args:
        texts: how many there will be, as far as is known.
        size: of all of them in bytes. What is reserved takes no memory until it is written, so a bound will do.
    """

    def __init__(self, texts: int = _TEXTS, size: int = _BYTES):
        self._offsets = np.empty(texts + 1, np.int64)
        self._offsets[0] = 0
        self._text = np.empty(size, np.uint8)
        self._count = self._size = 0

    def append(self, texts: pa.Array) -> None:
        """Add an array of text of whatever Arrow type; null becomes the empty text.

        Raises:
            pa.ArrowInvalid: it is binary, and no UTF-8.
        """
        if not len(texts):
            return
        texts = texts.cast(pa.large_string())
        if texts.null_count:
            texts = pc.fill_null(texts, "")
        _, offsets, text = texts.buffers()
        offsets = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
        count, size = self._count + len(texts), self._size + int(offsets[-1] - offsets[0])
        self._offsets = _room(self._offsets, self._count + 1, count + 1)
        self._text = _room(self._text, self._size, size)
        np.add(offsets[1:], self._size - offsets[0], out=self._offsets[self._count + 1 : count + 1])
        if size > self._size:
            self._text[self._size : size] = np.frombuffer(text, np.uint8)[offsets[0] : offsets[-1]]
        self._count, self._size = count, size

    def finish(self) -> pa.Array:
        """Return all, large_string [N]; nothing may be added afterwards."""
        buffers = [None, pa.py_buffer(self._offsets[: self._count + 1]), pa.py_buffer(self._text[: self._size])]
        return pa.Array.from_buffers(pa.large_string(), self._count, buffers)


class CaptionBuilder:
    """A growing array of `CAPTIONS`; the arguments are those of `TextBuilder`."""

    def __init__(self, texts: int = _TEXTS, size: int = _BYTES):
        self._texts = TextBuilder(texts, size)
        self._counts: list[np.ndarray] = []

    def append(self, captions: pa.Array) -> None:
        """Add an array of text, a caption for each row, or of lists of texts, several for each.

        A row that is null has no caption; a null among several is the empty text.

        Raises:
            pa.ArrowInvalid: it is binary, and no UTF-8.
        """
        if is_list(captions.type):
            self._counts.append(pc.fill_null(pc.list_value_length(captions), 0).to_numpy().astype(np.int32))
            self._texts.append(captions.flatten())
        else:
            self._counts.append(np.ones(len(captions), np.int32))
            self._texts.append(captions)

    def finish(self) -> pa.Array:
        """Return all, `CAPTIONS` [N]; nothing may be added afterwards.

        Raises:
            UserError: they are more than Arrow can count in one array.
        """
        counts = np.concatenate([np.empty(0, np.int32), *self._counts])
        self._counts = []
        if counts.sum(dtype=np.int64) > _MOST_TEXTS:
            raise UserError(f"There are more than {_MOST_TEXTS:,} captions in one place; name it as several.")
        offsets = np.zeros(len(counts) + 1, np.int32)
        np.cumsum(counts, out=offsets[1:])
        return pa.ListArray.from_arrays(pa.array(offsets), self._texts.finish())


def is_list(kind: pa.DataType) -> bool:
    """Return whether a type is one of Arrow's lists."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _room(array: np.ndarray, used: int, needed: int) -> np.ndarray:
    if needed <= len(array):
        return array
    larger = np.empty(max(needed, 2 * len(array)), array.dtype)
    larger[:used] = array[:used]
    return larger
