"""What a weight file is, by its first bytes and not by its suffix; other files are named for what they are."""

from __future__ import annotations

import json
import re
import tarfile
import zipfile
from pathlib import Path
from typing import Literal

from openworld.errors import CheckpointError

Kind = Literal["safetensors", "npz", "torch", "pickle"]

_AGAIN = "fetch the file again"
_UNPACK = "unpack it, and give the file inside"
_CONVERT = "give weights of PyTorch (.pth, .safetensors), or arrays by name (.npz)"
_LINK = "fetch the file itself: log in where it is needed, and take the link to the raw file"
_TORCH_BEFORE_1_6 = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
"""The magic number of ``torch.save`` before torch 1.6, as a pickle."""

# First bytes, what the file is, and the remedy.
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "is a git-lfs pointer and not the weights", "run `git lfs pull` in its repository"),
    (b"/annex/objects/", "is a git-annex pointer and not the weights", "run `git annex get`"),
    (b"\x1f\x8b", "is packed with gzip", _UNPACK),
    (b"BZh", "is packed with bzip2", _UNPACK),
    (b"\xfd7zXZ\0", "is packed with xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "is packed with zstd", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive", _UNPACK),
    (b"Rar!", "is a RAR archive", _UNPACK),
    (b"\x89HDF\r\n\x1a\n", "is an HDF5 file, as Keras and TensorFlow write", _CONVERT),
    (b"\x93NUMPY", "is a single array of NumPy (.npy), without names", "save all arrays by name with numpy.savez"),
    (b"GGUF", "is a GGUF file, of a language model", _CONVERT),
    (b"MATLAB 5.0", "is a MATLAB file", _CONVERT),
    (b"\x89PNG", "is a PNG image", "give the weights"),
    (b"\xff\xd8\xff", "is a JPEG image", "give the weights"),
    (b"%PDF", "is a PDF document", "give the weights"),
)
# Formats without first bytes of their own, by suffix.
_SUFFIXES: tuple[tuple[str, str, str], ...] = (
    (r"\.onnx$", "is an ONNX model", "give the checkpoint that it was exported from"),
    (r"\.tflite$", "is a model of TensorFlow Lite", _CONVERT),
    (r"\.pb$", "is a graph of TensorFlow", _CONVERT),
    (r"\.(index|meta)$|\.data-\d+-of-\d+$", "is a part of a TensorFlow checkpoint", _CONVERT),
    (r"\.msgpack$", "is a msgpack file, as Flax writes", _CONVERT),
    (
        r"\.distcp$",
        "is one shard of a distributed checkpoint",
        "join them: python -m torch.distributed.checkpoint.format_utils",
    ),
)
_ONNX = re.compile(rb"\x08[\x01-\x20]\x12[\x01-\x40][a-zA-Z]")
"""The version of the format, then the name of the producer."""
_HEAD = 4096


def file_kind(path: Path) -> Kind:
    """Tell safetensors, .npz, ``torch.save`` (TorchScript too) and pickles apart, whatever the suffix.

    ============================================  =====================================
    File                                          What happens
    ============================================  =====================================
    safetensors named .pth, torch.save's          read
    named .safetensors, …
    git-lfs or git-annex pointer                  refused: the command that fetches it
    web page, XML, JSON, text                     refused: its title or beginning
    empty, zero bytes, cut short                  refused: the bytes that there are
    archive (zip, tar, gzip, …)                   refused: the files inside
    HDF5, ONNX, TensorFlow, Flax, .npy, images    refused: the format
    ============================================  =====================================

    Raises:
        CheckpointError: the file is missing or cannot be opened, or is none of them.
    """
    if not path.is_file():
        raise CheckpointError("no such file", where=str(path), remedy="check the path of the weights")
    try:
        size = path.stat().st_size
        with open(path, "rb") as stream:
            head = stream.read(_HEAD)
    except OSError as error:
        raise CheckpointError(f"cannot be read ({error})", where=str(path), remedy="check its permissions") from error
    if not head.strip(b"\0"):
        problem = "is empty (0 bytes)" if not size else f"begins with {len(head)} zero bytes"
        raise CheckpointError(problem, where=str(path), remedy=f"{_AGAIN}: the download stopped")
    for magic, problem, remedy in _MAGIC:
        if head.startswith(magic):
            raise CheckpointError(problem, where=str(path), remedy=remedy)
    if head.startswith(b"PK"):
        return _zip_kind(path, size)
    if head.startswith(_TORCH_BEFORE_1_6):
        return "torch"
    if (length := _safetensors_header(head, size)) is not None:
        _check_length(path, length, size)
        return "safetensors"
    if foreign := _text(head) or _container(path, head):
        raise CheckpointError(foreign[0], where=str(path), remedy=foreign[1])
    return "pickle"


def _zip_kind(path: Path, size: int) -> Kind:
    if not zipfile.is_zipfile(path):
        raise CheckpointError(
            f"is cut short: its {size} bytes hold the beginning of a checkpoint and not its end",
            where=str(path),
            remedy=_AGAIN,
        )
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.rpartition("/")[2] == "data.pkl" for name in names):
        return "torch"
    if names and all(name.endswith(".npy") for name in names):
        return "npz"
    if "model.weights.h5" in names:
        raise CheckpointError("is a model of Keras", where=str(path), remedy=_CONVERT)
    if any(name.endswith("archive_format") for name in names):
        raise CheckpointError(
            "is a program of torch.export", where=str(path), remedy="save the state_dict of the network"
        )
    raise CheckpointError(f"is a zip archive of {_few(names)} and not a checkpoint", where=str(path), remedy=_UNPACK)


def _safetensors_header(head: bytes, size: int) -> int | None:
    """Return the length of the JSON header of a safetensors file; None for other files."""
    length = int.from_bytes(head[:8], "little")
    return length if head[8:9] == b"{" and 2 <= length < 2**27 and size > 8 else None


def _check_length(path: Path, length: int, size: int) -> None:
    """Check that a safetensors file has all the bytes that its header announces."""
    with open(path, "rb") as stream:
        header = stream.read(8 + length)[8:]
    end = 0
    if len(header) == length:
        try:
            records = json.loads(header)
            end = max([record["data_offsets"][1] for name, record in records.items() if name != "__metadata__"] or [0])
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise CheckpointError(f"has a damaged header ({error})", where=str(path), remedy=_AGAIN) from error
    if size < 8 + length + end:
        raise CheckpointError(
            f"is cut short: it has {size} bytes of {8 + length + end}", where=str(path), remedy=_AGAIN
        )


def _text(head: bytes) -> tuple[str, str] | None:
    """Name a text file that a download left in place of the weights."""
    text = head.decode("utf-8", "replace").lstrip("\ufeff \t\r\n")
    if text.startswith("<"):
        lower = text.lower()
        if lower.startswith(("<!doctype html", "<html")) or "<html" in lower:
            title = re.search(r"<title[^>]*>\s*(.*?)\s*</title>", text, re.IGNORECASE | re.DOTALL)
            said = f" ({title[1][:80]!r})" if title else ""
            return f"is a web page{said}: the download link led to a page and not to the file", _LINK
        message = re.search(r"<message>\s*(.*?)\s*</message>", text, re.IGNORECASE | re.DOTALL)
        return f"is XML and not weights: {(message[1] if message else text)[:80]!r}", _LINK
    if text.startswith(("{", "[")) and "\ufffd" not in text[:200]:
        if '"weight_map"' in text:
            return "is the index of a checkpoint in several files", "join the files, and save one state_dict"
        return f"is JSON and not weights: {text[:80]!r}", _LINK
    first = text.partition("\n")[0].strip()
    if len(text) > 8 and text.isprintable() and " " in first and "\n" not in text.strip():
        return f"is text and not weights: {first[:80]!r}", _LINK
    return None


def _container(path: Path, head: bytes) -> tuple[str, str] | None:
    if head[257:262] == b"ustar":
        return f"is a tar archive{_first_in_tar(path)}", _UNPACK
    if head[4:8] == b"TFL3":
        return "is a model of TensorFlow Lite", _CONVERT
    if _ONNX.match(head):
        return "is an ONNX model", "give the checkpoint that it was exported from"
    for pattern, problem, remedy in _SUFFIXES:
        if re.search(pattern, path.name):
            return problem, remedy
    return None


def _first_in_tar(path: Path) -> str:
    try:
        with tarfile.open(path) as archive:
            first = archive.next()
    except (tarfile.TarError, OSError, EOFError):
        return " and cut short"
    return f" that begins with {first.name!r}" if first else " without files"


def _few(names: list[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more files" if len(names) > 3 else "")
