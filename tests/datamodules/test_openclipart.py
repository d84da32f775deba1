"""Real pictures as they lie about: Open Clip Art's palettes, grey and alpha channels, mojibake and 623 megapixels."""

import csv
import time
from pathlib import Path

import psutil
import pytest
import torch
from PIL import Image

from datamodules import ImageTextDataModule
from datamodules.pairs import collate
from workbench.errors import UserError
from workbench.preprocessing import EvaluationTransform, TrainingTransform, load_picture

# Debian's 1:0.18: the files are few enough to be named.
HUGE = "transportation/roadsigns/stop_sign_right_font_mig_.png"  # 20,990 x 29,700
MOJIBAKE = "geography/castilla_y_leon_01.png"


def titles(folder, every=60):
    """Return (path, title) of each 60th picture that has a title, links among them."""
    rows = []
    for path in sorted(folder.rglob("*.png"))[::every]:
        with Image.open(path) as picture:
            title = picture.info.get("Title")
            if title and title.strip() and picture.width * picture.height < 4e6:
                rows.append((str(path.relative_to(folder)), title, picture.mode))
    return rows


def table(rows):
    with Path("pairs.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("filepath", "title"), *rows])
    return "pairs.csv"


@pytest.mark.parametrize("decode", ["scaled", "exact"])
def test_every_kind_of_picture_becomes_what_is_seen(openclipart, decode):
    rows = titles(openclipart, every=150)
    assert {mode for *_, mode in rows} >= {"RGBA", "P", "LA"}
    for path, _, _ in rows:
        content = (openclipart / path).read_bytes()
        torch.manual_seed(0)
        image = TrainingTransform(32, decode=decode)(content)
        torch.manual_seed(0)
        expected = TrainingTransform(32)(load_picture(content))
        assert image.shape == (3, 32, 32) and image.dtype == torch.uint8
        difference = (image.int() - expected.int()).abs().float()
        assert difference.max() <= (0 if decode == "exact" else 3), path
        assert torch.equal(EvaluationTransform(32)(content), EvaluationTransform(32)(load_picture(content)))


def test_623_megapixels_are_refused_before_they_are_decoded(openclipart):
    content = (openclipart / HUGE).read_bytes()
    memory, start = psutil.Process().memory_info().rss, time.perf_counter()
    for transform in (TrainingTransform(32), TrainingTransform(32, decode="exact"), EvaluationTransform(32)):
        with pytest.raises(UserError, match="623403000 pixels"):
            transform(content)
    # Decoded it would take 2.5 GB and a minute.
    assert psutil.Process().memory_info().rss - memory < 2e8 and time.perf_counter() - start < 5


def test_titles_stay_what_they_are_and_links_are_followed_within_the_folder(openclipart):
    rows = titles(openclipart)
    with Image.open(openclipart / MOJIBAKE) as picture:
        wrong = picture.info["Title"]
    assert wrong == "Castilla y Le\u00c3\u00b3n"
    rows = [(path, title) for path, title, _ in rows] + [(MOJIBAKE, wrong)]
    data = ImageTextDataModule(
        train=table(rows), val="pairs.csv", root=str(openclipart), image_size=32, batch_size=8, num_workers=0
    )
    data.setup("fit")
    found = list(data.datasets["val"].captions)
    assert set(found) == {title for _, title in rows} and found[-1] == wrong
    assert any((openclipart / path).is_symlink() for path, _ in rows)
    batch = collate([data.datasets["val"][row] for row in range(0, len(found), 5)])
    assert batch["image"].shape[1:] == (3, 32, 32)


@pytest.mark.filterwarnings("ignore::workbench.errors.Notice")
def test_a_run_goes_on_without_the_huge_one_or_says_that_it_must_not(openclipart):
    rows = [(path, title) for path, title, _ in titles(openclipart)][:40] + [(HUGE, "stop sign")]

    def epoch(**options):
        data = ImageTextDataModule(
            train=table(rows), val="pairs.csv", root=str(openclipart), image_size=32, batch_size=8, num_workers=2,
            **options,
        )  # fmt: skip
        data.setup("fit")
        batches = data.training_batches(lambda: 0, lambda: 5)
        loader = data._loader("train", batch_sampler=[keys for e in range(3) for keys in batches.batches(e)])
        return data, [len(batch["image"]) for batch in loader]

    data, sizes = epoch(max_skipped=0.05)
    assert set(sizes) == {8} and [reason for *_, reason in data.skipped.table() if "623403000" in reason]
    with pytest.raises(UserError, match=r"1 of the 41 samples .*623403000 pixels.*data check"):
        epoch()
