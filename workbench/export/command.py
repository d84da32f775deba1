"""`python -m workbench export` and `convert`."""

import importlib
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from safetensors import SafetensorError

from workbench.errors import UserError
from workbench.export.comparison import largest_differences
from workbench.models import CLIP, create_model
from workbench.weights import architecture_for, named, put_weights, read_weights
from workbench.weights.half_precision import rounded_to_half, to_half

Format = Literal["openai", "open_clip", "huggingface", "onnx", "torch_export", "safetensors"]
_NEEDS = {
    "openai": ("open_clip",),
    "open_clip": ("open_clip",),
    "huggingface": ("transformers",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
}
_PROGRAMS = ("onnx", "torch_export")


def export(
    checkpoint: str,
    to: Format,
    output: str,
    precision: Literal["fp32", "fp16"] = "fp32",
    tolerance: float = 1e-4,
) -> int:
    """Write a run's checkpoint in another library's format, and prove it equal by loading it there.

    Args:
        checkpoint: of a run, such as runs/quickstart/0/checkpoints/best.ckpt.
        to: openai (clip.load), open_clip, huggingface (CLIPModel and CLIPProcessor), onnx (onnxruntime), torch_export,
            safetensors.
        output: a folder that does not exist, or is empty.
        precision: fp16 stores convolutions, linear maps and attention in half precision, by OpenAI's rule.
        tolerance: largest difference allowed, relative to the largest value; above it nothing is written.
    """
    if not Path(checkpoint).is_file():
        raise UserError(f"There is no checkpoint {checkpoint}; a run keeps its own in <run folder>/checkpoints/.")
    return convert(checkpoint, to, output, precision=precision, tolerance=tolerance)


def convert(
    source: str,
    to: Format,
    output: str,
    architecture: str | None = None,
    activation: Literal["quick_gelu", "gelu"] | None = None,
    precision: Literal["fp32", "fp16"] = "fp32",
    tolerance: float = 1e-4,
) -> int:
    """Write any weights in another library's format, and prove them equal by loading them there.

    Args:
        source: a name such as ViT-B/32, hf-hub:org/name, a file or a folder: all that `weights:` takes.
        to: openai (clip.load), open_clip, huggingface (CLIPModel and CLIPProcessor), onnx (onnxruntime), torch_export,
            safetensors.
        output: a folder that does not exist, or is empty.
        architecture: what the weights are of; null finds out.
        activation: what they were trained with; needed where the file does not say.
        precision: fp16 stores convolutions, linear maps and attention in half precision, by OpenAI's rule.
        tolerance: largest difference allowed, relative to the largest value; above it nothing is written.
    """
    writer = _writer(to)
    folder = _free(Path(output))
    if precision == "fp16" and to in _PROGRAMS:
        raise UserError(f"--to {to} writes fp32; let its runtime choose the precision.")
    weights = read_weights(named(source, architecture))
    model = create_model(architecture_for(weights, architecture, activation=activation)).eval()
    put_weights(model, weights)
    _refuse_small_disk(folder, model)
    # On the same disk, so that taking the name is one step.
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}).") from error
    try:
        how = _written(writer, model, beside, precision, tolerance, weights.provenance(source))
        beside.chmod(0o755)  # mkdtemp's is for nobody else
        os.replace(beside, folder)  # noqa: PTH105 - Path.replace is the same call
    except UserError:
        raise
    except (OSError, SafetensorError, RuntimeError) as error:
        if type(error) is RuntimeError and "inline_container" not in str(error):  # torch.save's full disk
            raise
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"{folder} cannot be written ({reason}); nothing is left of it.") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    print(f"Written to {folder}:")
    for path in sorted(folder.rglob("*")):
        print(f"  {path.relative_to(folder)}  {path.stat().st_size / 1e6:.1f} MB")
    print(f"Load it with: {how.replace('FOLDER', str(folder))}")
    return 0


def _written(
    writer: ModuleType, model: CLIP, folder: Path, precision: str, tolerance: float, origin: dict[str, Any]
) -> str:
    half = precision == "fp16"
    expected = rounded_to_half(model) if half or getattr(writer, "HALF_ALWAYS", False) else model
    how = writer.write(to_half(model) if half else model, folder, origin)
    other = writer.reload(folder)
    differences = largest_differences(expected, other)
    said = ", ".join(f"{what} {value:.1e}" for what, value in differences.items())
    described = expected.architecture
    print(f"{described.name}, {described.activation}, {described.image_size} px: loaded by {other.library}.")
    print(f"Largest differences: {said} (tolerance {tolerance:.0e}).")
    if max(differences.values()) > tolerance:
        raise UserError(
            f"What {other.library} computes from the export differs by {max(differences.values()):.1e}, more than "
            f"--tolerance {tolerance:.0e}; nothing is written."
        )
    return how


def _refuse_small_disk(folder: Path, model: CLIP) -> None:
    """Say so before: some writers abort the process on a full disk."""
    needed = 10_000_000 + sum(value.numel() * value.element_size() for value in model.state_dict().values())
    there = next((parent for parent in folder.absolute().parents if parent.is_dir()), Path("/"))
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UserError(
            f"{folder} needs {needed / 1e6:.0f} MB, and {free / 1e6:.0f} MB are free there; nothing is written."
        )


def _writer(to: str) -> ModuleType:
    missing = [name for name in _NEEDS.get(to, ()) if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"--to {to} needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed: "
            "pip install 'clip-workbench[export]'."
        )
    return importlib.import_module(f"workbench.export.{to}")


def _free(folder: Path) -> Path:
    folder = folder.expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--output {folder} exists; name a folder that does not, or is empty.")
    return folder
