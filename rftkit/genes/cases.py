"""Published cases -> train, validation and test rows, split by gene: `rftkit cases`.

Why by gene: under a random split the nearest training case alone names 83 % of the answers, under
a split by paper 27 %. Copies are counted, because a paper that reports a family gives several cases
in the very same words; they are kept by default, because they are what was published.

With signs, what a small model does not know about genes stands in the prompt. N cases of N
different genes share one list, the genes with M signs annotated to each, and each case is the
patient of one row, with M of its signs. So every gene, place and sign of the list is right in one
of N rows, and a rule that does not read the patient is right in exactly 1/N. For the same reason
each gene's signs, not only the true one's, are drawn without the paper of its own case.

Left out: absent signs (authors list what a disease is known for: naming a gene BECAUSE its signs
are absent would pay); distractors of the same organ system (they make the steps of `ladder`
smaller: .38, .50, .74 in place of .40, .66, .81 on published cases at N 3, M 4, five seeds).
"""

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rftkit.check import similar_prompts
from rftkit.evaluation import bootstrap
from rftkit.files import UserError, write_json
from rftkit.genes.baselines import SAME_SCORE, LikelihoodRanker, OverlapRanker, measure
from rftkit.genes.hpo import ATTRIBUTION, HPO_RELEASE, Hpo, load_hpo
from rftkit.genes.phenopackets import Case, case_row, read_cases
from rftkit.rows import Row, messages_text, sha256_of, split_by_group, write_rows

# Of the cases, not of the genes. An RFT job takes 1,000 validation rows at most.
SHARES = {"train": 0.72, "validation": 0.08, "test": 0.20}
# STXBP1 alone has 462 cases, all from one paper, and would be a third of a test set that got it.
# Genes with more than MOST cases are dealt as one group, for which only training has room.
MOST, CROWDED = 100, "crowded genes"
GENE = "reference_gene"
SHOWN = ("present", "absent", "sex", "age", "onset")  # the fields that a prompt is written from

REPEATED = "with the prompt and gene of another case"
CONTRADICTED = "with the prompt of a case of another gene"
NEAR = "near-duplicates of a case on another side"
UNLISTED = "too few signs annotated to the gene, or no other genes to share a list"
RUNGS = {"chance": "nothing", "exact overlap": "shown signs", "overlap": "shown signs"}
RUNGS |= {"likelihood": "without own paper"}  # method: what it reads


def make_cases(
    source: str | Path,
    out: str | Path,
    candidates: int = 0,
    with_baselines: bool = False,
    seed: int = 0,
    without_copies: bool = False,
    signs: int = 0,
) -> dict[str, Any]:
    """Write train, validation, test.jsonl and report.json. With N candidates each prompt names N
    genes, the true one among them; with signs, M of each of them. The baselines rank all genes for
    all cases (about 10 s), or the candidates with signs of the test rows."""
    hpo = load_hpo()
    cases, reading = read_cases(source, hpo)
    rows = {}
    for side, own in split_cases(cases, seed).items():
        named = candidates and not signs
        lists = candidate_lists(own, hpo, candidates, seed) if named else [()] * len(own)
        rows[side] = [case_row(case, hpo, names) for case, names in zip(own, lists)]
    copies = {side: copies_of(side_rows) for side, side_rows in rows.items()}
    reasons = Counter(reason for side in copies.values() for reason in side.values())
    counts = {reason: reasons[reason] for reason in (REPEATED, CONTRADICTED)}
    if without_copies:
        rows, counts[NEAR] = drop_copies(rows, copies)
    if signs:
        case_of = {case.case_id: case for case in cases}
        for side, side_rows in rows.items():
            own = [case_of[row["case_id"]] for row in side_rows]
            rows[side] = sign_rows(own, hpo, candidates, signs, seed)
            reading["kept"] -= (lost := len(own) - len(rows[side]))
            reading["lost"][UNLISTED] = reading["lost"].get(UNLISTED, 0) + lost
    files = {}
    for side, side_rows in rows.items():
        path, genes = Path(out) / f"{side}.jsonl", Counter(row[GENE] for row in side_rows)
        write_rows(path, side_rows)
        files[path.name] = {
            "rows": len(side_rows),
            "genes": len(genes),
            "papers": len({row["pmid"] for row in side_rows} - {""}),
            "rows_of_largest_gene": max(genes.values(), default=0),
            "sha256": sha256_of(path),
        }
    written = {row["case_id"] for side_rows in rows.values() for row in side_rows}
    features = {(case.gene, case.features) for case in cases if case.case_id in written}
    report = {
        "source": Path(source).name,
        "hpo_release": HPO_RELEASE,
        **reading,
        "duplicates": len(written) - len(features),
        "split": {"by": GENE, "shares": SHARES, "seed": seed},
        "candidates": candidates,
        "signs": signs,
        "files": files,
        "dropped" if without_copies else "copies": counts,
        "attribution": ATTRIBUTION,
    }
    if with_baselines and signs:
        report["baselines"] = ladder(rows["test"], hpo)
    elif with_baselines:
        rankers = (OverlapRanker(hpo), LikelihoodRanker(hpo))
        report["baselines"] = [r for ranker in rankers for r in measure(ranker, cases)]
    write_json(Path(out) / "report.json", report)
    return report


def split_cases(cases: Sequence[Case], seed: int = 0) -> dict[str, list[Case]]:
    """Split by gene, cases with the same features on one side; each side in a seeded order."""
    cases = sorted(cases, key=lambda case: case.case_id)
    n_cases = Counter(case.gene for case in cases)
    # split_by_group keeps rows with equal `messages` on one side: here that is the features' ids,
    # so that age, sex and the order of a list do not hide a copy.
    stand_ins = [
        {"messages": c.features, GENE: CROWDED if n_cases[c.gene] > MOST else c.gene, "case": c}
        for c in cases
    ]
    sides = split_by_group(stand_ins, GENE, SHARES, seed)
    for side, members in sides.items():
        random.Random(f"{side}-{seed}").shuffle(members)
    return {side: [s["case"] for s in members] for side, members in sides.items()}


def candidate_lists(cases: Sequence[Case], hpo: Hpo, size: int, seed: int = 0) -> list[list[str]]:
    """For each case of ONE side, `size` genes in a seeded order: the true one and distractors, half
    of them those whose annotation overlaps most with the case. All are answers of the same side: a
    gene that only ever stood as a distractor could be learned to be wrong."""
    pool = sorted({case.gene for case in cases})
    if size > len(pool):
        raise UserError(f"--candidates is {size}, but a side has {len(pool)} genes: ask for fewer")
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


def copies_of(rows: Sequence[Row]) -> dict[int, str]:
    """{number of the row in the list: why it is a copy}; the first of several alike is none. Where
    several genes have the same patient, all its rows are copies: there is no right answer."""
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
    Of near-duplicates on two sides the later side's row goes: training keeps its rows."""
    kept: dict[str, list[Row]] = {}
    n_near = 0
    for side, side_rows in rows.items():
        own = [row for number, row in enumerate(side_rows) if number not in copies[side]]
        earlier = [[messages_text(row) for row in other] for other in kept.values()]
        # Again after each round: a row that goes changes how common the words of the others are.
        while near := {
            number
            for prompts in earlier
            for number, _, _ in similar_prompts(prompts, [messages_text(row) for row in own])
        }:
            own = [row for number, row in enumerate(own) if number not in near]
            n_near += len(near)
        kept[side] = own
    return kept, n_near


def sign_rows(cases: Sequence[Case], hpo: Hpo, size: int, n_signs: int, seed: int = 0) -> list[Row]:
    """Rows for the cases of ONE side, group after group; left out are those with too few signs."""
    rows: list[Row] = []
    waiting: list[dict[str, Case]] = []  # groups that lack a gene
    for case in cases:
        if len(hpo.annotated(case.gene, case.pmid)) >= n_signs:
            group = next((group for group in waiting if case.gene not in group), {})
            waiting += [] if group else [group]
            group[case.gene] = case
            if len(group) == size:
                waiting.remove(group)
                rows += group_rows(list(group.values()), hpo, n_signs, seed)
    if not rows:
        raise UserError(f"--candidates {size} --signs {n_signs}: too few genes: ask for fewer")
    return rows


def group_rows(group: list[Case], hpo: Hpo, n_signs: int, seed: int) -> Iterator[Row]:
    """A row for each case, in random order, under the list that they share."""
    rng = random.Random(f"signs-{seed}-{group[0].case_id}")
    rng.shuffle(group)
    shared = {"candidates": [case.gene for case in group], "papers": [case.pmid for case in group]}
    shared["signs"] = signs = []
    for case in group:  # drawn by frequency: a sign waits a time that is exponential with that rate
        rates = hpo.annotated(case.gene, case.pmid)
        signs.append(sorted(rates, key=lambda term: rng.expovariate(rates[term]))[:n_signs])
    for case in rng.sample(group, len(group)):
        present = rng.sample(case.present, min(n_signs, len(case.present)))
        row = case_row(replace(case, present=present, absent=[]), hpo) | shared
        row["messages"] = [{"role": "user", "content": prompt_text(row, hpo)}]
        yield row


def prompt_text(row: Row, hpo: Hpo) -> str:
    lists = zip(row["candidates"], row["signs"])
    lists = [*lists, ("Patient", [term["id"] for term in row["present"]])]
    lines = "\n".join(f"{name}: {'; '.join(map(hpo.terms.get, own))}" for name, own in lists)
    places = ", ".join([f'"GENE{i + 1}"' for i in range(len(lists) - 1)][:5])  # the grader reads 5
    form = f'Answer with JSON alone: {{"genes": [{places}]}}'
    return f"Candidates and their signs:\n{lines}\nRank the genes, most likely first. {form}"


def ladder(rows: Sequence[Row], hpo: Hpo) -> list[dict[str, Any]]:
    """Each method's top1 in percent on rows of `sign_rows` (ties: expected credit), intervals by
    gene. Only "likelihood" knows the whole annotation, without the paper of each gene's case."""
    likelihood, asked = LikelihoodRanker(hpo), defaultdict(list)
    scores = {method: np.zeros((len(rows), len(rows[0]["candidates"]))) for method in RUNGS}
    for r, row in enumerate(rows):
        patient = [term["id"] for term in row["present"]]
        for c, signs in enumerate(row["signs"]):
            scores["exact overlap"][r, c] = len({*patient} & {*signs})
            scores["overlap"][r, c] = len(hpo.closure_of(patient) & hpo.closure_of(signs))
            asked[row["candidates"][c], row["papers"][c]].append((r, c, patient))
    for (gene, paper), cells in asked.items():
        r, c, patients = zip(*cells)
        scores["likelihood"][r, c] = likelihood.score_without(gene, paper, patients)
    genes, records = [row["reference_gene"] for row in rows], []
    right = np.array([[gene == own for gene in row["candidates"]] for row, own in zip(rows, genes)])
    for method, how in RUNGS.items():
        first = scores[method] >= scores[method].max(axis=1, keepdims=True) - SAME_SCORE
        interval = bootstrap(100 * (first & right).sum(axis=1) / first.sum(axis=1), genes)
        top1, low, high = (round(share, 2) for share in vars(interval).values())
        numbers = {"n": len(rows), "top1": top1, "low": low, "high": high}
        records.append({"method": method, "how": how} | numbers)
    return records
