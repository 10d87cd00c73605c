"""What does a higher price for repeated genes do? One RFT run for each price, three in all.

    python benchmarks/repeated_genes.py        # about three minutes on two quiet cores

Nearly half of the tuned model's lists name a gene twice. The task's grader takes a fortieth of the
grade for each repeat; here a list with a repeat loses half of its grade, or all of it. Everything
else is the demo's (seed 0), and what is looked at are validation genes. Prints a table.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
from pathlib import Path

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


def look(policy: LocalPolicy, task: Task) -> tuple[float, float, float]:
    """(top1, top5, share of the readable lists that name a gene twice), two answers a row."""
    rows = task.rows("validation")
    settings = SamplingConfig(max_new_tokens=64, seed=77)
    drawn = policy.sample([row["messages"] for row in rows], 2, settings)
    pairs = [(row, sample) for row, group in zip(rows, drawn) for sample in group]
    places = [task.place(row, sample) for row, sample in pairs]
    lists = [genes for _, sample in pairs if (genes := task.answers(sample))]
    return (
        statistics.mean(place == 1 for place in places),
        statistics.mean(place is not None and place <= 5 for place in places),
        statistics.mean(len(set(genes)) < len(genes) for genes in lists),
    )


def main() -> None:
    task = load_task("gene_ranking")
    print("| what a repeated gene costs | top1 | top5 | lists with a repeat |\n|---|---|---|---|")

    def show(name: str, policy: LocalPolicy) -> None:
        print(
            f"| {name} | " + " | ".join(f"{v:.3f}" for v in look(policy, task)) + " |", flush=True
        )

    show("(the base, untrained)", load_policy("embedded:mini"))
    for name, formula in PRICES.items():
        grader = copy.deepcopy(task.grader.to_json())
        grader["calculate_output"] = formula or grader["calculate_output"]
        config = RunConfig(
            task="gene_ranking",
            grader=grader,
            steps=50,
            learning_rate=2e-3,
            eval_rows=240,
            gate="off",
        )
        with tempfile.TemporaryDirectory() as folder:
            show(name, train(config, Path(folder) / "run").policy)


if __name__ == "__main__":
    main()
