"""Tokens by hand, and the text Transformer against its formulas written out."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from openworld.errors import DataError
from ssl_backbones.text import BytePairs, Bytes, TextTransformer, tokenizer, tokens_of


def merges(folder: Path, *lines: str, packed: bool = True) -> Path:
    path, content = folder / "merges.txt.gz", "\n".join(["#version: 0.2", *lines, ""]).encode()
    path.write_bytes(gzip.compress(content) if packed else content)
    return path


def test_bytes_of_a_caption() -> None:
    assert Bytes().encode(" A\tCat,  é ") == list("a cat, é".encode())
    assert tokens_of("Ab", Bytes(), 6).tolist() == [256, 97, 98, 257, 0, 0]
    assert tokens_of("abcdefgh", Bytes(), 6).tolist() == [256, 97, 98, 99, 100, 257]
    assert tokens_of("", Bytes(), 3).tolist() == [256, 257, 0]
    assert tokenizer(None).size == 258


@pytest.mark.parametrize("packed", [True, False])
def test_byte_pairs_by_hand(tmp_path: Path, packed: bool) -> None:
    """Numbers: 94 printable ASCII characters and others, 256 in all; the same at the end of a word; then the merges."""
    words = BytePairs(merges(tmp_path, "l o", "lo w</w>", "e r</w>", "a a", packed=packed))
    letter = {character: ord(character) - ord("!") for character in "abcdelnorstw!"}
    end = {character: number + 256 for character, number in letter.items()}
    assert words.size == 512 + 4 + 2
    assert words.encode("Low") == [513]
    assert words.encode("lower") == [512, letter["w"], 514]  # "lo w</w>" does not fit within the word
    assert words.encode("aaab") == [515, letter["a"], end["b"]]
    assert words.encode("don't") == [letter["d"], letter["o"], end["n"], ord("'") - ord("!"), end["t"]]
    assert words.encode("no&amp;&lt;") == [letter["n"], end["o"], ord("&") - ord("!"), ord("<") - ord("!") + 256]
    assert words.encode("  ") == []
    assert tokens_of("low", words, 4).tolist() == [516, 513, 517, 0]


def test_words_are_letters_single_numbers_and_the_rest(tmp_path: Path) -> None:
    """Each word ends with a token of the second 256, since nothing merges."""
    words = BytePairs(merges(tmp_path, "q q"))
    for text, count in (
        ("two words", 2),
        ("42", 2),
        ("we're", 2),
        ("?!x", 2),
        ("été3", 2),
        ("it's,ok 7", 5),
        ("don''t", 3),
    ):
        assert sum(256 <= token < 512 for token in words.encode(text)) == count, text


def test_files_that_are_no_merges(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no pair in line 3"):
        BytePairs(merges(tmp_path, "a b", "a b c"))
    with pytest.raises(DataError, match="holds no pair in line 2"):
        BytePairs(merges(tmp_path))
    with pytest.raises(DataError, match="cannot be read"):
        BytePairs(tmp_path / "absent.gz")
    (tmp_path / "cut.gz").write_bytes(merges(tmp_path, *["a b"] * 99).read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot be read"):
        BytePairs(tmp_path / "cut.gz")


def slow(network: TextTransformer, tokens: list[int], heads: int) -> Tensor:
    """One caption, token by token, each reading the tokens up to itself."""
    state = network.state_dict()
    x = [state["tokens.weight"][token] + state["positions"][place] for place, token in enumerate(tokens)]

    def norm(row: Tensor, name: str) -> Tensor:
        spread = ((row - row.mean()) ** 2).mean()
        return (row - row.mean()) / (spread + 1e-5).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]

    for block in range(len(network.blocks)):
        own = {key.removeprefix(f"blocks.{block}."): value for key, value in state.items()}
        rows = [norm(row, f"blocks.{block}.norm1") for row in x]
        q, k, v = zip(
            *((own["self_attn.in_proj_weight"] @ row + own["self_attn.in_proj_bias"]).chunk(3) for row in rows),
            strict=True,
        )
        for place in range(len(x)):
            read = []
            for head in range(heads):
                part = slice(head * len(x[0]) // heads, (head + 1) * len(x[0]) // heads)
                weights = torch.stack([q[place][part] @ k[i][part] for i in range(place + 1)])
                weights = (weights / math.sqrt(len(x[0]) / heads)).softmax(0)
                read.append(sum(weights[i] * v[i][part] for i in range(place + 1)))
            attended = own["self_attn.out_proj.weight"] @ torch.cat(read) + own["self_attn.out_proj.bias"]
            x[place] = x[place] + attended
        for place, row in enumerate(x):
            wide = own["linear1.weight"] @ norm(row, f"blocks.{block}.norm2") + own["linear1.bias"]
            x[place] = row + own["linear2.weight"] @ (wide / (1 + (-1.702 * wide).exp())) + own["linear2.bias"]
    last = max(range(len(tokens)), key=lambda place: tokens[place])
    return norm(x[last], "norm") @ state["projection"]


def test_transformer_is_its_formulas() -> None:
    torch.manual_seed(0)
    network = TextTransformer(20, 6, 8, layers=2, heads=2, out=5).double()
    texts = [[18, 3, 4, 5, 1, 19], [18, 3, 19, 0, 0, 0]]
    with torch.no_grad():
        expected = torch.stack([slow(network, text, 2) for text in texts])
        assert torch.allclose(network(torch.tensor(texts)), expected, atol=1e-10)
        assert torch.allclose(network.eval()(torch.tensor(texts)), expected, atol=1e-10)
        changed = torch.tensor([texts[0], [18, 3, 19, 7, 7, 7]])  # what follows the end does not count
        assert torch.allclose(network(changed), expected, atol=1e-10)
