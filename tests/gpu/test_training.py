"""What a GPU does differently: `python -m pytest tests/gpu` on a machine that has one."""

import json
import math

import pytest
import torch

from workbench import losses
from workbench.gradient_equivalence import example_batch
from workbench.main import main
from workbench.models import compile_blocks, create_model, set_shortcuts
from workbench.optimization import use_fused

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]

DEVICE = "cuda"


def gradients(clip, images, tokens):
    clip.zero_grad()
    loss = losses.contrastive(clip.encode_image(images), clip.encode_text(tokens), clip.logit_scale.exp())
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten().double().cpu() for p in clip.parameters()])


def model_and_batch(architecture, pairs=16):
    torch.manual_seed(0)
    clip = create_model(architecture)
    return clip, *example_batch(clip, pairs)


@pytest.mark.parametrize("architecture", ["mini-vit", "mini-rn"])
def test_loss_and_gradient_are_those_of_the_cpu(architecture):
    clip, images, tokens = model_and_batch(architecture)
    loss, gradient = gradients(clip, images, tokens)
    found, other = gradients(clip.to(DEVICE), images.to(DEVICE), tokens.to(DEVICE))
    assert found == pytest.approx(loss, rel=1e-3)
    assert float((other - gradient).norm() / gradient.norm()) < 1e-2  # TF32


@pytest.mark.parametrize("architecture", ["mini-vit", "mini-rn"])
def test_shortcuts_and_compiled_blocks_change_nothing(architecture):
    clip, images, tokens = (x.to(DEVICE) for x in model_and_batch(architecture))
    set_shortcuts(clip, False)
    plain = gradients(clip, images, tokens)
    set_shortcuts(clip, True)
    for prepare in (lambda: None, lambda: compile_blocks(clip)):
        prepare()
        loss, gradient = gradients(clip, images, tokens)
        assert loss == pytest.approx(plain[0], rel=1e-3)
        assert float((gradient - plain[1]).norm() / plain[1].norm()) < 1e-2


def test_one_compilation_serves_every_length_of_text():
    clip, _, _ = model_and_batch("mini-vit")
    clip.to(DEVICE)
    compile_blocks(clip)
    torch._dynamo.utils.counters.clear()
    for words in range(2, 70, 4):
        tokens = torch.zeros(4, words + 2, dtype=torch.int32, device=DEVICE)
        tokens[:, 0], tokens[:, 1:-1], tokens[:, -1] = 49406, 320, 49407
        clip.encode_text(tokens)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4


def test_fused_optimizer_equals_the_plain_one():
    found = []
    for fused in (True, False):
        clip, images, tokens = (x.to(DEVICE) for x in model_and_batch("mini-vit"))
        optimizer = torch.optim.AdamW(clip.parameters(), lr=1e-3, foreach=None if fused else False)
        if fused:
            use_fused(optimizer)
            assert all(group["fused"] for group in optimizer.param_groups)
        for _ in range(3):
            loss, _ = gradients(clip, images, tokens)
            optimizer.step()
        found.append(loss)
    assert found[0] == pytest.approx(found[1], rel=1e-3)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed", None])
def test_a_run_in_every_precision(request, precision, tmp_path):
    quickstart = request.config.rootpath / "experiments" / "quickstart.yaml"
    chosen = [] if precision is None else ["--trainer.precision", precision]
    options = ["--trainer.max_epochs", "-1", "--trainer.max_steps", "60", "--trainer.accelerator", "gpu"]
    assert main(["fit", "--config", str(quickstart), *options, *chosen, "--trainer.devices", "1"]) == 0
    summary = json.loads((tmp_path / "runs" / "quickstart" / "0" / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["metrics"]["train/loss"]["value"] < 0.8 * math.log(128)
