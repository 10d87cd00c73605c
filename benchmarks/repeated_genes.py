"""What does a higher price for repeated genes do? One RFT run for each price, three in all.

    python benchmarks/repeated_genes.py        # about three minutes on two quiet cores

Nearly half of the tuned model's lists name a gene twice. The task's grader takes a fortieth of the
grade for each repeat; here a list with a repeat loses half of its grade, or all of it. Everything
else is the demo's (seed 0), measured on validation genes. Prints a Markdown table.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import mean

from rftkit.policy import LocalPolicy, load_policy
from rftkit.records import SamplingConfig
from rftkit.task import Task, load_task
from rftkit.training.config import RunConfig
from rftkit.training.run import train

PLACES = "max(first, 0.7 * second, 0.5 * third, 0.3 * fourth, 0.1 * fifth)"
AGAIN = "min(1, second_again + third_again + fourth_again + fifth_again)"
PRICES = {
    "a fortieth for each (shipped)": None,
    "half of the whole grade": f"(0.9 * {PLACES} + 0.1 * format) * (1 - 0.5 * {AGAIN})",
    "the whole grade": f"(0.9 * {PLACES} + 0.1 * format) * (1 - {AGAIN})",
}


def table_row(name: str, policy: LocalPolicy, task: Task) -> str:
    """Two samples a row of validation: top1, top5, share of lists that name a gene twice."""
    rows = task.rows("validation")
    settings = SamplingConfig(max_new_tokens=64, seed=77)
    groups = policy.sample([row["messages"] for row in rows], 2, settings)
    pairs = [(row, sample) for row, group in zip(rows, groups) for sample in group]
    places = [task.place(row, sample) or 99 for row, sample in pairs]
    lists = [genes for _, sample in pairs if (genes := task.answers(sample))]
    repeats = mean(len(set(genes)) < len(genes) for genes in lists)
    top1, top5 = (mean(place <= k for place in places) for k in (1, 5))
    return f"| {name} | {top1:.3f} | {top5:.3f} | {repeats:.3f} |"


if __name__ == "__main__":
    task = load_task("gene_ranking")
    print("| what a repeated gene costs | top1 | top5 | lists with a repeat |\n|---|---|---|---|")
    print(table_row("(the base, untrained)", load_policy("embedded:mini"), task))
    for name, formula in PRICES.items():
        grader = task.grader.to_json() | ({"calculate_output": formula} if formula else {})
        config = RunConfig(
            task="gene_ranking",
            grader=grader,
            steps=50,
            learning_rate=2e-3,
            eval_rows=240,
            gate="off",
        )
        with tempfile.TemporaryDirectory() as folder:
            policy = train(config, Path(folder) / "run").policy
            print(table_row(name, policy, task), flush=True)
