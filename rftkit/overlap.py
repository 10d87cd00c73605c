"""Prompts that are nearly the same.

Compared are runs of three words that do not cross punctuation (Broder 1997), so that a shuffled
list of symptoms stays the same, by the weighted Jaccard index. A run weighs log(rows / rows that
have it), and nothing where more than half of the rows have it: prompts share their instructions.
An instruction that a tenth of the rows share can still outweigh the case itself: a prompt is then
close to MANY rows at once, and must also share half of the RARE runs.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

THRESHOLD = 0.8
MANY = 10, 0.01  # as a number, and as a share of the training rows: the larger counts
RARE = 10, 0.001
# A number, one Chinese or Japanese character, a word, a sign, or a line break.
TOKEN = re.compile(r"\d+(?:[.,]\d+)+|[\u3040-\u9fff]|[^\W\u3040-\u9fff]+|[^\w\s]|\n")
SEPARATORS = set('.,;:!?()[]{}"|/\n。、，；：！？（）「」')


def shingles(text: str) -> set[int]:
    """The hashes (32 bits) of a text's runs of three words."""
    hashes = set()
    run: list[str] = []
    for token in [*TOKEN.findall(text.casefold()), "."]:
        if token not in SEPARATORS:
            run.append(token)
            continue
        for start in range(max(1, len(run) - 2) if run else 0):
            shingle = " ".join(run[start : start + 3])
            hashes.add(zlib.crc32(shingle.encode("utf-8", "surrogatepass")))
        run = []
    return hashes


def similar_prompts(
    train: Sequence[str], validation: Sequence[str]
) -> list[tuple[int, int, float]]:
    """(validation index, index of its closest training text, similarity) from THRESHOLD on.

    All pairs are computed, as products of sparse matrices of 0 and 1 (rows x shingles).
    """
    import numpy as np
    from scipy.sparse import csr_matrix

    if not train or not validation:
        return []
    rows = [np.fromiter(shingles(text), np.uint32) for text in [*train, *validation]]
    ends = np.cumsum([0, *map(len, rows)])
    _, columns, counts = np.unique(np.concatenate(rows), return_inverse=True, return_counts=True)
    matrix = csr_matrix((np.ones(len(columns)), columns, ends), (len(rows), len(counts)))
    # In a handful of rows nothing can be known to be the task's wording.
    weight = np.log(max(len(rows), 10) / counts)
    if len(rows) >= 10:
        weight[2 * counts > len(rows)] = 0.0
    total, n_train = matrix @ weight, len(train)
    rare = matrix[:, counts <= max(RARE[0], RARE[1] * len(rows))]
    matrix, weight = matrix[:, weight > 0], weight[weight > 0]
    trained = matrix[:n_train].T.tocsr()
    pairs = []
    for row in range(n_train, len(rows)):
        shared = matrix[row].multiply(weight).tocsr() @ trained
        others, both = shared.indices, shared.data
        similarity = both / (total[row] + total[others] - both)
        near = similarity >= THRESHOLD - 1e-9
        if near.sum() > max(MANY[0], MANY[1] * n_train):
            both = (rare[others] @ rare[row].T).toarray().ravel()
            either = rare[row].sum() + np.asarray(rare[others].sum(axis=1)).ravel() - both
            near &= 2 * both >= either
        if near.any():
            others, similarity = others[near], similarity[near]
            best = np.lexsort((others, -similarity))[0]  # of several as close, the first
            pairs.append((row - n_train, int(others[best]), float(similarity[best])))
    return pairs
