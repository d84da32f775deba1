"""ONNX: `image.onnx` and `text.onnx`, for onnxruntime."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.errors import UserError
from workbench.export.comparison import Encoders, quietly
from workbench.export.programs import logits, programs, write_about
from workbench.models import CLIP


def write(model: CLIP, folder: Path, origin: dict[str, Any]) -> str:
    """Write both programs and `clip.json`; return how to load them."""
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    for name, program in programs(model):
        path = folder / f"{name}.onnx"
        with quietly():
            options = {"input_names": [name], "output_names": ["features"], "dynamo": True, "verbose": False}
            try:
                torch.onnx.export(program, (), **options).save(str(path))
            except torch.onnx.OnnxExporterError as error:
                raise UserError(
                    f"torch {torch.__version__} cannot turn the {name} tower into ONNX ({str(error).splitlines()[0]}); "
                    "newer releases can (2.6 has no ResNets)."
                ) from error
        _call_the_first_axis_batch(path)
    write_about(model, folder, origin)
    return 'onnxruntime.InferenceSession("FOLDER/image.onnx").run(None, {"image": pictures})'


def _call_the_first_axis_batch(path: Path) -> None:
    """Rename it in what users see: the tracer calls it something like `s34`."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(model, path)


def reload(folder: Path) -> Encoders:
    """Load both with onnxruntime."""
    import onnxruntime

    def encoder(name: str):
        session = onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])

        def encode(inputs: Tensor) -> Tensor:
            return torch.from_numpy(session.run(None, {name: inputs.numpy()})[0])

        return encode

    image, text = encoder("image"), encoder("text")
    return Encoders(f"onnxruntime {onnxruntime.__version__}", image, text, logits(folder, image, text))
