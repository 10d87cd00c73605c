"""From a few human labels to millions: RFT model, machine labels, a small student.

    python benchmarks/stepping_stone.py              # seeds 0, 1, 2 of the student
    python benchmarks/stepping_stone.py --seeds 0
    python benchmarks/stepping_stone.py --size 200   # so many pool rows: does it run?

RFT of the embedded mini with 64 labelled rows, 32 more to choose the checkpoint by. It labels
20,000 rows of all 240 genes greedily, and 2,000 of them again by the majority of four samples.
Students with less than a third of its parameters learn from these labels, without a trace.
Controls: the base, SFT of the mini on the 64 human labels, students on other labels (STUDENTS).

All label the 540 test rows through `rftkit label`. A rate is in rows a second of the process's own
CPU time, one thread, so that a busy machine changes it little. What is finished stands in
runs/stepping_stone and is not run again; the record is written after each part. Three seeds took
about an hour beside other work (AMD EPYC, 1 Dec 2026), seed 0 alone about 40 minutes.
"""

from __future__ import annotations

import json
import random
import time
from functools import partial
from pathlib import Path
from typing import Any

from real_model import Row, arguments, kept, places

from rftkit import RunConfig, Sample, bootstrap, load_task, read_rows, train, write_rows
from rftkit.console import Reporter
from rftkit.distill import Distilling, distill
from rftkit.environment import machine, versions
from rftkit.evaluation import clusters_of, paired_difference
from rftkit.files import read_json, write_json
from rftkit.graders.answer import fill_template
from rftkit.label import Labelling, label
from tools.make_gene_pool import pool_rows

HUMAN, HELD_OUT, POOL, AUDIT, VOTES = 64, 32, 20_000, 2_000, 4
COMMON = dict(model="embedded:mini", task="gene_ranking", gate="off", patience=0)
COMMON |= dict(eval_rows=HELD_OUT, eval_every=10)
RFT = COMMON | dict(steps=50, learning_rate=2e-3)
SFT = COMMON | dict(method="sft", prompts_per_step=16, steps=10_000, epochs=10, keep_start=False)
STUDENT = dict(width=64, layers=2, epochs=4)
STUDENTS: dict[str, Row] = {  # what they learn from: settings; of few labels, more passes
    "machine": {},
    "human": dict(epochs=100, batch=16),  # the 64 rows
    "1,000 machine": dict(epochs=40),
    "corrected": {},  # the machine's lists, the right gene put first
    "random errors": {},  # corrected, then as many wrong as the machine's, drawn at random
    "30 % random errors": {},
    "50 % random errors": {},
}
PAIRS = (("corrected", "machine"), ("random errors", "machine"))


class Meter(Reporter):
    """Counts CPU seconds from the first row on: loading the model is not counted."""

    rows = None

    def work(self, done: float) -> None:
        if self.rows is None:  # first called with the rows of an earlier call
            self.rows, self.began = 0, time.process_time()
        else:
            self.rows += int(done)


class Work:
    """The folder of all files; `size` takes few rows and two steps."""

    def __init__(self, out: Path, size: int | None):
        self.out, self.size, self.task = out, size, load_task("gene_ranking")
        pool = pool_rows(size or POOL)
        files = {"pool": pool, "audit": pool[:AUDIT], "test": self.task.rows("test")[:size]}
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
        return took | {"kept step": run.best["step"], "validation top1": run.best["mean"]}

    def label(self, name: str, model: Any, rows: str, **options: Any) -> Row:
        """Write NAME.jsonl. Per row of ROWS.jsonl: is the first gene right? None: no label."""
        meter, out = Meter(quiet=True), self.out / f"{name}.jsonl"
        known = dict(max_tokens=64, task="gene_ranking") | options
        label(Labelling(self.out / f"{rows}.jsonl", str(model), out, **known), meter)
        cpu, truth = time.process_time() - meter.began, self.truth[rows]
        right: list[bool | None] = [None] * len(truth)
        for record in read_rows(out) if out.stat().st_size else []:
            right[record["line"] - 1] = genes_of(record)[0] == truth[record["line"] - 1]
        return {"right": right, "rows_a_cpu_second": round(meter.rows / cpu, 1)}

    def student(self, kind: str, seed: int) -> Row:
        """Train it; -> its labels of the test rows."""
        labels, folder = self.out / f"{kind} labels.jsonl", self.out / f"{kind}-{seed}"
        write_rows(labels, self.labels(kind))
        if not (folder / "student.json").exists():
            settings = STUDENT | STUDENTS[kind] | ({"epochs": 1} if self.size else {})
            distill(Distilling(labels, folder, seed=seed, **settings))
        tested = self.label(f"{kind}-{seed} test", folder, "test")
        return tested | {"training": read_json(folder / "student.json")}

    def labels(self, kind: str) -> list[Row]:
        if kind == "human":
            return self.answers(self.task.answer_template)
        rows, rng = read_rows(self.out / "machine.jsonl"), random.Random(0)
        if "machine" in kind:
            return rows[:1_000] if kind.startswith("1,000") else rows
        truth = [self.truth["pool"][row["line"] - 1] for row in rows]
        wrong = 0
        if kind.endswith("random errors"):
            wrong = sum(genes_of(row)[0] != gene for row, gene in zip(rows, truth))
            if "%" in kind:
                wrong = int(kind.split()[0]) * len(rows) // 100
        for i in rng.sample(range(len(rows)), wrong):
            truth[i] = rng.choice([gene for gene in sorted(set(truth)) if gene != truth[i]])
        return [with_first(row, gene) for row, gene in zip(rows, truth)]

    def answers(self, template: str) -> list[Row]:
        return [row | {"completion": fill_template(template, row)} for row in self.human]


def genes_of(record: Row) -> list[str]:
    return Sample.from_text(record["completion"]).output_json["genes"]


def with_first(record: Row, gene: str) -> Row:
    others = [other for other in genes_of(record) if other != gene]
    return record | {"completion": json.dumps({"genes": [gene, *others][:5]})}


def share(right: list) -> Row:
    return {"rows": len(right), "right": round(sum(map(bool, right)) / max(1, len(right)), 4)}


def report(work: Work, parts: dict[str, Row]) -> Row:
    """The record: a part each, with the share of right labels; intervals on the test rows."""
    record: Row = {"machine": machine(), "date": time.strftime("%Y-%m-%d"), "versions": versions()}
    record |= {"settings": {"RFT": RFT, "SFT": SFT, "student": STUDENT | STUDENTS}, "parts": {}}
    for name, part in parts.items():
        own = record["parts"][name] = part | (share(part["right"]) if "right" in part else {})
        if name.endswith(" test"):
            own["right"] = bootstrap(list(map(bool, part["right"])), work.clusters).to_json()
            hours = 5e6 / part["rows_a_cpu_second"] / 3600
            own["hours of 5 million rows, computed"] = round(hours, 2)
    record["paired"] = []
    for a, b in PAIRS:
        for seed in range(3):
            both = [parts.get(f"{kind}-{seed} test") for kind in (a, b)]
            if None not in both:
                values = [list(map(bool, part["right"])) for part in both]
                gap = paired_difference(*values, work.clusters).to_json()
                record["paired"].append({"a": a, "b": b, "seed": seed} | gap)
    labelled = work.human + work.task.rows("validation")[:HELD_OUT]
    named, greedy = {row["reference_gene"] for row in labelled}, parts["machine"]["right"]
    by_gene: dict[bool, list] = {True: [], False: []}
    for gene, right in zip(work.truth["pool"], greedy):
        by_gene[gene in named].append(right)
    record["labels"] = {"genes": len(set(work.truth["pool"])), "named in training rows": len(named)}
    record["labels"] |= {"of these": share(by_gene[True]), "of others": share(by_gene[False])}
    if "majority" in parts:
        levels: dict[float, list[int]] = {}
        for row in read_rows(work.out / "majority.jsonl"):
            levels.setdefault(row["confidence"], []).append(row["line"] - 1)
        both = {"majority": parts["majority"]["right"], "greedy": greedy}
        record["audit"] = [
            {"agree": agree} | {name: share([r[i] for i in own]) for name, r in both.items()}
            for agree, own in sorted(levels.items())
        ]
    return record


def main() -> None:
    given = arguments(__doc__).parse_args()
    out, record = places(given, "stepping_stone")
    work, parts = Work(out, given.size), {}

    def part(name: str, make: Any, *given: Any, **options: Any) -> None:
        print(time.strftime("%H:%M"), name, flush=True)
        parts[name] = kept(out / f"{name}.json", partial(make, *given, **options))
        if "machine" in parts:
            write_json(record, report(work, parts))

    part("RFT training", work.train, "rft", RFT, work.human)
    part("machine", work.label, "machine", out / "rft", "pool")
    for name, model in {"base": "embedded:mini", "RFT": out / "rft"}.items():
        part(f"{name} test", work.label, f"{name} test", model, "test")
    answers = work.answers("<think></think>" + work.task.answer_template)
    part("SFT training", work.train, "sft", SFT, answers)
    part("SFT test", work.label, "SFT test", out / "sft", "test")
    first, *more = given.seeds
    for kind in STUDENTS:
        part(f"{kind}-{first} test", work.student, kind, first)
    part("majority", work.label, "majority", out / "rft", "audit", samples=VOTES)
    order = [("machine", seed) for seed in more]
    order += [(kind, seed) for kind in STUDENTS if kind != "machine" for seed in more]
    for kind, seed in order:
        part(f"{kind}-{seed} test", work.student, kind, seed)


if __name__ == "__main__":
    main()
