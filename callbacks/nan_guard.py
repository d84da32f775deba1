"""Stop when numbers cease to be numbers, before spoilt weights are saved."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from workbench.errors import UserError


class NanGuard(Callback):
    """Refuse to go on after a loss that is not finite; the last good checkpoint stays.

    On a CPU it is refused before the optimizer's step. A GPU notes the step without waiting, and the note is read on
    logged steps; `RunCheckpoint` never writes weights that are not finite. A step that fp16's gradient scaler skips is
    no such case: its loss is finite.
    """

    def __init__(self) -> None:
        self._bad_step: torch.Tensor | None = None

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        """Look at the loss, and find the tensor that it comes from.

        Raises:
            UserError: the step, the first bad tensor, and what to change.
        """
        loss = loss.detach()
        if self._bad_step is None:
            self._bad_step = torch.full((), -1, dtype=torch.long, device=loss.device)
        new = (self._bad_step < 0) & ~torch.isfinite(loss)
        self._bad_step = torch.where(new, trainer.global_step, self._bad_step)
        if loss.device.type != "cpu" and not trainer._logger_connector.should_update_logs:
            return
        step = int(self._bad_step)
        if step >= 0:
            raise not_finite(f"The loss is not finite ({float(loss)}) at step {step}", pl_module)


def not_finite(what: str, pl_module: LightningModule) -> UserError:
    """Return the error that names the first bad tensor, in the order of the model, and what to change."""
    return UserError(
        f"{what}; {_first_bad(pl_module)}. Lower the learning rate or lengthen the warm-up; under fp16 try "
        "--trainer.precision bf16-mixed. The last checkpoint from before is kept."
    )


def first_bad_parameter(pl_module: LightningModule) -> str | None:
    """Return the name of the first parameter or buffer, of this process's share, that is not finite."""
    for name, tensor in (*pl_module.named_parameters(), *pl_module.named_buffers()):
        share = tensor.to_local() if hasattr(tensor, "to_local") else tensor  # sharded by FSDP2
        if not bool(torch.isfinite(share).all()):
            return name
    return None


def _first_bad(pl_module: LightningModule) -> str:
    if name := first_bad_parameter(pl_module):
        return f"the first tensor that is not finite is the parameter {name}"
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
