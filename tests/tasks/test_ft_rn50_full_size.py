"""experiments/ft_rn50.yaml with nothing small but the batch: from an archive like OpenAI's, there and back."""

import warnings
from pathlib import Path

import pytest
import torch

import workbench
from workbench.main import main
from workbench.models import create_model
from workbench.weights.files import read_checkpoint

FT = str(Path(__file__).parent.parent.parent / "experiments" / "ft_rn50.yaml")


def archive(path):
    """Write RN50 with random weights as OpenAI's file is: traced, in half precision."""
    torch.manual_seed(0)
    model = create_model("RN50").eval()
    for name in ("input_resolution", "vocab_size"):
        vars(model).pop(name, None)
        model.register_buffer(name, torch.tensor(1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = torch.randn(1, 3, 224, 224), torch.tensor([[49406, 5, 49407]])
        torch.jit.trace(model, example, check_trace=False).half().save(str(path))


@pytest.mark.slow
def test_three_steps_resumed_exported_and_loaded_back(tmp_path):
    archive(tmp_path / "RN50.pt")
    few = [
        *("--model.init_args.weights", str(tmp_path / "RN50.pt"), "--data.batch_size", "4", "--data.num_workers", "0"),
        *("--trainer.max_epochs", "-1", "--trainer.limit_val_batches", "0", "--trainer.callbacks", "[]"),
        *("--trainer.accelerator", "cpu", "--model.init_args.warmup", "0", "--model.init_args.schedule", "constant"),
    ]
    assert main(["fit", "--config", FT, *few, "--trainer.max_steps", "3"]) == 0
    assert main(["fit", "--config", FT, *few, "--trainer.max_steps", "2"]) == 0
    half = tmp_path / "runs" / "ft_rn50" / "1" / "checkpoints" / "last.ckpt"
    assert main(["fit", "--config", FT, *few, "--trainer.max_steps", "3", "--ckpt_path", str(half)]) == 0
    whole, resumed = (
        read_checkpoint(tmp_path / "runs" / "ft_rn50" / run / "checkpoints" / "last.ckpt")["state_dict"]
        for run in ("0", "1")
    )
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
    start, _ = workbench.load(tmp_path / "RN50.pt", device="cpu")
    changed = [key for key, value in start.state_dict().items() if not torch.equal(value, whole[f"clip.{key}"])]
    assert "visual.conv1.weight" in changed and "text_projection" in changed
    assert not any("running_" in key or "num_batches" in key for key in changed), "a fine-tune keeps the statistics"

    trained = tmp_path / "runs" / "ft_rn50" / "0" / "checkpoints" / "last.ckpt"
    options = ["--checkpoint", str(trained), "--to", "openai", "--output", str(tmp_path / "exported")]
    assert main(["export", *options]) == 0
    [file] = (tmp_path / "exported").glob("*.pt")
    back, _ = workbench.load(file, device="cpu")
    for key, value in back.state_dict().items():
        torch.testing.assert_close(value, whole[f"clip.{key}"], rtol=0, atol=0)
