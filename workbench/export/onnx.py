"""ONNX: `image.onnx` and `text.onnx`, for onnxruntime."""

import logging
from pathlib import Path

import torch
from torch import Tensor

from workbench.export.comparison import Encoders, quietly
from workbench.export.programs import encoders, logits, write_about
from workbench.models import CLIP


def write(model: CLIP, folder: Path) -> str:
    """Write both programs and `clip.json`; return how to load them."""
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with quietly():
        for name, module, example in encoders(model):
            program = torch.onnx.export(
                module,
                (example,),
                dynamic_shapes=({0: "batch"},),
                input_names=[name],
                output_names=["features"],
                dynamo=True,
                verbose=False,
            )
            program.save(str(folder / f"{name}.onnx"))
    write_about(model, folder)
    return 'onnxruntime.InferenceSession("FOLDER/image.onnx").run(None, {"image": pictures})'


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
