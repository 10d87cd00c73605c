"""Published cases -> train, validation and test rows, split by gene: `rftkit cases`.

    rftkit cases all_phenopackets.zip --out cases

Why by gene: under a random split the nearest training case alone names 83 % of the answers,
under a split by paper 27 %. No answer gene of validation or test occurs in training, and cases
with the same features stand on one side, even where their genes differ.

What was left out: papers that report several genes may stand on two sides, and relatives of one
family are as many rows as the paper has.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rftkit.files import UserError, write_json
from rftkit.genes.baselines import LikelihoodRanker, OverlapRanker, measure
from rftkit.genes.case import ANSWER_LENGTH, Case, case_row, prompt_text
from rftkit.genes.hpo import ATTRIBUTION, HPO_RELEASE, Hpo, load_hpo
from rftkit.genes.phenopackets import read_cases
from rftkit.graders.presets import gene_rank
from rftkit.overlap import similar_prompts
from rftkit.rows import messages_text, row_ids, sha256_of, split_by_group, write_rows

# ------------------------------------------------------------------------------------------
# from rftkit.genes.cases:
# Copies among published cases: found by what the prompt says, left out where that is asked for.
#
# A paper that reports a family gives several cases in the very same words. As rows they are
# duplicates, which count double in training and shrink no interval in evaluation; two genes told in
# the same words contradict each other; and a case that all but repeats a training case tests
# memory.
# `rftkit check` reports all three. They are kept by default, because they are what was published.

REPEATED = "with the prompt and gene of another case"
CONTRADICTED = "with the prompt of a case of another gene"
NEAR = "near-duplicates of a case on another side"


def copies_of(cases: Sequence[Case], hpo: Hpo) -> dict[int, str]:
    """{number of the case in the list: why it is a copy}; the first of several alike is none.

    A prompt that is told for several genes has no right answer: all of its cases are copies.
    Lists of candidates are left out of the comparison; they differ from copy to copy.
    """
    alike: dict[str, list[int]] = defaultdict(list)
    for number, case in enumerate(cases):
        alike[prompt_text(case, hpo)].append(number)
    found = {}
    for numbers in alike.values():
        if len({cases[number].gene for number in numbers}) > 1:
            found |= dict.fromkeys(numbers, CONTRADICTED)
        else:
            found |= dict.fromkeys(numbers[1:], REPEATED)
    return found


def count_copies(sides: Mapping[str, Sequence[Case]], hpo: Hpo) -> dict[str, int]:
    """How many rows drop_copies would leave out, by reason; near-duplicates are not sought."""
    counts = Counter(why for cases in sides.values() for why in copies_of(cases, hpo).values())
    return {why: counts[why] for why in (REPEATED, CONTRADICTED)}


def drop_copies(
    sides: Mapping[str, Sequence[Case]], rows: Mapping[str, Sequence[dict[str, Any]]], hpo: Hpo
) -> tuple[dict[str, list[Case]], dict[str, list[dict[str, Any]]], dict[str, int]]:
    """(sides, rows, {why: how many were left out}): what is left passes `rftkit check`.

    sides, rows   per side the cases, and the row of each
    Of near-duplicates across the split the later side's goes: training keeps its rows, and what
    is tested was not all but trained on.
    """
    kept = {}
    counts: Counter[str] = Counter()
    for side, cases in sides.items():
        copies = copies_of(cases, hpo)
        counts.update(copies.values())
        kept[side] = [n for n in range(len(cases)) if n not in copies]
    names = list(sides)
    for later in names[1:]:
        near = True
        while near:  # each row that goes changes how common the words of the others are
            near = set()
            for earlier in names[: names.index(later)]:
                near |= near_duplicates(rows[earlier], kept[earlier], rows[later], kept[later])
            kept[later] = [n for n in kept[later] if n not in near]
            counts[NEAR] += len(near)
    return (
        {side: [sides[side][n] for n in numbers] for side, numbers in kept.items()},
        {side: [rows[side][n] for n in numbers] for side, numbers in kept.items()},
        {why: counts[why] for why in (REPEATED, CONTRADICTED, NEAR)},
    )


def near_duplicates(
    earlier: Sequence[dict[str, Any]],
    earlier_kept: Sequence[int],
    later: Sequence[dict[str, Any]],
    later_kept: Sequence[int],
) -> set[int]:
    """Numbers of the later rows that all but repeat an earlier one (rftkit/overlap.py)."""
    pairs = similar_prompts(
        [messages_text(earlier[number]) for number in earlier_kept],
        [messages_text(later[number]) for number in later_kept],
    )
    return {later_kept[place] for place, _, _ in pairs}


# ------------------------------------------------------------------------------------------
# from rftkit.genes.cases:
# task.json of a gene-ranking task: what every task of this form has in common.


def ranking_task(
    name: str,
    question: str,
    patterns: Mapping[str, str] | None = None,
    more_worse_answers: Sequence[str] = (),
) -> dict[str, Any]:
    """task.json's object: rank five genes, graded by the place of the row's `reference_gene`.

    patterns            name: regular expression over the reasoning, each a way of thinking
    more_worse_answers  beside a right gene in second place, in fourth, and not at all
    """
    return {
        "name": name,
        "question": question,
        "grader": gene_rank().to_json(),
        "answer_template": '{"genes": ["{{item.reference_gene}}"]}',
        "worse_answers": [
            '{"genes": ["NOTAGENE", "{{item.reference_gene}}"]}',
            '{"genes": ["NOTAGENE", "NEITHER", "NORTHIS", "{{item.reference_gene}}"]}',
            '{"genes": ["NOTAGENE"]}',
            *more_worse_answers,
        ],
        "group_by": "reference_gene",
        "patterns": dict(patterns or {}),
        "metrics": ["top1", "top5", "mrr"],
        "headline": "top1",
    }


# ------------------------------------------------------------------------------------------
# from rftkit.genes.cases:
# Published cases -> train, validation and test rows, split by gene: `rftkit cases`.
#
#     rftkit cases all_phenopackets.zip --out cases
#
# Why by gene: under a random split the nearest training case alone names 83 % of the answers,
# under a split by paper 27 %. No answer gene of validation or test occurs in training, and cases
# with the same features stand on one side, even where their genes differ.
#
# What was left out: papers that report several genes may stand on two sides, and relatives of one
# family are as many rows as the paper has.

# Shares of the cases, not of the genes. The validation stays under the 1,000 rows that an RFT job
# takes, for the whole phenopacket-store too (10,580 cases).
SHARES = {"train": 0.72, "validation": 0.08, "test": 0.20}
SEED = 0
# A gene with more cases than this trains, whatever the seed: STXBP1 alone has 462 cases, all from
# one paper, and would be a third of a test set that happened to get it.
CROWDED = 100
GENE = "reference_gene"

Watch = Callable[[str, int, int], None]  # what is done, how much of it, of how much (0: unknown)


def unwatched(what: str, done: int, total: int) -> None:
    """The observer that looks away."""


def make_cases(
    source: str | Path,
    out: str | Path,
    candidates: int = 0,
    with_baselines: bool = False,
    seed: int = SEED,
    watch: Watch = unwatched,
    without_copies: bool = False,
) -> dict[str, Any]:
    """Read phenopackets, split them by gene, write train, validation, test.jsonl and report.json.

    candidates      0: free form. N: each prompt names N genes, the true one among them
    with_baselines  also rank all genes for all cases without a language model (about 10 s)
    without_copies  leave out what `rftkit check` would call a copy (copies.py)
    Returns the report. Every file is written beside and renamed. UserError for a source that
    cannot be read, too few genes for three sides, or N out of range.
    """
    if candidates and candidates < ANSWER_LENGTH:
        raise UserError(
            f"--candidates is {candidates}, expected at least {ANSWER_LENGTH} (the answer ranks "
            f"{ANSWER_LENGTH} genes): ask for 5 to 20, or leave it out for the free form"
        )
    hpo = load_hpo()
    reading = read_cases(source, hpo, lambda done: watch("reading", done, 0))
    sides = split_cases(reading.cases, SHARES, seed)
    report = {
        "source": Path(source).name,
        "hpo_release": HPO_RELEASE,
        **reading.summary(),
        "duplicates": 0,  # of those written, counted below
        "split": {"by": GENE, "shares": SHARES, "seed": seed},
        "candidates": candidates,
        "files": {},
    }
    rows = {}
    for side, cases in sides.items():
        lists = candidate_lists(cases, hpo, candidates, seed) if candidates else [()] * len(cases)
        rows[side] = [case_row(case, hpo, names) for case, names in zip(cases, lists)]
        row_ids(rows[side])  # raises where two rows share an id
    if without_copies:
        watch("leaving out copies", 0, 0)
        sides, rows, report["dropped"] = drop_copies(sides, rows, hpo)
    else:
        report["copies"] = count_copies(sides, hpo)
    report["duplicates"] = count_duplicates([case for cases in sides.values() for case in cases])
    for number, (side, side_rows) in enumerate(rows.items(), 1):
        path = Path(out) / f"{side}.jsonl"
        write_rows(path, side_rows)
        report["files"][path.name] = describe_side(sides[side]) | {"sha256": sha256_of(path)}
        watch("writing", number, len(rows))
    if with_baselines:
        report["baselines"] = all_baselines(hpo, reading.cases, watch)
    report["attribution"] = ATTRIBUTION
    write_json(Path(out) / "report.json", report)
    return report


def split_cases(
    cases: Sequence[Case], shares: Mapping[str, float] = SHARES, seed: int = SEED
) -> dict[str, list[Case]]:
    """Split by gene, cases with the same features on one side; each side in a seeded order.

    Genes with more than CROWDED cases go to the first side, unless too little would be left for
    the others. The same cases and seed give the same sides, whatever the cases' order.
    """
    cases = sorted(cases, key=lambda case: case.case_id)
    n_genes, train = len({case.gene for case in cases}), next(iter(shares))
    if n_genes < len(shares):
        raise UserError(
            f"the cases name {n_genes} genes, expected at least {len(shares)}, because genes are "
            f"split into {', '.join(shares)}: add cases"
        )
    crowded = crowded_genes(cases)
    set_aside = [case for case in cases if case.gene in crowded]
    if len(set_aside) > shares[train] * len(cases) / 2 or n_genes - len(crowded) < len(shares):
        set_aside, crowded = [], set()
    rest = [case for case in cases if case.gene not in crowded]
    room = {side: share * len(cases) for side, share in shares.items()}
    room[train] -= len(set_aside)
    # split_by_group keeps rows with equal `messages` together: here that is the features' ids, so
    # that age, sex and the order of a list do not hide a copy.
    stand_ins = [{"messages": features_of(c), GENE: c.gene, "case": c} for c in rest]
    left = {side: cases_left / len(rest) for side, cases_left in room.items()}
    parts = split_by_group(stand_ins, GENE, left, seed)
    sides = {side: [row["case"] for row in part] for side, part in parts.items()}
    sides[train] += set_aside
    for side, part in sides.items():
        random.Random(f"{side}-{seed}").shuffle(part)
    assert_sides_disjoint(sides)
    return sides


def crowded_genes(cases: Sequence[Case]) -> set[str]:
    """Genes with more than CROWDED cases, and every gene that shares a case's features with one."""
    pairs = {(case.gene, features_of(case)) for case in cases}
    crowded = {gene for gene, n in Counter(case.gene for case in cases).items() if n > CROWDED}
    found: set[str] = set()
    while crowded != found:
        found = crowded
        theirs = {features for gene, features in pairs if gene in crowded}
        crowded = crowded | {gene for gene, features in pairs if features in theirs}
    return crowded


def features_of(case: Case) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Present and absent ids, each sorted: equal for duplicates."""
    return tuple(sorted(case.present)), tuple(sorted(case.absent))


def count_duplicates(cases: Sequence[Case]) -> int:
    """Cases that repeat an earlier one's gene, present and absent terms. They are kept."""
    return len(cases) - len({(case.gene, features_of(case)) for case in cases})


def assert_sides_disjoint(sides: Mapping[str, Sequence[Case]]) -> None:
    """AssertionError where a gene, or a case's features, stand on two sides."""
    side_of: dict[Any, str] = {}
    for side, cases in sides.items():
        for case in cases:
            for what, value in (("gene", case.gene), ("features", features_of(case))):
                if side_of.setdefault(value, side) != side:
                    raise AssertionError(
                        f"case {case.case_id}: its {what} stands in {side_of[value]} and in {side}"
                    )


def candidate_lists(
    cases: Sequence[Case], hpo: Hpo, size: int, seed: int = SEED
) -> list[list[str]]:
    """For each case of ONE side, `size` genes in a seeded order: the true one and distractors.

    Half of the distractors are the genes whose annotation overlaps most with what this patient
    shows, as a phenotype-driven tool would list them; the others are drawn at random. All come
    from the answers of the same side: a gene that only ever stood as a distractor could be
    learned to be wrong, and a test gene that stood as one in training would be.
    """
    pool = sorted({case.gene for case in cases})
    if len(pool) < size:
        raise UserError(
            f"--candidates is {size}, expected at most {len(pool)}, as many genes as one side of "
            "the split has: ask for fewer, or add cases"
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


def all_baselines(
    hpo: Hpo, cases: Sequence[Case], watch: Watch = unwatched
) -> list[dict[str, Any]]:
    """Both methods, each as is and without the own paper: four records, in percent."""
    records = []
    for ranker_class in (OverlapRanker, LikelihoodRanker):
        what = f"baseline {ranker_class.method}"
        watch(what, 0, len(cases))
        records += measure(
            ranker_class(hpo), cases, lambda done, what=what: watch(what, done, len(cases))
        )
    return records


def describe_side(cases: Sequence[Case]) -> dict[str, int]:
    """Counts of one side."""
    return {
        "rows": len(cases),
        "genes": len({case.gene for case in cases}),
        "papers": len({case.pmid for case in cases if case.pmid}),
        "rows_of_largest_gene": Counter(case.gene for case in cases).most_common(1)[0][1],
    }
