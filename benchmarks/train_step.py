"""A training step of ours against open_clip's: same weights, same batch, same loss, in turn.

    python -m benchmarks.train_step
    python -m benchmarks.train_step --models ViT-B/32 --precisions fp32 --batch-size 32 --repeats 9 --device cuda

A step is forward, loss, backward and AdamW, each side as it trains by default: ours with its shortcuts and fused
AdamW, open_clip's with its ClipLoss and torch's AdamW. The losses are first checked to be equal in fp32, to 1e-4.
Times are of alternating steps in one process, and the ratio is the median of the ratios of neighbours; memory is the
peak of a process of its own.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

PEERS = {"ViT-B/32": "ViT-B-32-quickgelu", "RN50": "RN50-quickgelu"}
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}
LOSS_TOLERANCE = 1e-4


def captions(kind: str, pairs: int) -> Tensor:
    """Return tokens [pairs, 77]: English names of emoji, or captions that fill the context."""
    from workbench.tokenizer import tokenize

    if kind == "full":
        return tokenize(["word " * 75] * pairs)
    import emoji

    names = sorted({about["en"].strip(":").replace("_", " ") for about in emoji.EMOJI_DATA.values()})
    return tokenize(names[:: len(names) // pairs][:pairs])


@dataclass
class Side:
    """A model, the loss of a batch as its side computes it, and its optimizer."""

    clip: nn.Module
    loss: Callable[[Tensor], Tensor]
    optimizer: torch.optim.Optimizer

    def step(self, images: Tensor, dtype: torch.dtype | None) -> None:
        """Train once, under autocast to `dtype`."""
        with torch.autocast(images.device.type, dtype=dtype, enabled=dtype is not None):
            loss = self.loss(images)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()


def ours(model: str, tokens: Tensor, device: str) -> Side:
    """Build ours, with weights from a fixed seed."""
    from workbench import losses
    from workbench.models import create_model
    from workbench.optimization import use_fused

    torch.manual_seed(0)
    clip = create_model(model).to(device).train()
    optimizer = torch.optim.AdamW(clip.parameters(), lr=1e-5, weight_decay=0.2)
    use_fused(optimizer)

    def loss(images: Tensor) -> Tensor:
        image, text = clip.encode_image(images), clip.encode_text(tokens)
        return losses.contrastive(image, text, clip.logit_scale.exp())

    return Side(clip, loss, optimizer)


def theirs(model: str, tokens: Tensor, device: str, weights: dict[str, Tensor] | None = None) -> Side:
    """Build open_clip's, with the given weights."""
    import open_clip
    from open_clip.loss import ClipLoss

    config = open_clip.get_model_config(PEERS[model])
    clip = open_clip.model.CLIP(**{k: config[k] for k in ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")})
    if weights is not None:
        clip.load_state_dict({**clip.state_dict(), **weights})
    clip = clip.to(device).train()
    contrastive = ClipLoss()

    def loss(images: Tensor) -> Tensor:
        image, text, scale = clip(images, tokens)[:3]
        return contrastive(image, text, scale)

    return Side(clip, loss, torch.optim.AdamW(clip.parameters(), lr=1e-5, weight_decay=0.2))


def check(mine: Side, peer: Side, images: Tensor, model: str) -> None:
    """Refuse to compare what does not compute the same loss in fp32."""
    with torch.no_grad():
        found, expected = float(mine.loss(images)), float(peer.loss(images))
    if abs(found - expected) > LOSS_TOLERANCE * abs(expected):
        raise SystemExit(f"{model}: losses differ, ours {found}, open_clip's {expected}")


def measure(model: str, precision: str, kind: str, pairs: int, repeats: int, device: str) -> dict[str, object]:
    """Return one row of the table."""
    dtype, tokens = PRECISIONS[precision], captions(kind, pairs).to(device)
    images = torch.randn(pairs, 3, 224, 224, generator=torch.Generator().manual_seed(1)).to(device)
    mine = ours(model, tokens, device)
    peer = theirs(model, tokens, device, mine.clip.state_dict())
    check(mine, peer, images, model)
    seconds: tuple[list[float], list[float]] = ([], [])
    for repeat in range(1 + repeats):  # the first warms up
        for column, side in zip(seconds, (mine, peer), strict=True):
            began = time.perf_counter()
            side.step(images, dtype)
            if device == "cuda":
                torch.cuda.synchronize()
            if repeat:
                column.append(time.perf_counter() - began)
    return {
        "model": model,
        "precision": precision,
        "captions": kind,
        "pairs": pairs,
        "ours_pairs_per_second": pairs / statistics.median(seconds[0]),
        "open_clip_pairs_per_second": pairs / statistics.median(seconds[1]),
        "speed_ratio": statistics.median(t / o for o, t in zip(*seconds, strict=True)),
    }


def peak_memory(side: str, model: str, precision: str, kind: str, pairs: int, device: str) -> int:
    """Return the peak of a fresh process that trains three steps, in bytes."""
    call = [sys.executable, "-m", "benchmarks.train_step", "--memory-of", side, "--models", model]
    call += ["--precisions", precision, "--captions", kind, "--batch-size", str(pairs), "--device", device]
    return int(subprocess.run(call, capture_output=True, text=True, check=True).stdout.split()[-1])


def _report_memory(side: str, model: str, precision: str, kind: str, pairs: int, device: str) -> None:
    tokens = captions(kind, pairs).to(device)
    images = torch.randn(pairs, 3, 224, 224).to(device)
    trained = (ours if side == "ours" else theirs)(model, tokens, device)
    for _ in range(3):
        trained.step(images, PRECISIONS[precision])
    print(torch.cuda.max_memory_allocated() if device == "cuda" else _peak_of_this_process())


def _peak_of_this_process() -> int:
    """Read it from Linux: `getrusage` also counts the process that started this one."""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--captions", nargs="+", choices=("real", "full"), default=["real", "full"])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", help="also write the rows here")
    parser.add_argument("--memory-of", choices=("ours", "open_clip"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    rows = []
    for model in options.models:
        for precision in options.precisions:
            for kind in options.captions:
                setting = (model, precision, kind, options.batch_size)
                if options.memory_of:
                    _report_memory(options.memory_of, *setting, options.device)
                    continue
                if not rows:
                    print("| model | precision | captions | ours pairs/s | open_clip pairs/s | speed | memory |")
                    print("|---|---|---|---|---|---|---|")
                row = measure(*setting, options.repeats, options.device)
                memory = {side: peak_memory(side, *setting, options.device) for side in ("ours", "open_clip")}
                row["memory_ratio"] = memory["ours"] / memory["open_clip"]
                rows.append(row)
                print(
                    f"| {model} | {precision} | {kind} | {row['ours_pairs_per_second']:.2f} | "
                    f"{row['open_clip_pairs_per_second']:.2f} | **{row['speed_ratio']:.2f}x** | "
                    f"{row['memory_ratio']:.2f}x |",
                    flush=True,
                )
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
