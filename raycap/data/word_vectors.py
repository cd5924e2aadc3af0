"""Word vectors made elsewhere, from the files of Word2Vec and GloVe.

    text     Word2Vec: a line "count dimension", then a line "word x1 x2 ..." for each word; GloVe: without the first
    binary   Word2Vec: the line "count dimension", then for each word its bytes, a space, float32 little-endian

(Mikolov et al. 2013, word2vec's distance.c; Pennington et al. 2014.) Files are read from beginning to end, and only
the vectors of the words asked for are kept.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Collection
from typing import Literal

import numpy as np

from raycap import storage
from raycap.config import Config
from raycap.errors import UserError

_COMPRESSED = (b"\x1f\x8b", b"PK", b"BZ")
_LONGEST_WORD = 4096  # bytes; where no space comes for so long, the file is not what it is said to be
_BYTES_AT_ONCE = 1 << 20


class WordVectors(Config):
    """Where the words' first embeddings come from."""

    path: str
    """File of Word2Vec or GloVe, local or s3://, not compressed."""

    format: Literal["text", "binary"] = "text"
    """text of GloVe or Word2Vec; binary of Word2Vec."""


def read_word_vectors(
    source: WordVectors, words: Collection[str], dimension: int, field: str = "word_vectors"
) -> dict[str, np.ndarray]:
    """The vectors, (dimension,) float32, of those of the words that the file has; where it has one twice, the first.

    Raises:
        UserError: the file is missing, of another format or dimension, or broken; ``field`` names the setting.
    """
    where = f"{field}.path = {source.path}"
    wanted = {word.encode(): word for word in words}
    try:
        with storage.open_input(source.path) as file, io.BufferedReader(file, _BYTES_AT_ONCE) as stream:
            if stream.peek(2)[:2] in _COMPRESSED:
                raise UserError(f"{where}: is compressed; unpack it first")
            read = _read_text if source.format == "text" else _read_binary
            return read(stream, wanted, dimension, where)
    except FileNotFoundError:
        raise UserError(f"{where}: no such file; give a file of Word2Vec or GloVe vectors") from None


def _read_text(
    stream: io.BufferedReader, wanted: dict[bytes, str], dimension: int, where: str
) -> dict[str, np.ndarray]:
    vectors: dict[str, np.ndarray] = {}
    first = stream.readline()
    if not first:
        raise UserError(f"{where}: is empty; give a file of Word2Vec or GloVe vectors")
    header = _header(first)
    _require_dimension(header[1] if header else len(first.split()) - 1, dimension, where)
    lines = stream if header else itertools.chain([first], stream)
    for number, line in enumerate(lines, start=2 if header else 1):
        # From the right: GloVe's largest file has words with spaces in them.
        word, *values = line.rstrip(b" \r\n").rsplit(b" ", dimension)
        if len(values) != dimension:
            raise UserError(f"{where}: line {number} has no word and {dimension} numbers; is it cut off, or binary?")
        if word in wanted and wanted[word] not in vectors:
            vectors[wanted[word]] = _numbers(values, number, where)
    return vectors


def _read_binary(
    stream: io.BufferedReader, wanted: dict[bytes, str], dimension: int, where: str
) -> dict[str, np.ndarray]:
    header = _header(stream.readline(_LONGEST_WORD))
    if header is None:
        raise UserError(f"{where}: begins with no line of count and dimension; set format to text")
    count, size = header[0], 4 * header[1]
    _require_dimension(header[1], dimension, where)
    vectors: dict[str, np.ndarray] = {}
    buffer, start = b"", 0
    for number in range(1, count + 1):
        if len(buffer) - start < _LONGEST_WORD + size:
            buffer, start = buffer[start:] + stream.read(_BYTES_AT_ONCE + size), 0
        space = buffer.find(b" ", start, start + _LONGEST_WORD)
        end = space + 1 + size
        if space < 0 or end > len(buffer):
            raise UserError(f"{where}: is cut off, or no Word2Vec binary, at word {number:,} of {count:,}")
        word = buffer[start:space].lstrip(b"\n")
        if word in wanted and wanted[word] not in vectors:
            values = np.frombuffer(buffer, "<f4", dimension, space + 1)
            vectors[wanted[word]] = _finite(values, f"word {number:,}", where)
        start = end
    return vectors


def _header(line: bytes) -> tuple[int, int] | None:
    """Count and dimension, if that is what the line has."""
    parts = line.split()
    return (int(parts[0]), int(parts[1])) if len(parts) == 2 and all(part.isdigit() for part in parts) else None


def _require_dimension(found: int, dimension: int, where: str) -> None:
    if found != dimension:
        raise UserError(
            f"{where}: its vectors have {found} numbers, the words' embeddings {dimension}; make them equal"
        )


def _numbers(values: list[bytes], number: int, where: str) -> np.ndarray:
    try:
        vector = np.array([float(value) for value in values], np.float32)
    except ValueError as error:
        raise UserError(f"{where}: line {number}: {error}; give a file of Word2Vec or GloVe vectors") from None
    return _finite(vector, f"line {number}", where)


def _finite(vector: np.ndarray, place: str, where: str) -> np.ndarray:
    if not np.isfinite(vector).all():
        raise UserError(f"{where}: {place}: a number is not finite; is the file's format another?")
    return vector.astype(np.float32)
