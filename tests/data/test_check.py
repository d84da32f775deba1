"""`data check` finds each thing that is wrong, at its place, and nothing else."""

import io
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from workbench.main import main

EXPECTED = {
    # code: (severity, the rows of each group, or the rows, by their picture)
    "missing-pictures": ("breaks training", ["missing"]),
    "empty-files": ("breaks training", ["nothing"]),
    "truncated-pictures": ("breaks training", ["cut"]),
    "unreadable-pictures": ("breaks training", ["text"]),
    "refused-pictures": ("breaks training", ["bomb"]),
    "pictures-outside-root": ("breaks training", ["outside"]),
    "empty-captions": ("breaks training", ["no-caption"]),
    "blank-captions": ("breaks training", ["blank"]),
    "tiny-pictures": ("warning", ["tiny"]),
    "very-long-pictures": ("warning", ["long"]),
    "one-colour-pictures": ("warning", ["plain"]),
    "identical-files": ("warning", [["0", "copy"], ["5", "pair"]]),
    "identical-pixels": ("warning", [["1", "pixels"]]),
    "repeated-pairs": ("warning", [["5", "pair"]]),
    "near-identical-pictures": ("information", [["2", "again"]]),
    "cut-captions": ("warning", ["wordy"]),
    "repeated-captions": ("information", [["5", "pair"], ["6", "7", "8"]]),
    "similar-captions": ("information", [["9", "10"]]),
    "file-name-captions": ("information", ["11"]),
    "address-captions": ("information", ["12"]),
    "markup-captions": ("information", ["13"]),
    "garbled-captions": ("information", ["14"]),
    "animated-pictures": ("information", ["moving"]),
    "transparent-pictures": ("information", ["palette"]),
    "palette-pictures": ("information", ["moving", "palette"]),
    "cmyk-pictures": ("information", ["cmyk"]),
    "deep-pictures": ("information", ["deep"]),
    "turned-pictures": ("information", ["turned"]),
    "small-pictures": ("information", ["small"]),
    "huge-pictures": ("information", ["huge"]),
    "long-pictures": ("information", ["wide"]),
    "shared-pictures": ("warning", [["3", "val-copy"]]),
    "shared-looks": ("warning", [["4", "val-again"]]),
    "shared-captions": ("warning", [["15", "val-caption"]]),
}
NOT_ASKED = {"false-negatives"}


def header_only(width, height):
    """Return a PNG that claims a size and has hardly a pixel."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b"0")]
    framed = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def upside_down():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    return exif


def encoded(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def mess(drawn, table):
    """Write train.csv and val.csv with one of each problem among good rows; return the line of each picture."""
    Path("data/pictures").mkdir(parents=True)
    folder = Path("data/pictures")
    files, captions = {}, {}
    for number in range(20):
        files[str(number)] = encoded(drawn(number), "JPEG", quality=92)
        captions[str(number)] = f"the picture with the number {number}"
    files |= {
        "missing": None,
        "nothing": b"",
        "cut": encoded(drawn(100), "JPEG")[:-2000],
        "text": b"<html>404 not found</html>",
        "bomb": header_only(40_000, 40_000),
        "no-caption": encoded(drawn(101), "JPEG"),
        "blank": encoded(drawn(102), "JPEG"),
        "tiny": encoded(drawn(103, (16, 16)), "PNG"),
        "small": encoded(drawn(104, (150, 150)), "PNG"),
        "huge": encoded(drawn(105, (64, 64)).convert("L").resize((5200, 5000)), "JPEG", quality=30),
        "long": encoded(drawn(106, (25_600, 256)).convert("L"), "JPEG", quality=30),
        "wide": encoded(drawn(107, (1300, 256)), "JPEG"),
        "plain": encoded(Image.new("RGB", (256, 256), "teal"), "PNG"),
        "moving": encoded(drawn(108).quantize(32), "GIF", save_all=True, append_images=[drawn(109).quantize(32)]),
        "palette": encoded(drawn(110).quantize(32), "PNG", transparency=3),
        "cmyk": encoded(drawn(111).convert("CMYK"), "JPEG"),
        "deep": encoded(Image.fromarray(np.asarray(drawn(112).convert("L")).astype(np.uint16) * 250), "PNG"),
        "turned": encoded(drawn(113), "JPEG", exif=upside_down()),
        "wordy": encoded(drawn(114), "JPEG"),
        "copy": files["0"],
        "pixels": encoded(Image.open(io.BytesIO(files["1"])), "PNG"),
        "again": encoded(drawn(2).resize((300, 281)), "JPEG", quality=60),
        "pair": files["5"],
        "val-copy": files["3"],
        "val-again": encoded(drawn(4).resize((290, 272)), "JPEG", quality=70),
        "val-caption": encoded(drawn(116), "JPEG"),
        "val-good": encoded(drawn(117), "JPEG"),
    }
    captions |= {name: f"something called {name}" for name in files if name not in captions}
    captions |= {
        "no-caption": "",
        "blank": " \t",
        "wordy": "so many words " * 40,
        "pair": captions["5"],
        **dict.fromkeys(["6", "7", "8"], "one caption of three"),
        "9": "Café, au lait!",
        "10": "cafe au  lait",
        "11": "IMG_20231.jpg",
        "12": "look at https://example.org/cats",
        "13": "fish &amp; <b>chips</b>",
        "14": "a cafÃ© in the morning",
        "15": "the caption that leaks",
        "val-caption": "The caption  that LEAKS",
    }
    for name, content in files.items():
        if content is not None:
            (folder / name).write_bytes(content)
    drawn(118).save("outside.png")
    rows = [(f"pictures/{name}", captions[name]) for name in files if not name.startswith("val-")]
    rows.append(("../outside.png", "something outside"))
    table("data/train.csv", rows)
    held_out = [(f"pictures/{name}", captions[name]) for name in files if name.startswith("val-")]
    table("data/val.csv", held_out)
    lines = {Path(path).stem: f"data/train.csv, line {line}" for line, (path, _) in enumerate(rows, start=2)}
    return lines | {Path(path).stem: f"data/val.csv, line {line}" for line, (path, _) in enumerate(held_out, start=2)}


def test_one_of_each(mess, check):
    code, found, said = check("data/train.csv", "--data.val", "data/val.csv")
    assert code == 1
    by_code = {}
    for finding in found["findings"]:
        if finding["code"] not in NOT_ASKED:
            assert finding["code"] not in by_code, "one finding of each kind"
            by_code[finding["code"]] = finding
    assert sorted(by_code) == sorted(EXPECTED)
    for name, (severity, rows) in EXPECTED.items():
        finding = by_code[name]
        assert finding["severity"] == severity, name
        if "groups" in finding:
            assert [[row["place"] for row in group] for group in finding["groups"]] == [
                [mess[each] for each in group] for group in rows
            ], name
            assert finding["count"] == sum(len(group) - 1 for group in rows)
        else:
            assert [row["place"] for row in finding["rows"]] == [mess[each] for each in rows], name
            assert finding["count"] == len(rows)
        assert finding["text"] in " ".join(said.split()), name
    assert "pictures/cut (train.csv, line 24)" in said and "truncated" in said
    assert "WOULD BREAK TRAINING" in said and "8 findings" in said
    assert "data show data/train.csv --data.val data/val.csv" in said


def test_workers_do_not_change_what_is_found(mess, check):
    results = []
    for workers in (0, 1, 3):
        _, found, _ = check("data/train.csv", "--data.val", "data/val.csv", workers=workers)
        assert found.pop("measured")["pictures"] > 0
        results.append(found)
    assert results[0] == results[1] == results[2]


def test_clean_data(pairs, check, codes):
    code, found, said = check(pairs())
    assert code == 0 and codes(found) == {} and not found["breaks_training"]
    assert found["splits"]["train"]["pictures"]["formats"] == {"JPEG": 12}
    assert "This can be trained on." in said and "12 rows" in said


@pytest.mark.parametrize("kind", ["folder", "jsonl", "tar", "parquet"])
def test_every_place_is_read_leniently(drawn, check, codes, kind):
    """A row that the reader refuses is one finding among others."""
    import json
    import tarfile

    import pyarrow as pa
    import pyarrow.parquet as pq

    Path("place").mkdir()
    captions = ["a first caption", "", "a third one", " "]
    contents = [encoded(drawn(number), "JPEG") for number in range(4)]
    contents[2] = contents[2][:-3000]
    if kind == "parquet":
        pq.write_table(pa.table({"image": contents, "caption": captions}), "place/a.parquet")
    elif kind == "tar":
        with tarfile.open("place/a.tar", "w") as tar:
            for number, (content, caption) in enumerate(zip(contents, captions, strict=True)):
                for ending, what in (("jpg", content), ("txt", caption.encode())):
                    member = tarfile.TarInfo(f"{number}.{ending}")
                    member.size = len(what)
                    tar.addfile(member, io.BytesIO(what))
    else:
        for number, content in enumerate(contents):
            Path(f"place/{number}.jpg").write_bytes(content)
        if kind == "jsonl":
            lines = [{"image": f"{number}.jpg", "caption": text} for number, text in enumerate(captions)]
            Path("place/a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        else:
            for number in (0, 2, 3):  # the second has none at all
                Path(f"place/{number}.txt").write_text(captions[number])
    code, found, _ = check("place/a.jsonl" if kind == "jsonl" else "place")
    assert code == 1 and found["refused"] is not None
    broken = {name for name, severity in codes(found).items() if severity == "breaks training"}
    empty = {"empty-captions"} if kind == "tar" else {"empty-captions", "blank-captions"}
    assert broken == {"truncated-pictures"} | empty
    assert found["splits"]["train"]["pictures"]["rows"] == 4


def test_skipping_budget(drawn, pairs, check, codes):
    name = pairs(numbers=range(50))
    Path("pictures/7.jpg").write_bytes(b"")
    code, found, _ = check(name)
    assert code == 1 and codes(found) == {"empty-files": "breaks training"}
    code, found, _ = check(name, "--data.max_skipped", "0.02")
    assert code == 0 and codes(found) == {"empty-files": "warning"}
    code, found, _ = check(name, "--data.max_skipped", "0.02", "--data.on_error", "raise")
    assert code == 1 and codes(found) == {"empty-files": "breaks training"}


def test_a_limit_of_pixels(drawn, pairs, check, codes):
    """Of an experiment, or beside a place: what a run would refuse, told from the header as there."""
    pairs(numbers=range(20))
    Path("pictures/3.jpg").write_bytes(encoded(drawn(3, (512, 480)), "JPEG"))
    Path("pictures/7.jpg").write_bytes(header_only(10_000, 10_000))
    Path("mine.yaml").write_text(
        "model: {class_path: ContrastiveTask, init_args: {architecture: tiny-vit}}\n"
        "data: {class_path: ImageTextDataModule, init_args:\n"
        "  {train: pairs.csv, val: pairs.csv, batch_size: 4, max_pixels: 100_000}}\n"
    )
    refused = [("pictures/3.jpg", "512 x 480"), ("pictures/7.jpg", "10,000 x 10,000")]
    for target in (["mine.yaml"], ["pairs.csv", "--data.max_pixels", "100000"]):
        code, found, said = check(*target)
        assert code == 1 and found["settings"]["max_pixels"] == 100_000
        assert codes(found)["refused-pictures"] == "breaks training"
        rows = next(each["rows"] for each in found["findings"] if each["code"] == "refused-pictures")
        for row, (picture, size) in zip(rows, refused, strict=True):
            assert row["picture"].endswith(picture)
            assert row["reason"] == f"{size} pixels are more than the 100,000 that --data.max_pixels allows."
        assert "512 x 480 pixels are more than the 100,000" in said
    code, found, _ = check("mine.yaml", "--data.max_skipped", "0.1")
    assert code == 0 and codes(found)["refused-pictures"] == "warning"
    code, found, _ = check("mine.yaml", "--data.max_pixels", "null")
    assert code == 1 and codes(found)["truncated-pictures"] == "breaks training"
    assert "refused-pictures" not in codes(found)


def test_postscript_is_no_picture(pairs, check, codes):
    """Pillow would hand it to Ghostscript, which runs what is in it."""
    name = pairs()
    page = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n9 setlinewidth showpage\n%%EOF\n"
    Path("pictures/3.jpg").write_bytes(page)
    code, found, said = check(name)
    assert code == 1 and codes(found) == {"unreadable-pictures": "breaks training"}
    assert "cannot identify image file" in said


def test_batch_size(pairs, check, codes):
    name = pairs()
    assert check(name, "--batch_size", "12")[0] == 0
    code, found, said = check(name, "--batch_size", "13")
    assert code == 1 and codes(found) == {"batch-size": "breaks training"} and "larger than the training set" in said
    code, found, said = check(name, "--batch_size", "10", "--processes", "4")
    assert code == 1 and codes(found) == {"batch-size": "breaks training"} and "shared by 4" in said
    code, found, said = check(name, "--data.batch_size", "13")
    assert code == 1 and codes(found) == {"batch-size": "breaks training"}


def test_empty_table(table, check, codes):
    code, found, _ = check(table("pairs.csv", []))
    assert code == 1 and codes(found) == {"empty-split": "breaks training"}


def test_an_experiment_is_read_as_fit_does(pairs, drawn, check):
    """The model's sizes, the held-out rows and options beside it."""
    pairs(numbers=range(20))
    Path("mine.yaml").write_text(
        "model: {class_path: ContrastiveTask, init_args: {architecture: tiny-vit, context_length: 9}}\n"
        "data: {class_path: ImageTextDataModule, init_args: {train: pairs.csv, batch_size: 6, val_fraction: 0.25}}\n"
    )
    code, found, _ = check("mine.yaml", "--data.seed", "3")
    assert code == 0
    assert found["settings"]["image_size"] == 32 and found["settings"]["context_length"] == 9
    assert found["settings"]["batch_size"] == 6 and found["settings"]["seed"] == 3
    assert [found["splits"][name]["pictures"]["rows"] for name in ("train", "val")] == [15, 5]
    assert found["batches"]["steps"] == 2
    assert found["splits"]["train"]["captions"]["cut"] == 0
    code, found, _ = check("mine.yaml", "--model.context_length", "5")
    assert found["splits"]["train"]["captions"]["cut"] == 1
    # As `fit` takes them: the file behind --config, and another class with its options.
    other = ("--data", "ClassificationDataModule", "--data.train", "pairs.csv", "--data.val_fraction", "null")
    code, found, _ = check("--config", "mine.yaml", *other, "--data.label_column", "caption")
    assert code == 0 and found["splits"]["train"]["classes"]["classes"] == 20


def test_a_refused_table_is_split_as_a_run_would(drawn, table, check, codes):
    Path("pictures").mkdir()
    for number in range(20):
        drawn(number).save(f"pictures/{number}.jpg")
    rows = [(f"pictures/{number}.jpg", f"caption {number}") for number in range(20)]
    table("pairs.csv", [*rows[:7], (rows[7][0], ""), *rows[8:]])
    Path("mine.yaml").write_text(
        "model: {class_path: ContrastiveTask, init_args: {architecture: tiny-vit}}\n"
        "data: {class_path: ImageTextDataModule, init_args: {train: pairs.csv, batch_size: 4, val_fraction: 0.2}}\n"
    )
    code, found, _ = check("mine.yaml")
    assert code == 1 and codes(found) == {"empty-captions": "breaks training"}
    assert [found["splits"][name]["pictures"]["rows"] for name in ("train", "val")] == [16, 4]


def test_emoji(check, codes):
    """Pictures in memory, of a datamodule without files."""
    quick = str(Path(__file__).parent.parent.parent / "experiments" / "quickstart.yaml")
    code, found, _ = check(quick)
    assert code == 0
    assert found["splits"]["train"]["pictures"]["formats"] == {"in memory": 1703}
    assert set(codes(found)) <= {"near-identical-pictures", "shared-looks", "similar-captions"}


@pytest.fixture
def classes(drawn):
    """Write two splits of two classes; one picture of val is one of train's."""
    for split, numbers in (("train", range(8)), ("val", range(20, 24))):
        for number in numbers:
            folder = Path("classes", split, ("black cat", "white_dog")[number % 2])
            folder.mkdir(parents=True, exist_ok=True)
            drawn(number).save(folder / f"{number}.png")
    shutil.copy("classes/train/black cat/2.png", "classes/val/black cat/copy.png")
    return "classes"


def test_classes(classes, check, codes):
    code, found, _ = check(classes, "--batch_size", "4")
    assert code == 0
    assert codes(found) == {"shared-pictures": "warning", "false-negatives": "warning"}
    assert found["splits"]["train"]["classes"]["counts"] == {"black cat": 4, "white dog": 4}
    # Of the 3 that a picture meets among 7 others, none of the 3 of its class.
    expected = 1 - (4 * 3 * 2) / (7 * 6 * 5)
    assert found["batches"]["false_negatives"]["expected"] == pytest.approx(expected)


def test_classes_with_other_files_among_them(classes, check):
    Path(classes, "train", "white_dog", "readme.md").write_text("about white dogs")
    code, _, said = check(f"{classes}/train")
    assert code == 2 and "--data ClassificationDataModule" in said
    code, found, _ = check(f"{classes}/train", "--data", "ClassificationDataModule")
    assert code == 0 and found["splits"]["train"]["classes"]["classes"] == 2


def test_classes_that_differ(classes, check, codes):
    Path("classes/val/white_dog").rename("classes/val/wolf")
    code, found, said = check(classes)
    assert code == 1 and codes(found)["different-classes"] == "breaks training"
    assert "white dog" in said or "white_dog" in said
    shutil.rmtree("classes/val/wolf")
    Path("classes/val/white_dog").mkdir()
    code, found, _ = check(classes)
    assert code == 0 and codes(found)["empty-classes"] == "warning"


def test_labels_that_differ(pairs, table, check, codes):
    pairs(numbers=range(6))
    table("train.csv", [(f"pictures/{number}.jpg", "ab"[number % 2]) for number in range(4)], ("filepath", "label"))
    table("val.csv", [("pictures/4.jpg", "a"), ("pictures/5.jpg", "c")], ("filepath", "label"))
    options = ("--data.label_column", "label", "--data.val", "val.csv")
    code, found, said = check("train.csv", *options)
    assert code == 1 and codes(found)["different-classes"] == "breaks training"
    assert "val.csv, line 3" in found["refused"]


def test_what_else_a_run_would_refuse(classes, check, codes):
    """What the findings do not explain is said in the words that the run would say it in."""
    code, found, said = check(classes, "--data.shots", "5")
    assert code == 1 and codes(found)["refused"] == "breaks training"
    assert "shots is 5" in said and found["splits"]["train"]["pictures"]["rows"] == 8


def test_shards_are_reported(pairs, check, codes):
    assert main(["data", "shards", pairs(), "shards", "--samples_per_shard", "5"]) == 0
    code, found, said = check("shards", "--data.num_workers", "3", "--processes", "2")
    assert code == 0 and codes(found) == {"blocks": "information"}
    assert found["batches"]["blocks"] == {"blocks": 3, "min": 2, "median": 5.0, "max": 5}
    assert "3 shards or row groups of 2 to 5" in said and "6 loading processes" in said


def test_captions_as_pairs_of_their_own(drawn, check):
    """A picture's other captions are its positives, not its false negatives."""
    import json

    Path("a").mkdir()
    lines = []
    for number in range(6):
        drawn(number).save(f"a/{number}.png")
        lines.append({"image": f"{number}.png", "caption": [f"one of {number}", f"two of {number}"]})
    lines[5]["caption"][1] = lines[0]["caption"][0]
    Path("a/a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, found, _ = check("a/a.jsonl", "--batch_size", "4", "--data.several_captions", "all")
    assert found["batches"]["rows"] == 12 and found["batches"]["steps"] == 3
    # Two of twelve captions are equal, and each meets the other among 3 of 11.
    assert found["batches"]["false_negatives"]["expected"] == pytest.approx(2 / 12 * 3 / 11)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nowhere.csv"], ["nowhere.csv"]),
        (["nowhere.yaml"], ["nowhere.yaml", "does not exist"]),
        (["pairs.csv", "--data.image_column", "bild"], ["no column 'bild'", "--data.image_column"]),
        (["pairs.csv", "--data.batchsize", "3"], ["batchsize", "'batch_size'"]),
        (["pairs.csv", "--jsn", "x"], ["jsn", "'json'"]),
        (["pairs.csv", "--fix", "pairs.csv"], ["pairs.csv exists"]),
        (["pairs.csv", "--fix", "new.xlsx"], [".csv, .tsv"]),
        ([], ["config_or_path", "data check --help"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_mistakes(pairs, capsys, args, words):
    pairs(numbers=range(3))
    assert main(["data", "check", *args]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1, said
    for word in words:
        assert word in said


def test_as_a_program(pairs):
    """Real processes: exit code and streams, and help at once."""
    run = [sys.executable, "-m", "workbench", "data"]
    name = pairs()
    Path("pictures/3.jpg").unlink()
    broken = subprocess.run([*run, "check", name], capture_output=True, text=True)
    assert broken.returncode == 1 and "pictures/3.jpg" in broken.stdout and not broken.stderr, broken.stderr
    code = (
        "import sys, atexit; from workbench.main import main; "
        "atexit.register(lambda: print('torch' in sys.modules)); main(['data', '--help'])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    for word in ("check", "show", "shards"):
        assert word in said
    assert said.endswith("False\n")


def test_help(capsys):
    with pytest.raises(SystemExit):
        main(["data", "check", "--help"])
    said = capsys.readouterr().out
    assert "config_or_path" in said and "--fix" in said and "--print_config" not in said
    assert main(["data", "chekc", "x"]) == 2
    assert "'check'" in capsys.readouterr().err
