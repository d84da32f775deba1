"""Pairs with their pictures decoded and augmented and their captions tokenized, as a data set."""

import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from datamodules.ordering import Part
from datamodules.sampling import Key
from datamodules.skipping import Skipped
from datamodules.sources.source import CAPTIONS, Column
from workbench.errors import UserError
from workbench.randomness import mixed_seed
from workbench.tokenizer import EOT, tokenize, trim

Picture = Image.Image | bytes
"""A picture, or the file that it is encoded in."""
Transform = Callable[[Picture], Tensor]
Sample = dict[str, Any]
_TEXTS_AT_ONCE = 8192
_TOKENS_OF_A_TEXT = 16
_OTHERS = 100
"""Rows that are tried in the place of one that cannot be read."""


class Pairs(Dataset[Sample]):
    """Pairs in memory but for the pictures, which `pictures` reads.

    A row asked for as (visit, row) is a training sample: a random transform and one of its captions, both drawn from
    (seed, visit, row). Asked for as a row, it is an evaluation sample: fixed transform, first caption.

    A picture that cannot be read is an error, or, with `skip`, noted in its sample or batch as `skipped`. In training
    another row, drawn from (seed, visit, row), takes its place, so that batches stay full; in evaluation none does.

    Args:
        pictures: row -> picture, or the bytes of its file.
        captions: at least one per row; a sequence of sequences, or a column of type `CAPTIONS`.
        caption_of: [rows]: which entry of `captions` is a row's, where rows share theirs (classes); None: its own.
        training_transform: picture or bytes -> uint8 [3, S, S], drawing from torch's global random state.
        evaluation_transform: picture or bytes -> uint8 [3, S, S].
        seed: of the draws.
        labels: one class per row, for classification data.
        context_length: tokens of a caption; longer ones are cut.
        place: row -> what a message calls it.
        name: row -> what a message calls its picture; None leaves that to `place`.
        parts: the sources that the rows are of; None for one.
        apart: [rows] int64: equal where two rows should not meet in a batch; None takes the labels, if any.
        skip: go on without the samples that cannot be read.

    Attributes:
        captions: the first of each row.
        texts: number of all captions.
        truncated: how many of them are cut.
    """

    def __init__(
        self,
        pictures: Callable[[int], Picture],
        captions: Sequence[Sequence[str]] | Column,
        training_transform: Transform,
        evaluation_transform: Transform,
        seed: int,
        labels: Sequence[int] | None = None,
        context_length: int = 77,
        place: Callable[[int], str] = "row {}".format,
        parts: Sequence[Part] | None = None,
        apart: np.ndarray | None = None,
        skip: bool = False,
        caption_of: np.ndarray | None = None,
        name: Callable[[int], str] | None = None,
    ):
        self.picture, self.place, self.name = pictures, place, name
        self.training_transform, self.evaluation_transform = training_transform, evaluation_transform
        self.seed, self.skip = seed, skip
        self.labels = None if labels is None else torch.as_tensor(labels, dtype=torch.int64)
        array = (captions if isinstance(captions, Column) else Column(captions, CAPTIONS)).array
        # Of single captions the texts themselves, without a copy.
        first = Column(array.flatten() if len(array.flatten()) == len(array) else pc.list_element(array, 0))
        self.captions = first if caption_of is None else first.take(caption_of)
        self._caption_of = None if caption_of is None else torch.from_numpy(np.asarray(caption_of, dtype=np.int64))
        self.texts = len(array.flatten())
        # Without the padding, and in arrays: a caption takes 30 bytes, not 300, and workers share them.
        self._tokens, lengths, self.truncated = _tokenize_without_padding(array.flatten(), context_length)
        self._text_starts = _starts(lengths)
        self._first_text = _starts(pc.list_value_length(array).to_numpy(zero_copy_only=False))
        self.context_length = context_length
        self.parts = list(parts) if parts is not None else [Part("train", len(self))]
        self.apart = self.labels.numpy() if apart is None and self.labels is not None else apart

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, key: int | Key) -> Sample:
        (sample,) = self.__getitems__([key])
        return sample

    def __getitems__(self, keys: Sequence[int | Key]) -> list[Sample]:
        """Return the samples of a batch; a DataLoader asks for them at once."""
        samples = []
        for key in keys:
            try:
                samples.append(self._sample(key))
            except UserError as error:
                skipped = self._skipped(key, error)
                if isinstance(key, tuple):
                    samples.append(self._other(key, keys, skipped))
                else:
                    samples.append({"skipped": [skipped]})
        return samples

    def _sample(self, key: int | Key) -> Sample:
        if isinstance(key, tuple):
            visit, row = key
            with torch.random.fork_rng(devices=[]):
                # Not torch.manual_seed, which would reseed the dropout of every GPU as well.
                torch.default_generator.manual_seed(mixed_seed(self.seed, visit, row))
                first, variants = self._texts(row)
                text = first + int(torch.randint(variants, ()))
                image = self._transformed(row, self.training_transform)
        else:
            row = key
            text, _ = self._texts(row)
            image = self._transformed(row, self.evaluation_transform)
        sample = {"image": image, "text": self._text(text), "index": torch.tensor(row)}
        if self.labels is not None:
            sample["label"] = self.labels[row]
        return sample

    def _transformed(self, row: int, transform: Transform) -> Tensor:
        picture = self.picture(row)
        try:
            return transform(picture)
        except UserError as error:
            raise UserError(f"{self.name(row)}: {error}" if self.name is not None else str(error)) from error

    def _skipped(self, key: int | Key, error: UserError) -> Skipped:
        """Note a sample that cannot be read.

        Raises:
            UserError: it must be.
        """
        row = key[1] if isinstance(key, tuple) else key
        if not self.skip:
            raise UserError(f"{self.place(row)}: {error}") from error
        return Skipped(row, self.place(row), str(error))

    def _other(self, key: Key, keys: Sequence[Key], first: Skipped) -> Sample:
        """Return the sample of another row, none of the batch where there is one, with what was skipped on the way."""
        visit, row = key
        skipped, taken = [first], {row for _, row in keys}
        for attempt in range(_OTHERS):
            other = mixed_seed(self.seed, visit, row, attempt) % len(self)
            if other in taken and len(taken) < len(self):
                continue
            try:
                return {**self._sample((visit, other)), "skipped": skipped}
            except UserError as error:
                skipped.append(self._skipped((visit, other), error))
        raise UserError(f"{first.place}: {first.reason} Nor could {len(skipped) - 1} others be read in its place.")

    def _texts(self, row: int) -> tuple[int, int]:
        """Return the number of a row's first text, and how many it has."""
        entry = row if self._caption_of is None else int(self._caption_of[row])
        first = int(self._first_text[entry])
        return first, int(self._first_text[entry + 1]) - first

    def _text(self, text: int) -> Tensor:
        return self._tokens[self._text_starts[text] : self._text_starts[text + 1]].to(torch.int32)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of the captions in order, by which a resumed run knows its data again."""
        digest = hashlib.sha256(f"{len(self)}".encode())
        digest.update(self._tokens.numpy().tobytes())
        if self._caption_of is not None:
            digest.update(self._caption_of.numpy().tobytes())
        return digest.hexdigest()[:16]


def _starts(lengths: np.ndarray) -> Tensor:
    return torch.from_numpy(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))


def _tokenize_without_padding(texts: pa.Array, context_length: int) -> tuple[Tensor, np.ndarray, int]:
    """Return the texts' tokens one after another in uint16, the length of each, and how many had to be cut."""
    # One array that grows: pieces to be joined would leave the heap full of holes, as large again as the tokens.
    # What is reserved and not written takes no memory.
    ids, lengths = np.empty(len(texts) * _TOKENS_OF_A_TEXT, dtype=np.uint16), np.empty(len(texts), dtype=np.int64)
    end, truncated = 0, 0
    for first in range(0, len(texts), _TEXTS_AT_ONCE):
        # With one position more than there are, too long a text shows by filling it; a second pass would cost as much.
        some = texts[first : first + _TEXTS_AT_ONCE].to_pylist()
        tokens = tokenize(some, context_length + 1, truncate=True)
        length = tokens.argmax(dim=1) + 1
        too_long = length > context_length
        truncated += int(too_long.sum())
        tokens[too_long, context_length - 1] = EOT
        length = length.clamp(max=context_length)
        start, end = end, end + int(length.sum())
        if end > len(ids):
            ids = np.concatenate([ids[:start], np.empty(max(end, 2 * len(ids)) - start, dtype=np.uint16)])
        ids[start:end] = tokens[torch.arange(context_length + 1) < length[:, None]].numpy()
        lengths[first : first + len(some)] = length
    return torch.from_numpy(ids[:end]), lengths, truncated


def collate(samples: list[Sample]) -> Sample:
    """Stack samples; texts [B, L] are padded to the longest of the batch. What was skipped is put together."""
    skipped = [each for sample in samples for each in sample.get("skipped", ())]
    samples = [sample for sample in samples if "image" in sample]
    if not samples:
        raise UserError(f"Not one picture of a batch could be read. {skipped[0].place}: {skipped[0].reason}")
    batch: Sample = {
        key: _stacked([sample[key] for sample in samples]) for key in samples[0] if key not in ("text", "skipped")
    }
    texts = [sample["text"] for sample in samples]
    batch["text"] = trim(torch.nn.utils.rnn.pad_sequence(texts, batch_first=True))
    if skipped:
        batch["skipped"] = skipped
    return batch


def _stacked(tensors: list[Tensor]) -> Tensor:
    first = tensors[0]
    if get_worker_info() is None:
        return torch.stack(tensors)
    # In a worker straight into the memory that the training process reads, which saves a copy of the batch.
    size = len(tensors) * first.numel() * first.element_size()
    shared = torch.UntypedStorage._new_shared(size, device="cpu")
    out = torch.empty(0, dtype=first.dtype).set_(shared, 0, (len(tensors), *first.shape))
    return torch.stack(tensors, out=out)


def require(pairs: Sequence[object], what: str) -> None:
    """Refuse an empty split."""
    if not len(pairs):
        raise UserError(f"The {what} split has no pair; check the path and the share that is held out.")
