"""`python -m workbench doctor`: is this machine fit to train on?"""

import importlib.metadata
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench import machine

OK, WARNING, PROBLEM = "ok", "warning", "PROBLEM"
_EXTRAS = {
    "demo": "the quickstart's pictures and their names, and digits",
    "export": "the libraries that export and convert write for",
    "dev": "only to run the tests and benchmarks",
}
_DISTRIBUTION = "clip-workbench"
_TOLERANCE = 1e-5
"""Of a gradient's relative error in fp32."""
_LOSS_TOLERANCE = 0.05
"""Of the first loss in mixed precision, against fp32."""
_GIB = 2**30


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
    marks = []
    for finding in _all_of(checks):
        print(finding, flush=True)
        marks.append(finding.mark)
    problems, warnings = marks.count(PROBLEM), marks.count(WARNING)
    if problems:
        print(f"\n{problems} of {len(marks)} would break training; see the lines marked {PROBLEM}.", flush=True)
        return 1
    print(f"\nThis machine can train{f'; {warnings} warnings above' if warnings else ''}.", flush=True)
    return 0


def _all_of(checks: list[Callable[[], Iterator[Finding]]]) -> Iterator[Finding]:
    for check in checks:
        try:
            yield from check()
        except Exception as error:  # a doctor reports what ails, whatever it is
            first = (str(error).strip() or "no message").splitlines()[0]
            yield Finding(PROBLEM, check.__name__.strip("_"), f"{type(error).__name__}: {first}")


def _versions() -> Iterator[Finding]:
    yield Finding(OK, "python", f"{platform.python_version()} on {platform.platform()}")
    requirements = _requirements()
    if not requirements:
        text = "runs without being installed, so versions were not compared; in its folder: pip install --editable ."
        yield Finding(WARNING, _DISTRIBUTION, text)
    for requirement in requirements:
        yield _version(requirement.name, requirement.specifier)


def _requirements(extra: str = "") -> list[Any]:
    """Return what the package requires, or what one of its extras requires besides; nothing if not installed."""
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = [Requirement(line) for line in lines]
    return [
        requirement
        for requirement in found
        if requirement.name != _DISTRIBUTION
        and (requirement.marker is None or requirement.marker.evaluate({"extra": extra}))
        and (not extra or (requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})))
    ]


def _version(package: str, wanted: Any) -> Finding:
    """Compare an installed version with a `packaging` specifier set."""
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return Finding(PROBLEM, package, f"missing: pip install '{package}{wanted}'")
    if not wanted.contains(version, prereleases=True):
        return Finding(PROBLEM, package, f"{version}, and {wanted} is needed: pip install '{package}{wanted}'")
    return Finding(OK, package, version)


def _devices() -> Iterator[Finding]:
    import torch

    from workbench.precision import preferred_precision

    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        bf16 = "bfloat16 in hardware" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bfloat16"
        yield Finding(OK, f"gpu {index}", f"{about.name}, {about.total_memory / _GIB:.0f} GiB, {bf16}")
    if torch.backends.mps.is_available():
        yield Finding(OK, "gpu", "Apple (MPS)")
    elif not torch.cuda.is_available():
        driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
        if driver:
            built = f"was built for CUDA {torch.version.cuda}" if torch.version.cuda else "was built without CUDA"
            text = f"there is an NVIDIA driver, but this torch {built} and cannot use it: see pytorch.org/get-started"
            yield Finding(WARNING, "gpu", text)
        else:
            yield Finding(OK, "gpu", "none that torch can use; training runs on the CPU")
    precision, why = preferred_precision(torch.cuda.is_available())
    yield Finding(OK, "precision", f"{precision}: {why}")


def _cpu() -> Iterator[Finding]:
    import torch

    from workbench.precision import this_cpu_has_bf16

    cpuinfo, cgroup = _text("/proc/cpuinfo"), _text("/proc/self/cgroup")
    name = machine.cpu_name(cpuinfo) or platform.processor() or platform.machine()
    capability, cores, threads = (
        torch.backends.cpu.get_cpu_capability(),
        machine.usable_cores(),
        torch.get_num_threads(),
    )
    yield Finding(OK, "cpu", f"{name}, {cores} cores, {capability}, {threads} threads")
    quota = machine.cpu_quota(cgroup)
    if quota is not None and threads > quota + 0.5:
        text = (
            f"{quota:.1f} cores by the container's limit, {threads} threads: set OMP_NUM_THREADS={max(1, int(quota))}"
        )
        yield Finding(WARNING, "cpu limit", text)
    hardware = "in hardware" if this_cpu_has_bf16() else "emulated"
    ratio = _seconds_of_a_product(torch.bfloat16) / _seconds_of_a_product(torch.float32)
    text = f"{hardware}; a matrix product takes {ratio:.1f} times as long as in fp32"
    if ratio > 1.5:
        text += ": leave the precision at 32-true on the CPU"
    yield Finding(OK if ratio <= 1.5 else WARNING, "bfloat16 on the cpu", text)


def _text(path: str) -> str:
    """Return what a file of the system says, nothing where it has no such file."""
    return Path(path).read_text() if Path(path).is_file() else ""


def _seconds_of_a_product(dtype: Any) -> float:
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

    memory = psutil.virtual_memory()
    limit = machine.memory_limit(_text("/proc/self/cgroup"))
    within = f", and the container's limit is {limit / _GIB:.1f} GiB" if limit is not None else ""
    least = min(memory.available, limit or memory.available) / _GIB
    text = f"{memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB free{within}"
    yield Finding(OK if least > 2 else WARNING, "memory", text)
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free / _GIB
        text = f"{free:.1f} GiB free"
        if free < 0.5:
            text += ": loading workers will die of it; give the container more (--shm-size), or --data.num_workers 0"
        yield Finding(OK if free >= 0.5 else WARNING, "shared memory", text)
    free = shutil.disk_usage(".").free / _GIB
    text = f"{free:.1f} GiB free for runs; a checkpoint of RN50 with its optimizer takes 1.2"
    yield Finding(OK if free > 5 else WARNING if free > 0.1 else PROBLEM, "disk", text)


def _extras() -> Iterator[Finding]:
    for extra, use in _EXTRAS.items():
        found = [_version(requirement.name, requirement.specifier) for requirement in _requirements(extra)]
        lacking = [finding.subject for finding in found if finding.mark != OK]
        text = (
            f"{', '.join(lacking)} missing or too old: pip install '{_DISTRIBUTION}[{extra}]'" if lacking else "there"
        )
        yield Finding(WARNING if lacking and extra == "demo" else OK, f"extra {extra}", f"{text} ({use})")
    from PIL import features

    raqm = features.check("raqm")
    yield Finding(
        OK if raqm else WARNING,
        "Pillow with RAQM",
        "there" if raqm else "missing: OpenMoji cannot draw composed emoji; pip's own Pillow wheels have it",
    )


def _precisions() -> Iterator[Finding]:
    import torch

    fp32, _ = _two_steps("cpu", None)
    if torch.cuda.is_available():
        tried = [("cuda", "fp32", None), ("cuda", "fp16-mixed", torch.float16)]
        if torch.cuda.is_bf16_supported(including_emulation=False):
            tried.append(("cuda", "bf16-mixed", torch.bfloat16))
    elif torch.backends.mps.is_available():
        tried = [("mps", "fp32", None)]
    else:
        tried = [("cpu", "fp32", None), ("cpu", "bf16-mixed", torch.bfloat16)]
    for device, name, dtype in tried:
        began = time.perf_counter()
        before, after = _two_steps(device, dtype)
        fine = after < before and abs(before - fp32) < _LOSS_TOLERANCE
        text = f"two steps on {device}: loss {before:.3f} -> {after:.3f} in {time.perf_counter() - began:.1f} s"
        yield Finding(OK if fine else PROBLEM, name, text)


def _two_steps(device: str, dtype: Any) -> tuple[float, float]:
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
    import torch

    from workbench.gradient_equivalence import relative_errors

    if not torch.distributed.is_available():
        yield Finding(WARNING, "2 processes", "this torch was built without torch.distributed: one process only")
        return
    for way, parts in relative_errors().items():
        worst = max(parts.values())
        text = f"gradient equals one pass to {worst:.1e} (tolerance {_TOLERANCE:.0e})"
        yield Finding(OK if worst <= _TOLERANCE else PROBLEM, way, text)
