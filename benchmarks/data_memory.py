"""Memory of loading: a table of millions of rows under several workers, and twenty epochs over a folder of pictures.

    python -m benchmarks.data_memory [--rows 10_000_000] [--workers 0 2 4] [--epochs 20]

The first table compares with Python lists, as open_clip's data set keeps paths and captions: each object that a
forked worker touches has its reference count written, so its page is copied. Memory is PSS, the resident pages of the
process and its workers with shared ones counted once, less that of the same process before it read the table. Each row
of the tables is measured in a process of its own.
"""

import argparse
import csv
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image

_WORDS = np.array([f"word{number}" for number in range(20)])
_FILES = 1000
_BATCH = 256


def write_pictures(folder: Path, count: int) -> None:
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04}.png")


def write_table(folder: Path, rows: int) -> Path:
    """Write a TSV of different paths, which are links to a thousand pictures, with captions of eight words."""
    (folder / "pictures").mkdir()
    write_pictures(folder / "pictures", _FILES)
    for link in range(-(-rows // _FILES)):
        (folder / f"link{link:06}").symlink_to("pictures")
    random = np.random.default_rng(0)
    path = folder / "pairs.tsv"
    with path.open("w") as file:
        file.write("filepath\tcaption\n")
        for link in range(-(-rows // _FILES)):
            words = random.integers(0, len(_WORDS), (_FILES, 7))
            file.writelines(
                f"link{link:06}/{n:04}.png\t{' '.join(_WORDS[words[n]])} {link * _FILES + n}\n"
                for n in range(min(_FILES, rows - link * _FILES))
            )
    return path


def pss() -> float:
    """Return the PSS of this process and its workers in MB."""
    gc.collect()
    me = psutil.Process()
    return sum(process.memory_full_info().pss for process in (me, *me.children(recursive=True))) / 1e6


def own() -> float:
    """Return the most that a worker has to itself, its USS in MB."""
    return max((worker.memory_full_info().uss for worker in psutil.Process().children(recursive=True)), default=0) / 1e6


def ours(path: Path, workers: int, epochs: int, steps: int) -> dict:
    from datamodules import ImageTextDataModule

    before = pss()
    data = ImageTextDataModule(
        train=str(path), val=str(path.with_name("val.tsv")), batch_size=_BATCH, image_size=32, num_workers=workers
    )
    data.setup("fit")
    trained = 0
    batches = data.training_batches(lambda: trained, lambda: steps)
    loader = data._loader("train", batch_sampler=batches)
    found = []
    for _ in range(epochs):
        found.append(after(steps, loader))
        trained += steps
    return {"first": found[0][0] - before, "last": found[-1][0] - before, "own": found[-1][1]}


def after(steps: int, loader: torch.utils.data.DataLoader) -> tuple[float, float]:
    """Return the memory of all, and of a worker alone, after so many batches of an epoch."""
    batches = iter(loader)  # kept, as its workers go with it
    for _ in range(steps):
        next(batches)
    return pss(), own()


class Lists(torch.utils.data.Dataset):
    """Paths and captions as open_clip 3.3.0 keeps them (open_clip_train/data.py, CsvDataset): two lists of strings."""

    def __init__(self, path: Path, transform, tokenizer):
        with path.open(newline="") as file:
            self.images, self.captions = map(list, zip(*list(csv.reader(file, delimiter="\t"))[1:], strict=True))
        self.transform, self.tokenizer = transform, tokenizer

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, row: int):
        return self.transform(Image.open(str(self.images[row]))), self.tokenizer([str(self.captions[row])])[0]


def lists(path: Path, workers: int, epochs: int, steps: int) -> dict:
    import open_clip

    os.chdir(path.parent)  # paths start from there
    before = pss()
    data = Lists(path, open_clip.image_transform(32, is_train=True), open_clip.get_tokenizer("RN50"))
    loader = torch.utils.data.DataLoader(data, _BATCH, shuffle=True, num_workers=workers, drop_last=True)
    found = [after(steps, loader) for _ in range(epochs)]
    return {"first": found[0][0] - before, "last": found[-1][0] - before, "own": found[-1][1]}


def twenty(folder: Path, workers: int, epochs: int) -> dict:
    """Return the PSS in MB after each epoch over a folder of JPEGs, whole epochs through the Trainer's own loader."""
    from datamodules import ImageTextDataModule

    data = ImageTextDataModule(
        train=str(folder / "pairs.tsv"), batch_size=64, image_size=64, num_workers=workers, val_fraction=0.1
    )
    data.setup("fit")
    trained = 0
    per_epoch = len(data.datasets["train"]) // 64
    loader = data._loader("train", batch_sampler=data.training_batches(lambda: trained, lambda: per_epoch))
    found = []
    for _ in range(epochs):
        for batch in loader:
            torch.sum(batch["image"])
            trained += 1
            if trained % per_epoch == 0:
                found.append(pss())
    return {"epochs": found}


def measured(what: str, *arguments: object) -> dict:
    """Run one measurement in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.data_memory", "--measure", what, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=400, help="batches of an epoch over the large table")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2, 4])
    parser.add_argument("--measure", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        what, path, *numbers = options.measure
        functions = {"ours": ours, "lists": lists, "twenty": twenty}
        print(json.dumps(functions[what](Path(path), *map(int, numbers))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = write_table(folder, options.rows)
        with path.open() as file:
            (folder / "val.tsv").write_text("".join(next(file) for _ in range(3)))
        print(f"{options.rows:,} rows, {path.stat().st_size / 1e6:.0f} MB of text; {options.steps} batches of {_BATCH}")
        print("| data set | workers | MB in epoch 1 | MB in epoch 3 | of a worker alone |\n|---|---:|---:|---:|---:|")
        for what in ("ours", "lists"):
            for workers in options.workers:
                found = measured(what, path, workers, 3, options.steps)
                print(
                    f"| {what} | {workers} | {found['first']:,.0f} | {found['last']:,.0f} | {found['own']:,.0f} |",
                    flush=True,
                )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_table(folder, _FILES)
        print(f"\n{options.epochs} epochs over {_FILES} pictures, MB after epoch 2 and the last, and the most between:")
        for workers in (0, 2):
            found = measured("twenty", folder, workers, options.epochs)["epochs"]
            print(f"- {workers} workers: {found[1]:.1f}, {found[-1]:.1f}, {max(found[1:]):.1f}", flush=True)


if __name__ == "__main__":
    main()
