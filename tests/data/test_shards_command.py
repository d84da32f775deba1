"""`data shards` writes any source as shards that are read back the same."""

from pathlib import Path

import pytest
from PIL import Image

from datamodules import ImageTextDataModule
from workbench.main import main


def told(capsys, *args, code=0):
    capsys.readouterr()
    assert main(["data", "shards", *args]) == code
    said = capsys.readouterr()
    return said.err if code else said.out


def rows(place, **options):
    """Return the captions and encoded pictures of a place, in order."""
    data = ImageTextDataModule(place, val=place, batch_size=2, num_workers=0, **options)
    data.setup()
    pairs = data.datasets["val"]
    return [(pairs.captions[row], pairs.picture(row)) for row in range(len(pairs))]


def test_a_table(pairs, capsys):
    name = pairs()
    said = told(capsys, name, "shards", "--samples_per_shard", "5", "--prefix", "mine-")
    assert sorted(path.name for path in Path("shards").glob("*.tar")) == [f"mine-0000{n}.tar" for n in range(3)]
    assert "12 samples in 3 shards" in said
    assert "data check shards" in said and "--data.train shards" in said
    assert rows("shards") == rows(name)
    assert main(["data", "check", "shards", "--workers", "0"]) == 0


def test_the_training_split_of_an_experiment(pairs, capsys):
    pairs(numbers=range(20))
    Path("mine.yaml").write_text(
        "model: {class_path: ContrastiveTask, init_args: {architecture: tiny-vit}}\n"
        "data: {class_path: ImageTextDataModule, init_args: {train: pairs.csv, val_fraction: 0.25}}\n"
    )
    assert "15 samples in 1 shards" in told(capsys, "mine.yaml", "shards")
    assert set(rows("shards")) < set(rows("pairs.csv"))


def test_classes_and_what_lies_in_memory(drawn, capsys):
    for number in range(4):
        folder = Path("root", ("black cat", "white_dog")[number % 2])
        folder.mkdir(parents=True, exist_ok=True)
        drawn(number).save(folder / f"{number}.png")
    said = told(capsys, "root", "shards")
    assert "ClassificationDataModule" in said and "--data.label_column label" in said
    found = rows("shards")
    assert [caption for caption, _ in found] == ["a photo of a black cat."] * 2 + ["a photo of a white dog."] * 2
    assert found[0][1] == Path("root/black cat/0.png").read_bytes()
    command = said.splitlines()[1].partition("data check ")[2].split()
    assert main(["data", "check", *command, "--workers", "0"]) == 0
    assert "2 classes of 2 to 2 pictures" in capsys.readouterr().out


def test_mistakes(pairs, table, capsys):
    name = pairs(numbers=range(4))
    Path("full").mkdir()
    Path("full/mine").write_text("mine")
    assert "is not empty" in told(capsys, name, "full", code=2)
    assert "samples_per_shard is 0" in told(capsys, name, "shards", "--samples_per_shard", "0", code=2)
    Image.new("RGB", (8, 8)).save("pictures/4.jpg")
    table("empty.csv", [("pictures/4.jpg", " ")])
    said = told(capsys, "empty.csv", "shards", code=2)
    assert "line 2" in said and "data check empty.csv" in said and "--fix FOLDER" in said
    assert sorted(path.name for path in Path().iterdir()) == ["empty.csv", "full", "pairs.csv", "pictures"]


@pytest.mark.parametrize("bytes_of_a_shard", ["20000"])
def test_size_of_shards(pairs, capsys, bytes_of_a_shard):
    told(capsys, pairs(numbers=range(6)), "shards", "--max_bytes", bytes_of_a_shard)
    assert all(path.stat().st_size <= 20480 for path in Path("shards").glob("*.tar"))
    assert len(list(Path("shards").glob("*.tar"))) > 1
