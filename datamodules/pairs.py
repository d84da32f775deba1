"""Pictures with their captions, as a data set: decoded, augmented and tokenized."""

import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.sampling import Key
from workbench.errors import UserError
from workbench.preprocessing import load_picture
from workbench.randomness import mixed_seed
from workbench.tokenizer import EOT, tokenize, trim

Transform = Callable[[Image.Image], Tensor]
_TEXTS_AT_ONCE = 65536


class Pairs(Dataset[dict[str, Tensor]]):
    """Pairs in memory but for the pictures, which `picture` reads.

    A row asked for as (epoch, row) is a training sample: a random transform and one of its captions, both drawn from
    (seed, epoch, row). Asked for as a row, it is an evaluation sample: fixed transform, first caption.

    Args:
        pictures: row -> PIL picture.
        captions: at least one per row.
        training_transform: picture -> uint8 [3, S, S], drawing from torch's global random state.
        evaluation_transform: picture -> uint8 [3, S, S].
        seed: of the draws.
        labels: one class per row, for classification data.
        context_length: tokens of a caption; longer ones are cut.

    Attributes:
        captions: the first of each row.
        texts: number of all captions.
        truncated: how many of them are cut.
    """

    def __init__(
        self,
        pictures: Callable[[int], Image.Image],
        captions: Sequence[Sequence[str]],
        training_transform: Transform,
        evaluation_transform: Transform,
        seed: int,
        labels: Sequence[int] | None = None,
        context_length: int = 77,
    ):
        self.picture = pictures
        self.training_transform, self.evaluation_transform = training_transform, evaluation_transform
        self.seed = seed
        self.labels = labels
        self.captions = [variants[0] for variants in captions]
        texts = [text for variants in captions for text in variants]
        self.texts = len(texts)
        # Without the padding, and in arrays: a caption takes 60 bytes, not 300, and forked workers share them.
        self._tokens, lengths, self.truncated = _tokenize_without_padding(texts, context_length)
        self._text_starts = np.concatenate([[0], np.cumsum(lengths)])
        self._first_text = np.cumsum([0, *map(len, captions)])
        self.context_length = context_length

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, key: int | Key) -> dict[str, Tensor]:
        if isinstance(key, tuple):
            epoch, row = key
            with torch.random.fork_rng(devices=[]):
                # Not torch.manual_seed, which would reseed the dropout of every GPU as well.
                torch.default_generator.manual_seed(mixed_seed(self.seed, epoch, row))
                text = self._first_text[row] + int(torch.randint(self._variants(row), ()))
                image = self.training_transform(self.picture(row))
        else:
            row = key
            text = self._first_text[row]
            image = self.evaluation_transform(self.picture(row))
        sample = {"image": image, "text": self._text(text), "index": torch.tensor(row)}
        if self.labels is not None:
            sample["label"] = torch.tensor(self.labels[row])
        return sample

    def _variants(self, row: int) -> int:
        return int(self._first_text[row + 1] - self._first_text[row])

    def _text(self, text: int) -> Tensor:
        return self._tokens[self._text_starts[text] : self._text_starts[text + 1]]

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of the captions in order, by which a resumed run knows its data again."""
        digest = hashlib.sha256(f"{len(self)}".encode())
        digest.update(self._tokens.numpy().tobytes())
        return digest.hexdigest()[:16]


def _tokenize_without_padding(texts: Sequence[str], context_length: int) -> tuple[Tensor, np.ndarray, int]:
    """Return the texts' tokens one after another, the length of each, and how many had to be cut."""
    parts, lengths, truncated = [torch.empty(0, dtype=torch.int32)], [np.empty(0, dtype=np.int64)], 0
    for first in range(0, len(texts), _TEXTS_AT_ONCE):
        # With one position more than there are, too long a text shows by filling it; a second pass would cost as much.
        tokens = tokenize(texts[first : first + _TEXTS_AT_ONCE], context_length + 1, truncate=True)
        length = tokens.argmax(dim=1) + 1
        too_long = length > context_length
        truncated += int(too_long.sum())
        tokens[too_long, context_length - 1] = EOT
        length = length.clamp(max=context_length)
        parts.append(tokens[torch.arange(context_length + 1) < length[:, None]])
        lengths.append(length.numpy())
    return torch.cat(parts), np.concatenate(lengths), truncated


class PictureFiles:
    """Row -> picture, read from its file; a class rather than a closure so that workers can be spawned."""

    def __init__(self, paths: Sequence[Path]):
        self.paths = paths

    def __call__(self, row: int) -> Image.Image:
        """Read one."""
        return load_picture(self.paths[row])


def collate(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack samples; texts [B, L] are padded to the longest of the batch."""
    batch = {key: torch.stack([sample[key] for sample in samples]) for key in samples[0] if key != "text"}
    texts = [sample["text"] for sample in samples]
    batch["text"] = trim(torch.nn.utils.rnn.pad_sequence(texts, batch_first=True))
    return batch


def require(pairs: Sequence[object], what: str) -> None:
    """Refuse an empty split."""
    if not len(pairs):
        raise UserError(f"The {what} split has no pair; check the path and the share that is held out.")
