"""Published cases -> train, validation and test rows, split by gene: `rftkit cases`.

    rftkit cases all_phenopackets.zip --out cases

Why by gene: under a random split the nearest training case alone names 83 % of the answers,
under a split by paper 27 %. No answer gene of validation or test occurs in training, and cases
with the same features stand on one side, even where their genes differ. A paper that reports
several genes may still stand on two sides.

Why copies are counted: a paper that reports a family gives several cases in the very same words.
As rows they count double in training and shrink no interval in evaluation; the same words for two
genes contradict each other; and a case that nearly repeats a training case tests memory. They are
kept by default, because they are what was published.
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rftkit.files import UserError, write_json
from rftkit.genes.baselines import LikelihoodRanker, OverlapRanker, measure
from rftkit.genes.case import ANSWER_LENGTH, Case, case_row
from rftkit.genes.hpo import ATTRIBUTION, HPO_RELEASE, Hpo, load_hpo
from rftkit.genes.phenopackets import read_cases
from rftkit.overlap import similar_prompts
from rftkit.rows import assert_disjoint, messages_text, sha256_of, split_by_group, write_rows

# Shares of the cases, not of the genes. The validation stays under the 1,000 rows that an RFT job
# takes, for the whole phenopacket-store too (10,580 cases).
SHARES = {"train": 0.72, "validation": 0.08, "test": 0.20}
# A gene with more cases than this trains, whatever the seed: STXBP1 alone has 462 cases, all from
# one paper, and would be a third of a test set that happened to get it.
CROWDED = 100
GENE = "reference_gene"
SHOWN = ("present", "absent", "sex", "age", "onset")  # the fields that a prompt is written from

REPEATED = "with the prompt and gene of another case"
CONTRADICTED = "with the prompt of a case of another gene"
NEAR = "near-duplicates of a case on another side"

Row = dict[str, Any]
Watch = Callable[[str, int, int], None]  # what is done, how much of it, of how much


def unwatched(what: str, done: int, total: int) -> None:
    """Show no progress."""


def make_cases(
    source: str | Path,
    out: str | Path,
    candidates: int = 0,
    with_baselines: bool = False,
    seed: int = 0,
    watch: Watch = unwatched,
    without_copies: bool = False,
) -> dict[str, Any]:
    """Read phenopackets, split them by gene, write train, validation, test.jsonl and report.json.

    candidates      0: free form. N: each prompt names N genes, the true one among them
    with_baselines  also rank all genes for all cases without a language model (about 10 s)
    without_copies  leave out what `rftkit check` calls a copy
    Returns the report. UserError for a source that cannot be read, fewer than three genes, or N
    out of range.
    """
    hpo = load_hpo()
    reading = read_cases(source, hpo)
    rows = {}
    for side, cases in split_cases(reading.cases, seed).items():
        lists = candidate_lists(cases, hpo, candidates, seed) if candidates else [()] * len(cases)
        rows[side] = [case_row(case, hpo, names) for case, names in zip(cases, lists)]
    copies = {side: copies_of(side_rows) for side, side_rows in rows.items()}
    counts = Counter(reason for reasons in copies.values() for reason in reasons.values())
    if without_copies:
        rows, counts[NEAR] = drop_copies(rows, copies)
    files = {}
    for side, side_rows in rows.items():
        path = Path(out) / f"{side}.jsonl"
        write_rows(path, side_rows)
        files[path.name] = describe_side(side_rows) | {"sha256": sha256_of(path)}
    of_id = {case.case_id: case for case in reading.cases}
    written = [of_id[row["case_id"]] for side_rows in rows.values() for row in side_rows]
    report = {
        "source": Path(source).name,
        "hpo_release": HPO_RELEASE,
        **reading.summary(),
        "duplicates": count_duplicates(written),
        "split": {"by": GENE, "shares": SHARES, "seed": seed},
        "candidates": candidates,
        "files": files,
    }
    if without_copies:
        report["dropped"] = {reason: counts[reason] for reason in (REPEATED, CONTRADICTED, NEAR)}
    else:
        report["copies"] = {reason: counts[reason] for reason in (REPEATED, CONTRADICTED)}
    if with_baselines:
        report["baselines"] = [
            record
            for ranker in (OverlapRanker(hpo), LikelihoodRanker(hpo))
            for record in measure(ranker, reading.cases, watch)
        ]
    report["attribution"] = ATTRIBUTION
    write_json(Path(out) / "report.json", report)
    return report


def describe_side(rows: Sequence[Row]) -> dict[str, int]:
    """Counts of one side."""
    genes = Counter(row[GENE] for row in rows)
    return {
        "rows": len(rows),
        "genes": len(genes),
        "papers": len({row["pmid"] for row in rows} - {""}),
        "rows_of_largest_gene": max(genes.values(), default=0),
    }


def count_duplicates(cases: Sequence[Case]) -> int:
    """Cases that repeat an earlier one's gene, present and absent terms."""
    return len(cases) - len({(case.gene, case.features) for case in cases})


# Split.


def split_cases(cases: Sequence[Case], seed: int = 0) -> dict[str, list[Case]]:
    """Split by gene, cases with the same features on one side; each side in a seeded order.

    Genes with more than CROWDED cases train, unless too little would be left for the other sides.
    The same cases and seed give the same sides, whatever the cases' order. AssertionError where a
    gene, or a case's features, stand on two sides.
    """
    cases = sorted(cases, key=lambda case: case.case_id)
    n_genes = len({case.gene for case in cases})
    if n_genes < len(SHARES):
        raise UserError(
            f"the cases name {n_genes} genes, expected at least {len(SHARES)}, because genes are "
            f"split into {', '.join(SHARES)}: add cases"
        )
    crowded = crowded_genes(cases)
    n_crowded = sum(case.gene in crowded for case in cases)
    if n_crowded > SHARES["train"] * len(cases) / 2 or n_genes - len(crowded) < len(SHARES):
        n_crowded, crowded = 0, set()
    room = {side: share * len(cases) for side, share in SHARES.items()}
    room["train"] -= n_crowded
    left = {side: cases_left / (len(cases) - n_crowded) for side, cases_left in room.items()}
    # split_by_group keeps rows with equal `messages` together: here that is the features' ids, so
    # that age, sex and the order of a list do not hide a copy.
    stand_ins = [{"messages": c.features, GENE: c.gene, "case": c} for c in cases]
    sides = split_by_group([s for s in stand_ins if s[GENE] not in crowded], GENE, left, seed)
    sides["train"] += [s for s in stand_ins if s[GENE] in crowded]
    assert_disjoint(sides, GENE)
    for side, members in sides.items():
        random.Random(f"{side}-{seed}").shuffle(members)
    return {side: [s["case"] for s in members] for side, members in sides.items()}


def crowded_genes(cases: Sequence[Case]) -> set[str]:
    """Genes with more than CROWDED cases, and every gene that shares a case's features with one."""
    crowded = {gene for gene, n in Counter(case.gene for case in cases).items() if n > CROWDED}
    reached: set[str] = set()
    while crowded != reached:
        reached = crowded
        features = {case.features for case in cases if case.gene in crowded}
        crowded = {case.gene for case in cases if case.features in features}
    return crowded


# Candidates.


def candidate_lists(cases: Sequence[Case], hpo: Hpo, size: int, seed: int = 0) -> list[list[str]]:
    """For each case of ONE side, `size` genes in a seeded order: the true one and distractors.

    Half of the distractors are the genes whose annotation overlaps most with what this patient
    shows, as a phenotype-driven tool would list them; the others are drawn at random. All come
    from the answers of the same side: a gene that only ever stood as a distractor could be
    learned to be wrong, and a test gene that stood as one in training would be.
    """
    pool = sorted({case.gene for case in cases})
    if not ANSWER_LENGTH <= size <= len(pool):
        raise UserError(
            f"--candidates is {size}, expected {ANSWER_LENGTH} (the length of an answer) to "
            f"{len(pool)} (the genes of this side of the split): ask for 5 to 20, or add cases"
        )
    similar = OverlapRanker(hpo, pool).rank_many([case.present for case in cases], k=size)
    lists = []
    for case, ranking in zip(cases, similar):
        rng = random.Random(f"candidates-{seed}-{case.case_id}")
        distractors = [gene for gene in ranking if gene != case.gene][: (size - 1) // 2]
        rest = [gene for gene in pool if gene != case.gene and gene not in distractors]
        chosen = [case.gene, *distractors, *rng.sample(rest, size - 1 - len(distractors))]
        rng.shuffle(chosen)
        lists.append(chosen)
    return lists


# Copies.


def copies_of(rows: Sequence[Row]) -> dict[int, str]:
    """{number of the row in the list: why it is a copy}; the first of several alike is none.

    Rows are alike where their prompts say the same of the patient; lists of candidates do not
    count. A prompt that stands for several genes has no right answer: all its rows are copies.
    """
    alike: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        alike[json.dumps([row[key] for key in SHOWN])].append(number)
    copies = {}
    for numbers in alike.values():
        if len({rows[number][GENE] for number in numbers}) > 1:
            copies |= dict.fromkeys(numbers, CONTRADICTED)
        else:
            copies |= dict.fromkeys(numbers[1:], REPEATED)
    return copies


def drop_copies(
    rows: Mapping[str, Sequence[Row]], copies: Mapping[str, Mapping[int, str]]
) -> tuple[dict[str, list[Row]], int]:
    """(rows of each side without copies, number of near-duplicates): what passes `rftkit check`.

    Of near-duplicates on two sides the later side's row goes: training keeps its rows, and what
    is tested was not all but trained on.
    """
    kept: dict[str, list[Row]] = {}
    n_near = 0
    for side, side_rows in rows.items():
        own = [row for number, row in enumerate(side_rows) if number not in copies[side]]
        # Again after each round: a row that goes changes how common the words of the others are.
        while near := set().union(*(near_duplicates(earlier, own) for earlier in kept.values())):
            own = [row for number, row in enumerate(own) if number not in near]
            n_near += len(near)
        kept[side] = own
    return kept, n_near


def near_duplicates(earlier: Sequence[Row], later: Sequence[Row]) -> set[int]:
    """Numbers of the later rows that `rftkit check` calls near-duplicates of an earlier one."""
    prompts = ([messages_text(row) for row in rows] for rows in (earlier, later))
    return {number for number, _, _ in similar_prompts(*prompts)}
