"""Captions as tokens, and the Transformer that reads them (CLIP, Radford et al. 2021, section 2.4 and reference code).

Shapes: N captions, L tokens, W width.
"""

from __future__ import annotations

import gzip
import html
import re
import unicodedata
from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from openworld.errors import DataError

_SUFFIXES = re.compile(r"'(?:s|t|re|ve|m|ll|d)")
_MERGES = 49152 - 256 - 2
"""Lines of CLIP's file that are in its vocabulary; the file has more."""


class Tokenizer(Protocol):
    """Turns a caption into numbers below ``size - 2``; ``size - 2`` begins a caption and ``size - 1`` ends it."""

    size: int

    def encode(self, caption: str) -> list[int]:
        """Return the tokens of a caption, without those of its beginning and its end."""


class Bytes:
    """One token per byte of the caption in UTF-8, lower case: no vocabulary, and four times as many tokens."""

    size = 258

    def encode(self, caption: str) -> list[int]:
        """Return the bytes of the caption, with white space as single blanks."""
        return list(_clean(caption).encode())


class BytePairs:
    """CLIP's byte pair encoding: the bytes of each word are merged in the order of its file of merges.

    Two differences from the authors' code: garbled encodings are not repaired (they use ftfy), and letters and numbers
    are those of Python's unicodedata.

    Raises:
        DataError: the file is missing, damaged, or not a file of merges.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 512 + len(self._ranks) + 2

    @cached_property
    def _ranks(self) -> dict[tuple[str, str], int]:
        """The position of each pair in the file, whose first line is its version."""
        try:
            raw = self.path.read_bytes()
            text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode()
        except (OSError, EOFError, ValueError) as error:
            raise DataError(
                f"cannot be read ({error})", where=str(self.path), remedy="fetch CLIP's file again"
            ) from error
        pairs = [tuple(line.split()) for line in text.split("\n")[1 : _MERGES + 1] if line]
        wrong = next((number for number, pair in enumerate(pairs, 2) if len(pair) != 2), None)
        if wrong is not None or not pairs:
            raise DataError(
                f"holds no pair in line {wrong or 2}",
                where=str(self.path),
                remedy="give CLIP's bpe_simple_vocab_16e6.txt.gz, or no vocabulary to read bytes",
            )
        return {(first, second): rank for rank, (first, second) in enumerate(pairs)}  # type: ignore[misc]

    @cached_property
    def _tokens(self) -> dict[str, int]:
        letters = list(_printable().values())
        merged = ["".join(pair) for pair in self._ranks]
        return {token: number for number, token in enumerate([*letters, *(f"{x}</w>" for x in letters), *merged])}

    def encode(self, caption: str) -> list[int]:
        """Return the tokens of the words."""
        return [
            self._tokens[token]
            for word in _words(_clean(html.unescape(html.unescape(caption))))
            for token in self._merge(word)
        ]

    def _merge(self, word: str) -> list[str]:
        """Merge the pair of the lowest rank, everywhere in the word, until no pair has a rank."""
        shown = _printable()
        parts = [shown[byte] for byte in word.encode()]
        parts[-1] += "</w>"
        while len(parts) > 1:
            best = min(pairwise(parts), key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if best not in self._ranks:
                break
            joined: list[str] = []
            for part in parts:
                if joined and (joined[-1], part) == best:
                    joined[-1] += part
                else:
                    joined.append(part)
            parts = joined
        return parts


def tokenizer(vocabulary: str | None) -> Tokenizer:
    """Make the tokenizer of a file of merges, or that of bytes for None."""
    return Bytes() if vocabulary is None else BytePairs(Path(vocabulary))


def tokens_of(caption: str, words: Tokenizer, length: int) -> Tensor:
    """Tokenize to (length,) int64: beginning, tokens, end, zeros. A caption that is too long loses its last tokens."""
    tokens = [words.size - 2, *words.encode(caption)[: length - 2], words.size - 1]
    return torch.tensor([*tokens, *[0] * (length - len(tokens))])


class TextTransformer(nn.Module):
    """Causal Transformer; the feature of a caption is that of its end, normalised over the width and projected.

    Initial values as in the authors' code.
    """

    def __init__(self, vocabulary: int, length: int, width: int, *, layers: int, heads: int, out: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.empty(length, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout=0.0, activation=quick_gelu, batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Parameter(torch.empty(width, out))
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.01)
        nn.init.normal_(self.projection, std=width**-0.5)
        for block in self.blocks:
            assert isinstance(block, nn.TransformerEncoderLayer)
            nn.init.normal_(block.self_attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.self_attn.out_proj.weight, std=(2 * layers * width) ** -0.5)
            nn.init.normal_(block.linear1.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.linear2.weight, std=(2 * layers * width) ** -0.5)

    def forward(self, text_NL: Tensor) -> Tensor:
        """(N, L) int64 tokens -> (N, out). The end is the largest token of a caption."""
        length = text_NL.shape[1]
        later = torch.ones(length, length, dtype=torch.bool, device=text_NL.device).triu(1)
        x_NLW = self.tokens(text_NL) + self.positions[:length]
        for block in self.blocks:
            x_NLW = block(x_NLW, src_mask=later)
        ends_NW = self.norm(x_NLW[torch.arange(len(text_NL), device=text_NL.device), text_NL.argmax(dim=1)])
        features: Tensor = ends_NW @ self.projection
        return features


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), the approximation of GELU in the authors' code."""
    return x * torch.sigmoid(1.702 * x)


def _clean(caption: str) -> str:
    return " ".join(caption.split()).lower()


def _words(text: str) -> Iterator[str]:
    """Split into English suffixes, runs of letters, single digits, and runs of everything else but blanks."""
    at = 0
    while at < len(text):
        suffix, kind = _SUFFIXES.match(text, at), _kind(text[at])
        end = at + 1 if suffix is None else suffix.end()
        while suffix is None and kind in "LO" and end < len(text) and _kind(text[end]) == kind:
            end += 1
        if kind != " ":
            yield text[at:end]
        at = end


def _kind(character: str) -> str:
    """Kind of a character: L for letters, N for numbers, a blank for white space, O for all others."""
    if character.isspace():
        return " "
    category = unicodedata.category(character)[0]
    return category if category in "LN" else "O"


_SHOWN: dict[int, str] = {}


def _printable() -> dict[int, str]:
    """Printable character for each byte: itself if it is printable in Latin 1, otherwise the next one from 256 on."""
    if not _SHOWN:
        plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
        others = [byte for byte in range(256) if byte not in plain]
        _SHOWN.update({byte: chr(byte) for byte in plain})
        _SHOWN.update({byte: chr(256 + place) for place, byte in enumerate(others)})
    return _SHOWN
