"""Every fine-tuning method from the same weights, on the same splits: what is learnt, what is forgotten, at what cost.

    python -m benchmarks.fine_tuning --pairs FOLDER --output runs/fine_tuning
    python -m workbench report runs/fine_tuning/*/0

FOLDER holds `train.tsv` and `val.tsv` of pairs, such as Open Clip Art's. A small CLIP is pre-trained on them, then
adapted to handwritten digits (scikit-learn's, as classes) by the experiments' methods, each a run of `fit` with the
settings below. What must not be forgotten are the pairs: retrieval among 387 that it has never seen, and among 500 that
it was trained on. Rates are those of a model of this size, not those of the experiments' files.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
FULL = 1e-4
"""Learning rate where all parameters train."""
RATE = "model.init_args.optimizer.init_args.lr"
INTERPOLATED = ("flyp", "classifier")
"""Methods whose weights are also measured on the way from start to end (WiSE-FT)."""
METHODS: dict[str, tuple[str, dict[str, object]]] = {
    "flyp": ("ft_flyp", {}),
    "flyp_as_published": ("ft_flyp", {"model.init_args.positives": "pair"}),
    "classifier": ("ft_classifier", {}),
    "lp_ft": ("ft_lp_ft", {}),
    "lora": ("ft_flyp", {"model.init_args.lora": "{rank: 8, alpha: 16}", RATE: 1e-3}),
    "lit": ("ft_flyp", {"model.init_args.parameter_rules": '[{match: "visual", lr: 0}]'}),
    "layer_decay": ("ft_flyp", {"model.init_args.layer_decay": 0.65}),
    "siglip": ("ft_flyp", {"model.init_args.loss": "sigmoid"}),
    "distill": ("ft_flyp", {"model.init_args.distillation": "{logits: 1.0, features: 1.0}"}),
    "coop": ("ft_coop", {RATE: 2e-3, "trainer.max_epochs": 200}),
    "tip_adapter": ("ft_tip_adapter", {}),
    "tip_adapter_f": ("ft_tip_adapter", {"model.init_args.finetune": "true", RATE: 1e-3, "trainer.max_epochs": 20}),
}


def common(name: str, pairs: Path, weights: Path, output: Path) -> dict[str, object]:
    """Return the options that a method has like all."""
    places = {"train": str(pairs / "train.tsv"), "val": str(pairs / "val.tsv"), "num_workers": 0}
    data = {"class_path": "ImageTextDataModule", "init_args": places}
    # Tasks with logits of their own measure those themselves.
    zero_shot = {"class_path": "ZeroShotMonitor", "init_args": {"name": "target"}}
    callbacks = [zero_shot] if METHODS[name][0] == "ft_flyp" else []
    for canary, split in (("known_pairs", "train"), ("new_pairs", "val")):
        settings = {"name": canary, "ks": [5], "split": split, "samples": 500, "data": data}
        callbacks.append({"class_path": "RetrievalMonitor", "init_args": settings})
    if name in INTERPOLATED:
        callbacks.append({"class_path": "WeightInterpolation"})
    return {
        "experiment": name,
        "trainer.default_root_dir": output,
        "trainer.callbacks": json.dumps(callbacks),
        "trainer.enable_progress_bar": "false",
        "trainer.max_epochs": 15,
        "trainer.check_val_every_n_epoch": 15,
        "trainer.gradient_clip_val": 1.0,
        "model.init_args.architecture": "null",
        "model.init_args.weights": weights,
        RATE: FULL,
        "data": "DigitsDataModule",
        "data.batch_size": 64,
        "data.num_workers": 0,
    }


def fit(config: str, options: dict[str, object]) -> None:
    """Run `fit`; what it says is shown when it fails."""
    command = [sys.executable, "-m", "workbench", "fit", "--config", EXPERIMENTS / f"{config}.yaml"]
    arguments = [part for key, value in options.items() for part in (f"--{key}", value)]
    done = subprocess.run([str(part) for part in (*command, *arguments)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/fine_tuning"))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--weights", type=Path, help="pre-trained already, by this command")
    options = parser.parse_args()
    pairs, weights = options.pairs.resolve(), options.weights
    if weights is None:
        fit("quickstart", pretraining(pairs, options.output))
        weights = options.output / "pretrain" / "0" / "checkpoints" / "last.ckpt"
    for name in options.methods:
        config, own = METHODS[name]
        print(name, flush=True)
        fit(config, common(name, pairs, weights.resolve(), options.output) | own)


def pretraining(pairs: Path, output: Path) -> dict[str, object]:
    """Return the options of the pre-training: 60 epochs of 21 batches."""
    return {
        "experiment": "pretrain",
        "trainer.default_root_dir": output,
        "trainer.callbacks": "[]",
        "trainer.enable_progress_bar": "false",
        "trainer.max_epochs": 60,
        "trainer.check_val_every_n_epoch": 15,
        "model.init_args.architecture": "mini-vit",
        "data": "ImageTextDataModule",
        "data.train": pairs / "train.tsv",
        "data.val": pairs / "val.tsv",
        "data.batch_size": 128,
        "data.num_workers": 0,
    }


if __name__ == "__main__":
    main()
