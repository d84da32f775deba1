"""Pictures a second, from files to a batch, of our training data and open_clip's, on one core.

    python -m benchmarks.data_loading
    python -m benchmarks.data_loading --kinds "JPEG 640x427" --batch-size 16 --repeats 3 --distinct 4

Ours is `Pairs` with the training transform as it is by default; open_clip's is what its CsvDataset does: Pillow's open,
its training transform with the normalisation, its tokenizer for every caption. Both go through torch's DataLoader in
this process, without workers, at 224 pixels. Ours leaves the normalisation to the device, where it is not seen here.

Times are CPU times of whole batches, taken in turn; speeds are medians, and the ratio is the median of the ratios of
neighbours. Pictures are octaves of noise with edges, as many bytes as photographs of their size. PSNR is of the
same crops by `decode="scaled"` and `"exact"`. The floor is reading a JPEG's entropy code alone (decoding at 1/8, which
leaves the rest out), as a share of open_clip's time, and so is a limit for whoever decodes with libjpeg.
"""

import argparse
import importlib.metadata
import io
import itertools
import json
import math
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import open_clip
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from datamodules.pairs import Pairs, collate
from workbench import decoding, preprocessing
from workbench.preprocessing import EvaluationTransform, TrainingTransform

SIZE = 224
# Kind -> width, height, with alpha.
KINDS = {
    "JPEG 640x427": (640, 427, False),
    "JPEG 1024x768": (1024, 768, False),
    "JPEG 4000x3000": (4000, 3000, False),
    "PNG 512x512 with alpha": (512, 512, True),
}
STAGES = ("read", "decode", "resize", "rest")


def photo(width: int, height: int, seed: int) -> Image.Image:
    """Return octaves of noise that become weaker slowly, as those of photographs do, and discs with sharp edges."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.zeros(1, 3, height, width)
    wavelength, strength = float(max(width, height)), 1.0
    while wavelength >= 1:
        grid = [max(2, round(side / wavelength) + 1) for side in (height, width)]
        noise = 0.9 * torch.randn(1, 1, *grid, generator=generator) + 0.35 * torch.randn(
            1, 3, *grid, generator=generator
        )
        values += strength * torch.nn.functional.interpolate(noise, (height, width), mode="bilinear")
        wavelength, strength = wavelength / 2, strength * 0.95
    y, x = torch.arange(height)[:, None], torch.arange(width)
    for _ in range(12):
        left, top, radius = (
            torch.rand(3, generator=generator) * torch.tensor([width, height, max(width, height) / 4])
        ).tolist()
        inside = (x - left) ** 2 + (y - top) ** 2 < radius**2
        values[0, :, inside] = 0.6 * values[0, :, inside] + 0.7 * torch.randn(3, 1, generator=generator)
    values = values[0] / values.std() * 0.22 + 0.5
    return Image.fromarray((values.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def alpha(width: int, height: int, seed: int) -> Image.Image:
    """Return an opaque blob that fades out at its edge."""
    coarse = torch.randn(1, 1, 5, 5, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0, 0]
    return Image.fromarray(((8 * smooth + 1).clamp(0, 1) * 255).byte().numpy())


def write_pictures(kind: str, count: int, folder: Path) -> list[Path]:
    """Write so many files of a kind, and return their paths."""
    width, height, transparent = KINDS[kind]
    paths = []
    for seed in range(count):
        picture = photo(width, height, seed)
        paths.append(folder / f"{seed}.{'png' if transparent else 'jpg'}")
        if transparent:
            picture.putalpha(alpha(width, height, seed))
            picture.save(paths[-1])
        else:
            picture.save(paths[-1], quality=90)
    return paths


class OpenClipPairs(Dataset):
    """What open_clip's CsvDataset does; importing that one takes libraries that nothing else here needs."""

    def __init__(self, paths: list[Path], captions: list[str]):
        self.paths, self.captions = paths, captions
        mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
        self.transform = open_clip.image_transform(SIZE, is_train=True, mean=mean, std=std)
        self.tokenize = open_clip.get_tokenizer("ViT-B-32")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.transform(Image.open(str(self.paths[row]))), self.tokenize([self.captions[row]])[0]


class Timers:
    """CPU seconds by name, of functions while they are replaced by timed ones; a callee's are not its caller's."""

    def __init__(self):
        self.seconds: dict[str, float] = defaultdict(float)

    def timed(self, name: str, function: Callable[..., Any], within: str | None = None) -> Callable[..., Any]:
        """Return the function with its time added to `name`, and taken from `within`, whose callee it is."""

        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent = time.process_time() - start
                self.seconds[name] += spent
                if within:
                    self.seconds[within] -= spent

        return call


@contextmanager
def stages(pairs: Pairs) -> Iterator[dict[str, float]]:
    """Give the CPU seconds that each of `STAGES` but the rest takes inside the block."""
    timers = Timers()
    with (
        mock.patch.object(pairs, "picture", timers.timed("read", pairs.picture)),
        mock.patch.object(preprocessing, "read_crop", timers.timed("decode", preprocessing.read_crop)),
        mock.patch.object(decoding, "_resized", timers.timed("resize", decoding._resized, within="decode")),
        mock.patch.object(TrainingTransform, "crop", timers.timed("draw", TrainingTransform.crop, within="decode")),
    ):
        yield timers.seconds


def cpu_seconds(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def entropy_seconds(contents: list[bytes]) -> float:
    """Return the CPU time of decoding JPEGs at 1/8."""

    def decode() -> None:
        for content in contents:
            picture = Image.open(io.BytesIO(content))
            picture.draft(None, (picture.width // 8, picture.height // 8))
            picture.load()

    return cpu_seconds(decode)


def psnr(transforms: tuple[TrainingTransform, TrainingTransform], contents: list[bytes]) -> list[float]:
    """Return the PSNR between two transforms' pixels of each file, in dB."""
    found = []
    for seed, content in enumerate(contents):
        pixels = []
        for transform in transforms:
            torch.manual_seed(seed)
            pixels.append(transform(content).double())
        error = float((pixels[0] - pixels[1]).square().mean())
        found.append(10 * math.log10(255**2 / error) if error else math.inf)
    return found


def measure(kind: str, distinct: int, batch_size: int, repeats: int) -> dict[str, Any]:
    """Return one row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        files = write_pictures(kind, distinct, Path(folder))
        contents = [path.read_bytes() for path in files]
        paths = list(itertools.islice(itertools.cycle(files), batch_size))
        captions = [f"a photo of a thing, number {row} of a few" for row in range(batch_size)]
        pairs = Pairs(
            pictures=lambda row: paths[row].read_bytes(),
            captions=[[caption] for caption in captions],
            training_transform=TrainingTransform(SIZE),
            evaluation_transform=EvaluationTransform(SIZE),
            seed=0,
        )
        batches = [[(0, row) for row in range(batch_size)]]
        mine = DataLoader(pairs, batch_sampler=batches, collate_fn=collate)
        peer = DataLoader(OpenClipPairs(paths, captions), batch_size=batch_size)
        ours, theirs, floor, shares = [], [], [], defaultdict(list)
        for repeat in range(1 + repeats):  # the first warms up
            with stages(pairs) as seconds:
                spent = cpu_seconds(lambda: list(mine))
            other = cpu_seconds(lambda: list(peer))
            if not repeat:
                continue
            ours.append(spent)
            theirs.append(other)
            if kind.startswith("JPEG"):
                floor.append(entropy_seconds(contents) / distinct * batch_size)
            for stage in STAGES[:-1]:
                shares[stage].append(seconds[stage])
            shares["rest"].append(spent - sum(seconds[stage] for stage in STAGES[:-1]))
        levels = psnr((TrainingTransform(SIZE), TrainingTransform(SIZE, decode="exact")), contents)
    return {
        "kind": kind,
        "kilobytes": statistics.mean(map(len, contents)) / 1000,
        "ours_per_second": batch_size / statistics.median(ours),
        "open_clip_per_second": batch_size / statistics.median(theirs),
        "ratio": statistics.median(t / o for o, t in zip(ours, theirs, strict=True)),
        "ms": {stage: 1000 * statistics.median(shares[stage]) / batch_size for stage in STAGES},
        "entropy_share": statistics.median(f / t for f, t in zip(floor, theirs, strict=True)) if floor else None,
        "psnr": {"min": min(levels), "mean": statistics.mean(levels)},
    }


def line(row: dict[str, Any]) -> str:
    """Return one row in Markdown."""
    share = row["entropy_share"]
    cells = [
        row["kind"],
        f"{row['kilobytes']:,.0f}",
        f"{row['ours_per_second']:,.0f}",
        f"{row['open_clip_per_second']:,.0f}",
        f"**{row['ratio']:.2f}x**",
        " / ".join(f"{row['ms'][stage]:.2f}" for stage in STAGES),
        "" if share is None else f"{share:.0%}, so {1 / share:.1f}x at most",
        f"{row['psnr']['min']:.1f} / {row['psnr']['mean']:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--distinct", type=int, default=8, help="different pictures in a batch (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    versions = {
        name: importlib.metadata.version(name) for name in ("open_clip_torch", "pillow", "torch", "torchvision")
    }
    about = {"batch_size": options.batch_size, "repeats": options.repeats, "distinct": options.distinct, **versions}
    print(", ".join(f"{name} {value}" for name, value in about.items()) + "\n")
    print(
        f"| files | kB | ours/s | open_clip/s | ratio | ours, ms: {' / '.join(STAGES)} | floor | PSNR dB min / mean |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    rows = []
    for kind in options.kinds:
        rows.append(measure(kind, min(options.distinct, options.batch_size), options.batch_size, options.repeats))
        print(line(rows[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"about": about, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
