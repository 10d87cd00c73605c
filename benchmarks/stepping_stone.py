"""From a few human labels to millions: RFT model, machine labels, a small student. Five steps.

    python benchmarks/stepping_stone.py              # seeds 0, 1, 2 of the student
    python benchmarks/stepping_stone.py --seeds 0
    python benchmarks/stepping_stone.py --size 200   # so many pool rows: does it run?

RFT of the embedded mini with 64 labelled rows, 32 more to choose the checkpoint by. It labels
20,000 rows of all 240 genes, greedily, and 2,000 of them again by the majority of four samples.
Students with at most a third of its parameters learn from the labels without a trace. Controls: the
base; students and SFT of the mini on the 64 human labels; students on corrected labels, and on
labels with as many errors as the machine's, drawn at random.

All systems label the same 540 test rows through `rftkit label`. Rates are rows a second of the
process's own CPU time, one thread, so that a busy machine changes them little. What is finished
stands in runs/stepping_stone and is not run again; the record is written after each part.
"""

from __future__ import annotations

import json
import random
import re
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from real_model import Row, arguments, kept, places

from rftkit import RunConfig, Sample, load_task, read_rows, train, write_rows
from rftkit.console import Reporter
from rftkit.distill import Distilling, distill
from rftkit.environment import machine, versions
from rftkit.evaluation import bootstrap, clusters_of
from rftkit.files import write_json
from rftkit.graders.answer import fill_template
from rftkit.label import Labelling, label
from tools.make_gene_pool import pool_rows

HUMAN, HELD_OUT, POOL, REST, AUDIT, VOTES = 64, 32, 20_000, 2_000, 2_000, 4
COMMON = dict(model="embedded:mini", task="gene_ranking", gate="off", patience=0)
COMMON |= dict(eval_rows=HELD_OUT, eval_every=10)
RFT = COMMON | dict(steps=50, learning_rate=2e-3)
SFT = COMMON | dict(method="sft", prompts_per_step=16, steps=10_000, epochs=10, keep_start=False)
STUDENT = dict(width=64, layers=2, epochs=4)
FEW = {"human": dict(epochs=100, batch=16), "1,000": dict(epochs=40)}  # fewer rows, more passes
TOKENS = 64  # of a completion at most


class Meter(Reporter):
    """CPU seconds and memory from the first row on: loading the model is not counted."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.rows, self.memory = 0, []  # rows labelled by this call; (rows, resident MB)

    def work(self, done: float) -> None:
        now = time.process_time(), time.perf_counter()
        if not self.memory:  # rows of an earlier call
            self.began, done = now, 0
        self.rows += int(done)
        status = re.search(r"VmRSS:\s*(\d+)", Path("/proc/self/status").read_text())
        self.memory.append((self.rows, int(status[1]) * 1024 / 1e6))
        self.cpu, self.wall = (end - start for end, start in zip(now, self.began))


class Work:
    """The folder of all files; `size` takes few pool rows and two steps."""

    def __init__(self, out: Path, size: int | None):
        self.out, self.size, self.task = out, size, load_task("gene_ranking")
        pool = pool_rows((size or POOL) + (size or REST))
        files = {"pool": pool[: size or POOL], "rest": pool[size or POOL :]}
        files |= {"audit": files["pool"][:AUDIT], "test": self.task.rows("test")[:size]}
        self.human = self.task.rows("train")[:HUMAN]
        self.truth = {name: [r["reference_gene"] for r in rows] for name, rows in files.items()}
        self.clusters = clusters_of(files["test"], self.task)
        for name, rows in files.items():
            asked = [{key: row[key] for key in ("messages", "case_id")} for row in rows]
            write_rows(out / f"{name}.jsonl", asked)

    def train(self, name: str, settings: Row, rows: list[Row]) -> Row:
        config = RunConfig(**settings | ({"steps": 2} if self.size else {}))
        held_out = self.task.rows("validation")[:HELD_OUT]
        run = train(config, self.out / name, rows=rows, held_out=held_out)
        took = {key: run.training[key] for key in ("steps", "seconds")}
        return took | {key: run.best[key] for key in ("step", "mean")}

    def label(self, name: str, model: Any, rows: str, **options: Any) -> Row:
        """Write NAME.jsonl. Per row of ROWS.jsonl: is the first gene right? None: no label."""
        meter, out = Meter(), self.out / f"{name}.jsonl"
        options = dict(max_tokens=TOKENS, task="gene_ranking") | options
        label(Labelling(self.out / f"{rows}.jsonl", str(model), out, **options), meter)
        truth = self.truth[rows]
        right: list[bool | None] = [None] * len(truth)
        for record in read_rows(out) if out.stat().st_size else []:
            right[record["line"] - 1] = genes_of(record)[0] == truth[record["line"] - 1]
        slope = np.polyfit(*zip(*meter.memory), 1)[0] * 1_000
        used = {"cpu_seconds": meter.cpu, "seconds": meter.wall, "mb_a_thousand_rows": slope}
        used = {key: round(float(value), 3) for key, value in used.items()}
        return {"right": right, "rows": meter.rows} | used

    def student(self, name: str, rows: list[Row], seed: int, **settings: Any) -> Row:
        """Train it; -> its labels of the test rows."""
        labels, folder = self.out / f"{name} labels.jsonl", self.out / f"{name}-{seed}"
        write_rows(labels, rows)
        if not (folder / "student.json").exists():
            settings = STUDENT | settings | ({"epochs": 1} if self.size else {})
            distill(Distilling(labels, folder, seed=seed, **settings))
        made = json.loads((folder / "student.json").read_text())
        return self.label(f"{name}-{seed} test", folder, "test") | {"training": made}

    def labels(self, kind: str) -> list[Row]:
        """The machine's; with the true gene put first; or with as many errors, drawn at random."""
        rows, rng = read_rows(self.out / "machine.jsonl"), random.Random(0)
        truth = [self.truth["pool"][row["line"] - 1] for row in rows]
        wrong = [i for i, row in enumerate(rows) if genes_of(row)[0] != truth[i]]
        genes = sorted(set(truth))
        if kind == "machine":
            return rows
        if kind == "random errors":
            for i in rng.sample(range(len(rows)), len(wrong)):
                truth[i] = rng.choice([gene for gene in genes if gene != truth[i]])
        return [with_first(row, gene) for row, gene in zip(rows, truth)]

    def human_labels(self, before: str = "") -> list[Row]:
        template = before + self.task.answer_template
        return [row | {"completion": fill_template(template, row)} for row in self.human]


def genes_of(record: Row) -> list[str]:
    return Sample.from_text(record["completion"]).output_json["genes"]


def with_first(record: Row, gene: str) -> Row:
    others = [other for other in genes_of(record) if other != gene]
    return record | {"completion": json.dumps({"genes": [gene, *others][:5]})}


def share(values: list) -> float | None:
    return round(sum(map(bool, values)) / len(values), 4) if values else None


def report(work: Work, parts: dict[str, Row]) -> Row:
    """The record: shares of right labels, intervals on the test rows, rates, hours."""
    record: Row = {"machine": machine(), "date": time.strftime("%Y-%m-%d"), "versions": versions()}
    record |= {"settings": {"RFT": RFT, "SFT": SFT, "student": STUDENT, "few": FEW}, "parts": {}}
    named, truth = {row["reference_gene"] for row in work.human}, work.truth["pool"]
    for name, part in parts.items():
        own = {key: value for key, value in part.items() if key != "right"}
        if right := part.get("right"):
            own |= {"n": len(right), "accuracy": share(right)}
            own |= {"without a label": sum(value is None for value in right)}
        if name.endswith(" test"):
            own |= bootstrap([bool(value) for value in right], work.clusters).to_json()
        if name.endswith(" rest"):
            own["rows_a_cpu_second"] = round(part["rows"] / part["cpu_seconds"], 1)
            own["hours_of_5_million"] = round(5e6 / own["rows_a_cpu_second"] / 3600, 2)  # computed
        record["parts"][name] = own
    if "machine" in parts:
        right = parts["machine"]["right"]
        sides = {"genes that a human named": True, "other genes": False}
        record["labels"] = {
            side: share([r for r, gene in zip(right, truth) if (gene in named) == own])
            for side, own in sides.items()
        } | {"genes named": len(named), "genes": len(set(truth))}
    if "majority" in parts:
        record["audit"] = audit(work, parts["machine"]["right"], parts["majority"]["right"])
    return record


def audit(work: Work, greedy: list, majority: list) -> list[Row]:
    """By the share of the four samples that agree: rows, and how many labels are right."""
    levels: dict[float, list[int]] = {}
    for row in read_rows(work.out / "majority.jsonl"):
        levels.setdefault(row["confidence"], []).append(row["line"] - 1)
    both = {"majority right": majority, "greedy right": greedy}
    return [
        {"agree": agree, "rows": len(own)}
        | {name: share([right[i] for i in own]) for name, right in both.items()}
        for agree, own in sorted(levels.items())
    ]


def main() -> None:
    given = arguments(__doc__).parse_args()
    out, record = places(given, "stepping_stone")
    work, parts = Work(out, given.size), {}

    def part(name: str, make: Any, *given: Any, **options: Any) -> None:
        print(time.strftime("%H:%M"), name, flush=True)
        parts[name] = kept(out / f"{name}.json", partial(make, *given, **options))
        write_json(record, report(work, parts))

    part("RFT training", work.train, "rft", RFT, work.human)
    part("machine", work.label, "machine", out / "rft", "pool")
    few = {"human": work.human_labels(), "1,000": work.labels("machine")[:1_000]}
    for seed in given.seeds:
        for kind in ("machine", "corrected", "random errors"):
            part(f"{kind} {seed} test", work.student, kind, work.labels(kind), seed)
        if seed == given.seeds[0]:
            student = out / f"machine-{seed}"
            answers = work.human_labels("<think></think>")
            part("SFT training", work.train, "sft", SFT, answers)
            models = {"base": "embedded:mini", "SFT": out / "sft", "RFT": out / "rft"}
            for name, model in models.items():
                part(f"{name} test", work.label, f"{name} test", model, "test")
            for name, model in (models | {"student": student}).items():
                part(f"{name} rest", work.label, f"{name} rest", model, "rest")
            part("majority", work.label, "majority", out / "rft", "audit", samples=VOTES)
        for name, rows in few.items():
            part(f"{name} {seed} test", work.student, name, rows, seed, **FEW[name])


if __name__ == "__main__":
    main()
