"""Columns of text that grow piece by piece are what Arrow makes of all pieces at once."""

import random

import pyarrow as pa
import pytest

from datamodules.sources import building
from datamodules.sources.building import CaptionBuilder, TextBuilder
from datamodules.sources.source import CAPTIONS
from workbench.errors import UserError

KINDS = [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string()), pa.binary()]
LISTS = [pa.list_(pa.string()), pa.list_(pa.large_string()), pa.large_list(pa.string())]


def pieces(kind, draw, several):
    """Arrays of random texts, some of them slices, some empty, and their values."""
    text = lambda: draw.choice(["", "a", "é😀", "x" * 40, None])  # noqa: E731
    value = (lambda: draw.choice([None, [], [text() for _ in range(draw.randint(1, 3))]])) if several else text
    for _ in range(draw.randint(0, 12)):
        values = [value() for _ in range(draw.randint(0, 5))]
        start = draw.randint(0, len(values))
        plain = pa.array(values, kind if several or not pa.types.is_dictionary(kind) else pa.string())
        yield plain.cast(kind)[start:], values[start:]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("room", [(), (1, 1), (1000, 5000)])
def test_texts(kind, room):
    draw = random.Random(0)
    for _ in range(50):
        builder, expected = TextBuilder(*room), []
        for piece, values in pieces(kind, draw, several=False):
            builder.append(piece)
            expected += [text or "" for text in values]
        found = builder.finish()
        found.validate(full=True)
        assert found.type == pa.large_string() and found.to_pylist() == expected


@pytest.mark.parametrize("kind", [*KINDS, *LISTS], ids=str)
def test_captions(kind):
    draw = random.Random(0)
    several = kind in LISTS
    for _ in range(50):
        builder, expected = CaptionBuilder(1, 1), []
        for piece, values in pieces(kind, draw, several):
            builder.append(piece)
            expected += (
                [[text or "" for text in value or []] for value in values] if several else [[v or ""] for v in values]
            )
        found = builder.finish()
        found.validate(full=True)
        assert found.type == CAPTIONS and found.to_pylist() == expected


def test_what_lies_under_a_null_is_left_out():
    buffers = [pa.py_buffer(b"\x01"), pa.array([0, 3, 6], pa.int32()).buffers()[1], pa.py_buffer(b"abcdef")]
    builder = TextBuilder()
    builder.append(pa.Array.from_buffers(pa.string(), 2, buffers))
    assert builder.finish().to_pylist() == ["abc", ""]


def test_too_many_captions(monkeypatch):
    monkeypatch.setattr(building, "_MOST_TEXTS", 5)
    builder = CaptionBuilder()
    builder.append(pa.array([["a", "b"], ["c"], ["d", "e"]]))
    builder.append(pa.array([], pa.string()))
    assert len(builder.finish()) == 3
    builder = CaptionBuilder()
    builder.append(pa.array(["a"] * 6))
    with pytest.raises(UserError, match="more than 5 captions"):
        builder.finish()


def test_bytes_that_are_no_text():
    with pytest.raises(pa.ArrowInvalid):
        TextBuilder().append(pa.array([b"caf\xe9"], pa.binary()))


def test_what_is_known_to_come_is_not_copied():
    builder = TextBuilder(2, 6)
    buffer = builder._text
    builder.append(pa.array(["abc"]))
    builder.append(pa.array(["def"]))
    assert builder._text is buffer
    assert builder.finish().buffers()[2].address == buffer.ctypes.data
