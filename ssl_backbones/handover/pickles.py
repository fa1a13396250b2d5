"""Read weight files from untrusted sources without running any code in them.

Three kinds of file hold tensors as pickles: those of ``torch.save``, those of ``pickle.dump`` with numpy arrays
(detectron2, haiku), and TorchScript archives. A pickle may name any function to call while it is read; here only
builders of tensors, arrays and plain containers are called. With ``husks``, other classes in a checkpoint (its
arguments, its memory bank, its optimiser) become empty shells that do nothing.
"""

from __future__ import annotations

import codecs
import pickle
import re
import zipfile
from collections import OrderedDict, namedtuple
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from openworld.errors import CheckpointError
from ssl_backbones.handover.file_kinds import file_kind

_NUMPY_BUILDERS: list[Any] = [
    np.empty(0).__reduce__()[0],
    np.float64(0).__reduce__()[0],
    np.empty(1).__reduce_ex__(5)[0],
]
_NUMPY_FOLDERS = ("numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")
_SAFE: dict[str, Any] = {
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    **{f"{folder}.{build.__name__}": build for folder in _NUMPY_FOLDERS for build in _NUMPY_BUILDERS},
}
"""Functions that a pickle may call, by name: builders of arrays and numbers."""

_SAFE_CLASSES: list[Any] = [type(np.dtype(code)) for code in ("f2", "f4", "f8", "i4", "i8", "u1", "b1")]

_UNKNOWN_CLASS = re.compile(r"Unsupported global: GLOBAL (\S+) was not an allowed global")
_MOST_HUSKS = 64


class _Refused(pickle.UnpicklingError):
    """The file names a class or function that is not read."""


class Husk:
    """Stand-in for an object whose class is not read: it takes any arguments and keeps its attributes."""

    arguments: tuple[Any, ...]

    def __new__(cls, *arguments: Any, **named: Any) -> Husk:
        husk = super().__new__(cls)
        husk.arguments = arguments
        return husk

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    def __call__(self, *arguments: Any, **named: Any) -> Husk:
        return Husk(*arguments)

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update({name: value for name, value in state.items() if isinstance(name, str)})


class _ArrayUnpickler(pickle.Unpickler):
    """Reads plain containers, numbers and numpy arrays, and nothing that could run code."""

    def __init__(self, stream: BinaryIO, husks: bool = False) -> None:
        super().__init__(stream, encoding="latin1")
        self.husks = husks

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            **_SAFE,
            "collections.OrderedDict": OrderedDict,
            "_codecs.encode": codecs.encode,
        }
        if f"{module}.{name}" in allowed:
            return allowed[f"{module}.{name}"]
        if self.husks:
            return _named_tuple if name == "_create_namedtuple" else Husk
        raise _Refused(f"{module}.{name} is not allowed")


def _named_tuple(name: str, names: Any, module: str = "", *_: Any) -> type:
    """Make the class of a named tuple from dill, which cannot import it."""
    return namedtuple(name, names)  # type: ignore[no-any-return]


class _TensorUnpickler(_ArrayUnpickler):
    """Reads tensors too, and every other class as a husk."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__(stream, husks=True)

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name.endswith("Storage"):
            return name
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return _strided
        if name in ("_rebuild_parameter", "Parameter") or module == "torch.jit._pickle":
            return _first  # a parameter's tensor; a list of numbers, or a tensor with the name of its type
        return super().find_class(module, name)


class _ScriptUnpickler(_TensorUnpickler):
    """Reads the modules of a TorchScript archive as husks with tensors for attributes."""

    def __init__(self, stream: BinaryIO, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(stream)
        self.archive, self.folder = archive, folder

    def persistent_load(self, pid: Any) -> Tensor:
        storage, key = _storage(pid)
        storage_bytes = self.archive.read(f"{self.folder}/data/{key}")
        return storage if not storage_bytes else torch.frombuffer(bytearray(storage_bytes), dtype=storage.dtype)


class _OldUnpickler(_TensorUnpickler):
    """Reads files of torch before 1.6, where modules were pickled whole: numbers come after all objects."""

    def __init__(self, stream: BinaryIO, storages: dict[str, Tensor]) -> None:
        super().__init__(stream)
        self.storages = storages

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] == "module":
            return pid[1]
        storage, key = _storage(pid)
        return self.storages.setdefault(key, storage)


def _storage(pid: Any) -> tuple[Tensor, str]:
    """Make a tensor for a storage's numbers from ("storage", type, key, device, count, …); return it and the key."""
    kind, storage, key, _, count, *_ = pid
    dtype = getattr(torch, str(storage).removesuffix("Storage").lower(), None)
    if kind != "storage" or not isinstance(dtype, torch.dtype):
        raise pickle.UnpicklingError(f"{kind!r} of {storage!r} is not a storage of numbers")
    return torch.empty(count, dtype=dtype), str(key)


def _strided(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _first(value: Any, *_: Any) -> Any:
    return value


def read_pickle(path: Path, *, husks: bool = False) -> Any:
    """Read a file of ``torch.save`` (.pth), of ``pickle.dump`` (.pkl), or a TorchScript archive (.pt).

    ``torch.save`` files are loaded with ``weights_only=True``, tensors on the CPU. A TorchScript archive is read as
    tensors by their dotted names; its code is not read.

    Args:
        husks: classes that are not read become :class:`Husk` objects; otherwise they are an error.

    Raises:
        CheckpointError: the file is missing, damaged or of another kind, see
            :func:`~ssl_backbones.handover.file_kinds.file_kind`; or holds more than plain containers, numbers, tensors
            and arrays.
    """
    kind = file_kind(path)
    if kind in ("safetensors", "npz"):
        raise CheckpointError(
            f"is a file of {'safetensors' if kind == 'safetensors' else 'NumPy arrays (.npz)'}",
            where=str(path),
            remedy="give the file of torch.save or of pickle.dump",
        )
    try:
        if kind == "pickle":
            with open(path, "rb") as stream:
                return _ArrayUnpickler(stream, husks).load()
        folder = _script_folder(path)
        return _read_torch(path, husks) if folder is None else _read_script(path, folder)
    except _Refused as error:
        raise CheckpointError(
            f"holds more than numbers and plain containers, which could run code ({str(error).partition(chr(10))[0]})",
            where=str(path),
            remedy="load it where you trust it, and save its `model` alone",
        ) from error
    except Exception as error:  # an unpickler meets damaged data with almost any exception
        kind_of_error = "" if isinstance(error, pickle.UnpicklingError) else f"{type(error).__name__}: "
        raise CheckpointError(
            f"is cut short, damaged, or not a file of weights ({kind_of_error}{str(error).partition(chr(10))[0]})",
            where=str(path),
            remedy="fetch the file again, and compare its size with the one at its source",
        ) from error


def _read_torch(path: Path, husks: bool) -> Any:
    named: list[Any] = [(value, name) for name, value in _SAFE.items()]
    while True:
        try:
            # a stream, since torch.load takes a path that ends in .safetensors for such a file
            with torch.serialization.safe_globals([*named, *_SAFE_CLASSES]), open(path, "rb") as stream:
                return torch.load(stream, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            unknown = _UNKNOWN_CLASS.search(str(error))
            if husks and unknown is None and not zipfile.is_zipfile(path):
                return _read_old(path)
            if not husks or unknown is None or len(named) > len(_SAFE) + _MOST_HUSKS:
                kind = _Refused if unknown else pickle.UnpicklingError
                raise kind(unknown[1] if unknown else str(error).partition(chr(10))[0]) from error
            # torch leaves the module out of the names of builtins
            named.append((Husk, unknown[1] if "." in unknown[1] else f"builtins.{unknown[1]}"))


def _read_old(path: Path) -> Any:
    """Read magic number, protocol, machine, objects, the keys of their storages, then the storages' numbers."""
    storages: dict[str, Tensor] = {}
    with open(path, "rb") as stream:
        for _ in range(3):
            _ArrayUnpickler(stream).load()
        content = _OldUnpickler(stream, storages).load()
        for key in _ArrayUnpickler(stream).load():
            storage = storages[key]
            count = int.from_bytes(stream.read(8), "little")
            data = stream.read(count * storage.element_size())
            if count != len(storage) or len(data) != count * storage.element_size():
                raise pickle.UnpicklingError("ends before its numbers do")
            if count:
                storage.copy_(torch.frombuffer(bytearray(data), dtype=storage.dtype))
    return content


def _script_folder(path: Path) -> str | None:
    """Return the folder of a TorchScript archive's records inside the file; None for any other file."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        found = [name for name in archive.namelist() if name.endswith("/constants.pkl")]
    return found[0].removesuffix("/constants.pkl") if found else None


def _read_script(path: Path, folder: str) -> dict[str, Tensor]:
    with zipfile.ZipFile(path) as archive, archive.open(f"{folder}/data.pkl") as stream:
        root = _ScriptUnpickler(stream, archive, folder).load()  # type: ignore[arg-type]
    tensors: dict[str, Tensor] = {}

    def walk(module: Husk, prefix: str) -> None:
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                tensors[prefix + name] = value
            elif isinstance(value, Husk):
                walk(value, f"{prefix}{name}.")

    walk(root, "")
    return tensors
