"""`rftkit demo`: the whole of RFT on the embedded models. The test genes choose nothing."""

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

from rftkit import files
from rftkit.check import check_file
from rftkit.compare import Bench, Rows, write_report
from rftkit.console import Reporter, option, validation_text
from rftkit.environment import peak_memory_mb
from rftkit.evaluation import bootstrap, clusters_of, measure
from rftkit.files import UserError, markdown_table
from rftkit.graders.answer import fill_template
from rftkit.policy import Policy, load_policy
from rftkit.real_cases import load_world, read_real_cases
from rftkit.records import Sample, SamplingConfig
from rftkit.rows import sha256_of
from rftkit.task import SPLITS, Task, load_task
from rftkit.training.config import RunConfig
from rftkit.training.report import paired_table, shared_groups, systems_table
from rftkit.training.run import train
from rftkit.training.store import append_samples

BASES = ("base", "base, few-shot", "base, prompted")
SYSTEMS = ("random", "overlap", *(f"mini {how}" for how in BASES))
SYSTEMS += ("SFT mini", "rejection-sampling SFT mini", "RFT mini")
SYSTEMS += (*(f"large {how}" for how in BASES), "RFT large")
RIVALS = ("mini base", "mini base, prompted", "SFT mini", "rejection-sampling SFT mini")
RIVALS += ("large base", "large base, prompted")
REFERENCE = (
    "OpenAI's announcement of RFT (6 Dec 2024: top1 17.7 % of o1-mini, 25 % of o1, 31 % of RFT "
    "o1-mini) is no comparison: other cases, another split, other models."
)
PLAN = "<think>Diagnose first."  # the prefill of "mini base, prompted"
PLAN_PATTERN = "diagnose first"
TRIES = 8  # samples a case of a base model, for pass@8

Ranking = Callable[[Rows], list[list[str]]]  # five genes for each row, most likely first
PROFILES = {
    "full": SimpleNamespace(test_rows=None, steps=50, prompts=8, eval_rows=240, epochs=8),
    "smoke": SimpleNamespace(test_rows=60, steps=6, prompts=4, eval_rows=30, epochs=1),
}


@dataclass
class Demo:
    """One demo: its fields are the options of `rftkit demo`, its steps stand in `run`, in order."""

    profile: Annotated[str, option("NAME", "full, or smoke: the same steps, smaller.")] = "full"
    samples: Annotated[int, option("N", "Answers a case at T = 1.", min=1)] = 2
    cases: Annotated[Path | None, option("PATH", "Real cases: phenopackets, or their rows.")] = None
    seed: Annotated[int, option("N", "Of training and sampling.", min=0)] = 0
    out: Annotated[Path, option("DIR", "Folder for the run.")] = Path("runs/demo")

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise UserError(f'--profile: "{self.profile}", expected full or smoke')
        self.size = PROFILES[self.profile]
        self.task = load_task("gene_ranking")
        self.train_rows = self.task.rows("train")
        self.validation_rows = self.task.rows("validation")[: self.size.eval_rows]
        self.runs: dict[str, Any] = {}

    def run(self, reporter: Reporter | None = None) -> dict[str, Any]:
        """Train, evaluate, write everything to `out`; -> report.json's object."""
        began, self.reporter = time.perf_counter(), reporter or Reporter(quiet=True)
        self.bench = self.bench_of(self.task.rows("test")[: self.size.test_rows])
        self.benches = [self.bench]
        self.out.mkdir(parents=True, exist_ok=True)
        self.show_task()
        if self.cases:
            real_rows, counts = read_real_cases(self.cases, load_world())
            self.benches.append(self.bench_of(real_rows))
            self.reporter.say("".join(f"{name}: {count}\n" for name, count in counts.items()))
        self.evaluate_bases()
        # The learning rate is a tiny model's, chosen on validation genes; the gates of the shipped
        # base are in the report.
        grpo = dict(learning_rate=2e-3, gate="off")
        grpo |= dict(steps=self.size.steps, prompts_per_step=self.size.prompts)
        self.train("RFT mini", grpo, self.out, self.train_rows)
        self.train_rivals()
        self.train("RFT large", grpo, self.out / "large", self.train_rows)
        report = self.report()
        if self.cases:
            report["real_cases"] = counts | real_results(self.benches[1])
        report["seconds"] = round(time.perf_counter() - began, 1)
        self.write(report)
        return report

    def show_task(self) -> None:
        folder, group, row = self.task.folder, self.task.group_by, self.train_rows[0]
        assert check_file(folder / "train.jsonl", folder / "validation.jsonl", group_by=group).ok
        self.reporter.say(
            f"Task {self.task.name}: {len(self.train_rows)} training rows, "
            f"{len(self.validation_rows)} validation and {len(self.bench.rows)} test rows of other "
            f"genes. Checked: clean.\nOne case:\n  user: {row['messages'][-1]['content']}\n"
            f"  the answer, for the grader alone: {row[group]}"
        )

    def evaluate_bases(self) -> None:
        self.add("random", partial(random_ranking, self.seed))
        self.add("overlap", overlap_ranking)
        for size in ("mini", "large"):
            base = load_policy(f"embedded:{size}")
            self.add(f"{size} base", base, tries=TRIES)
            self.add(f"{size} base, few-shot", base, examples=self.examples())
            self.add(f"{size} base, prompted", base, prefill=PLAN)

    def examples(self) -> list[dict[str, str]]:
        """Two training rows with their right answers, as a chat."""
        shown = self.train_rows[:2]
        answers = (fill_template(self.task.answer_template, row) for row in shown)
        replies = ({"role": "assistant", "content": answer} for answer in answers)
        return [m for row, reply in zip(shown, replies) for m in (*row["messages"], reply)]

    def train_rivals(self) -> None:
        """SFT, same rows, adapter and validations: on the answers, on the base's right samples."""
        sft = dict(method="sft", prompts_per_step=16, steps=10_000, epochs=self.size.epochs)
        sft |= dict(patience=0, keep_start=False)
        answers = sft | {"completion_template": "<think></think>" + self.task.answer_template}
        self.train("SFT mini", answers, self.out / "sft", self.train_rows)
        # As many completions of the base as RFT drew, rounded up: the rival never has fewer.
        each = -(-self.runs["RFT mini"].training["samples"] // len(self.train_rows))
        count, prompts = each * len(self.train_rows), [row["messages"] for row in self.train_rows]
        self.reporter.stage("sampling the base", count)
        sampling = SamplingConfig(max_new_tokens=64, seed=2_000 + self.seed)
        drawn = load_policy("embedded:mini").sample(prompts, each, sampling, self.reporter.work)
        kept = right_completions(self.task, self.train_rows, drawn)
        name = "rejection-sampling SFT mini"
        self.train(name, sft, self.out / "rejection_sampling", kept)
        self.runs[name].training |= {"samples": count, "kept": len(kept)}

    def bench_of(self, rows: Rows) -> Bench:
        sampling = SamplingConfig(max_new_tokens=64, seed=1_000 + self.seed)
        return Bench(self.task, rows, sampling, self.samples, self.reporter)

    def add(self, name: str, system: Policy | Ranking, tries: int = 0, **how: Any) -> None:
        """Evaluate a system on the test rows, and on the real cases where they are asked for."""
        for bench in self.benches:
            if callable(system):
                texts = [json.dumps({"genes": genes}) for genes in system(bench.rows)]
                answers = [[Sample.from_text(text)] for text in texts]
                bench.results[name] = measure(name, self.task, bench.rows, answers, answers)
            else:
                bench.add(name, system, tries if bench is self.bench else 0, **how)

    def train(self, name: str, settings: dict[str, Any], out: Path, rows: Rows) -> None:
        common = dict(model=f"embedded:{name.split()[-1]}", task=self.task.name, seed=self.seed)
        config = RunConfig(**common, eval_rows=self.size.eval_rows, **settings)
        steps = config.steps
        if config.method == "sft":
            config = config.replace(eval_every=-(-len(rows) // config.prompts_per_step))
            steps = config.epochs * config.eval_every
        self.reporter.stage(f"training {name}", steps)
        held_out = self.validation_rows
        run = train(config, out, [self.show_step], self.task, rows, held_out, existing="replace")
        kept = f"kept step {run.best['step']}, {validation_text(run.best)}"
        self.reporter.say(f"{name}: {run.training['seconds']:.0f} s; {kept}")
        self.runs[name] = run
        self.add(name, run.policy)

    def show_step(self, record: dict[str, Any]) -> None:
        self.reporter.work(1)
        if validation := record.get("validation"):
            share = f"{validation['patterns'][PLAN_PATTERN]:.0%} {PLAN_PATTERN}"
            self.reporter.say(f"  step {record['step']}, {validation_text(validation)}, {share}")

    def report(self) -> dict[str, Any]:
        """report.json's object, but for the real cases."""
        metrics = (("top1", False), ("top1", True))
        pairs = [("RFT mini", rival, *metric) for rival in RIVALS for metric in metrics]
        pairs += [("large base", "mini base", "top1", False)]
        pairs += [("RFT large", "large base, prompted", *metric) for metric in metrics]
        (_, run), *rivals = self.runs.items()
        shared = shared_groups(self.train_rows, self.bench.rows, self.task)
        training = {"answer_groups_shared_with_eval": len(shared), "peak_rss_mb": peak_memory_mb()}
        return self.bench.to_json(SYSTEMS, pairs) | {
            "columns": ["top5", f"pass@{TRIES}"],  # of the printed table, beside top1
            "profile": self.profile,
            "reference": REFERENCE,
            "training": run.training | training | {"start": run.start, "best": run.best},
            "rivals": {name: r.training | {"best_step": r.best["step"]} for name, r in rivals},
            "gates": files.model_gates(),
            "seed": self.seed,
            "sha256": checksums(self.task),
        }

    def write(self, report: dict[str, Any]) -> None:
        """report.json, report.md, table.png, curve.png and the test lines of samples.jsonl."""
        from rftkit.dashboard import dashboard_figure

        sentences = reading(report)
        if real := report.get("real_cases"):
            lost = "; ".join(f"{count} {reason}" for reason, count in real["lost"].items())
            sentences.append(f"## Real published cases: {real['kept']} of {real['read']}")
            sentences.append(f"Lost: {lost}.")
            sentences += [markdown_table(systems_table(real)), markdown_table(paired_table(real))]
        write_report(report, sentences, self.out)
        run = self.runs["RFT mini"]
        dashboard_figure(run.log, run.start).savefig(self.out / "curve.png")
        for result in self.bench.results.values():
            for groups, greedy in ((result.samples, False), (result.greedy_samples, True)):
                append_samples(self.out / "samples.jsonl", sum(groups, []), greedy=greedy)


def right_completions(task: Task, rows: Rows, drawn: list[list[Sample]]) -> Rows:
    """A row with its `completion` for each right sample: what rejection-sampling SFT imitates."""
    return [
        row | {"completion": f"<think>{sample.reasoning}</think>{sample.output_text}"}
        for row, group in zip(rows, drawn)
        for sample in group
        if task.place(row, sample) == 1 and sample.finish_reason == "stop"
        if "\N{REPLACEMENT CHARACTER}" not in sample.reasoning + sample.output_text  # half a letter
    ]


def real_results(bench: Bench) -> dict[str, Any]:
    """Every system on the published cases that can be written in the world's terms."""
    others = ("mini base", "large base", "overlap")
    report = bench.to_json(SYSTEMS, [("RFT mini", other, "top1", False) for other in others])
    measured = {key: report[key] for key in ("headline", "systems", "paired")}
    unseen = [i for i, row in enumerate(bench.rows) if row["split"] == "test"]
    groups = clusters_of([bench.rows[i] for i in unseen], bench.task)
    top1 = {name: bench.results[name].values["top1"][unseen] for name in SYSTEMS if unseen}
    alone = {name: bootstrap(values, groups).to_json() for name, values in top1.items()}
    return measured | {"test_genes_alone": {"n": len(unseen), "top1": alone}}


def random_ranking(seed: int, rows: Rows) -> list[list[str]]:
    genes, rng = sorted(load_world().genes()), random.Random(seed)
    return [rng.sample(genes, 5) for _ in rows]


def overlap_ranking(rows: Rows) -> list[list[str]]:
    """The five genes whose annotation shares most with the case: no model here can read that."""
    from rftkit.genes.baselines import OverlapRanker
    from rftkit.genes.hpo import load_hpo

    ranker = OverlapRanker(load_hpo(), genes=load_world().genes())
    return ranker.rank_many([[term["id"] for term in row["present"]] for row in rows], k=5)


def checksums(task: Task) -> dict[str, str]:
    places = {f"{task.name}/{s}.jsonl": task.folder / f"{s}.jsonl" for s in SPLITS}
    for name in ("mini", "large"):
        places[f"embedded:{name}"] = files.embedded_model(name) / "model.safetensors"
    return {name: sha256_of(place) for name, place in places.items()}


def reading(report: dict[str, Any]) -> list[str]:
    """What RFT added, what it did not, and where the row stands that reads the annotation."""
    systems = {system["name"]: system for system in report["systems"]}
    top = {name: system["top1"]["mean"] for name, system in systems.items()}
    greedy = {name: system["greedy"]["top1"] for name, system in systems.items()}
    base, tuned = (systems[n]["patterns"][PLAN_PATTERN] for n in ("mini base", "RFT mini"))
    solved = systems["mini base"][f"pass@{TRIES}"]["mean"]
    return [
        REFERENCE,
        f'RFT found the plan that works: "Diagnose first" rose from {base:.0%} to {tuned:.0%} of '
        f"the answers, and top1 from {top['mini base']:.3f} to {top['RFT mini']:.3f}, on genes "
        "that never were an answer in training.",
        f"It moved pass@{TRIES} to pass@1: one of the base's {TRIES} answers was right in "
        f"{solved:.3f} of the cases before.",
        "It added no knowledge. Who knows the plan needs no training: prompted with it, mini base "
        f"reaches {top['mini base, prompted']:.3f} and large base {top['large base, prompted']:.3f}"
        f" (greedy {greedy['mini base, prompted']:.3f} and {greedy['large base, prompted']:.3f}). "
        f"RFT mini is {compared(report, 'mini base, prompted')} the first and "
        f"{compared(report, 'large base, prompted')} the second (T = 1).",
        f"The overlap row ({top['overlap']:.3f}) reads the annotation that the cases were made "
        "from, so it is no rival.",
    ]


def compared(report: dict[str, Any], rival: str) -> str:
    """How RFT mini stands to it, by the paired interval of top1 at T = 1."""
    names = ("RFT mini", rival, "top1")
    (pair,) = (p for p in report["paired"] if (p["a"], p["b"], p["metric"]) == names)
    return "above" if pair["low"] > 0 else "below" if pair["high"] < 0 else "level with"
