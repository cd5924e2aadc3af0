"""How much several captions of one image differ from each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from raycap.metrics.bleu import bleu, closest_length, length_statistics
from raycap.metrics.ngrams import MAX_N, Words, count_ngrams, inverse_document_frequency, match_ngrams
from raycap.metrics.tokens import tokenize_all


def set_diversity(
    candidates: Mapping[str, Sequence[str]], references: Mapping[str, Sequence[str]] | None = None
) -> dict[str, float]:
    """How much several captions of one image differ, as a mean over the images.

    One caption alone differs from nothing: it scores as copies of it would, self-CIDEr 0 and mBLEU-4 1.

    Args:
        candidates: m captions for each image, the same number for all.
        references: whose document frequencies weigh the words of self-CIDEr; None is the candidates' own.

    Returns:
        ``self_cider``, 0 (copies) to 1 (nothing in common): -log_m(r), where r is the largest singular value
        over the sum of all, of the captions' tf-idf vectors whose products are CIDEr (Wang and Chan 2019,
        "Describing like Humans", sections 3.2 and 3.3). ``mbleu_4``, 0 to 1, the lower the more diverse: BLEU-4
        of the i-th captions of all images against the others of their image, mean over i (Shetty et al. 2017,
        "Speaking the Same Language", section 5.2).

    Raises:
        ValueError: there are no captions, or not the same number for each image.
    """
    sizes = {len(texts) for texts in candidates.values()}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(f"images with {sorted(sizes)} captions: give each the same number, at least 1")
    (size,) = sizes
    if size == 1:
        return {"self_cider": 0.0, "mbleu_4": 1.0}
    sets = [_split(texts) for texts in candidates.values()]
    documents = sets if references is None else [_split(texts) for texts in references.values()]
    return {"self_cider": float(_self_cider(sets, documents).mean()), "mbleu_4": _mutual_bleu(sets)}


def _split(texts: Sequence[str]) -> list[Words]:
    return [text.split() for text in tokenize_all(texts)]


def _mutual_bleu(sets: Sequence[Sequence[Words]]) -> float:
    scores = []
    for place in range(len(sets[0])):
        own = [texts[place] for texts in sets]
        others = [[*texts[:place], *texts[place + 1 :]] for texts in sets]
        matches = match_ngrams(own, others)
        closest = sum(closest_length(*pair) for pair in zip(own, others, strict=True))
        lengths = length_statistics(np.array(sum(map(len, own))), np.array(closest))
        scores.append(bleu(matches.guess.sum(0), matches.correct.sum(0), lengths["brevity_penalty"])[f"bleu_{MAX_N}"])
    return float(np.mean(scores))


def _self_cider(sets: Sequence[Sequence[Words]], documents: Sequence[Sequence[Words]]) -> np.ndarray:
    """Self-CIDEr of each set, (sets,)."""
    known = [words for texts in documents for words in texts]
    document = np.repeat(np.arange(len(documents)), [len(texts) for texts in documents])
    captions = [words for texts in sets for words in texts]
    size = len(sets[0])
    row, column, value, width = [], [], [], 0
    for counts in count_ngrams([*known, *captions]):
        first = np.searchsorted(counts.caption, len(known))
        weight = counts.times * inverse_document_frequency(counts, document, len(documents))[counts.ngram]
        owner = counts.caption[first:] - len(known)
        norm = np.sqrt(np.bincount(owner, weight[first:] ** 2, minlength=len(captions)))[owner]
        row.append(owner)
        column.append(counts.ngram[first:] + width)
        value.append(np.divide(weight[first:], norm, out=np.zeros(len(owner)), where=norm > 0))
        width += counts.num_ngrams
    rows, columns, values = np.concatenate(row), np.concatenate(column), np.concatenate(value)
    order = np.argsort(rows // size, kind="stable")
    ends = np.searchsorted(rows[order] // size, np.arange(len(sets) + 1))
    scores = np.zeros(len(sets))
    for index in range(len(sets)):
        mine = order[ends[index] : ends[index + 1]]
        found, place = np.unique(columns[mine], return_inverse=True)
        table = np.zeros((size, len(found)))  # the inner products of its rows are CIDEr, times MAX_N
        table[rows[mine] - index * size, place] = values[mine]
        spectrum = np.linalg.svd(table, compute_uv=False)
        if spectrum.sum() > 0:  # otherwise no caption has a word that counts: all alike
            scores[index] = -np.log(spectrum.max() / spectrum.sum()) / np.log(size)
    return scores
