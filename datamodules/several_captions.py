"""Pictures with several captions: one row for each picture, or one for each caption."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datamodules.sources.source import CAPTIONS, Column, Source


def one_row_for_each_picture(source: Source) -> Source:
    """Put rows that name the same picture together into the first of them, with the captions of all in order."""
    encoded = pa.array(source.pictures.names()).dictionary_encode()
    if len(encoded.dictionary) == len(source):
        return source
    picture = encoded.indices.to_numpy()
    order = np.argsort(picture, kind="stable")
    first = order[np.flatnonzero(np.diff(picture[order], prepend=-1))]  # of each picture, as they first come
    together = source.captions.take(order).array
    lengths = np.bincount(picture, weights=pc.list_value_length(source.captions.array).to_numpy()).astype(np.int64)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    captions = Column(pa.ListArray.from_arrays(offsets, together.flatten(), type=CAPTIONS))
    return replace(source.take(first), captions=captions)


def one_row_for_each_caption(source: Source) -> tuple[Source, np.ndarray]:
    """Repeat each picture for each of its captions; return also the number of each row's picture, int64 [rows]."""
    lengths = pc.list_value_length(source.captions.array).to_numpy()
    picture = np.repeat(np.arange(len(source)), lengths)
    texts = source.captions.array.flatten()
    offsets = pa.array(np.arange(len(texts) + 1), pa.int32())
    captions = Column(pa.ListArray.from_arrays(offsets, texts, type=CAPTIONS))
    return replace(source.take(picture), captions=captions), picture
