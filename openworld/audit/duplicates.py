"""Duplicate images: byte-identical files, and near-duplicates whose files differ.

Look-alikes are found in two steps. A *difference hash* of 64 bits says for 8 x 8 places of the shrunken grey image
whether brightness rises to the right (N. Krawetz, "Kind of Like That", 2013); copies that were resized, recompressed or
brightened differ in few bits. Pairs within a Hamming distance of ``d`` agree on at least one of ``d + 1`` bands of bits
(pigeonhole principle), so only images that share a band are compared. Then the correlation of the shrunken images
decides: it keeps apart what merely has the same layout, such as circuit boards.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from openworld.columns import IntArray
from openworld.errors import DataError
from openworld.records import BoolArray, Dataset, FloatArray
from openworld.runtime.files import sha256_of

HashArray = NDArray[np.uint64]

PAIRS = (("train", "val"), ("train", "test"), ("val", "test"))
"""Pairs of sets to compare; the first is trained or fitted on."""
HARM = {
    "train_test": "the detector is tested on what it was trained on",
    "train_val": "what is fitted on val has been trained on, and is too sure of itself",
    "val_test": "what is fitted on val is tested on the same images",
}
"""What harm an image in both sets of a pair does."""
HASH_SIDE = 8
"""Number of rows of the difference hash, and of comparisons per row."""
THUMBNAIL_SIDE = 16
"""Pixels of the grey image whose correlation confirms a pair."""
MIN_CONTRAST = 1.0
"""Standard deviation in grey values of 0…255; a flatter image looks like every other flat one and is not compared."""
MIN_CORRELATION = 0.98
"""Of two thumbnails. Re-encoded, resized and brightened copies of photographs, micrographs and binary images of circuit
boards had 0.99 and more, different ones with close hashes 0.87 to 0.97."""
MAX_DISTANCE = 4
"""Bits. Largest Hamming distance between the hashes of a candidate pair."""
_BLOCK = 1 << 22
"""Number of pairs compared at once."""
_BITS_OF = np.array([bin(value).count("1") for value in range(1 << 16)], dtype=np.uint8)


# -- equal files -------------------------------------------------------------------------------------------------------


def file_contents(paths: Iterable[Path]) -> dict[Path, str]:
    """A text per readable file, equal for equal content. Only files of equal size are read whole."""
    by_size: dict[int, list[Path]] = {}
    for path in dict.fromkeys(paths):
        try:
            by_size.setdefault(path.stat().st_size, []).append(path)
        except OSError:
            continue
    content = {}
    for size, alike in by_size.items():
        for path in alike:
            try:
                content[path] = sha256_of(path) if len(alike) > 1 else f"{size} bytes"
            except OSError:
                continue
    return content


def identical_files(
    sets: Mapping[str, Dataset], content: Mapping[Path, str] | None = None, *, examples: int = 5
) -> dict[str, Any]:
    """Find images whose files have the same content, within a set and across sets.

    Args:
        sets: data sets by name.
        content: of :func:`file_contents`; None reads the files.
        examples: maximum number of examples of one kind.

    Returns:
        ``compared`` and ``not_found``, numbers of files; ``within`` {set: {"groups", "images", "examples"}};
        ``across`` {"train_test": {"same_id", "other_id"}, …}, images of the second set that have the content of one of
        the first, under the same id or only under others, each {"images", "examples"}, pairs of ids.
    """
    paths = [Path(path) for path in dict.fromkeys(str(path) for dataset in sets.values() for path in dataset.paths)]
    content = file_contents(paths) if content is None else content
    by_content: dict[str, dict[str, list[int | str]]] = {}
    for name, dataset in sets.items():
        groups = by_content.setdefault(name, {})
        for record in dataset:
            if record.path in content:
                groups.setdefault(content[record.path], []).append(record.image_id)
    within = {}
    for name, groups in by_content.items():
        alike = [ids for ids in groups.values() if len(ids) > 1]
        within[name] = {"groups": len(alike), "images": sum(map(len, alike)), "examples": alike[:examples]}
    across = {}
    for first, second in PAIRS:
        if first in sets and second in sets:
            same, other = [], []
            for content_key, names in by_content[second].items():
                ids = by_content[first].get(content_key, [])
                same += [[name, name] for name in names if name in ids]
                other += [[ids[0], name] for name in names if ids and name not in ids]
            across[f"{first}_{second}"] = {
                kind: {"images": len(pairs), "examples": pairs[:examples]}
                for kind, pairs in (("same_id", same), ("other_id", other))
            }
    return {"compared": len(content), "not_found": len(paths) - len(content), "within": within, "across": across}


# -- look-alikes -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """A picture in short: ``code``, its difference hash, and ``thumbnail``, (256,) uint8 grey values."""

    code: int
    thumbnail: NDArray[np.uint8]


def look_of(image: Image.Image) -> Look:
    """Difference hash and thumbnail of an image of any mode and size."""
    grey = image.convert("L")
    small = np.asarray(grey.resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BILINEAR), dtype=np.int16)
    rises = small[:, 1:] > small[:, :-1]
    side = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    thumbnail = np.asarray(grey.resize(side, Image.Resampling.BILINEAR), dtype=np.uint8).reshape(-1)
    return Look(int.from_bytes(np.packbits(rises).tobytes(), "big"), thumbnail)


def hamming(first: HashArray, second: HashArray) -> NDArray[np.uint8]:
    """Number of bits in which two arrays of hashes differ, elementwise with broadcasting."""
    differing = np.bitwise_xor(first, second)[..., None].view(np.uint16)
    bits: NDArray[np.uint8] = _BITS_OF[differing].sum(axis=-1, dtype=np.uint8)
    return bits


def nearest_look(
    looks: Sequence[Look], member: BoolArray, *, max_distance: int = MAX_DISTANCE
) -> tuple[IntArray, IntArray]:
    """Find, for each of N pictures, the one in each of S sets that looks most like it.

    Args:
        looks: N pictures of different content.
        member: (N, S) bool, whether the picture is in the set; it may be in several.
        max_distance: bits, 0 to 15.

    Returns:
        (N, S) int64 position of the nearest other picture, -1 where none looks alike, and (N, S) int64 its distance in
        bits. Of several at one distance it is the first. Flat pictures look like none.

    Raises:
        DataError: a distance out of range.
    """
    if not 0 <= max_distance <= 15:
        raise DataError(f"max_distance is {max_distance}", remedy="give 0 to 15 bits")
    count, sets = member.shape
    nearest = np.full((count, sets), -1, dtype=np.int64)
    distance = np.full((count, sets), 65, dtype=np.int64)
    thumbnails = np.array([look.thumbnail for look in looks], dtype=np.float32).reshape(count, THUMBNAIL_SIDE**2)
    centred = thumbnails - thumbnails.mean(axis=1, keepdims=True)
    spread = np.sqrt(np.mean(centred**2, axis=1))
    rows = np.flatnonzero(spread >= MIN_CONTRAST)
    unit = centred / np.maximum(spread * THUMBNAIL_SIDE, 1e-6)[:, None]
    codes = np.array([look.code for look in looks], dtype=np.uint64)
    edges = np.linspace(0, HASH_SIDE**2, max_distance + 2).round().astype(int)
    for low, high in pairwise(edges.tolist()):
        band = (codes[rows] >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order = np.argsort(band, kind="stable")
        changes = np.flatnonzero(np.diff(band[order])) + 1
        for bucket in np.split(rows[order], changes):
            if len(bucket) > 1:
                _compare(bucket, codes, unit, member, max_distance, nearest, distance)
    return nearest, distance


def _compare(
    bucket: IntArray,
    codes: HashArray,
    unit: FloatArray,
    member: BoolArray,
    max_distance: int,
    nearest: IntArray,
    distance: IntArray,
) -> None:
    """Compare all pictures of a bucket with one another; update ``nearest`` and ``distance`` in place."""
    step = max(1, _BLOCK // len(bucket))
    for begin in range(0, len(bucket), step):
        part = bucket[begin : begin + step]
        bits = hamming(codes[part][:, None], codes[bucket][None, :])
        first, second = np.nonzero(bits <= max_distance)
        apart = bits[first, second].astype(np.int64)
        mine, other = part[first], bucket[second]
        alike = mine != other
        alike[alike] = np.einsum("nk,nk->n", unit[mine[alike]], unit[other[alike]]) >= MIN_CORRELATION
        mine, other, apart = mine[alike], other[alike], apart[alike]
        for column in range(member.shape[1]):
            inside = member[other, column]
            rows, others, bits_apart = mine[inside], other[inside], apart[inside]
            order = np.lexsort((others, bits_apart, rows))
            rows, others, bits_apart = rows[order], others[order], bits_apart[order]
            best = np.flatnonzero(np.diff(rows, prepend=-1))
            rows, others, bits_apart = rows[best], others[best], bits_apart[best]
            old_bits, old = distance[rows, column], nearest[rows, column]
            better = (bits_apart < old_bits) | ((bits_apart == old_bits) & (others < old))
            nearest[rows[better], column] = others[better]
            distance[rows[better], column] = bits_apart[better]


def similar_images(
    sets: Mapping[str, Dataset],
    looks: Mapping[Path, Look],
    content: Mapping[Path, str],
    *,
    max_distance: int = MAX_DISTANCE,
    examples: int = 5,
) -> dict[str, Any]:
    """Find images that look alike though their files differ, within a set and across sets.

    Args:
        sets: data sets by name.
        looks: of the files that could be decoded.
        content: of :func:`file_contents`; of files of equal content only the first is compared.
        max_distance: bits.
        examples: maximum number of examples of one kind.

    Returns:
        ``compared``, files; ``max_distance``; ``within`` {set: {"images", "examples"}} and ``across``
        {"train_test": {"images", "examples"}, …}: images that look like another of the set, or images of the second set
        that look like one of the first. An example is [id, id, bits], within a set each pair once, closest first.
    """
    names = list(sets)
    place: dict[Hashable, int] = {}
    chosen: list[Look] = []
    owners: list[dict[int, int | str]] = []
    for column, dataset in enumerate(sets.values()):
        for record in dataset:
            if record.path not in looks:
                continue
            key = content.get(record.path, record.path)
            if key not in place:
                place[key] = len(chosen)
                chosen.append(looks[record.path])
                owners.append({})
            owners[place[key]].setdefault(column, record.image_id)
    member = np.zeros((len(chosen), len(names)), dtype=np.bool_)
    for number, columns in enumerate(owners):
        member[number, list(columns)] = True
    nearest, distance = nearest_look(chosen, member, max_distance=max_distance)

    def found(mine: int, other: int) -> dict[str, Any]:
        """Pictures of set ``mine`` with the picture of set ``other`` that looks like them."""
        rows = np.flatnonzero(member[:, mine] & (nearest[:, other] >= 0))
        rows = rows[np.argsort(distance[rows, other], kind="stable")]
        pairs: dict[tuple[int, int], list[Any]] = {}
        for row in rows.tolist():
            partner = int(nearest[row, other])
            key = (min(row, partner), max(row, partner)) if mine == other else (partner, row)
            ids = [owners[key[0]][other], owners[key[1]][mine]]
            pairs.setdefault(key, [*ids, int(distance[row, other])])
        return {"images": len(rows), "examples": list(pairs.values())[:examples]}

    return {
        "compared": len(chosen),
        "max_distance": max_distance,
        "within": {name: found(column, column) for column, name in enumerate(names)},
        "across": {
            f"{first}_{second}": found(names.index(second), names.index(first))
            for first, second in PAIRS
            if first in sets and second in sets
        },
    }
