"""Training crops straight from a file's bytes, against the same crops of the whole picture.

`decode="exact"` and evaluation are equal to the last bit to the transform of the loaded picture. `decode="scaled"`
draws the same crop; how far its pixels may be from the exact ones is in `BOUNDS`.
"""

import functools
import io
import math
import pickle
import random
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, PngImagePlugin, features
from sklearn.datasets import load_sample_images
from torchvision.transforms import RandomCrop, RandomResizedCrop, Resize
from torchvision.transforms import functional as torchvision_functional

from workbench import decoding
from workbench.decoding import load_picture
from workbench.errors import UserError
from workbench.preprocessing import EvaluationTransform, TrainingTransform

# torch says it once in a process, so wherever it comes first.
pytestmark = pytest.mark.filterwarnings("error:The given NumPy array is not writable")

SIZE = 48
# PSNR in dB, least and mean, over pictures and crops. Where a JPEG is decoded at a fraction, the rest of its DCT is cut
# off rather than filtered, and an edge of the crop may be off by 0.03 of a pixel. Where nothing is scaled, rounding
# differs: by a level, or a few where bicubic's overshoot is clipped between the axes, which come in another order.
BOUNDS = {"scaled": (38, 42), "whole": (50, 53)}
CROPS = {"OpenCLIP's": {}, "small": {"scale": (0.3, 0.8)}, "the paper's": {"scale": None}}


@functools.lru_cache
def photo(width, height, seed=0):
    """Return octaves of noise, discs with sharp edges and a gradient, as uint8 [H, W, 3]."""
    generator = torch.Generator().manual_seed(seed)
    values, wavelength, strength = torch.zeros(1, 3, height, width), max(width, height) / 2, 1.0
    while wavelength > 1:
        grid = [round(side / wavelength) + 2 for side in (height, width)]
        noise = torch.randn(1, 1, *grid, generator=generator) + 0.4 * torch.randn(1, 3, *grid, generator=generator)
        values += strength * torch.nn.functional.interpolate(noise, (height, width), mode="bilinear")
        wavelength, strength = wavelength / 3, strength * 0.9
    y, x = torch.arange(height)[:, None] / height, torch.arange(width) / width
    for left, top, radius in torch.rand(6, 3, generator=generator).tolist():
        inside = (x - left) ** 2 + (y - top) ** 2 < radius**2 / 10
        values[0, :, inside] = 0.5 * values[0, :, inside] + torch.randn(3, 1, generator=generator)
    values = values[0] / values.std() * 0.2 + 0.3 + 0.3 * x + 0.1 * y
    return (values.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()


def encoded(pixels, kind="JPEG", **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 92} | options if kind in ("JPEG", "MPO") else options))
    return file.getvalue()


def orientation(number):
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


def both(content, seed, size=SIZE, **options):
    """Return a crop in both modes, from the same random state, which both leave in the same state."""
    results, states = [], []
    for decode in ("scaled", "exact"):
        torch.manual_seed(seed)
        results.append(TrainingTransform(size, decode=decode, **options)(content))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    assert results[0].shape == results[1].shape == (3, size, size)
    return results


def psnr(one, other):
    error = float((one.double() - other.double()).square().mean())
    return 10 * math.log10(255**2 / error) if error else 100.0


def check(pairs, bound):
    found = [psnr(*pair) for pair in pairs]
    least, mean = BOUNDS[bound]
    assert min(found) >= least and sum(found) / len(found) >= mean, (min(found), sum(found) / len(found))


@pytest.fixture
def decoded(monkeypatch):
    """Sizes of the pictures that are resized."""
    sizes, resized = [], decoding._resized
    monkeypatch.setattr(
        decoding, "_resized", lambda picture, *rest: sizes.append(picture.size) or resized(picture, *rest)
    )
    return sizes


SMALL = photo(96, 70)
RGB = Image.fromarray(SMALL)
PICTURE = photo(450, 301)  # more than 1.5 x 4 x 48, so decoded at 1/4


# The crop


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("crop", CROPS.values(), ids=CROPS)
def test_the_crop_is_the_same(monkeypatch, decoded, number, crop):
    """OpenCLIP's as drawn by torchvision for the upright picture, the paper's as the only one with these pixels."""
    drawn, resized_crop = [], torchvision_functional.resized_crop
    monkeypatch.setattr(
        torchvision_functional,
        "resized_crop",
        lambda image, top, left, height, width, *rest, **options: (
            drawn.append((left, top, left + width, top + height))
            or resized_crop(image, top, left, height, width, *rest, **options)
        ),
    )
    boxes, draw = [], TrainingTransform.crop
    monkeypatch.setattr(TrainingTransform, "crop", lambda self, *size: boxes.append(draw(self, *size)) or boxes[-1])
    for shape in ((450, 301), (301, 451), (96, 70), (37, 91), (333, 333)):
        content = encoded(photo(*shape), exif=orientation(number), subsampling=0)
        check([both(content, seed, **crop) for seed in range(5)], "scaled")
    assert boxes == drawn or (crop and crop["scale"] is None)
    assert len(set(boxes)) > 10
    assert (96, 70) in decoded, "some are not scaled"
    assert not {(450, 301), (301, 451)} & set(decoded), "and some are"


@pytest.mark.parametrize("width", [SIZE, 2 * SIZE, 71, 5000])
def test_the_papers_crop_is_torchvisions(width):
    transform = TrainingTransform(SIZE, scale=None)
    for height in (SIZE, 70, 143):
        for seed in range(20):
            torch.manual_seed(seed)
            left, top, right, bottom = transform.crop(width, height)
            kept = min(width, 64 * height)
            torch.manual_seed(seed)
            resized = Resize(SIZE)(Image.new("L", (kept, height)))
            row, column, _, _ = RandomCrop.get_params(resized, (SIZE, SIZE))
            across, down = kept / resized.width, height / resized.height
            assert (left, top) == pytest.approx((column * across + round((width - kept) / 2), row * down))
            assert (right - left, bottom - top) == pytest.approx((SIZE * across, SIZE * down))


def test_a_box_with_fractions_is_pillows():
    picture, generator = Image.fromarray(photo(150, 131)), random.Random(0)
    found, spans = [], 0
    for _ in range(200):
        left, top = (generator.choice([0, 8 * generator.random()]) for _ in range(2))
        right, bottom = (side - generator.choice([0, 8 * generator.random()]) for side in picture.size)
        box = (left, top, right, bottom)
        spans += None not in (
            decoding._Span.between(left, right, SIZE, False),
            decoding._Span.between(top, bottom, SIZE, False),
        )
        expected = torch.from_numpy(np.array(picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box)))
        pixels = torch.from_numpy(decoding._resized(picture, box, SIZE, "bicubic", beyond=False).copy())
        # Without the border, where Pillow looks beyond the box.
        found.append(psnr(pixels[:, 2:-2, 2:-2], expected.permute(2, 0, 1)[:, 2:-2, 2:-2]))
    assert min(found) > 45
    assert spans > 150, "mostly by torch"


# The pixels


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ((640, 427), 224, (640, 427)),
        ((1024, 768), 224, (512, 384)),
        ((385, 513), 112, (193, 257)),
        ((900, 600), 96, (225, 150)),
        ((501, 753), 40, (63, 95)),
        ((120, 150), 224, (120, 150)),
        ((9, 7), 224, (9, 7)),
    ],
)
def test_pixels_are_close_and_no_more_than_needed(decoded, shape, size, expected):
    content = encoded(photo(*shape))
    for crop in ({}, {"scale": None}, {"interpolation": "bilinear"}):
        check([both(content, seed, size, **crop) for seed in range(3)], "whole" if expected == shape else "scaled")
    assert set(decoded) == {expected}
    assert expected == shape or min(expected) > 1.5 * size


def test_what_is_not_scaled_differs_by_a_level():
    content = encoded(photo(300, 211), "PNG")
    for crop in ({}, {"scale": None}, {"scale": (0.5, 0.8)}, {"interpolation": "bilinear"}):
        for seed in range(5):
            scaled, exact = both(content, seed, **crop)
            assert (scaled.int() - exact.int()).abs().max() <= 1


def test_a_large_picture_is_decoded_at_an_eighth(decoded):
    pixels = np.asarray(Image.fromarray(photo(1000, 750)).resize((4000, 3000), Image.Resampling.BICUBIC))
    noise = np.random.default_rng(0).integers(0, 25, pixels.shape, dtype=np.uint8)
    content = encoded(pixels // 8 * 7 + noise)
    check([both(content, seed, 224, **crop) for seed, crop in enumerate(({}, {"scale": None}))], "scaled")
    assert decoded == [(500, 375)] * 2


@pytest.mark.parametrize("size", [20, 32, 64, 100, 224])
def test_photographs(size):
    pairs = []
    for pixels in load_sample_images().images:
        content = encoded(pixels)
        pairs += [both(content, seed, size, **crop) for seed in range(2) for crop in CROPS.values()]
    check(pairs, "scaled")


def cmyk(pixels):
    """Return a picture with black of its own, not only mixed from colours."""
    colours = 255 - pixels.astype(np.int32)
    black = colours.min(axis=2, keepdims=True) // 2
    return Image.fromarray(np.concatenate([colours - black, black], axis=2).astype(np.uint8), "CMYK")


JPEGS = {
    "4:4:4": encoded(PICTURE, subsampling=0),
    "4:2:2": encoded(PICTURE, subsampling=1),
    "4:2:0": encoded(PICTURE, subsampling=2),
    "progressive": encoded(PICTURE, progressive=True),
    "restart markers": encoded(PICTURE, restart_marker_rows=1),
    "RGB": encoded(PICTURE, keep_rgb=True),
    "grey": encoded(Image.fromarray(PICTURE).convert("L")),
    "CMYK": encoded(cmyk(PICTURE)),
    "several in one file": encoded(
        Image.fromarray(PICTURE), "MPO", save_all=True, append_images=[Image.new("RGB", (450, 301))]
    ),
    "odd sizes": encoded(photo(449, 307)),
}


@pytest.mark.parametrize("content", JPEGS.values(), ids=JPEGS)
def test_every_kind_of_jpeg_is_scaled(decoded, content):
    assert (Image.open(io.BytesIO(content)).format == "MPO") == (content == JPEGS["several in one file"])
    check([both(content, seed, **crop) for seed in range(4) for crop in CROPS.values()], "scaled")
    assert set(map(max, decoded)) <= {450 // 2, 449 // 2 + 1, 450 // 4 + 1}


def test_what_torch_does_not_take_is_pillows():
    for content in (encoded(RGB.convert("L")), encoded(RGB.convert("CMYK")), encoded(RGB.convert("L"), "PNG")):
        for crop in ({}, {"scale": (0.3, 0.8)}):
            assert torch.equal(*both(content, 0, **crop))


def test_nothing_comes_in_at_the_edges():
    content = encoded(Image.new("RGB", (450, 301), (250, 10, 120)))
    for seed in range(30):
        pixels = both(content, seed, scale=(0.3, 1.0))[0].flatten(1)
        assert (pixels.amax(dim=1) - pixels.amin(dim=1)).max() <= 1


def test_ink_is_colour():
    """Adobe's CMYK files are inverted; a mistake would show as a negative, in both modes at once."""
    for decode in ("scaled", "exact"):
        pixels = TrainingTransform(SIZE, scale=None, decode=decode)(JPEGS["CMYK"]).double().mean(dim=(1, 2))
        assert (pixels - torch.from_numpy(PICTURE).double().mean(dim=(0, 1))).abs().max() < 40
        assert pixels.min() > 100


def transparent():
    picture = RGB.copy()
    picture.putalpha(Image.fromarray(photo(96, 70, seed=1)[..., 0]))
    return picture


def avif():
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    return encoded(RGB, "AVIF")


FRAMES = [RGB, Image.new("RGB", RGB.size, "red")]
FILES = {
    "PNG": lambda: encoded(RGB, "PNG"),
    "RGBA PNG": lambda: encoded(transparent(), "PNG"),
    "grey with alpha": lambda: encoded(transparent().convert("LA"), "PNG"),
    "palette": lambda: encoded(RGB.quantize(32), "PNG"),
    "palette with a transparent colour": lambda: encoded(RGB.quantize(32), "PNG", transparency=3),
    "16-bit PNG": lambda: encoded(np.asarray(RGB.convert("L")).astype(np.uint16) * 257, "PNG"),
    "PNG, EXIF orientation": lambda: encoded(RGB, "PNG", exif=orientation(6)),
    "TIFF, EXIF orientation": lambda: encoded(RGB, "TIFF", exif=orientation(8)),
    "WebP": lambda: encoded(RGB, "WEBP"),
    "RGBA WebP": lambda: encoded(transparent(), "WEBP", lossless=True, exact=True),
    "WebP, EXIF orientation": lambda: encoded(RGB, "WEBP", exif=orientation(5)),
    "animated WebP": lambda: encoded(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:], lossless=True),
    "animated GIF": lambda: encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]),
    "animated PNG": lambda: encoded(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]),
    "AVIF": avif,
    "BMP": lambda: encoded(RGB, "BMP"),
    "JPEG": lambda: encoded(RGB),
    "JPEG, EXIF orientation": lambda: encoded(RGB, exif=orientation(7)),
    "CMYK JPEG": lambda: encoded(RGB.convert("CMYK")),
    "one pixel": lambda: encoded(Image.new("RGB", (1, 1), "blue"), "PNG"),
}


@pytest.mark.parametrize("file", FILES.values(), ids=FILES)
def test_bytes_are_the_picture(file):
    """Evaluation and exact training to the last bit, scaled training but for rounding."""
    content = file()
    picture = load_picture(content)
    assert torch.equal(EvaluationTransform(SIZE)(content), EvaluationTransform(SIZE)(picture))
    for crop in CROPS.values():
        exact, steps = TrainingTransform(SIZE, decode="exact", **crop), []
        if "scale" in crop and crop["scale"] is None:
            steps = [Resize(SIZE, Image.Resampling.BICUBIC), RandomCrop(SIZE)]
        else:
            steps = [RandomResizedCrop(SIZE, crop.get("scale", (0.9, 1.0)), interpolation=Image.Resampling.BICUBIC)]
        for seed in range(3):
            torch.manual_seed(seed)
            expected = picture
            for step in steps:
                expected = step(expected)
            expected = torch.from_numpy(np.array(expected.convert("RGB"))).permute(2, 0, 1)
            for source in (content, picture):
                torch.manual_seed(seed)
                assert torch.equal(exact(source), expected)
            torch.manual_seed(seed)
            assert torch.equal(TrainingTransform(SIZE, **crop)(picture), expected), "a PIL picture is never scaled"
            check([both(content, seed, **crop)], "whole")


@pytest.mark.parametrize("file", ["animated GIF", "animated WebP", "animated PNG"])
def test_the_first_frame_is_shown(file):
    assert Image.open(io.BytesIO(FILES[file]())).n_frames == 2
    first = np.asarray(load_picture(FILES[file]()).convert("RGB")).astype(int)
    assert np.abs(first - SMALL).mean() < 12, "but for the palette's 256 colours"


def test_avif_is_read():
    assert np.abs(np.asarray(load_picture(avif())).astype(int) - SMALL).mean() < 6


@pytest.mark.parametrize("interpolation", ["nearest", "lanczos", "box"])
def test_what_torch_does_not_filter_is_exact(interpolation):
    assert torch.equal(*both(JPEGS["4:2:0"], 0, interpolation=interpolation))


def test_flipping():
    for decode in ("scaled", "exact"):
        torch.manual_seed(0)
        plain = TrainingTransform(SIZE, decode=decode)(JPEGS["4:2:0"])
        torch.manual_seed(0)
        assert torch.equal(TrainingTransform(SIZE, horizontal_flip=1.0, decode=decode)(JPEGS["4:2:0"]), plain.flip(2))
    pairs = [both(JPEGS["4:2:0"], seed, horizontal_flip=0.5) for seed in range(10)]
    check(pairs, "scaled")


def test_threads_do_not_matter():
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(both(JPEGS["4:2:0"], 3)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize(
    "content", [JPEGS["4:2:0"], JPEGS["grey"], encoded(RGB, "PNG"), encoded(RGB, exif=orientation(6))]
)
def test_pixels_are_memory_of_their_own(content):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = TrainingTransform(SIZE)(content)
        assert pixels.dtype == torch.uint8 and pixels.is_contiguous()
        assert pixels.untyped_storage().nbytes() == pixels.numel()
        pixels.numpy()[:] = 0
    assert not pixels.any()


def test_a_strip_is_not_blown_up():
    strip = photo(3000, 2)
    for content in (
        encoded(strip),
        encoded(strip, "PNG"),
        encoded(strip.swapaxes(0, 1)),
        encoded(strip, exif=orientation(6)),
    ):
        check([both(content, seed, **crop) for seed in range(3) for crop in CROPS.values()], "whole")


def test_transforms_can_be_pickled():
    transform = pickle.loads(pickle.dumps(TrainingTransform(SIZE, scale=None)))
    torch.manual_seed(0)
    assert torch.equal(transform(JPEGS["4:2:0"]), both(JPEGS["4:2:0"], 0, scale=None)[0])


# What is refused


def test_modes_are_named():
    with pytest.raises(UserError, match="decode is 'fast'; there are scaled and exact"):
        TrainingTransform(SIZE, decode="fast")


READERS = {
    "scaled": TrainingTransform(SIZE),
    "exact": TrainingTransform(SIZE, decode="exact"),
    "evaluation": EvaluationTransform(SIZE),
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize("kind", ["4:2:0", "progressive", "grey", "CMYK"])
def test_a_jpeg_that_is_cut_short_is_refused(reader, kind):
    content = JPEGS[kind]
    for length in (0, 2, 100, len(content) // 3, len(content) * 9 // 10, len(content) - 2):
        with pytest.raises(UserError, match=f"Picture of {length:,} bytes cannot be read"):
            reader(content[:length])


@pytest.mark.filterwarnings("ignore")
def test_both_modes_refuse_the_same():
    generator, refused = random.Random(0), 0
    for seed in range(300):
        content = bytearray(generator.choice(list(JPEGS.values())))
        for _ in range(generator.choice([1, 3, 10])):
            content[generator.randrange(min(len(content), generator.choice([60, 700, 10**6])))] = generator.randrange(
                256
            )
        messages = []
        for decode in ("scaled", "exact"):
            torch.manual_seed(seed)
            try:
                TrainingTransform(SIZE, decode=decode)(bytes(content))
                messages.append(None)
            except UserError as error:
                messages.append(str(error))
        assert (messages[0] is None) == (messages[1] is None), messages
        refused += messages[0] is not None
    assert 30 < refused < 270


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize("content", [JPEGS["4:2:0"], encoded(PICTURE, "PNG")], ids=["JPEG", "PNG"])
def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch, reader, content):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 450 * 301 // 2 - 1)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(UserError, match="is refused.*decompression bomb"):
        reader(content)


def claiming(width, height):
    """Return a small PNG whose header claims a size."""
    content = bytearray(encoded(RGB, "PNG"))
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def limited(max_pixels):
    return [
        TrainingTransform(SIZE, max_pixels=max_pixels),
        TrainingTransform(SIZE, decode="exact", max_pixels=max_pixels),
        EvaluationTransform(SIZE, max_pixels=max_pixels),
        functools.partial(load_picture, max_pixels=max_pixels),
    ]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_more_pixels_than_allowed_are_refused_by_the_header(monkeypatch):
    for reader in limited(450 * 301):
        reader(JPEGS["4:2:0"])
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    monkeypatch.setattr(ImageFile.ImageFile, "draft", lambda *_: pytest.fail("decoded"))
    for content, size in [
        (JPEGS["4:2:0"], "450 x 301"),
        (encoded(PICTURE, exif=orientation(6)), "450 x 301"),
        (encoded(PICTURE, "WEBP"), "450 x 301"),
        (claiming(10_000, 10_000), "10,000 x 10,000"),
    ]:
        words = f"^Picture of {len(content):,} bytes is refused: {size} pixels .* 135,449 that --data.max_pixels allows"
        for reader in limited(450 * 301 - 1):
            with pytest.raises(UserError, match=words):
                reader(content)


def test_a_limit_above_pillows_does_not_lift_it(monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    for reader in limited(10**9) + limited(10**6) + limited(None):
        with pytest.raises(UserError, match="is refused: .*400000000 pixels.* decompression bomb"):
            reader(claiming(20_000, 20_000))


def test_a_picture_that_is_open_is_refused_as_well(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(PICTURE, "PNG"))
    few, enough = limited(450 * 301 - 1), limited(450 * 301)
    with Image.open(tmp_path / "a.png") as picture:
        for reader in few:
            with pytest.raises(UserError, match=r"a\.png is refused: 450 x 301 pixels"):
                reader(picture)
        assert picture.tile, "not decoded yet"
        for reader in enough:
            reader(picture)
        assert picture.getpixel((0, 0)) == tuple(PICTURE[0, 0]), "and it stays open"
    for reader in few:
        with pytest.raises(UserError, match="in memory is refused: 450 x 301 pixels"):
            reader(Image.fromarray(PICTURE))


def test_what_is_no_picture_is_said_without_addresses():
    for reader in READERS.values():
        with pytest.raises(UserError, match=r"15 bytes cannot be read \(no picture, or damaged at its start\)"):
            reader(b"<html>404</html>"[:15])


def png_chunks(content):
    """Yield (name, start of the data, its length)."""
    position = 8
    while position < len(content):
        length = struct.unpack(">I", content[position : position + 4])[0]
        yield content[position + 4 : position + 8], position + 8, length
        position += 12 + length


def test_a_png_with_a_broken_chunk():
    """Refused: pixels that do not unpack, or anything before them. Read: damage that cannot be in the pixels."""
    info = PngImagePlugin.PngInfo()
    info.add_text("Title", "smooth")
    sound = encoded(RGB, "PNG", pnginfo=info)
    where = {name: (start, length) for name, start, length in png_chunks(sound)}

    def broken(position):
        content = bytearray(sound)
        content[position] ^= 0xFF
        return bytes(content)

    (text, text_length), (pixels, pixels_length) = where[b"tEXt"], where[b"IDAT"]
    comment = b"tEXtTitle\0late"
    late = struct.pack(">I", len(comment) - 4) + comment + struct.pack(">I", zlib.crc32(comment) ^ 1)
    end = where[b"IEND"][0] - 8
    for reader in READERS.values():
        for position in (text + text_length, text, pixels + pixels_length // 2, pixels + pixels_length - 1):
            with pytest.raises(UserError, match="cannot be read"):
                reader(broken(position))
        torch.manual_seed(0)
        expected = reader(sound)
        for content in (broken(pixels + pixels_length), sound[:end] + late + sound[end:]):
            torch.manual_seed(0)
            assert torch.equal(reader(content), expected)


@pytest.mark.parametrize("transform", [TrainingTransform(SIZE), EvaluationTransform(SIZE)], ids=["train", "evaluate"])
def test_postscript_is_no_picture_whatever_its_name(transform):
    """Pillow would hand it to Ghostscript, which runs what is in it."""
    page = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n9 setlinewidth showpage\n%%EOF\n"
    assert Image.open(io.BytesIO(page)).format == "EPS"
    with pytest.raises(UserError, match="no picture"):
        transform(page)
