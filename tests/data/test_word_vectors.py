"""Word2Vec's and GloVe's files: the vectors of the words asked for, and a clear line for anything else."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from raycap.data.word_vectors import WordVectors, read_word_vectors
from raycap.errors import UserError

VECTORS = {"a": [1.0, -2.5, 0.125], ". .": [9.0, 9.0, 9.0], "caf\u00e9": [0.5, 3e-5, 4.0], "dog": [7.0, 8.0, 9.0]}
NAMES = [name for name in VECTORS if " " not in name]


def glove(vectors: dict[str, list[float]]) -> bytes:
    return "".join(f"{word} {' '.join(map(str, values))}\n" for word, values in vectors.items()).encode()


def word2vec_text() -> bytes:
    # Its writer ends lines with a space.
    return b"3 3\n" + glove({name: VECTORS[name] for name in NAMES}).replace(b"\n", b" \n")


def word2vec_binary(newlines: bool = True, count: int = 3) -> bytes:
    body = (word.encode() + b" " + struct.pack("<3f", *VECTORS[word]) + b"\n" * newlines for word in NAMES)
    return f"{count} 3\n".encode() + b"".join(body)


@pytest.mark.parametrize(
    ("data", "format"),
    [
        (glove(VECTORS), "text"),
        (glove(VECTORS).replace(b"\n", b"\r\n"), "text"),
        (word2vec_text(), "text"),
        (word2vec_binary(), "binary"),
        (word2vec_binary(newlines=False), "binary"),
    ],
    ids=["glove", "glove-crlf", "word2vec-text", "word2vec-binary", "word2vec-binary-without-newlines"],
)
def test_the_vectors_of_the_words_asked_for_come_back(data: bytes, format: str, tmp_path: Path) -> None:
    path = tmp_path / "vectors"
    path.write_bytes(data)
    source = WordVectors.model_validate({"path": str(path), "format": format})
    found = read_word_vectors(source, ["caf\u00e9", "dog", "bird"], 3)
    assert found.keys() == {"caf\u00e9", "dog"}
    for word, vector in found.items():
        assert vector.dtype == np.float32
        assert vector.tolist() == np.array(VECTORS[word], np.float32).tolist()


def test_a_binary_file_larger_than_what_is_read_at_once(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(3000, 300)).astype("<f4")
    body = b"".join(f"w{i} ".encode() + vector.tobytes() + b"\n" for i, vector in enumerate(vectors))
    (tmp_path / "v.bin").write_bytes(b"3000 300\n" + body)
    source = WordVectors(path=str(tmp_path / "v.bin"), format="binary")
    found = read_word_vectors(source, {f"w{i}" for i in range(3000)}, 300)
    assert all((found[f"w{i}"] == vector).all() for i, vector in enumerate(vectors))


@pytest.mark.parametrize(
    ("data", "format", "message"),
    [
        (glove({"a": [1.0, 2.0]}), "text", "its vectors have 2 numbers, the words' embeddings 3"),
        (b"5 2\na 1 2\n", "text", "its vectors have 2 numbers"),
        (glove(VECTORS) + b"bird 1 2", "text", "line 5 has no word and 3 numbers"),
        (glove({"a": [0.0] * 3}) + b"dog 1 x 3\n", "text", "line 2: could not convert"),
        (b"dog 1 nan 3\n", "text", "line 1: a number is not finite"),
        (glove(VECTORS), "binary", "begins with no line of count and dimension; set format to text"),
        (word2vec_binary()[:-3], "binary", "is cut off, or no Word2Vec binary, at word 3 of 3"),
        (word2vec_binary(count=4), "binary", "at word 4 of 4"),
        (b"\x1f\x8b\x08\x00", "binary", "is compressed; unpack it first"),
        (b"", "text", "is empty"),
    ],
)
def test_a_broken_file_is_one_clear_line(data: bytes, format: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "v").write_bytes(data)
    source = WordVectors.model_validate({"path": str(tmp_path / "v"), "format": format})
    with pytest.raises(UserError, match=f"task.word_vectors.path = .*{message}") as caught:
        read_word_vectors(source, ["dog"], 3, "task.word_vectors")
    assert "\n" not in str(caught.value)


def test_a_missing_file_names_the_setting() -> None:
    with pytest.raises(UserError, match="word_vectors.path = /nowhere: no such file"):
        read_word_vectors(WordVectors(path="/nowhere"), ["dog"], 3)
