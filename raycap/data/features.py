"""The feature store: image embeddings in Parquet, one file for each chunk of rows they came from.

    {uri}/_encoder.json                  first: which encoder fills the store
    {uri}/train-00000-0000.parquet ...   row group 0 of rows file train-00000.parquet, and so on
    {uri}/manifest.json                  last: a directory without it is not finished

Columns: ``image_id`` string; ``image_embeds`` Arrow's canonical fixed-shape tensor, (N, D) float16.
Each file's metadata keep the sums of its own tokens, so that a resumed run computes none again.
Shapes: n images of a file, N num_tokens, D embed_dim.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raycap import storage
from raycap.config import Config
from raycap.data.rows import Chunk, require_split
from raycap.errors import UserError

MANIFEST = "manifest.json"
_ENCODER = "_encoder.json"
_METADATA_KEY = b"raycap"
_FOOTER_THREADS = 16
_COVARIANCE_IMAGES, _COVARIANCE_TOKENS = 2048, 131_072
# Of the largest standard deviation: what varies less counts as constant.
LEAST_SCALE = 1e-4


class FeatureFile(Config):
    """One Parquet file of embeddings."""

    name: str
    """File name below the directory."""

    split: str

    num_images: int
    """Its rows: images, or pairs of an image and one of its captions (then N is 1, D the joint embedding's width)."""


class FeatureStore(Config):
    """A finished feature store, as its manifest describes it."""

    uri: str
    encoder_name: str
    encoder_fingerprint: str
    num_tokens: int
    embed_dim: int

    precision: str
    """In which the encoder computed; the embeddings are kept in float16."""

    files: tuple[FeatureFile, ...]

    mean: tuple[float, ...]
    """Of each embedding dimension over all tokens of the train split (of all splits without one)."""

    std: tuple[float, ...]
    """Standard deviation likewise; 0, up to rounding, where a dimension never changes."""

    @property
    def splits(self) -> list[str]:
        return sorted({file.split for file in self.files})

    def num_images(self, split: str) -> int:
        return sum(chunk.num_rows for chunk in self.chunks(split))

    def chunks(self, split: str, field: str = "split") -> list[Chunk]:
        """Every chunk of a split, one for one the chunks of ``Rows.chunks(split)`` in their order.

        Raises:
            UserError: the split is not there; ``field`` names the setting that asks for it.
        """
        require_split(split, self.splits, self.uri, field)
        return [
            Chunk(storage.join(self.uri, file.name), 0, file.num_images) for file in self.files if file.split == split
        ]


class FileSummary(NamedTuple):
    """What a file of the store says of itself in its footer.

    ``source`` names what it was made from; ``token_sum`` and ``token_square_sum`` are (D,) float64.
    """

    num_images: int
    num_tokens: int
    source: str
    token_sum: np.ndarray
    token_square_sum: np.ndarray


def positive_scale(std: np.ndarray) -> np.ndarray:
    """What each dimension is divided by, (D,): its standard deviation, or, where it never varies, a little."""
    scale: np.ndarray = np.maximum(std, LEAST_SCALE * std.max())
    return scale


def spread_chunks(store: FeatureStore, split: str, max_images: int) -> list[Chunk]:
    """Chunks spread evenly over a split, with about so many images."""
    chunks = store.chunks(split)
    needed = min(len(chunks), max(1, -(-max_images // chunks[0].num_rows)))
    return [chunks[index] for index in np.linspace(0, len(chunks) - 1, needed).astype(int)]


def covariance_images(store: FeatureStore) -> int:
    """Images whose tokens tell their covariance well enough; of a store of one vector a row that takes more rows."""
    return max(_COVARIANCE_IMAGES, _COVARIANCE_TOKENS // store.num_tokens)


def token_covariance(store: FeatureStore, split: str, max_images: int | None = None) -> np.ndarray:
    """Covariance of the tokens of a split's images, (D, D) float64.

    Args:
        max_images: so many, spread evenly over the split, are looked at; by default :func:`covariance_images`.
    """
    max_images = covariance_images(store) if max_images is None else max_images
    mean, count = np.array(store.mean), 0
    products, total = np.zeros((store.embed_dim, store.embed_dim)), np.zeros(store.embed_dim)
    for chunk in spread_chunks(store, split, max_images):
        # Float32 products of values around zero; added up in float64.
        tokens = read_features(chunk).reshape(-1, store.embed_dim).astype(np.float32) - mean.astype(np.float32)
        products += tokens.T @ tokens
        total += tokens.sum(axis=0, dtype=np.float64)
        count += len(tokens)
    return products / count - np.outer(total, total) / count**2


def feature_file_name(chunk: Chunk) -> str:
    """The name of the file that holds the embeddings of a chunk of rows."""
    stem = chunk.file.rpartition("/")[2].removesuffix(".parquet")
    return f"{stem}-{chunk.row_group:04d}.parquet"


def open_store(uri: str, field: str = "features", encoder_fingerprint: str | None = None) -> FeatureStore:
    """Open a feature store.

    Args:
        uri: directory or s3:// prefix.
        field: the setting that points to it, for errors.
        encoder_fingerprint: the encoder whose embeddings are needed; None takes any.

    Raises:
        UserError: it is missing, not finished, or made by another encoder.
    """
    uri = storage.absolute(uri)
    try:
        manifest = storage.read_json(storage.join(uri, MANIFEST))
    except FileNotFoundError:
        message = f"{field} = {uri}: no finished feature store ({MANIFEST} is missing); run jobs/extract.py"
        raise UserError(message) from None
    if manifest.get("format") != "raycap-features":
        raise UserError(f"{field} = {uri}: holds {manifest.get('format')}, not features; give jobs/extract.py's output")
    encoder = manifest["encoder"]
    if encoder_fingerprint is not None and encoder["fingerprint"] != encoder_fingerprint:
        raise UserError(
            f"{field} = {uri}: made by encoder {encoder['name']} ({encoder['fingerprint']}), not by the encoder "
            f"{encoder_fingerprint} in use; run jobs/extract.py with this model into another output"
        )
    values = {key: manifest[key] for key in ("num_tokens", "embed_dim", "precision", "files", "mean", "std")}
    return FeatureStore(uri=uri, encoder_name=encoder["name"], encoder_fingerprint=encoder["fingerprint"], **values)


def claimed_precision(uri: str) -> str | None:
    """The precision of a store, finished or not; None where nobody has begun one."""
    try:
        return str(storage.read_json(storage.join(uri, _ENCODER))["precision"])
    except FileNotFoundError:
        return None


def claim_store(uri: str, encoder_name: str, encoder_fingerprint: str, precision: str, field: str = "output") -> None:
    """Note in a store, finished or not, which encoder fills it.

    Raises:
        UserError: another encoder, or another precision, is at work there already.
    """
    try:
        theirs = storage.read_json(storage.join(uri, _ENCODER))
    except FileNotFoundError:
        ours = {"name": encoder_name, "fingerprint": encoder_fingerprint, "precision": precision}
        storage.write_json(storage.join(uri, _ENCODER), ours)
        return
    if theirs["fingerprint"] != encoder_fingerprint:
        raise UserError(
            f"{field} = {uri}: holds embeddings of encoder {theirs['name']} ({theirs['fingerprint']}), not of "
            f"{encoder_name} ({encoder_fingerprint}); choose another {field}, or delete that store"
        )
    if theirs["precision"] != precision:
        raise UserError(
            f"precision = {precision}: {field} = {uri} holds embeddings computed in {theirs['precision']}; "
            f"set precision: {theirs['precision']}, or choose another {field}"
        )


def write_features(uri: str, name: str, image_ids: Sequence[str], image_embeds: np.ndarray, source: str = "") -> int:
    """Write one file of embeddings, whole or not at all.

    Args:
        uri: of the store.
        name: file name below it.
        image_ids: n of them.
        image_embeds: (n, N, D) float16.
        source: names what they were made from; :func:`read_summary` gives it back.

    Returns:
        Bytes written.
    """
    num_images, num_tokens, embed_dim = image_embeds.shape
    values = pa.Array.from_buffers(
        pa.float16(), image_embeds.size, [None, pa.py_buffer(np.ascontiguousarray(image_embeds))]
    )
    lists = pa.FixedSizeListArray.from_arrays(values, num_tokens * embed_dim)
    tensor_type = pa.fixed_shape_tensor(pa.float16(), (num_tokens, embed_dim))
    # Not nullable: Parquet then keeps no level for each value, and writes and reads twice as fast.
    schema = pa.schema(
        [pa.field("image_id", pa.string(), nullable=False), pa.field("image_embeds", tensor_type, nullable=False)],
        metadata={_METADATA_KEY: json.dumps(_summarise(image_embeds) | {"source": source})},
    )
    columns = [pa.array(image_ids, pa.string()), pa.ExtensionArray.from_storage(tensor_type, lists)]
    sink = pa.BufferOutputStream()
    # Random mantissas neither compress nor repeat.
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(pa.table(columns, schema=schema), sink, row_group_size=num_images, **options)
    data = sink.getvalue()
    storage.write_bytes(storage.join(uri, name), data)
    return data.size


def read_features(chunk: Chunk) -> np.ndarray:
    """The embeddings of a chunk: (n, N, D) float16, read-only, a view of what Parquet decoded."""
    return _read_column(chunk, "image_embeds").to_numpy_ndarray()


def read_image_ids(chunk: Chunk) -> list[str]:
    """The image of each embedding of a chunk."""
    return _read_column(chunk, "image_id").to_pylist()


def _read_column(chunk: Chunk, column: str) -> pa.Array:
    with storage.open_input(chunk.file) as file, pq.ParquetFile(file) as parquet:
        return parquet.read_row_group(chunk.row_group, columns=[column])[column].combine_chunks()


def _summarise(image_embeds: np.ndarray) -> dict[str, Any]:
    token_sum, token_square_sum = np.zeros((2, image_embeds.shape[-1]))
    for tokens in image_embeds:  # one image at a time: float64 is four times as large
        exact = tokens.astype(np.float64)  # (N, D)
        token_sum += exact.sum(axis=0)
        token_square_sum += np.einsum("nd,nd->d", exact, exact)
    sums = {"token_sum": token_sum, "token_square_sum": token_square_sum}
    encoded = {key: base64.b64encode(value.astype("<f8").tobytes()).decode() for key, value in sums.items()}
    return {"num_tokens": image_embeds.shape[1], **encoded}


def read_summary(uri: str) -> FileSummary:
    """A file's footer."""
    with storage.open_input(uri) as file:
        footer = pq.read_metadata(file)
    values = json.loads(footer.metadata[_METADATA_KEY])
    sums = (np.frombuffer(base64.b64decode(values[key]), "<f8") for key in ("token_sum", "token_square_sum"))
    return FileSummary(footer.num_rows, values["num_tokens"], values["source"], *sums)


def read_summaries(uri: str, names: Iterable[str]) -> list[FileSummary]:
    """The footers of many files, several at a time because S3 answers each late."""
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        return list(pool.map(lambda name: read_summary(storage.join(uri, name)), names))


def finish_store(
    uri: str, encoder_name: str, encoder_fingerprint: str, precision: str, files: Sequence[FeatureFile]
) -> FeatureStore:
    """Add up the files' sums and declare the store finished.

    Args:
        files: at least one; the files of a split in the order of its rows' chunks.
    """
    summaries = read_summaries(uri, [file.name for file in files])
    splits = [file.split for file in files]
    counted = [s for s, split in zip(summaries, splits, strict=True) if split == "train" or "train" not in splits]
    num_tokens = sum(summary.num_images * summary.num_tokens for summary in counted)
    mean = np.sum([summary.token_sum for summary in counted], axis=0) / num_tokens
    variance = np.sum([summary.token_square_sum for summary in counted], axis=0) / num_tokens - mean**2
    manifest = {
        "format": "raycap-features",
        "version": 1,
        "encoder": {"name": encoder_name, "fingerprint": encoder_fingerprint},
        "num_tokens": summaries[0].num_tokens,
        "embed_dim": len(mean),
        "precision": precision,
        "files": [file.model_dump() for file in files],
        "mean": mean.tolist(),
        "std": np.sqrt(np.maximum(variance, 0.0)).tolist(),
    }
    storage.write_json(storage.join(uri, MANIFEST), manifest)
    return open_store(uri)
