import functools
import io
import random

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torchvision.transforms import Compose, Normalize, ToTensor

from workbench.errors import UserError
from workbench.preprocessing import (
    EvaluationTransform,
    Preprocessing,
    TrainingTransform,
    load_picture,
    normalize,
    preprocess,
)

MEAN, STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
ORIENTATION = 0x0112


def pixels(mode="RGB", size=(90, 61), seed=0):
    """Return a picture with smooth and with noisy parts."""
    width, height = size
    channels = {"RGB": 3, "L": 1, "RGBA": 4, "LA": 2, "CMYK": 4}[mode]
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    rng = np.random.default_rng(seed)
    layers = [(x + shift * y) / (1 + shift) for shift in range(channels)]
    values = np.stack(layers, axis=-1) + rng.integers(-60, 60, (height, width, channels)) * (x[..., None] > 128)
    values = values.clip(0, 255).astype(np.uint8)
    if mode == "CMYK":
        return Image.frombytes(mode, size, values.tobytes())
    return Image.fromarray(values[..., 0] if channels == 1 else values)


def saved(picture, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def opaque(mode="RGBA"):
    picture = pixels(mode[:-1])
    picture.putalpha(255)
    return picture


@functools.cache
def ours(size=48):
    return preprocess(Preprocessing(size, MEAN, STD))


@functools.cache
def theirs(size=48):
    return open_clip.image_transform(size, is_train=False)


def opened(content):
    return Image.open(io.BytesIO(content))


def seen(content):
    """Return a file's pixels, uint8 [3, H, W], without resizing."""
    picture = load_picture(content)
    return np.asarray(picture.convert("RGB"))


AGREE = {
    "RGB PNG": lambda: saved(pixels()),
    "RGB JPEG": lambda: saved(pixels(), "JPEG"),
    "RGB TIFF": lambda: saved(pixels(), "TIFF"),
    "RGB WebP": lambda: saved(pixels(), "WEBP"),
    "upright portrait": lambda: saved(pixels(size=(50, 131)), "JPEG"),
    "smaller than the crop": lambda: saved(pixels(size=(20, 31))),
    "one pixel high": lambda: saved(pixels(size=(60, 1))),
    "already of that size": lambda: saved(pixels(size=(48, 48))),
    "grey PNG": lambda: saved(pixels("L")),
    "grey JPEG": lambda: saved(pixels("L"), "JPEG"),
    "grey TIFF": lambda: saved(pixels("L"), "TIFF"),
    "opaque RGBA": lambda: saved(opaque()),
    "CMYK JPEG": lambda: saved(pixels("CMYK"), "JPEG"),
    "CMYK TIFF": lambda: saved(pixels("CMYK"), "TIFF"),
}


@pytest.mark.parametrize("size", [32, 48, 224])
@pytest.mark.parametrize("kind", AGREE)
def test_equals_open_clip_to_the_last_bit(kind, size):
    content = AGREE[kind]()
    mine, other = ours(size)(opened(content)), theirs(size)(opened(content))
    assert mine.shape == (3, size, size)
    assert mine.dtype == torch.float32
    assert torch.equal(mine, other)
    assert torch.equal(ours(size)(load_picture(content)), other), "a picture that went through readable already"


def shown_instead(content, expected):
    """Check that a file looks like the plain RGB picture `expected`, and that OpenCLIP shows something else."""
    reference = theirs()(Image.fromarray(expected))
    assert torch.equal(ours()(opened(content)), reference)
    assert torch.equal(ours()(load_picture(content)), reference)
    assert not torch.allclose(theirs()(opened(content)), reference, atol=0.1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, 3), (8, 1)])
def test_turned_pictures_are_upright(kind, orientation, turns):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    content = saved(pixels(), kind, exif=exif)
    upright = np.rot90(np.asarray(opened(content).convert("RGB")), turns)
    assert np.array_equal(seen(content), upright)
    shown_instead(content, np.ascontiguousarray(upright))


def test_mirrored_pictures_are_upright():
    exif = Image.Exif()
    exif[ORIENTATION] = 2
    content = saved(pixels(), "PNG", exif=exif)
    shown_instead(content, np.asarray(pixels())[:, ::-1].copy())


def on_white(colours, alpha):
    alpha = alpha[..., None] / 255
    return colours * alpha + 255 * (1 - alpha)


def test_alpha_lies_on_white():
    picture = pixels("RGBA")
    content = saved(picture)
    values = np.asarray(picture).astype(float)
    expected = on_white(values[..., :3], values[..., 3])
    found = seen(content)
    assert np.abs(found - expected).max() <= 1
    shown_instead(content, found)


def test_what_is_quite_transparent_is_white():
    hidden = pixels()
    hidden.putalpha(0)
    assert (seen(saved(hidden)) == 255).all()


def test_grey_with_alpha_lies_on_white():
    picture = pixels("LA")
    values = np.asarray(picture).astype(float)
    expected = on_white(values[..., :1].repeat(3, axis=-1), values[..., 1])
    found = seen(saved(picture))
    assert np.abs(found - expected).max() <= 1
    shown_instead(saved(picture), found)


def test_opaque_grey_with_alpha_is_the_grey():
    assert np.array_equal(seen(saved(opaque("LA")))[..., 0], np.asarray(pixels("L")))


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF"])
def test_palettes_are_resized_in_their_colours(kind):
    content = saved(pixels().quantize(64), kind)
    assert opened(content).mode == "P"
    shown_instead(content, np.asarray(opened(content).convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_palettes_transparent_colour_is_white(kind):
    picture = pixels().quantize(16)
    index = int(np.asarray(picture)[0, 0])
    content = saved(picture, kind, transparency=index)
    transparent = np.asarray(opened(content)) == opened(content).info["transparency"]
    assert 0 < transparent.mean() < 1
    expected = np.where(transparent[..., None], 255, np.asarray(picture.convert("RGB"))).astype(np.uint8)
    shown_instead(content, expected)


def test_a_palettes_alpha_lies_on_white():
    picture = pixels().quantize(16)
    alpha = bytes(range(0, 256, 16))
    expected = on_white(np.asarray(picture.convert("RGB")), np.frombuffer(alpha, np.uint8)[np.asarray(picture)])
    assert np.abs(seen(saved(picture, transparency=alpha)) - expected).max() <= 1


def test_an_rgb_pictures_transparent_colour_is_white():
    picture = pixels()
    picture.paste((10, 20, 30), (5, 5, 50, 40))
    content = saved(picture, transparency=(10, 20, 30))
    expected = np.array(picture)
    expected[5:40, 5:50] = 255
    shown_instead(content, expected)


def test_a_grey_pictures_transparent_value_is_white():
    picture = pixels("L")
    picture.paste(7, (5, 5, 50, 40))
    expected = np.array(picture)
    expected[np.asarray(picture) == 7] = 255
    shown_instead(saved(picture, transparency=7), expected[..., None].repeat(3, axis=-1))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_one_bit_is_resized_in_greys(kind):
    content = saved(pixels("L").convert("1"), kind)
    assert opened(content).mode == "1"
    shown_instead(content, np.asarray(opened(content).convert("RGB")))
    assert len(ours()(opened(content)).unique()) > 10


def deep():
    return np.linspace(0, 65535, 90 * 61).round().reshape(61, 90).astype(np.uint16)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled(kind):
    content = saved(Image.fromarray(deep()), kind)
    expected = np.rint(deep() / 257).astype(np.uint8)
    assert np.array_equal(seen(content)[..., 0], expected)
    shown_instead(content, expected[..., None].repeat(3, axis=-1))


def test_dark_sixteen_bits_stay_dark():
    assert seen(saved(Image.fromarray(deep() // 300), "PNG")).max() == 1


def test_sixteen_bits_with_a_transparent_value():
    values = deep()
    values[10:30, 10:30] = 1000
    expected = np.rint(values / 257).astype(np.uint8)
    expected[values == 1000] = 255
    assert np.array_equal(seen(saved(Image.fromarray(values), "PNG", transparency=1000))[..., 0], expected)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_deeper_tiffs_are_scaled(dtype):
    white = 1.0 if dtype is np.float32 else 65535
    values = (deep() / 65535 * white).astype(dtype)
    assert np.array_equal(seen(saved(Image.fromarray(values), "TIFF"))[..., 0], np.rint(deep() / 257).astype(np.uint8))


def test_normalizing_equals_torchvision_to_the_last_bit():
    values = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=-1)
    picture = Image.fromarray(values)
    expected = Compose([ToTensor(), Normalize(MEAN, STD)])(picture)
    images = torch.from_numpy(values).permute(2, 0, 1)
    assert torch.equal(normalize(images, MEAN, STD), expected)
    batch = torch.stack([images, images.flip(1)])
    before = batch.clone()
    assert torch.equal(
        normalize(batch, torch.tensor(MEAN), torch.tensor(STD)), torch.stack([expected, expected.flip(1)])
    )
    assert torch.equal(batch, before)


@pytest.mark.parametrize("size", [32, 64])
def test_transforms_return_bytes(size):
    for transform in (EvaluationTransform(size), TrainingTransform(size)):
        image = transform(pixels("CMYK"))
        assert (image.shape, image.dtype, image.is_contiguous()) == ((3, size, size), torch.uint8, True)


def test_interpolation_is_used():
    bilinear = EvaluationTransform(32, "bilinear")(pixels())
    reference = open_clip.image_transform(32, is_train=False, interpolation="bilinear")(pixels())
    assert torch.equal(normalize(bilinear, MEAN, STD), reference)
    assert not torch.equal(bilinear, EvaluationTransform(32)(pixels()))


def cropped(transform, seed):
    torch.manual_seed(seed)
    return transform(pixels())


def test_training_draws_from_torchs_state_alone():
    transform = TrainingTransform(32, scale=(0.2, 1.0), horizontal_flip=0.5)
    first = [cropped(transform, seed) for seed in range(8)]
    random.seed(99)
    np.random.seed(99)
    assert all(torch.equal(image, cropped(transform, seed)) for seed, image in enumerate(first))
    assert len({tuple(image.flatten().tolist()) for image in first}) == 8


def test_flipping_is_off_unless_asked_for():
    square = pixels(size=(32, 32))
    whole = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
    image = EvaluationTransform(32)(square)
    assert torch.equal(TrainingTransform(32, **whole)(square), image)
    assert torch.equal(TrainingTransform(32, **whole, horizontal_flip=1.0)(square), image.flip(-1))


def test_the_crops_share_is_used():
    one_red_corner = Image.new("RGB", (100, 100), "white")
    one_red_corner.paste("red", (0, 0, 10, 10))
    torch.manual_seed(0)
    corners = {
        scale: sum(bool((TrainingTransform(32, (scale, scale))(one_red_corner)[1] < 128).any()) for _ in range(50))
        for scale in (1.0, 0.1)
    }
    assert corners[1.0] == 50
    assert corners[0.1] < 25


def test_reads_from_a_path_and_from_bytes(tmp_path):
    path = tmp_path / "a.png"
    pixels().save(path)
    for source in (path, str(path), path.read_bytes()):
        assert np.array_equal(np.asarray(load_picture(source)), np.asarray(pixels()))


UNREADABLE = {
    "empty.png": lambda: b"",
    "text.png": lambda: b"<html>404 not found</html>",
    "cut.png": lambda: saved(pixels())[:600],
    "cut.jpg": lambda: saved(pixels(), "JPEG")[:600],
    "cut.tif": lambda: saved(pixels(), "TIFF")[:600],
    "header.jpg": lambda: saved(pixels(), "JPEG")[:3],
    "numbers.npy": lambda: b"\x93NUMPY" + bytes(200),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_files_are_named(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(UNREADABLE[name]())
    with pytest.raises(UserError, match=rf"{name} cannot be read \(.+\); replace it or take its row out"):
        load_picture(path)
    with pytest.raises(UserError, match=rf"Picture {path.stat().st_size} bytes cannot be read"):
        load_picture(path.read_bytes())


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.png does not exist"):
        load_picture(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match="cannot be read"):
        load_picture(tmp_path)


def test_bombs_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    pixels(size=(90, 61)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 90 * 61 // 2 - 1)
    with pytest.raises(UserError, match=r"bomb\.png is refused: .*5490 pixels"):
        load_picture(path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "GIF", "WEBP", "BMP"])
def test_damaged_files_are_read_or_refused(kind):
    whole = saved(pixels(size=(24, 20)), kind)
    rng = random.Random(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole[: rng.randrange(len(whole))] if rng.random() < 0.5 else whole)
        for _ in range(rng.randint(0, 3)):
            if damaged:
                damaged[rng.randrange(min(len(damaged), 100))] = rng.randrange(256)
        try:
            load_picture(bytes(damaged))
        except UserError:
            refused += 1
    assert 0 < refused < 150
