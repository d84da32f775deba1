"""`--fix` writes what is worth training on, and that passes the check."""

import csv
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from workbench.main import main


@pytest.fixture
def faulty(drawn, table):
    """Write a table of rows to keep and rows to leave out, and its val; return the captions to keep, in order."""
    Path("data/pictures").mkdir(parents=True)
    for number in range(12):
        drawn(number).save(f"data/pictures/{number}.jpg")
    shutil.copy("data/pictures/0.jpg", "data/pictures/copy.jpg")
    drawn(1).resize((300, 281)).save("data/pictures/near.jpg")
    Path("data/pictures/cut.jpg").write_bytes(Path("data/pictures/2.jpg").read_bytes()[:-900])
    rows = [
        ("0", "nothing"),
        ("1", "keep, with a comma"),
        ("2", 'keep "quoted"\nand a second line'),
        ("3", ""),
        ("4", "keep four"),
        ("4", "keep four again"),  # another caption of one picture
        ("4", " "),
        ("5", "says what val says"),
        ("6", "shows what val shows"),
        ("copy", "nothing"),  # the same picture and caption
        ("copy", "keep: the picture again, and something else"),
        ("near", "keep: looks like another"),
        ("cut", "cut"),
        ("missing", "missing"),
        ("7", "keep ümläut ✓"),
    ]
    table("data/train.csv", [(f"pictures/{name}.jpg", caption) for name, caption in rows])
    shutil.copy("data/pictures/6.jpg", "data/pictures/six.jpg")
    table(
        "data/val.csv",
        [("pictures/8.jpg", "Says what  VAL says"), ("pictures/six.jpg", "six"), ("pictures/9.jpg", "9")],
    )
    return [rows[0][1], *(caption for _, caption in rows if caption.startswith("keep"))]


def read_table(path):
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_tables(faulty, check, codes, suffix):
    before = Path("data/train.csv").read_bytes()
    output = Path(f"data/cleaned{suffix}")
    code, _, said = check("data/train.csv", "--data.val", "data/val.csv", "--fix", str(output))
    assert code == 1
    rows = read_table(output)
    assert [row["caption"] for row in rows] == faulty
    assert all((output.parent / row["filepath"]).is_file() for row in rows)
    assert rows[0]["filepath"] == "pictures/0.jpg"
    assert (
        "7 of the 12 training rows. Left out: 2 whose picture cannot be read; 1 whose picture is in val or test; "
        "1 whose caption is in val or test; 1 whose captions are empty." in said
    )
    assert Path("data/train.csv").read_bytes() == before
    code, found, _ = check(str(output), "--data.val", "data/val.csv")
    assert code == 0
    assert set(codes(found)) == {"identical-files", "near-identical-pictures", "false-negatives"}


def test_what_was_told_to_run_next(faulty, check):
    """Pictures outside the table's folder are named from the root."""
    code, _, said = check("data/train.csv", "--data.val", "data/val.csv", "--fix", "elsewhere/cleaned.csv")
    row = read_table(Path("elsewhere/cleaned.csv"))[0]
    assert Path(row["filepath"]).is_absolute()
    (told,) = [line for line in said.splitlines() if line.startswith("Check it: ")]
    assert told.endswith("data check elsewhere/cleaned.csv --data.root /")
    assert check(*told.partition("data check ")[2].split())[0] == 0


@pytest.mark.parametrize("output", ["shards", "cleaned.parquet"])
def test_pictures_inside(faulty, check, codes, output):
    """Shards, and Parquet with the pictures in it, from shards: what is inside cannot be named."""
    assert main(["data", "check", "data/train.csv", "--data.val", "data/val.csv", "--fix", "first"]) == 1
    assert check("first")[0] == 0
    code, _, said = check("first", "--fix", "cleaned.csv")
    assert code == 2 and "give a folder" in said and not Path("cleaned.csv").exists()
    code, found, said = check("first", "--fix", output)
    assert code == 0 and "Nothing was left out." in said
    code, again, _ = check(output)
    assert code == 0 and set(codes(again)) == set(codes(found))
    rows = again["splits"]["train"]
    assert rows["pictures"]["rows"] == 7 and rows["captions"]["captions"] == len(faulty)


def test_classes(drawn, check):
    for number in range(6):
        folder = Path("root", ("train", "val")[number // 4], ("black cat", "white_dog")[number % 2])
        folder.mkdir(parents=True, exist_ok=True)
        drawn(number).save(folder / f"{number}.png")
    shutil.copy("root/train/black cat/2.png", "root/train/black cat/repeated.png")
    shutil.copy("root/train/white_dog/3.png", "root/val/white_dog/shared.png")
    Path("root/train/black cat/broken.png").write_bytes(b"no picture")
    code, _, said = check("root", "--fix", "root/cleaned.csv")
    assert code == 1
    rows = read_table(Path("root/cleaned.csv"))
    assert [(row["filepath"], row["label"]) for row in rows] == [
        ("train/black cat/0.png", "black cat"),
        ("train/black cat/2.png", "black cat"),
        ("train/white_dog/1.png", "white dog"),
    ]
    assert all(row["caption"] == f"a photo of a {row['label']}." for row in rows)
    (told,) = [line for line in said.splitlines() if line.startswith("Check it: ")]
    code, found, _ = check(*told.partition("data check ")[2].split())
    assert code == 0 and found["splits"]["train"]["classes"]["counts"] == {"black cat": 2, "white dog": 1}


def test_nothing_left(table, check):
    code, _, said = check(table("pairs.csv", [("gone.jpg", "gone"), ("away.jpg", "away")]), "--fix", "cleaned.csv")
    assert code == 2 and "nothing" in said and "2 whose picture cannot be read" in said
    assert not Path("cleaned.csv").exists()


def test_nothing_is_overwritten(faulty, check):
    Path("data/cleaned.csv").write_text("mine")
    code, _, said = check("data/train.csv", "--fix", "data/cleaned.csv")
    assert code == 2 and "exists" in said and Path("data/cleaned.csv").read_text() == "mine"
