"""Which rows belong together: those with a caption or a picture in common, directly or through others."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datamodules.sources.source import PictureFiles, Source


def connected(rows: int, links: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return for each row the smallest row that it is connected with, int64 [rows].

    Args:
        rows: how many there are.
        links: pairs of row numbers and key numbers, [L] each; rows with a key in common are connected.
    """
    labels = np.arange(rows)
    while True:
        before = labels
        for members, keys in links:
            smallest = np.full(int(keys.max(initial=-1)) + 1, rows)
            np.minimum.at(smallest, keys, labels[members])
            labels = labels.copy()
            np.minimum.at(labels, members, smallest[keys])
        labels = labels[labels]  # what the smallest is connected with is smaller still
        if np.array_equal(labels, before):
            return labels


def by_caption_and_picture(sources: Sequence[Source]) -> np.ndarray:
    """Return the groups of the sources' rows, counted one source after another; see `connected`.

    Captions are equal where the tokenizer sees them so: however capitals and white space are written.
    """
    starts = np.cumsum([0, *map(len, sources)])
    lengths = np.concatenate([pc.list_value_length(source.captions.array).to_numpy() for source in sources])
    texts = pa.chunked_array([source.captions.array.flatten() for source in sources], pa.large_string())
    links = [(np.repeat(np.arange(starts[-1]), lengths), _numbers(spelling(texts)))]
    names = pa.chunked_array([_names(source, alone=len(sources) == 1) for source in sources], pa.large_string())
    links.append((np.arange(starts[-1]), _numbers(names)))
    return connected(int(starts[-1]), links)


def spelling(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return texts in lower case and with single spaces."""
    words = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(pc.utf8_lower(texts)))
    return pc.binary_join(words, pa.scalar(" ", pa.large_string()))


def _names(source: Source, alone: bool) -> pa.Array:
    names = pa.array(source.pictures.names(), pa.large_string())
    if alone:
        return names
    where = source.pictures.root if isinstance(source.pictures, PictureFiles) else source.name
    where, between = (pa.scalar(text, pa.large_string()) for text in (where, "/"))
    return pc.binary_join_element_wise(where, names, between)


def _numbers(texts: pa.ChunkedArray) -> np.ndarray:
    """Number the different texts, in the order in which they first come, int64 [N]."""
    encoded = texts.combine_chunks().dictionary_encode()
    encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
    return encoded.indices.to_numpy().astype(np.int64)
