"""Pictures of every kind as files, through our preprocessing and OpenCLIP's.

Equal to the last bit: RGB, grey, CMYK, BMP, WebP, opaque alpha. Different, and what ours equals instead, is in the
table `REFERENCES`: OpenCLIP's own transform of the picture as a person sees it.
"""

import io
import pickle
import random
import struct
import warnings
import zlib

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import CenterCrop, RandomResizedCrop, Resize

from workbench.errors import UserError
from workbench.preprocessing import (
    EvaluationTransform,
    Preprocessing,
    TrainingTransform,
    load_picture,
    normalize,
    preprocess,
)

SIZE = 48
OPENAI = Preprocessing(SIZE, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)


def picture(width=90, height=70, channels=3, seed=0):
    """Return smooth blobs of full contrast as uint8 [H, W, C]."""
    coarse = torch.rand(1, channels, 6, 7, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0].clamp(0, 1)
    return (fine * 255).round().byte().permute(1, 2, 0).numpy()


RGB = Image.fromarray(picture())
GREY = RGB.convert("L")
ALPHA = Image.fromarray(picture(channels=1, seed=1)[..., 0])
TRANSPARENT = RGB.copy()
TRANSPARENT.putalpha(ALPHA)
DEEP = Image.fromarray(np.asarray(GREY).astype(np.uint16) * 257)
PALETTE = RGB.quantize(32)


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def orientation(number):
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


def on_white(image):
    """Return an alpha picture on white, by its definition."""
    pixels = np.asarray(image.convert("RGBA")).astype(np.float64)
    share = pixels[..., 3:] / 255
    return Image.fromarray(np.rint(pixels[..., :3] * share + 255 * (1 - share)).astype(np.uint8))


def without_colour_3():
    colours = np.asarray(PALETTE.convert("RGB")).copy()
    colours[np.asarray(PALETTE) == 3] = 255
    return Image.fromarray(colours)


def opened(content):
    return Image.open(io.BytesIO(content))


def theirs(image, size=SIZE):
    return open_clip.image_transform(size, is_train=False)(image)


def within(one, other, levels):
    """Tell whether normalised pixels differ by no more than so many of 256 levels."""
    levels_apart = (one - other).abs() * torch.tensor(OPENAI.std).view(3, 1, 1) * 255
    return float(levels_apart.max()) <= levels + 1e-3


EQUAL = {
    "RGB PNG": encoded(RGB, "PNG"),
    "RGB JPEG": encoded(RGB, "JPEG"),
    "portrait": encoded(Image.fromarray(picture(61, 133)), "PNG"),
    "smaller than the input": encoded(Image.fromarray(picture(17, 23)), "PNG"),
    "one pixel": encoded(Image.fromarray(picture(1, 1)), "PNG"),
    "exactly the size": encoded(Image.fromarray(picture(SIZE, SIZE)), "PNG"),
    "32 to 1": encoded(Image.fromarray(picture(320, 10)), "PNG"),
    "grey PNG": encoded(GREY, "PNG"),
    "grey JPEG": encoded(GREY, "JPEG"),
    "CMYK JPEG": encoded(RGB.convert("CMYK"), "JPEG"),
    "CMYK TIFF": encoded(RGB.convert("CMYK"), "TIFF"),
    "WebP": encoded(RGB, "WEBP"),
    "BMP": encoded(RGB, "BMP"),
    "opaque RGBA PNG": encoded(RGB.convert("RGBA"), "PNG"),
    "opaque LA PNG": encoded(GREY.convert("LA"), "PNG"),
    "upright by EXIF": encoded(RGB, "JPEG", exif=orientation(1)),
    "EXIF of an unknown orientation": encoded(RGB, "JPEG", exif=orientation(9)),
}


@pytest.mark.parametrize("content", EQUAL.values(), ids=EQUAL)
def test_pixels_are_open_clips(content):
    expected = theirs(opened(content))
    assert torch.equal(preprocess(OPENAI)(opened(content)), expected)
    assert torch.equal(preprocess(OPENAI)(load_picture(content)), expected)


@pytest.mark.parametrize("size", [31, 64, 224])
@pytest.mark.parametrize("sides", [(224, 224), (101, 300), (300, 101), (640, 479)])
def test_pixels_are_open_clips_at_other_sizes(size, sides):
    image = Image.fromarray(picture(*sides))
    settings = Preprocessing(size, OPENAI.mean, OPENAI.std)
    assert torch.equal(preprocess(settings)(image), theirs(image, size))


# File -> what the person sees, levels of 256 by which rounding may differ from it.
REFERENCES = {
    "RGBA PNG": (encoded(TRANSPARENT, "PNG"), on_white(TRANSPARENT), 1),
    "RGBA WebP": (encoded(TRANSPARENT, "WEBP", lossless=True, exact=True), on_white(TRANSPARENT), 1),
    "LA PNG": (encoded(TRANSPARENT.convert("LA"), "PNG"), on_white(TRANSPARENT.convert("LA")), 1),
    "palette PNG": (encoded(PALETTE, "PNG"), PALETTE.convert("RGB"), 0),
    "palette GIF": (encoded(PALETTE, "GIF"), PALETTE.convert("RGB"), 0),
    "palette with a transparent colour": (encoded(PALETTE, "PNG", transparency=3), without_colour_3(), 0),
    "1 bit": (encoded(RGB.convert("1"), "PNG"), RGB.convert("1").convert("RGB"), 0),
    "16-bit PNG": (encoded(DEEP, "PNG"), GREY, 0),
    "16-bit TIFF": (encoded(DEEP, "TIFF"), GREY, 0),
    "16-bit PNG, nearly black": (
        encoded(Image.fromarray(np.asarray(GREY).astype(np.uint16)), "PNG"),
        GREY.point(lambda value: round(value / 257)),
        0,
    ),
    "floats up to 1": (encoded(Image.fromarray(np.asarray(GREY).astype(np.float32) / 255), "TIFF"), GREY, 0),
    **{
        f"EXIF orientation {number}": (
            encoded(RGB, "JPEG", exif=orientation(number)),
            ImageOps.exif_transpose(opened(encoded(RGB, "JPEG", exif=orientation(number)))),
            0,
        )
        for number in range(2, 9)
    },
    "EXIF orientation in a PNG": (
        encoded(RGB, "PNG", exif=orientation(6)),
        RGB.transpose(Image.Transpose.ROTATE_270),
        0,
    ),
}


@pytest.mark.parametrize(("content", "seen", "levels"), REFERENCES.values(), ids=REFERENCES)
def test_pixels_are_what_a_person_sees(content, seen, levels):
    expected = theirs(seen)
    for image in (opened(content), load_picture(content)):
        assert within(preprocess(OPENAI)(image), expected, levels)
    assert not within(theirs(opened(content)), expected, 2), "listed as a difference, and OpenCLIP agrees"


@pytest.mark.parametrize("transparent", ["RGB", "L", "I;16"])
def test_a_transparent_colour_is_white(transparent):
    values = np.full((SIZE, SIZE), 100)
    values[:, SIZE // 2 :] = 200
    image, colour, left = {
        "RGB": (Image.fromarray(values.astype(np.uint8)).convert("RGB"), (200, 200, 200), 100),
        "L": (Image.fromarray(values.astype(np.uint8)), 200, 100),
        "I;16": (Image.fromarray(values.astype(np.uint16) * 257), 200 * 257, 100),
    }[transparent]
    pixels = EvaluationTransform(SIZE)(opened(encoded(image, "PNG", transparency=colour)))
    assert pixels[:, :, : SIZE // 2].unique().tolist() == [left]
    assert pixels[:, :, SIZE // 2 :].unique().tolist() == [255]


def test_what_is_hidden_under_transparency_does_not_show():
    results = []
    for hidden in ("black", "red"):
        image = Image.new("RGBA", (60, 60), hidden)
        image.putalpha(0)
        image.paste((0, 0, 255, 255), (20, 20, 40, 40))
        results.append(EvaluationTransform(SIZE)(image))
    assert torch.equal(*results)
    assert results[0][:, 0, 0].tolist() == [255, 255, 255]


def test_a_picture_is_turned_once():
    content = encoded(RGB, "JPEG", exif=orientation(6))
    loaded = load_picture(content)
    assert loaded.size == (RGB.height, RGB.width)
    assert torch.equal(EvaluationTransform(SIZE)(loaded), EvaluationTransform(SIZE)(opened(content)))


@pytest.mark.parametrize(
    "transform", [EvaluationTransform(32), TrainingTransform(32, scale=None), TrainingTransform(32)]
)
def test_a_strip_is_not_blown_up(monkeypatch, transform):
    strip = Image.fromarray(picture(3000, 1))
    sizes = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, *args, **kw: sizes.append(size) or resize(self, size, *args, **kw)
    )
    pixels = transform(strip)
    assert pixels.shape == (3, 32, 32)
    assert sizes and max(max(size) for size in sizes) <= 32 * 64


def test_a_strip_shows_its_middle():
    strip = Image.fromarray(picture(400, 4))
    middle = EvaluationTransform(32)(strip)
    whole = torch.from_numpy(np.array(CenterCrop(32)(Resize(32, 3)(strip)))).permute(2, 0, 1)
    assert (middle.int() - whole.int()).abs().max() <= 8, "as the resized whole, but for a fraction of a pixel"


@pytest.mark.parametrize("shape", [(4, 3, 9, 7), (3, 9, 7)])
def test_normalizing_is_open_clips(shape):
    values = torch.arange(256, dtype=torch.uint8).repeat(10)[: torch.Size(shape).numel()].view(shape)
    values = torch.cat([values, values.flip(-1) + 77], dim=-1)
    before = values.clone()
    result = normalize(values, OPENAI.mean, OPENAI.std)
    expected = (values.float() / 255 - torch.tensor(OPENAI.mean).view(3, 1, 1)) / torch.tensor(OPENAI.std).view(3, 1, 1)
    assert result.dtype == torch.float32
    assert torch.equal(result, expected)
    assert torch.equal(values, before), "the pixels are left as they were"


def test_the_public_transform_can_be_pickled():
    transform = pickle.loads(pickle.dumps(preprocess(OPENAI)))
    assert torch.equal(transform(RGB), theirs(RGB))


@pytest.mark.parametrize(
    "image", [RGB, GREY, RGB.convert("CMYK"), TRANSPARENT, PALETTE, DEEP, Image.new("RGB", (1, 1))]
)
@pytest.mark.parametrize("transform", [EvaluationTransform(SIZE), TrainingTransform(SIZE), TrainingTransform(1)])
def test_pixels_are_bytes(image, transform):
    pixels = transform(image)
    assert pixels.dtype == torch.uint8
    assert pixels.shape[0] == 3 and pixels.shape[1] == pixels.shape[2] in (1, SIZE)
    assert pixels.is_contiguous()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels.numpy()[:] = 0  # torch warns where memory is read-only
    assert not pixels.any()


def test_the_training_crop_is_drawn_from_torchs_state():
    transform = TrainingTransform(SIZE, scale=(0.3, 1.0))
    seeded = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        random.seed(seed + len(seeded))
        np.random.seed(seed + len(seeded))
        seeded.append(transform(RGB))
    assert torch.equal(seeded[0], seeded[2])
    assert not torch.equal(seeded[0], seeded[1])
    torch.manual_seed(1)
    reference = RandomResizedCrop(SIZE, (0.3, 1.0), interpolation=Image.Resampling.BICUBIC)(RGB)
    assert torch.equal(seeded[0], torch.from_numpy(np.array(reference)).permute(2, 0, 1))


def test_the_papers_crop_moves_along_the_longer_side():
    image = Image.fromarray(picture(2 * SIZE, SIZE))
    whole = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    torch.manual_seed(0)
    starts = set()
    for _ in range(200):
        crop = TrainingTransform(SIZE, scale=None)(image)
        starts |= {x for x in range(SIZE + 1) if torch.equal(whole[:, :, x : x + SIZE], crop)}
    assert len(starts) > 40
    assert {0, SIZE} <= starts


def test_flipping_is_off_unless_asked_for():
    image = Image.fromarray(picture(SIZE, SIZE))
    as_is = EvaluationTransform(SIZE)(image)
    for _ in range(10):
        assert torch.equal(TrainingTransform(SIZE, scale=None)(image), as_is)
    assert torch.equal(TrainingTransform(SIZE, scale=None, horizontal_flip=1.0)(image), as_is.flip(2))


def test_interpolation():
    assert not torch.equal(EvaluationTransform(SIZE)(RGB), EvaluationTransform(SIZE, "bilinear")(RGB))
    expected = open_clip.image_transform(SIZE, is_train=False, interpolation="bilinear")(RGB)
    assert torch.equal(preprocess(Preprocessing(SIZE, OPENAI.mean, OPENAI.std, "bilinear"))(RGB), expected)
    for transform in (EvaluationTransform, TrainingTransform):
        with pytest.raises(UserError, match="'cubic' is unknown; there are nearest, .*bicubic"):
            transform(SIZE, interpolation="cubic")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP"])
def test_a_file_that_is_cut_short_is_named(tmp_path, kind):
    path = tmp_path / f"half.{kind.lower()}"
    content = encoded(RGB, kind)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=rf"half\.{kind.lower()} cannot be read"):
        load_picture(path)


def test_what_is_no_picture_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.png does not exist"):
        load_picture(tmp_path / "nowhere.png")
    (tmp_path / "empty.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"empty\.jpg cannot be read"):
        load_picture(tmp_path / "empty.jpg")
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    with pytest.raises(UserError, match=r"page\.jpg cannot be read"):
        load_picture(str(tmp_path / "page.jpg"))
    with pytest.raises(UserError, match="cannot be read"):
        load_picture(tmp_path)
    with pytest.raises(UserError, match="16 bytes cannot be read"):
        load_picture(b"<html>404</html>")


def test_decompression_bombs_are_refused(monkeypatch, tmp_path):
    RGB.save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", RGB.width * RGB.height // 2 - 1)
    with pytest.raises(UserError, match=r"bomb\.png is refused.*decompression bomb"):
        load_picture(tmp_path / "bomb.png")


@pytest.mark.filterwarnings("ignore")
def test_damage_anywhere_is_a_users_error():
    rng = random.Random(0)
    files = [content for content, _, _ in REFERENCES.values()] + list(EQUAL.values())
    readable = 0
    for _ in range(1500):
        content = bytearray(rng.choice(files))
        for _ in range(rng.choice([1, 3, 10])):
            content[rng.randrange(min(len(content), rng.choice([60, 300, 10**6])))] = rng.randrange(256)
        if rng.random() < 0.2:
            del content[rng.randrange(len(content)) :]
        try:
            loaded = load_picture(bytes(content))
        except UserError:
            continue
        readable += 1
        assert loaded.mode in ("RGB", "L", "CMYK")
    assert 100 < readable < 1400


def test_damaged_metadata_does_not_matter():
    content = bytearray(encoded(RGB, "PNG", exif=orientation(6)))
    start = content.index(b"eXIf")
    length = struct.unpack(">I", content[start - 4 : start])[0]
    content[start + 4 : start + 8] = b"none"
    end = start + 4 + length
    content[end : end + 4] = struct.pack(">I", zlib.crc32(content[start:end]))
    assert torch.equal(EvaluationTransform(SIZE)(load_picture(bytes(content))), EvaluationTransform(SIZE)(RGB))
