"""Weight files by their content, whatever their suffix; files that are none are named for what they are."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from openworld.convert.published_weights import read_detectron2
from openworld.errors import CheckpointError
from ssl_backbones.backbones import ResNetOptions
from ssl_backbones.backbones.resnet import ResNet
from ssl_backbones.handover import load_backbone_file
from ssl_backbones.handover.pickles import read_pickle

ARCH = ResNetOptions(name="resnet18", width=1 / 32, stem_width=2)


@pytest.fixture(scope="module")
def own() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return ResNet(ARCH).state_dict()


def saved(content: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def arrays(tensors: dict[str, Tensor]) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **{key: value.numpy() for key, value in tensors.items()})  # type: ignore[arg-type]
    return stream.getvalue()


FORMATS: dict[str, Callable[[dict[str, Tensor]], bytes]] = {
    "torch": saved,
    "torch before 1.6": lambda own: saved(own, _use_new_zipfile_serialization=False),
    "safetensors": lambda own: safetensors.torch.save(own, {"format": "pt"}),
    "npz": arrays,
    "pickle": lambda own: pickle.dumps({key: value.numpy() for key, value in own.items()}),
    "pickle of protocol 0": lambda own: pickle.dumps({"epoch": 3, "model": {k: v.numpy() for k, v in own.items()}}, 0),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npz", ".bin", ".pth.tar", ".ckpt", ""])
@pytest.mark.parametrize("written", FORMATS)
def test_the_content_tells_the_format(written: str, suffix: str, own: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(FORMATS[written](own))
    found = load_backbone_file(path)
    assert found.arch == ARCH and all(torch.equal(found.state_dict[key], value) for key, value in own.items())


def zipped(**files: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/").replace("_dot_", "."), content)
    return stream.getvalue()


def tarred(name: str, content: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo(name)
        member.size, member.pax_headers = len(content), {"comment": "from macOS"}
        archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 102530333\n"
PAGE = b"\n\n<!DOCTYPE html>\n<html><head><title>\nGoogle Drive - Quota exceeded</title></head><body>" + b" " * 9000
DENIED = b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>'
INDEX = {"metadata": {"total_size": 9}, "weight_map": {"conv1.weight": "model-00001-of-00002.safetensors"}}

FOREIGN: dict[str, tuple[str, bytes, str, str]] = {
    "git-lfs": ("a.pth", LFS, "a git-lfs pointer", "git lfs pull"),
    "git-lfs named safetensors": ("a.safetensors", LFS, "a git-lfs pointer", "git lfs pull"),
    "git-annex": ("a.pth", b"/annex/objects/SHA256E-s9--00.pth\n", "git-annex pointer", "git annex get"),
    "page": (
        "a.pth",
        PAGE,
        r"a web page \('Google Drive - Quota exceeded'\): the download link led to a page",
        "itself",
    ),
    "page with BOM": ("a.pkl", b"\xef\xbb\xbf<HTML><body>Sign in</body>", "is a web page: the download", "log in"),
    "XHTML": ("a.pth", b'<?xml version="1.0"?><html xmlns="w"><title>404</title>', r"a web page \('404'\)", "raw file"),
    "XML": ("a.npz", DENIED, "is XML and not weights: 'Access Denied'", "log in"),
    "JSON": ("a.pth", b'{"error": "Repository Not Found"}', "is JSON and not weights.*Repository Not Found", "itself"),
    "index": ("a.bin.json", json.dumps(INDEX).encode(), "index of a checkpoint in several files", "join"),
    "text": ("a.pth", b"Invalid username or password.", "is text and not weights: 'Invalid username", "log in"),
    "empty": ("a.pth", b"", r"is empty \(0 bytes\)", "fetch the file again"),
    "zeros": ("a.pth", bytes(10000), "begins with 4096 zero bytes", "the download stopped"),
    "gzip": ("a.pth.gz", gzip.compress(b"x"), "packed with gzip", "unpack"),
    "bzip2": ("a.pth", bz2.compress(b"x"), "packed with bzip2", "unpack"),
    "xz": ("a.pth", lzma.compress(b"x"), "packed with xz", "unpack"),
    "zip": ("a.pth", zipped(best_dot_pth=b"x", notes=b""), "zip archive of 'best.pth', 'notes' and not", "unpack"),
    "tar": ("a.pth.tar", tarred("out/best.pth", b"x" * 99), "tar archive that begins with 'out/best.pth'", "unpack"),
    "Keras": ("a.h5", b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5 file, as Keras", "give weights of PyTorch"),
    "Keras 3": ("a.keras", zipped(model_dot_weights_dot_h5=b"", config_dot_json=b""), "model of Keras", "PyTorch"),
    "torch.export": ("a.pt2", zipped(a__archive_format=b"pt2"), "program of torch.export", "state_dict"),
    "ONNX": ("a.pth", b"\x08\x08\x12\x07pytorch\x1a\x052.1.0:\x9a\x01", "an ONNX model", "exported from"),
    "npy": ("a.npy", b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'}", "single array of NumPy", "numpy.savez"),
    "TensorFlow": ("model.ckpt.data-00000-of-00001", b"\x01\x02\x03", "part of a TensorFlow checkpoint", "PyTorch"),
    "TensorFlow Lite": ("a.pth", b"\x1c\x00\x00\x00TFL3" + bytes(9), "TensorFlow Lite", "PyTorch"),
    "image": ("a.pth", b"\x89PNG\r\n\x1a\n", "a PNG image", "give the weights"),
    "noise": ("a.pth", bytes(range(200, 256)) * 9, "cut short, damaged, or not a file of weights", "compare its size"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_files_that_are_no_weights(name: str, tmp_path: Path) -> None:
    file, content, what, remedy = FOREIGN[name]
    path = tmp_path / file
    path.write_bytes(content)
    for read in (load_backbone_file, read_pickle, read_detectron2):
        with pytest.raises(CheckpointError, match=what) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ") and str(caught.value).count("\n") == 1
        assert remedy in str(caught.value.remedy) and "could run code" not in str(caught.value)


@pytest.mark.parametrize("written", FORMATS)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_files_cut_short(written: str, share: float, own: dict[str, Tensor], tmp_path: Path) -> None:
    whole = FORMATS[written](own)
    (tmp_path / "cut.pth").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match=r"cut\.pth: .*(cut short|damaged)") as caught:
        load_backbone_file(tmp_path / "cut.pth")
    assert "could run code" not in str(caught.value) and "again" in str(caught.value.remedy)
    if written == "safetensors":
        assert f"it has {int(share * len(whole))} bytes of {len(whole)}" in str(caught.value) or share == 0.02


def test_folders(own: dict[str, Tensor], tmp_path: Path) -> None:
    safetensors.torch.save_file(own, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"has no backbone\.safetensors; it has model\.safetensors"):
        load_backbone_file(tmp_path)


def test_weights_of_a_detector_from_safetensors_are_named(own: dict[str, Tensor], tmp_path: Path) -> None:
    safetensors.torch.save_file(own, tmp_path / "model_final.pth")
    with pytest.raises(CheckpointError, match="is a file of safetensors"):
        read_detectron2(tmp_path / "model_final.pth")
