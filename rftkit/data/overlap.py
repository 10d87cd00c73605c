"""Near-duplicates across the split: validation prompts that training prompts all but contain.

Two prompts are compared by the shingles they share: runs of three words that do not cross
punctuation (Broder, "On the resemblance and containment of documents", 1997). In a list such as
"Seizure, Ataxia, Global developmental delay" each entry is a shingle, so a shuffled list stays the
same. Prompts of one task share their instructions: each shingle weighs log(rows / rows that have
it), and one that stands in more than half of the rows weighs nothing. The similarity is the
weighted Jaccard index: weight of the shared shingles / weight of all shingles of the two. A long
instruction that a tenth of the rows share can still outweigh the case itself. It shows in that a
prompt is then close to many rows at once (MANY_ROWS): of such, a near-duplicate must also share
half of the shingles that hardly any row has (RARE_ROWS).

All pairs are computed, as one product of sparse matrices, not sampled. Only where a file holds more
than MAX_SHINGLES shingles is a fixed share of them looked at (by their hash, the same in all rows).
"""

from __future__ import annotations

import re
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from scipy.sparse import csr_matrix

THRESHOLD = 0.8
MANY_ROWS = 10, 0.01  # as a number, and as a share of the training rows: the larger counts
RARE_ROWS = 10, 0.001
RARE_THRESHOLD = 0.5
SHINGLE_WORDS = 3
MAX_CHARACTERS = 200_000  # of one prompt
MAX_SHINGLES = 6_000_000  # of all prompts: 24 MB of hashes
# A number, a word, one Chinese or Japanese character, a sign, or a line break.
TOKEN = re.compile(
    r"\d+(?:[.,]\d+)+|[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+|[^\w\s]|\n"
)
SEPARATORS = set('.,;:!?()[]{}"|/\n。、，；：！？（）「」')


def shingles(text: str) -> set[int]:
    """The hashes (32 bits) of a text's shingles.

    >>> shingles("Seizure, Ataxia") == shingles("ataxia, seizure!")
    True
    """
    hashes = set()
    run: list[str] = []
    for token in [*TOKEN.findall(text[:MAX_CHARACTERS].casefold()), "."]:
        if token not in SEPARATORS:
            run.append(token)
            continue
        for start in range(max(1, len(run) - SHINGLE_WORDS + 1) if run else 0):
            shingle = " ".join(run[start : start + SHINGLE_WORDS])
            hashes.add(zlib.crc32(shingle.encode("utf-8", "surrogatepass")))
        run = []
    return hashes


class NearDuplicates:
    """Collects the prompts of both sides, then finds the pairs that are nearly the same."""

    def __init__(self) -> None:
        self.rows: dict[str, list[np.ndarray]] = {"train": [], "validation": []}
        self.lines: dict[str, list[int]] = {"train": [], "validation": []}
        self.held, self.step = 0, 1

    def add(self, side: str, line: int, text: str) -> None:
        """side is "train" or "validation"."""
        import numpy as np

        hashes = np.fromiter(shingles(text), dtype=np.uint32)
        hashes = hashes[hashes % self.step == 0]
        self.rows[side].append(hashes)
        self.lines[side].append(line)
        self.held += len(hashes)
        while self.held > MAX_SHINGLES:
            self.step *= 2
            for name, rows in self.rows.items():
                self.rows[name] = [row[row % self.step == 0] for row in rows]
            self.held = sum(len(row) for rows in self.rows.values() for row in rows)

    def pairs(self, threshold: float = THRESHOLD) -> list[tuple[int, int, float]]:
        """(validation line, its closest training line, similarity) where at least threshold."""
        import numpy as np

        if not (self.rows["train"] and self.rows["validation"]):
            return []
        train, validation, weight = self._matrices()
        n_rows = train.shape[0] + validation.shape[0]
        in_rows = np.asarray(train.sum(axis=0) + validation.sum(axis=0)).ravel()
        rare = in_rows <= max(RARE_ROWS[0], RARE_ROWS[1] * n_rows)
        train_rare, validation_rare = train[:, rare], validation[:, rare]
        train_total, validation_total = train @ weight, validation @ weight
        train, validation = train[:, weight > 0], validation[:, weight > 0]
        weighted = validation.multiply(weight[weight > 0]).tocsr()
        found = []
        for start in range(0, validation.shape[0], 64):  # in slices: the product may be dense
            shared = (weighted[start : start + 64] @ train.T).tocsr()
            for i in range(shared.shape[0]):
                span = slice(shared.indptr[i], shared.indptr[i + 1])
                columns, both = shared.indices[span], shared.data[span]
                if len(columns) == 0:
                    continue
                row = start + i
                similarity = both / (validation_total[row] + train_total[columns] - both)
                close = similarity >= threshold - 1e-9
                columns, similarity = columns[close], similarity[close]
                if len(columns) > max(MANY_ROWS[0], MANY_ROWS[1] * train.shape[0]):
                    alike = shares_rare(validation_rare[row], train_rare[columns])
                    columns, similarity = columns[alike], similarity[alike]
                if len(columns):
                    best = np.lexsort((columns, -similarity))[0]  # of several as close, the first
                    lines = self.lines["validation"][row], self.lines["train"][columns[best]]
                    found.append((*lines, float(similarity[best])))
        return found

    def _matrices(self) -> tuple[csr_matrix, csr_matrix, np.ndarray]:
        """Row x shingle matrices of 0 and 1 for both sides, and each shingle's weight."""
        import numpy as np
        from scipy.sparse import csr_matrix

        rows = self.rows["train"] + self.rows["validation"]
        ends = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
        _, columns, counts = np.unique(
            np.concatenate(rows), return_inverse=True, return_counts=True
        )
        n_rows, n_train = len(rows), len(self.rows["train"])
        # In a handful of rows nothing can be known to be the task's wording.
        weight = np.log(max(n_rows, 10) / counts)
        if n_rows >= 10:
            weight[2 * counts > n_rows] = 0.0
        ones = np.ones(len(columns))
        matrix = csr_matrix((ones, columns, ends), shape=(n_rows, len(counts)))
        return matrix[:n_train], matrix[n_train:], weight


def shares_rare(row: csr_matrix, others: csr_matrix) -> np.ndarray:
    """For each of the others: does it share half of the rare shingles with the row?

    True where neither has any: then there is nothing to tell them apart by.
    """
    import numpy as np

    shared = (others @ row.T).toarray().ravel()
    of_either = row.sum() + np.asarray(others.sum(axis=1)).ravel() - shared
    return shared >= RARE_THRESHOLD * of_either
