"""`python -m workbench interpolate` on runs of tiny models, whose pictures are drawn here."""

import csv
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import workbench
from datamodules import ClassificationDataModule, ImageTextDataModule
from workbench.averaging.tradeoff import Panel, Scores, choose
from workbench.errors import UserError
from workbench.evaluation.encoding import ModelEncoder
from workbench.evaluation.measures import Measure
from workbench.interpolation import interpolate, uniform_soup
from workbench.main import main
from workbench.models import create_model
from workbench.weights import description

NAMES = ("dark", "light", "striped")


def draw(name, number):
    picture = Image.new(
        "RGB", (40, 40 + number), (30 + number, 20, 40) if name != "light" else (220, 230, 240 - number)
    )
    if name == "striped":
        for row in range(number % 5, 40, 8):
            picture.paste((250, 250, 90), (0, row, 40, row + 3))
    return picture


def experiment(folder, **changes):
    """An experiment's YAML: fine-tuning on classes, with other classes as the canary."""
    content = {
        "trainer": {"callbacks": [canary(folder)], "accelerator": "cpu", "enable_progress_bar": False},
        "model": {"class_path": "ContrastiveTask", "init_args": {"architecture": "tiny-vit", "warmup": 0}},
        "data": classes(folder, "target"),
    }
    content["trainer"] |= {"max_epochs": -1, "default_root_dir": str(folder / "runs")}
    content["data"]["init_args"] |= {"batch_size": 6}
    for key, value in changes.items():
        content[key] = {**content[key], **value}
    path = Path(f"experiment{len(list(Path().glob('*.yaml')))}.yaml").absolute()
    path.write_text(yaml.safe_dump(content))
    return str(path)


def classes(folder, name):
    return {"class_path": "ClassificationDataModule", "init_args": {"root": str(folder / name), "num_workers": 0}}


def canary(folder, **changes):
    arguments = {"name": "others", "data": classes(folder, "others")} | changes
    return {"class_path": "ZeroShotMonitor", "init_args": arguments}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures, a run, and one that was fine-tuned from it, which is `ft/0`."""
    folder, before = tmp_path_factory.mktemp("interpolate"), Path.cwd()
    for data, split, first in (("target", "train", 0), ("target", "val", 6), ("others", "val", 20)):
        for name in NAMES[:2] if data == "others" else NAMES:
            (folder / data / split / name).mkdir(parents=True)
            for number in range(first, first + (6 if split == "train" else 4)):
                draw(name, number).save(folder / data / split / name / f"{number}.png")
    os.chdir(folder)
    try:
        path, run = experiment(folder), ["--trainer.limit_val_batches", "0", "--trainer.max_steps"]
        assert main(["fit", "--config", path, "--experiment", "first", *run, "3", "--trainer.callbacks", "[]"]) == 0
        start = ["--model.init_args.weights", str(folder / "runs/first/0/checkpoints/last.ckpt")]
        assert main(["fit", "--config", path, "--experiment", "ft", *run, "6", *start]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def first(folder):
    return str(folder / "runs/first/0/checkpoints/last.ckpt")


@pytest.fixture
def ft(folder):
    return str(folder / "runs/ft/0/checkpoints/last.ckpt")


def table(path):
    return list(csv.DictReader(Path(path).read_text().splitlines()))


def plain_top1(model, preprocess, root):
    """Zero-shot accuracy by a loop over files, without a datamodule."""
    names = sorted(path.name for path in (root / "val").iterdir())
    with torch.no_grad():
        texts = model.encode_text(workbench.tokenize([f"a photo of a {name}." for name in names]))
        right = []
        for label, name in enumerate(names):
            for path in (root / "val" / name).iterdir():
                image = model.encode_image(preprocess(Image.open(path))[None])
                scores = F.normalize(image, dim=-1) @ F.normalize(texts, dim=-1).T
                right.append(int(scores.argmax()) == label)
    return sum(right) / len(right)


def test_curve_of_a_run(folder, first, ft, capsys):
    """Start, data and canary are the run's; its ends are what plain evaluation says, its choice is what it says."""
    assert main(["interpolate", "--end", ft, "--alphas", "3", "--output", "out"]) == 0
    said = capsys.readouterr().out
    out = Path("out")
    assert sorted(path.name.split(".tfevents")[0] for path in out.iterdir()) == [
        *("chosen.safetensors", "curve.csv", "curve.json", "curve.png", "events.out"),
    ]
    rows = table("out/curve.csv")
    assert [float(row["alpha"]) for row in rows] == [0, 0.5, 1]
    for row, path in ((rows[0], first), (rows[-1], ft)):
        model, preprocess = workbench.load(path)
        assert float(row["target"]) == pytest.approx(plain_top1(model, preprocess, folder / "target"))
        assert float(row["canary"]) == pytest.approx(plain_top1(model, preprocess, folder / "others"))
    found = json.loads((out / "curve.json").read_text())
    assert found["rule"] == "the best mean of target and canary on validation data"
    best = max(rows, key=lambda row: (float(row["target"]) + float(row["canary"]), -float(row["alpha"])))
    assert found["chosen"] == float(best["alpha"]) and f"Chosen: alpha {found['chosen']:.2f}, {found['rule']}" in said
    assert (found["start"]["source"], found["end"]["source"]) == (first, ft)
    assert found["target"] == {"name": "val", "metric": "zero_shot_top1", "split": "val", "rows": 12}
    assert found["canaries"] == [{"name": "others", "metric": "zero_shot_top1", "split": "val", "rows": 8}]
    events = EventAccumulator(str(out))
    events.Reload()
    assert [(e.step, round(e.value, 4)) for e in events.Scalars("curve/target")] == [
        (round(100 * float(row["alpha"])), round(float(row["target"]), 4)) for row in rows
    ]
    assert events.Tags()["images"] == ["curve/target_and_canary"]
    assert Image.open(out / "curve.png").width > 500


def test_chosen_weights_are_those_of_its_alpha(folder, first, ft):
    assert main(["interpolate", "--end", ft, "--start", first, "--alphas", "5", "--output", "out"]) == 0
    alpha = json.loads(Path("out/curve.json").read_text())["chosen"]
    start, end = (workbench.load(path)[0].state_dict() for path in (first, ft))
    assert any(not start[key].equal(end[key]) for key in start)
    model, _ = workbench.load("out/chosen.safetensors")
    expected = interpolate(start, end, alpha)
    assert all(value.equal(expected[key]) for key, value in model.state_dict().items())
    start_from = ["--model.init_args.weights", "out/chosen.safetensors", "--trainer.max_steps", "1"]
    assert main(["fit", "--config", experiment(folder), *start_from, "--trainer.limit_val_batches", "0"]) == 0


def test_pairs_are_measured_by_retrieval_and_need_no_canary(folder, ft, capsys):
    with Path("pairs.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["filepath", "caption"])
        for path in sorted((folder / "target").rglob("*.png")):
            table.writerow([path, f"{path.parent.name} number {path.stem}"])
    data = {"train": "pairs.csv", "val": "pairs.csv", "num_workers": 0, "root": "/"}
    pairs = {"class_path": "ImageTextDataModule", "init_args": data}
    path = experiment(folder, trainer={"callbacks": []}, data=pairs)
    assert main(["interpolate", "--end", ft, "--experiment", path, "--alphas", "2", "--output", "out"]) == 0
    found = json.loads(Path("out/curve.json").read_text())
    assert found["canaries"] == [] and found["target"]["metric"] == "mean_recall@1" and found["target"]["rows"] == 30
    assert "as there is no canary" in found["rule"] and "as there is no canary" in capsys.readouterr().out
    row = found["models"][1]
    ways = [row[f"val/{way}_recall@1"] for way in ("image_to_text", "text_to_image")]
    assert row["target"] == pytest.approx(sum(ways) / 2) and row["canary"] is None


@pytest.fixture
def models():
    """A function that writes models of one seed each, as plain safetensors with their description."""
    from safetensors.torch import save_file

    def write(path, seed, name="tiny-vit", **changes):
        torch.manual_seed(seed)
        model = create_model(name, **changes)
        about = json.dumps(description(model.architecture))
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path, {"workbench": about})
        return path

    return write


def test_soups(folder, ft, models, capsys):
    """Greedy keeps what does not lower the target, uniform takes all; both write the mean of what they say."""
    names = [ft, *(models(f"{seed}.safetensors", seed) for seed in (1, 2))]
    path = ["--experiment", experiment(folder), "--soup", json.dumps(names)]
    for method in ("uniform", "greedy"):
        assert main(["interpolate", *path, "--method", method, "--output", method]) == 0
        found = json.loads(Path(method, "soup.json").read_text())
        rows = table(f"{method}/soup.csv")
        assert [row["model"] for row in rows] == [*names, f"{method} soup"]
        state = workbench.load(f"{method}/chosen.safetensors")[0].state_dict()
        expected = uniform_soup(workbench.load(name)[0].state_dict() for name in found["kept"])
        assert all(value.equal(expected[key]) for key, value in state.items())
        model, preprocess = workbench.load(f"{method}/chosen.safetensors")
        assert float(rows[-1]["target"]) == pytest.approx(plain_top1(model, preprocess, folder / "target"))
        targets = [float(row["target"]) for row in rows]
        if method == "uniform":
            assert found["kept"] == names
        else:
            assert found["kept"][0] == names[targets[:3].index(max(targets[:3]))] and targets[-1] >= max(targets[:3])
    assert "Chosen: greedy soup, the mean of" in capsys.readouterr().out


def test_soup_of_a_pattern_of_runs(folder, ft):
    pattern = str(folder / "runs/*/0/checkpoints/last.ckpt")
    Path("elsewhere").mkdir()
    assert main(["interpolate", "--soup", pattern, "--experiment", experiment(folder), "--output", "out"]) == 0
    found = json.loads(Path("out/soup.json").read_text())
    assert [each["source"] for each in found["ingredients"]] == sorted(map(str, folder.glob("runs/*/0/checkpoints/*")))


# What is refused: exit code 2, one sentence, and nothing is left


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"name": "tiny-rn"}, "different models, between which nothing lies: vision is"),
        ({"activation": "gelu"}, "activation is gelu in the first and quick_gelu"),
        ({"mean": (0.5, 0.5, 0.5)}, "mean is (0.5, 0.5, 0.5) in the first"),
        ({"image_size": 64}, "image_size is 64 in the first and 32"),
    ],
)
def test_other_models(ft, models, capsys, changes, said):
    models("other.safetensors", 0, **changes)
    for args in (["--start", "other.safetensors", "--end", ft], ["--soup", json.dumps([ft, "other.safetensors"])]):
        assert main(["interpolate", *args, "--output", "out"]) == 2
        assert said in capsys.readouterr().err and not Path("out").exists()


@pytest.mark.parametrize(
    "args, said",
    [
        ([], "Give --end, the fine-tuned model"),
        (["--end", "FT", "--alphas", "1"], "alphas is 1"),
        (["--end", "FT", "--alphas", "many"], "alphas: expected int"),
        (["--end", "FT", "--keep", "1.5"], "keep is 1.5"),
        (["--end", "FT", "--experiment", "none.yaml"], "--experiment none.yaml does not exist"),
        (["--end", "RN50"], "RN50 lies in no run folder"),
        (["--end", "FT", "--output", "."], ". exists"),
        (["--end", "FT", "--output", "there/out"], "is no folder that may be written to"),
        (["--soup", "FT"], "name two models or more"),
        (["--soup", "['FT', 'FT']"], "twice"),
        (["--soup", "nowhere/*.ckpt"], "--soup nowhere/*.ckpt: there is no such file"),
        (["--soup", "['FT', 'b.ckpt']", "--end", "FT"], "--end, --start and --keep are for two"),
        (["--soup", "['FT', 'b.ckpt']"], "give --output"),
        (["--end", "FT", "--experimnt", "x"], "did you mean 'experiment'"),
    ],
)
def test_mistakes(ft, capsys, args, said):
    Path("there").write_text("something")
    before = set(Path(ft).parents[1].iterdir())
    assert main(["interpolate", *(arg.replace("FT", ft) for arg in args)]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and "Traceback" not in captured.err
    assert set(Path(ft).parents[1].iterdir()) == before and [path.name for path in Path().iterdir()] == ["there"]


@pytest.mark.parametrize(
    "monitors, args, said",
    [
        (lambda folder: [canary(folder, split="test")], [], "others measures test data"),
        (lambda folder: [canary(folder), canary(folder)], [], "Two sets of data are measured as 'others'"),
        (lambda folder: [canary(folder, name="val")], [], "Two sets of data are measured as 'val'"),
        (lambda folder: [], ["--keep", "0.9"], "and there is none"),
        (lambda folder: [canary(folder, split="train")], [], "There is no split 'train'"),
    ],
)
def test_monitors_that_cannot_be_used(folder, ft, capsys, monitors, args, said):
    path = experiment(folder, trainer={"callbacks": monitors(folder)})
    assert main(["interpolate", "--end", ft, "--experiment", path, "--output", "out", *args]) == 2
    assert said in capsys.readouterr().err and not Path("out").exists()


def test_a_start_that_is_not_what_it_was(folder, first, ft, capsys, tmp_path):
    """The run recorded the hash of the file that it started from."""
    shutil.copy(first, "kept.ckpt")
    try:
        shutil.copy(ft, first)
        assert main(["interpolate", "--end", ft, "--output", "out"]) == 2
        assert "which is another file now" in capsys.readouterr().err and not Path("out").exists()
    finally:
        shutil.copy("kept.ckpt", first)


def test_a_start_that_nothing_says(first, capsys):
    assert main(["interpolate", "--end", first, "--output", "out"]) == 2
    assert "Nothing says what" in capsys.readouterr().err


def test_spoilt_weights(folder, ft, models, capsys):
    from safetensors.torch import load_file, save_file

    models("spoilt.safetensors", 0)
    state = load_file("spoilt.safetensors")
    state["visual.proj"][0, 0] = float("nan")
    save_file(
        state, "spoilt.safetensors", {"workbench": json.dumps(description(create_model("tiny-vit").architecture))}
    )
    assert main(["interpolate", "--end", ft, "--start", "spoilt.safetensors", "--output", "out"]) == 2
    assert "its visual.proj has numbers that are not finite" in capsys.readouterr().err


# The parts


def scores(*pairs):
    return [(n / (len(pairs) - 1), Scores(t, {} if c is None else {"c": c})) for n, (t, c) in enumerate(pairs)]


@pytest.mark.parametrize(
    "points, keep, alpha, rule",
    [
        (scores((0.2, 0.8), (0.7, 0.7), (0.8, 0.1)), None, 0.5, "the best mean"),
        (scores((0.2, 0.8), (0.6, 0.4), (0.7, 0.3)), None, 0.0, "the best mean"),
        (scores((0.2, 0.8), (0.6, 0.75), (0.7, 0.7), (0.9, 0.1)), 0.85, 2 / 3, "keeps 85%"),
        (scores((0.2, 0.8), (0.6, 0.75), (0.7, 0.7), (0.9, 0.1)), 0.9, 1 / 3, "keeps 90%"),
        (scores((0.5, 0.8), (0.4, 0.8), (0.7, 0.7)), 1.0, 0.0, "keeps 100%"),
        (scores((0.2, None), (0.7, None), (0.7, None)), None, 0.5, "as there is no canary"),
    ],
)
def test_the_rule(points, keep, alpha, rule):
    found, said = choose(points, keep)
    assert found == alpha and rule in said and "validation data" in said


def test_each_canary_has_to_be_kept():
    points = [(0.0, Scores(0.1, {"a": 0.5, "b": 0.5})), (1.0, Scores(0.9, {"a": 0.9, "b": 0.3}))]
    assert choose(points)[0] == 1.0 and choose(points, 0.8)[0] == 0.0


def test_a_measure_reads_pictures_once_and_refuses_test_data(folder, monkeypatch):
    data = ClassificationDataModule(str(folder / "target"), num_workers=0)
    model = create_model("tiny-vit")
    data.follow(model.architecture)
    data.setup()
    measure = Measure("val", data, "zero_shot")
    found = measure(ModelEncoder(model))
    read = []
    monkeypatch.setattr(data.datasets["val"], "picture", lambda row: read.append(row))
    assert measure(ModelEncoder(model)) == found and read == []
    with pytest.raises(UserError, match="measures test data"):
        Measure("val", data, "zero_shot", split="test")


def test_features_that_are_not_finite_win_nothing(folder):
    """Compared with NaN, every rank would be the best."""
    data = ClassificationDataModule(str(folder / "target"), num_workers=0)
    model = create_model("tiny-vit")
    data.follow(model.architecture)
    data.setup()
    with torch.no_grad():
        model.visual.proj.fill_(float("inf"))
    for kind in ("zero_shot", "retrieval"):
        with pytest.raises(UserError, match="val: the model's features are not finite"):
            Panel(Measure("val", data, kind))(ModelEncoder(model))


def test_more_pictures_than_are_held_are_read_again(folder, monkeypatch):
    pairs = [str(path) for path in sorted((folder / "target/val").rglob("*.png"))]
    Path("pairs.csv").write_text("filepath,caption\n" + "".join(f"{path},number {n}\n" for n, path in enumerate(pairs)))
    data = ImageTextDataModule("pairs.csv", val="pairs.csv", root="/", num_workers=0)
    model = create_model("tiny-vit")
    data.follow(model.architecture)
    data.setup()
    held, again = (Measure("val", data, "retrieval") for _ in range(2))
    expected = held(ModelEncoder(model))
    monkeypatch.setattr("workbench.evaluation.measures._HELD_BYTES", 10)
    read, picture = [], data.datasets["val"].picture
    monkeypatch.setattr(data.datasets["val"], "picture", lambda row: read.append(row) or picture(row))
    assert again(ModelEncoder(model)) == expected == again(ModelEncoder(model)) and len(read) == 2 * len(pairs)
