"""What tests of tasks on classes share: folders of noisy colours, and a small Trainer."""

import lightning as L
import numpy as np
import pytest
from PIL import Image

from callbacks.checkpoint import AtomicCheckpointIO
from datamodules import ClassificationDataModule

COLOURS = {"blue_bird": (60, 90, 190), "green_frog": (60, 190, 90), "red_fox": (190, 90, 60)}


@pytest.fixture
def folders():
    """Return what writes noisy pictures of a colour for each class, and returns their root."""

    def write(root, names=tuple(COLOURS), splits=("train", "val", "test"), train=8, other=3):
        for split in splits:
            for label, name in enumerate(names):
                (root / split / name).mkdir(parents=True)
                for number in range(train if split == "train" else other):
                    noise = np.random.default_rng((label, number, len(split))).normal(0, 50, (40, 40, 3))
                    pixels = np.clip(np.array(COLOURS.get(name, (90, 90, 90))) + noise, 0, 255).astype(np.uint8)
                    Image.fromarray(pixels).save(root / split / name / f"{number}.png")
        return root

    return write


@pytest.fixture
def classes(tmp_path, folders):
    """Return the root of three classes with train, val and test."""
    return folders(tmp_path / "classes")


@pytest.fixture
def data_of():
    """Return what makes a datamodule of a root."""

    def make(root, **options):
        return ClassificationDataModule(str(root), **{"batch_size": 12, "image_size": 32, "num_workers": 0, **options})

    return make


@pytest.fixture
def trainer_of():
    """Return what makes a Trainer without anything around it."""

    def make(**options):
        plain = {
            "max_epochs": 2,
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
            "plugins": [AtomicCheckpointIO()],
        }
        return L.Trainer(**(plain | options))

    return make


@pytest.fixture
def fit_of(classes, data_of, trainer_of):
    """Return what makes, of what makes a task of settings, one that runs it and returns it and its Trainer."""

    def make(task_of):
        def run(data=None, trainer=None, ckpt_path=None, **changes):
            task, trained = task_of(**changes), trainer_of(**(trainer or {}))
            trained.fit(task, datamodule=data_of(classes, **(data or {})), ckpt_path=ckpt_path)
            return task, trained

        return run

    return make
