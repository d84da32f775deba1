"""LinearProbeTask by the command line, on folders of noisy colours: features once, then what scikit-learn finds."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from PIL import Image
from sklearn.linear_model import LogisticRegression as Reference

from datamodules.labelled import labelled
from datamodules.stored_arrays import ArrayPictures
from workbench.errors import UserError
from workbench.evaluation.linear_probe import linear_probe
from workbench.feature_cache import FeatureCache, identity
from workbench.main import main
from workbench.models import create_model
from workbench.preprocessing import Preprocessing, preprocess
from workbench.tasks import ContrastiveTask, LinearProbeTask
from workbench.tasks.linear_probe import _BeforeProjection
from workbench.weights import description

EXPERIMENT = str(Path(__file__).parent.parent.parent / "experiments" / "probe_rn50.yaml")
NAMES = ["blue_bird", "green_frog", "red_fox"]
RUN = Path("runs/probe_rn50/0")
LAST = RUN / "checkpoints" / "last.ckpt"


@pytest.fixture(autouse=True)
def encoded(monkeypatch, tmp_path):
    """Keep features in the test's own folder, and return a list of how many pictures each call encoded."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    counts, encode = [], _BeforeProjection.encode_image_batch

    def counting(self, images):
        counts.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(_BeforeProjection, "encode_image_batch", counting)
    return counts


@pytest.fixture
def weights():
    """Write the weights of a small model; return them by their keys."""
    return written()


def written(seed=0, name="tiny-rn", **changes):
    torch.manual_seed(seed)
    model = create_model(name, **changes)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    torch.save({"state_dict": state, "workbench": description(model.architecture)}, "weights.pt")
    return state


def fit(root, *more):
    options = [
        *("--data.dataset", "null", "--data.root", str(root), "--data.batch_size", "6", "--data.num_workers", "0"),
        *("--model.init_args.architecture", "null", "--model.init_args.weights", "weights.pt"),
        *("--trainer.accelerator", "cpu", "--trainer.precision", "32-true"),
    ]
    return main(["fit", "--config", EXPERIMENT, *options, *more])


def again(verb, run=RUN, *more):
    checkpoint = str(run / "checkpoints" / "last.ckpt")
    return main([verb, "--config", str(run / "config.yaml"), "--ckpt_path", checkpoint, *more])


def metrics(run=RUN):
    return {name: row["value"] for name, row in json.loads((run / "summary.json").read_text())["metrics"].items()}


def stored(run=RUN):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def files():
    return sorted(Path("cache/clip-workbench/features").glob("*.safetensors"))


def features(split_rows):
    """Return the features and labels of the file with so many rows."""
    [found] = [each for each in map(FeatureCache.read, files()) if len(each["label"]) == split_rows]
    return found["features"], found["label"]


# One run


def test_a_run_from_end_to_end(folders, weights, encoded, capsys):
    classes = folders(Path("folders"), names=("blue_bird", "grey_cat", "grey_mouse"))  # the last two look alike
    assert fit(classes) == 0
    assert sum(encoded) == 3 * 8 + 3 * 3, "each picture of train and val once"
    summary, found, about = json.loads((RUN / "summary.json").read_text()), metrics(), stored()["workbench"]
    assert (summary["status"], summary["step"]) == ("finished", 1)
    assert summary["chance"]["val/probe_top1"] == pytest.approx(1 / 3)
    assert 0.5 < found["val/probe_top1"] < 1 and "val/probe_mean_per_class" in found
    probe = json.loads((RUN / "probe.json").read_text())
    assert probe == about["probe"] and probe["converged"] and probe["metric"] == "mean_per_class"
    assert found["val/probe_strength"] == pytest.approx(probe["strength"])
    assert dict(map(tuple, probe["curve"]))[probe["strength"]] == pytest.approx(found["val/probe_mean_per_class"])
    assert about["class_names"] == ["blue bird", "grey cat", "grey mouse"]
    capsys.readouterr()
    # `validate` says once more what the run said, of the classifier that has not seen val; `test` takes the other.
    assert again("validate") == 0
    assert f"{found['val/probe_top1']}"[:8] in capsys.readouterr().out
    encoded.clear()
    for _ in range(2):
        assert again("test") == 0 and "test/probe_top1" in capsys.readouterr().out
    assert sum(encoded) == 3 * 3, "those of test once"
    assert again("fit") == 0 and sum(encoded) == 9, "nothing is left to do"


def test_the_model_is_frozen_to_the_last_bit(classes, weights):
    assert fit(classes) == 0
    checkpoint = stored()
    clip = {key.removeprefix("clip."): v for key, v in checkpoint["state_dict"].items() if key.startswith("clip.")}
    assert clip.keys() == weights.keys() and all(torch.equal(value, weights[key]) for key, value in clip.items())
    assert not any(each["state"] for each in checkpoint["optimizer_states"] if "state" in each)
    assert any("running_mean" in key for key in clip)


def test_the_classifier_is_scikit_learns_on_these_features(classes, weights):
    assert fit(classes) == 0
    (train, labels), (val, val_labels) = features(24), features(9)
    assert labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    probe, state = stored()["workbench"]["probe"], stored()["state_dict"]
    both = torch.cat([train, val]), torch.cat([labels, val_labels])
    for head, (rows, classes_of) in (("of_train", (train, labels)), ("of_all", both)):
        theirs = Reference(C=1 / probe["strength"], solver="newton-cholesky", tol=1e-12, max_iter=500)
        theirs.fit(rows.double().numpy(), classes_of.numpy())
        weight, coefficients = state[f"head.{head}.weight"].double(), torch.tensor(theirs.coef_)
        assert (weight - coefficients).norm() < 1e-3 * coefficients.norm()
        scores = val @ state[f"head.{head}.weight"].T + state[f"head.{head}.bias"]
        assert scores.argmax(dim=1).tolist() == theirs.predict(val.double().numpy()).tolist()


@pytest.mark.parametrize("name", ["tiny-rn", "tiny-vit"])
def test_features_are_those_before_the_projection(name, classes):
    written(name=name)
    assert fit(classes) == 0
    train, _ = features(24)
    model = create_model(name).eval()
    model.load_state_dict(torch.load("weights.pt", weights_only=True)["state_dict"])
    pictures = [classes / "train" / name / f"{number}.png" for name in NAMES for number in range(8)]
    prepare = preprocess(Preprocessing.of(model.architecture))
    with torch.no_grad():
        expected = model.visual.pool(torch.stack([prepare(Image.open(path)) for path in pictures]))
    torch.testing.assert_close(train, expected, rtol=1e-4, atol=1e-5)
    assert train.shape[1] == model.visual.pooled_dim != model.architecture.embed_dim


def test_patches_are_not_dropped(classes, data_of, trainer_of):
    class Training(Callback):
        def on_fit_start(self, trainer, pl_module):
            pl_module.train()

    found = []
    for share in (0.0, 0.5):
        torch.manual_seed(0)
        task = LinearProbeTask(architecture="tiny-vit", patch_dropout=share, feature_cache=f"features {share}")
        trainer_of(callbacks=[Training()]).fit(task, datamodule=data_of(classes))
        found.append(task.head["of_all"].weight.detach())
    assert torch.equal(*found)


# The cache


def test_a_second_run_encodes_nothing_and_finds_the_same(classes, weights, encoded):
    assert fit(classes) == 0
    encoded.clear()
    assert fit(classes, "--model.init_args.metric", "top1") == 0
    assert encoded == [] and len(files()) == 2
    one, two = (stored(RUN.parent / str(number)) for number in (0, 1))
    assert [each["workbench"]["probe"]["metric"] for each in (one, two)] == ["mean_per_class", "top1"]
    # As many of each class in val: the two metrics choose alike.
    assert torch.equal(one["state_dict"]["head.of_all.weight"], two["state_dict"]["head.of_all.weight"])


def changed_weights(root):
    written(1)


def changed_normalisation(root):
    written(mean=(0.4, 0.5, 0.5))


def changed_activation(root):
    written(activation="gelu")  # which no tensor shows


def changed_picture(root):
    Image.new("RGB", (40, 40), (1, 2, 3)).save(root / "train" / NAMES[0] / "0.png")


def more_pictures(root):
    Image.new("RGB", (40, 40), (1, 2, 3)).save(root / "train" / NAMES[0] / "100.png")


def moved_picture(root):
    folder = root / "train"
    (folder / NAMES[0] / "0.png").rename(folder / NAMES[1] / "100.png")


@pytest.mark.parametrize("change", [changed_weights, changed_normalisation, changed_activation])
def test_another_model_misses_the_cache(change, classes, weights, encoded):
    assert fit(classes) == 0
    encoded.clear()
    change(classes)
    assert fit(classes) == 0
    assert sum(encoded) == 33 and len(files()) == 4


@pytest.mark.parametrize("change", [changed_picture, more_pictures, moved_picture])
def test_other_pictures_miss_the_cache_in_their_own_split(change, classes, weights, encoded):
    assert fit(classes) == 0
    encoded.clear()
    change(classes)
    assert fit(classes) == 0
    assert sum(encoded) == (25 if change is more_pictures else 24) and len(files()) == 3


def test_another_precision_misses_the_cache(classes, weights, encoded):
    assert fit(classes) == 0
    encoded.clear()
    assert fit(classes, "--trainer.precision", "bf16-mixed") == 0
    assert sum(encoded) == 33
    assert stored(RUN.parent / "1")["state_dict"]["head.of_all.weight"].dtype == torch.float32


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_file_is_computed_again(damage, classes, weights, encoded):
    assert fit(classes) == 0
    before = [path.read_bytes() for path in files()]
    for path, content in zip(files(), before, strict=True):
        flipped = content[:-9] + bytes([content[-9] ^ 4]) + content[-8:]
        path.write_bytes({"cut": content[:-10], "flip": flipped}[damage])
    encoded.clear()
    assert fit(classes) == 0
    assert sum(encoded) == 33 and [path.read_bytes() for path in files()] == before


def test_a_cache_that_cannot_be_written_is_no_reason_to_stop(classes, weights, encoded, capsys):
    Path("file").write_text("")
    assert fit(classes, "--model.init_args.feature_cache", "file/cache") == 0
    assert "cannot be kept in file/cache" in capsys.readouterr().err
    assert sum(encoded) == 33 and files() == []


def test_pictures_in_an_array_are_known_by_content_and_labels():
    class Split:
        def __init__(self, source, labels):
            self.labels, self.name, self.picture = torch.tensor(labels), source.name, source.read

        def __len__(self):
            return len(self.labels)

    pixels = np.zeros((3, 4, 4, 3), dtype=np.uint8)
    other = pixels.copy()
    other[2, 0, 0] = 1
    names = ["a", "b"]

    def of(array, labels):
        return identity(Split(labelled("array", ArrayPictures(array, "array"), labels, names).source.pictures, labels))

    assert of(pixels, [0, 1, 1]) == of(pixels.copy(), [0, 1, 1])
    assert len({of(pixels, [0, 1, 1]), of(other, [0, 1, 1]), of(pixels, [0, 1, 0]), of(pixels[:2], [0, 1])}) == 4


def test_a_picture_that_cannot_be_read_is_left_out(classes, weights):
    (classes / "train" / NAMES[1] / "3.png").write_bytes(b"no picture")
    assert fit(classes, "--data.max_skipped", "0.5") == 0
    assert features(23)[1].tolist() == [0] * 8 + [1] * 7 + [2] * 8
    assert "val/probe_top1" in metrics()


# What it refuses


def refused(capsys, *words):
    said = capsys.readouterr().err
    assert all(word in said for word in words) and "Traceback" not in said and not RUN.parent.exists()


def test_there_must_be_pictures_to_choose_the_strength_by(classes, weights, capsys, encoded):
    shutil.rmtree(classes / "val")
    assert fit(classes, "--data.val_fraction", "null") == 2
    refused(capsys, "no validation split", "--data.val_fraction 0.2")
    assert encoded == []
    assert fit(classes) == 0  # the experiment holds a fifth out


def test_there_must_be_pictures_to_test_on(classes, weights, capsys):
    shutil.rmtree(classes / "test")
    assert fit(classes) == 0
    assert again("test") == 2
    assert "no test split" in capsys.readouterr().err
    assert main(["test", "--config", str(RUN / "config.yaml"), "--data.root", str(classes)]) == 2


def test_there_must_be_a_classifier(classes, weights, capsys):
    assert fit(classes) == 0
    capsys.readouterr()
    for verb in ("validate", "test"):
        assert main([verb, "--config", str(RUN / "config.yaml")]) == 2
        assert "--ckpt_path" in capsys.readouterr().err


def test_the_classifier_is_for_these_classes(classes, weights, capsys):
    assert fit(classes) == 0
    for split in ("train", "val", "test"):
        (classes / split / NAMES[0]).rename(classes / split / "zebra")
    capsys.readouterr()
    assert again("test") == 2
    assert "other classes" in capsys.readouterr().err


def test_a_checkpoint_of_another_task_is_refused(classes, weights, capsys):
    other = [
        *("--model", "ContrastiveTask", "--model.init_args.architecture", "null"),
        *("--model.init_args.weights", "weights.pt", "--data", "ClassificationDataModule"),
        *("--data.root", str(classes), "--data.batch_size", "6", "--data.num_workers", "0"),
        *("--trainer.max_epochs", "-1", "--trainer.max_steps", "1", "--trainer.accelerator", "cpu"),
        *("--trainer.limit_val_batches", "0"),
    ]
    assert main(["fit", "--experiment", "other", *other]) == 0
    assert fit(classes, "--ckpt_path", "runs/other/0/checkpoints/last.ckpt") == 2
    refused(capsys, "another task")


def test_half_precision_would_round_the_classifier(classes, weights, capsys):
    assert fit(classes, "--trainer.precision", "bf16-true") == 2
    refused(capsys, "bf16-mixed")


def test_pairs_are_no_classes(weights, capsys):
    for name in ("one.png", "two.png"):
        Image.new("RGB", (40, 40)).save(name)
    Path("pairs.csv").write_text("filepath,title\none.png,a\ntwo.png,b\n")
    data = ["--data", "ImageTextDataModule", "--data.train", "pairs.csv", "--data.val", "pairs.csv"]
    model = ["--model", "LinearProbeTask", "--model.init_args.weights", "weights.pt"]
    assert main(["fit", "--experiment", "probe_rn50", *data, *model, "--data.batch_size", "2"]) == 2
    refused(capsys, "ImageTextDataModule has none", "ClassificationDataModule")


@pytest.mark.parametrize(
    "options, words",
    [({"metric": "f1"}, "top1 and mean_per_class"), ({"batch_norm": "batch"}, "leave out lora and batch_norm")],
)
def test_settings_that_make_no_sense(options, words):
    with pytest.raises(UserError, match=words):
        LinearProbeTask(architecture="tiny-rn", **options)


# Other tasks, other processes


def test_the_weights_of_its_checkpoint_start_other_runs(classes, weights):
    assert fit(classes) == 0
    task = ContrastiveTask(weights=str(LAST))
    task.configure_model()
    assert all(torch.equal(value, weights[key]) for key, value in task.clip.state_dict().items())


@pytest.mark.slow
def test_two_processes_find_the_same(classes, weights):
    assert fit(classes) == 0
    one, kept = stored(), {len(found["label"]): found for found in map(FeatureCache.read, files())}
    shutil.rmtree("cache")
    # In a process of its own: forks of one that has computed may not compute.
    options = ["--config", str(RUN / "config.yaml"), "--trainer.devices", "2", "--trainer.strategy", "ddp_fork"]
    command = [sys.executable, "-m", "workbench", "fit", *options]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)
    for found in map(FeatureCache.read, files()):
        torch.testing.assert_close(found, kept[len(found["label"])], rtol=1e-4, atol=1e-5)
    two = stored(RUN.parent / "1")
    assert two["workbench"]["probe"]["strength"] == one["workbench"]["probe"]["strength"]
    for head in ("of_train", "of_all"):
        weight, other = (each["state_dict"][f"head.{head}.weight"] for each in (one, two))
        assert (weight - other).norm() < 0.01 * weight.norm()


def test_the_run_is_the_protocol_on_its_features(classes, weights):
    assert fit(classes, "--model.init_args.metric", "top1") == 0
    expected = linear_probe(features(24), features(9), 3)
    assert [list(row) for row in expected.curve.items()] == stored()["workbench"]["probe"]["curve"]
    torch.testing.assert_close(stored()["state_dict"]["head.of_all.weight"], expected.classifier.weight)
