"""Stop when numbers cease to be numbers, before the weights are spoilt and saved."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from workbench.errors import UserError


class NanGuard(Callback):
    """Refuse an optimizer step after a loss that is not finite; the last good checkpoint stays.

    Looked at on every step on a CPU, and on logged steps on a GPU, which a look makes wait. A step that fp16's
    gradient scaler skips is no such case: its loss is finite.
    """

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        """Look at the loss, and find the tensor that it comes from."""
        if loss.device.type != "cpu" and not trainer._logger_connector.should_update_logs:
            return
        if bool(torch.isfinite(loss)):
            return
        raise UserError(
            f"The loss is {float(loss)} at step {trainer.global_step}; {self._first_bad(pl_module)}. "
            "Lower the learning rate or lengthen the warm-up; under fp16 try --trainer.precision bf16-mixed. "
            "The last checkpoint from before is kept."
        )

    @staticmethod
    def _first_bad(pl_module: LightningModule) -> str:
        for name, parameter in pl_module.clip.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                return f"the first tensor that is not finite is the parameter {name}"
        for name, buffer in pl_module.clip.named_buffers():
            if not bool(torch.isfinite(buffer).all()):
                return f"the first tensor that is not finite is the buffer {name}"
        return f"all parameters are finite, so it comes from {_first_bad_activation(pl_module)}"


def _first_bad_activation(pl_module: LightningModule) -> str:
    """Run the last batch again and name the first module whose output is not finite."""
    batch: dict[str, Any] | None = pl_module.last_batch
    if batch is None:
        return "the forward pass"
    found: list[str] = []

    def watch(name: str):
        def hook(module, inputs, output):
            if not found and isinstance(output, torch.Tensor) and not bool(torch.isfinite(output).all()):
                found.append(name)

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in pl_module.clip.named_modules() if name]
    try:
        with torch.no_grad():
            pl_module.encode_image_batch(batch["image"])
            pl_module.encode_text_batch(batch["text"])
    finally:
        for handle in handles:
            handle.remove()
    return f"the output of {found[0]}" if found else "the loss itself"
