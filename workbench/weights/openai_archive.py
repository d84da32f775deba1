"""OpenAI's checkpoint files, read without running what is in them.

They are TorchScript archives: a zip with a pickle of the module's tree and one file of bytes for each storage. The
pickle is read by an unpickler that knows how to rebuild tensors and containers and nothing else; the code in the
archive is not looked at, and TorchScript, deprecated in torch, is not needed.
"""

import itertools
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.errors import UserError
from workbench.weights.files import refuse_bombs

NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")
"""Numbers that OpenAI's archives carry beside the weights."""

# The causal mask is no weight, but archives of OpenCLIP's models carry it as if it were.
_MASK = "attn_mask"

_DEEPEST, _MOST_MODULES = 32, 100_000

_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class _Node:
    """A module of the archive: its attributes, whatever class it was."""

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(archive.open(f"{root}data.pkl"))
        self.archive, self.root = archive, root
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        known = {
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
            ("collections", "OrderedDict"): OrderedDict,
            ("torch.jit._pickle", "restore_type_tag"): lambda value, tag: value,
        }
        if (module, name) in known:
            return known[module, name]
        if module == "torch.jit._pickle" and name.startswith("build_"):  # lists of one type, as attributes
            return list
        if module.startswith("__torch__"):
            return _Node
        raise UserError(f"The archive asks to load {module}.{name}, which no weights need; it is refused.")

    def persistent_load(self, saved: Any) -> Tensor:
        _, dtype, key, _, count = saved
        if not isinstance(key, str) or "/" in key:  # would lead out of the folder that was checked for bombs
            raise UserError(f"The archive names a storage {key!r}, which no number is; it is refused.")
        path = f"{self.root}data/{key}"
        if path not in self.storages:
            try:
                size = self.archive.getinfo(path).file_size
            except KeyError as error:
                raise UserError(f"The archive lacks {path}; it is damaged.") from error
            if not isinstance(dtype, torch.dtype) or size != count * dtype.itemsize:
                raise UserError(f"The archive's {path} has {size} bytes, not those of its {count} numbers.")
            data = bytearray(self.archive.read(path))
            self.storages[path] = torch.frombuffer(data, dtype=dtype) if count else torch.empty(0, dtype=dtype)
        return self.storages[path]


def _rebuild_tensor(storage: Tensor, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
    """Make a view of a storage; torch checks that it stays within."""
    view = torch.as_strided(storage, tuple(size), tuple(stride), offset)
    if view.numel() > storage.numel():  # a few bytes that claim to be terabytes
        raise UserError(f"The archive repeats {storage.numel()} numbers as {view.numel()}; it is refused.")
    return view


def is_torchscript(path: Path) -> bool:
    """Tell whether a file is a TorchScript archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.split("/", 1)[-1] == "constants.pkl" for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):  # no zip, or a damaged one
        return False


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Return the state dict of a TorchScript archive, without OpenAI's three extra numbers.

    Raises:
        UserError: the archive is damaged, a decompression bomb, or asks for anything but tensors.
    """
    refuse_bombs(path)
    try:
        with zipfile.ZipFile(path) as archive:
            parts = [name.split("/") for name in archive.namelist()]
            folder = next((part[0] for part in parts if len(part) == 2 and part[1] == "data.pkl"), None)
            if folder is None:
                raise UserError("The archive lacks its data.pkl; it is damaged.")
            state_dict: dict[str, Tensor] = {}
            _collect(_Unpickler(archive, f"{folder}/").load(), (), state_dict, itertools.count(1))
    except UserError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} is a damaged TorchScript archive ({first[:120]}); fetch it again.") from error
    return {key: value for key, value in state_dict.items() if key not in NOT_WEIGHTS and key.split(".")[-1] != _MASK}


def _collect(node: Any, path: tuple[str, ...], state_dict: dict[str, Tensor], modules: Iterator[int]) -> None:
    """Gather tensors by their dotted names; a module within itself, or shared again and again, has no end of names."""
    if len(path) > _DEEPEST or next(modules) > _MOST_MODULES:
        raise UserError("The archive nests modules without end; it is refused.")
    for name, value in getattr(node, "attributes", {}).items():
        if isinstance(value, Tensor):
            state_dict[".".join((*path, name))] = value
        elif isinstance(value, _Node):
            _collect(value, (*path, name), state_dict, modules)
