"""What the demo trains and evaluates, step by step.

The test genes are read at the very end and choose nothing.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rftkit.check import check_file
from rftkit.compare import cell, paired_table
from rftkit.environment import machine, peak_memory_mb, versions
from rftkit.evaluation import SystemResult, bootstrap, clusters_of, evaluate, measure, paired_record
from rftkit.files import UserError, embedded_model, model_gates, write_json, write_text
from rftkit.plots import curve_figure, save_figure, table_figure
from rftkit.policy import LocalPolicy, load_policy
from rftkit.real_cases import RealCases, load_world, tell_real_cases
from rftkit.records import Sample, SamplingConfig
from rftkit.rows import sha256_of
from rftkit.task import Task, load_task
from rftkit.training.config import RunConfig
from rftkit.training.run import Run, train
from rftkit.training.store import append_lines

# ------------------------------------------------------------------------------------------
# from rftkit.demo.settings:
# What the demo compares, how large its two profiles are, and who hears about it.

SYSTEMS = (
    "random",
    "overlap",
    "mini base",
    "mini base, told the plan",
    "large base",
    "SFT mini",
    "rejection-sampling SFT mini",
    "RFT mini",
)
RIVALS = (
    "large base",
    "SFT mini",
    "rejection-sampling SFT mini",
    "mini base, told the plan",
    "mini base",
)
REFERENCE_LINES = [
    {"name": "OpenAI: o1-mini 17.7 %", "value": 0.177},
    {"name": "OpenAI: o1 25 %", "value": 0.25},
    {"name": "OpenAI: RFT o1-mini 31 %", "value": 0.31},
]
REFERENCE_SOURCE = (
    "quoted from OpenAI's announcement of RFT, 6 Dec 2024: other cases, another split, other models"
)
PREFILL = "<think>Diagnose first."
VOTES = 8  # samples a case of a base model, for maj@8 and pass@8
LARGE, STEP = 3.0, 3.0  # what an answer of the large model, and learning from one, cost beside 1


@dataclass
class Profile:
    """Smoke is the same run, smaller: it proves that everything works, and nothing else."""

    test_rows: int | None
    steps: int
    prompts_per_step: int
    eval_rows: int
    epochs: int


PROFILES = {
    "full": Profile(test_rows=None, steps=50, prompts_per_step=8, eval_rows=240, epochs=8),
    "smoke": Profile(test_rows=60, steps=6, prompts_per_step=4, eval_rows=30, epochs=1),
}


class Reporter:
    """Hears what happens; the command line shows it. All methods may be left as they are."""

    def say(self, text: str = "") -> None:
        """One line for the reader."""

    def plan(self, work: float) -> None:
        """The whole run's size, in answers' worth of time (an answer of the mini is 1)."""

    def stage(self, name: str) -> None:
        """A stage begins."""

    def advance(self, work: float) -> None:
        """So much is done, in answers' worth of time."""


# ------------------------------------------------------------------------------------------
# from rftkit.demo.baselines:
# Systems that are no model: random order, and the annotation itself.


def world_genes() -> list[str]:
    return sorted(load_world().genes())


Ranking = Callable[[list[dict[str, Any]]], list[list[str]]]


def random_ranking(genes: list[str], seed: int) -> Ranking:
    """Five genes of the world in random order, for each row."""

    def rank(rows: list[dict[str, Any]]) -> list[list[str]]:
        rng = random.Random(seed)
        return [rng.sample(genes, 5) for _ in rows]

    return rank


def overlap() -> Ranking:
    """The five genes of the world whose annotation shares most with the case.

    It reads the annotation itself, which no model here can: an upper mark, not a rival.
    """

    def rank(rows: list[dict[str, Any]]) -> list[list[str]]:
        from rftkit.genes.baselines import OverlapRanker
        from rftkit.genes.hpo import load_hpo

        world = load_world()
        ranker = OverlapRanker(load_hpo(), genes=world.genes())
        return ranker.rank_many([[term["id"] for term in row["present"]] for row in rows], k=5)

    return rank


def as_samples(rankings: Iterable[list[str]]) -> list[list[Sample]]:
    """Rankings as answers in the form that a model gives."""
    return [[Sample.from_text(json.dumps({"genes": genes}))] for genes in rankings]


# ------------------------------------------------------------------------------------------
# from rftkit.demo.real:
# Published cases of real patients, put to every system of the demo.


def real_cases(source: str | Path) -> RealCases:
    return tell_real_cases(source, load_world())


def evaluate_real(demo: Demo, real: RealCases) -> dict[str, Any]:
    """Every system on the real cases that the world can be told."""
    rows, task = real.rows, demo.task
    genes = world_genes()
    rankings = {"random": random_ranking(genes, demo.seed), "overlap": overlap()}
    results = [
        measure(name, task, rows, as_samples(rank(rows)), as_samples(rank(rows)))
        for name, rank in rankings.items()
    ]
    told = SamplingConfig(**{**demo.settings.to_json(), "prefill": PREFILL})
    mini = load_policy("embedded:mini")
    policies = {
        "mini base": (mini, demo.settings),
        "mini base, told the plan": (mini, told),
        "large base": (load_policy("embedded:large"), demo.settings),
        **{name: (run.policy, demo.settings) for name, run in demo.runs.items()},
    }
    for name in [name for name in SYSTEMS if name in policies]:
        policy, settings = policies[name]
        weight = LARGE if "large" in name else 1.0
        demo.reporter.stage(f"real cases: {name}")
        results.append(
            evaluate(
                policy,
                task,
                rows,
                settings,
                samples=demo.samples,
                name=name,
                progress=lambda done, weight=weight: demo.reporter.advance(done * weight),
            )
        )
    clusters = clusters_of(rows, task)
    unseen = [i for i, row in enumerate(rows) if row["split"] == "test"]
    record = real.to_json() | {"systems": [r.to_json(clusters) for r in results]}
    by_name = {r.name: r for r in results}
    record["paired"] = [
        paired_record(by_name["RFT mini"], by_name[name], "top1", clusters)
        for name in ("mini base", "large base", "overlap")
    ]
    record["test_genes_alone"] = {
        "n": len(unseen),
        "top1": {
            r.name: bootstrap(r.values["top1"][unseen], [clusters[i] for i in unseen]).to_json()
            for r in results
            if unseen
        },
    }
    return record


# ------------------------------------------------------------------------------------------
# from rftkit.demo.text:
# The demo's report in words: tables, and what they do and do not say.


def systems_table(systems: list[dict[str, Any]]) -> list[str]:
    """Markdown rows: top1 with its interval, greedy, top5, MRR, maj@8 and pass@8 where measured."""
    lines = [
        "| system | top1 at T = 1 | greedy | top5 | MRR | maj@8 | pass@8 |",
        "|---|---|---|---|---|---|---|",
    ]
    for system in systems:
        maj, any_of = (
            f"{system[k]['mean']:.3f}" if k in system else "" for k in ("maj@8", "pass@8")
        )
        lines.append(
            f"| {system['name']} | {cell(system['top1'])} | {system['greedy']['top1']:.3f} | "
            f"{system['top5']['mean']:.3f} | {system['mrr']['mean']:.3f} | {maj} | {any_of} |"
        )
    return lines


def report_text(report: dict[str, Any]) -> str:
    """report.md: the table, the paired differences, and what they do and do not say."""
    references = ", ".join(line["name"] for line in report["reference_lines"])
    training = report["training"]
    lines = [
        f"# {report['task']}: {report['n_cases']} held-out cases, seed {report['seed']}",
        "",
        *systems_table(report["systems"]),
        "",
        f"Beside it, {references} ({report['reference_source']}).",
        "",
        *paired_table(report["paired"]),
        "",
        *reading(report),
        "",
        f"RFT: {training['examples']} rows, {training['steps']} steps, {training['samples']} "
        f"sampled answers, {training['seconds']:.0f} s; adapter of step "
        f"{training['best']['step']}. Test genes among the training answers: "
        f"{training['answer_groups_shared_with_eval']}. Peak memory "
        f"{training['peak_rss_mb'] or 0:.0f} MB. Measured {report['date']}, {report['machine']}, "
        f"profile {report['profile']}.",
    ]
    if "real_cases" in report:
        real = report["real_cases"]
        lines += ["", f"## Real published cases: {real['kept']} of {real['read']}", ""]
        lost = "; ".join(f"{count} {reason}" for reason, count in real["lost"].items())
        lines += [f"{real['genes']} genes. Lost: {lost}.", "", *systems_table(real["systems"])]
        lines += ["", *paired_table(real["paired"])]
    return "\n".join(lines) + "\n"


def reading(report: dict[str, Any]) -> list[str]:
    """What RFT added, what it did not, and where the row stands that reads the annotation."""
    systems = {system["name"]: system for system in report["systems"]}
    top = {name: system["top1"]["mean"] for name, system in systems.items()}
    base = systems["mini base"]["patterns"].get("diagnose first", 0.0)
    tuned = systems["RFT mini"]["patterns"].get("diagnose first", 0.0)
    return [
        f'What RFT added: it found the way of thinking that works. "Diagnose first" rose from '
        f"{base:.0%} to {tuned:.0%} of the answers and top1 from {top['mini base']:.3f} to "
        f"{top['RFT mini']:.3f}, on genes that never were an answer in training.",
        "What it did not add: knowledge. The same base model, told that plan in one line, reaches "
        f"{top['mini base, told the plan']:.3f} without any training.",
        overlap_sentence(top["overlap"], top["RFT mini"]),
    ]


def overlap_sentence(overlap: float, tuned: float) -> str:
    """Why the overlap row is no rival, and where it stands beside the tuned model's top1."""
    if round(overlap, 3) == round(tuned, 3):
        place = "level with"
    else:
        place = "above" if overlap > tuned else "below"
    return (
        f"The overlap row ({overlap:.3f}) reads the annotation from which the cases were "
        "simulated, and no model here may look anything up: it is no rival, wherever it stands. "
        f"In this run it stands {place} RFT mini ({tuned:.3f})."
    )


# ------------------------------------------------------------------------------------------
# from rftkit.demo.report:
# report.json's record, and the files of a finished demo: report, samples, pictures.


def make_report(demo: Demo, clusters: list) -> dict[str, Any]:
    """What the table, the paired differences and the checks of a finished demo say."""
    ordered = [demo.results[name] for name in SYSTEMS]
    rft = demo.results["RFT mini"]
    run = demo.runs["RFT mini"]
    shared = set(clusters_of(demo.train_rows, demo.task)) & set(clusters)
    return {
        "task": demo.task.name,
        "profile": demo.profile,
        "n_cases": len(demo.test_rows),
        "sampling": {"samples": demo.samples, **demo.settings.to_json()},
        "systems": [result.to_json(clusters) for result in ordered],
        "paired": [
            paired_record(rft, demo.results[name], metric, clusters, greedy)
            for name in RIVALS
            for metric, greedy in (("top1", False), ("top1", True), ("top5", False))
        ]
        + [paired_record(demo.results["large base"], demo.results["mini base"], "top1", clusters)],
        "reference_lines": REFERENCE_LINES,
        "reference_source": REFERENCE_SOURCE,
        "training": {
            **run.training,
            "answer_groups_shared_with_eval": len(shared),
            "peak_rss_mb": peak_memory_mb(),
            "start": run.start,
            "best": run.best,
        },
        "rivals": {
            name: {**r.training, "best_step": r.best["step"]}
            for name, r in demo.runs.items()
            if name != "RFT mini"
        },
        "gates": model_gates(),
        "seed": demo.seed,
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "versions": versions(),
        "sha256": checksums(demo.task),
    }


def write_report(demo: Demo, report: dict[str, Any]) -> None:
    """report.json, report.md, table.png, curve.png and the test lines of samples.jsonl."""
    write_json(demo.out / "report.json", report)
    write_text(demo.out / "report.md", report_text(report))
    save_figure(table_figure(report), demo.out / "table.png")
    run = demo.runs["RFT mini"]
    base = demo.results["mini base"].values["top1"].mean()
    save_figure(curve_figure(run.log, run.start, base), demo.out / "curve.png")
    for result in demo.results.values():
        append_lines(demo.out / "samples.jsonl", lines_of(result))


def checksums(task: Task) -> dict[str, str]:
    """sha256 of the data and the weights that a report rests on."""
    files = [task.folder / f"{split}.jsonl" for split in ("train", "validation", "test")]
    found = {f"{task.name}/{path.name}": sha256_of(path) for path in files}
    for name in ("mini", "large"):
        found[f"embedded:{name}"] = sha256_of(embedded_model(name) / "model.safetensors")
    return found


def lines_of(result: SystemResult) -> list[dict[str, Any]]:
    groups = [*result.samples, *result.greedy_samples]
    return [sample.to_json() for group in groups for sample in group]


# ------------------------------------------------------------------------------------------
# from rftkit.demo.run:
# What the demo trains and evaluates, step by step.
#
# The test genes are read at the very end and choose nothing.


def run_demo(
    out: str | Path = "runs/demo",
    profile: str = "full",
    samples: int = 2,
    cases: str | Path | None = None,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Run all of it, write `out`, return report.json's object.

    profile   full | smoke
    samples   answers a case at T = 1 for the headline numbers
    cases     real cases (phenopackets, or rows that `rftkit cases` wrote): every system is
              evaluated on those whose gene the embedded world knows
    seed      of the RFT run, its rivals and all sampling
    """
    if profile not in PROFILES:
        raise UserError(f'profile: "{profile}", expected full or smoke')
    if samples < 1:
        raise UserError(f"samples: {samples}, expected a whole number from 1")
    demo = Demo(Path(out), PROFILES[profile], profile, samples, seed, reporter or Reporter())
    return demo.run(cases)


class Demo:
    """The state of one demo; the steps stand in `run`, in order."""

    def __init__(self, out, size: Profile, profile: str, samples: int, seed: int, reporter):
        self.out, self.size, self.profile = out, size, profile
        self.samples, self.seed, self.reporter = samples, seed, reporter
        self.task = load_task("gene_ranking")
        self.train_rows = self.task.rows("train")
        self.validation_rows = self.task.rows("validation")[: size.eval_rows]
        self.test_rows = self.task.rows("test")[: size.test_rows]
        self.settings = SamplingConfig(max_new_tokens=64, seed=1_000 + seed)
        self.results: dict[str, SystemResult] = {}
        self.runs: dict[str, Run] = {}

    def run(self, cases: str | Path | None) -> dict[str, Any]:
        began = time.perf_counter()
        self.out.mkdir(parents=True, exist_ok=True)
        self.show_task()
        real = real_cases(cases) if cases else None
        for line in real.summary() if real else []:
            self.reporter.say(line)
        self.reporter.plan(self.planned_work(len(real.rows) if real else 0))
        self.before_training()
        self.reinforce()
        self.rivals()
        clusters = clusters_of(self.test_rows, self.task)
        report = make_report(self, clusters)
        if real:
            report["real_cases"] = evaluate_real(self, real)
        report["seconds"] = round(time.perf_counter() - began, 1)
        write_report(self, report)
        return report

    def planned_work(self, real_rows: int) -> float:
        """The sum of what the stages will report, for the progress bar and its ETA."""
        size, rows = self.size, len(self.test_rows)
        votes = max(self.samples, VOTES) + 1
        evaluations = rows * (votes + votes * LARGE + 4 * (self.samples + 1))
        looks = (size.steps / 5 + 2 * size.epochs) * size.eval_rows * 2
        rollouts = size.steps * size.prompts_per_step * 8
        right = 0.08 * rollouts  # the base's share of right answers, roughly
        learned = STEP * (rollouts + size.epochs * (len(self.train_rows) + right))
        real = real_rows * (self.samples + 1) * (5 + LARGE)
        return evaluations + looks + rollouts + learned + real

    # --- the five steps ------------------------------------------------------------------------

    def show_task(self) -> None:
        folder = self.task.folder
        checked = check_file(
            folder / "train.jsonl", folder / "validation.jsonl", group_by=self.task.group_by
        )
        if not checked.ok:
            raise UserError(f"{folder}: {checked.faults[0]}")
        assert_unseen(self.train_rows + self.validation_rows, self.test_rows, self.task)
        say, row = self.reporter.say, self.train_rows[0]
        say(
            f"Task {self.task.name}: {len(self.train_rows)} training rows, "
            f"{len(self.validation_rows)} of other genes to choose by, {len(self.test_rows)} of "
            "yet other genes to report on. Checked: clean."
        )
        say("One case as the model sees it:")
        for message in row["messages"]:
            say(f"  {message['role']}: {message['content']}")
        say(f"  the answer, for the grader alone: {row[self.task.group_by]}")

    def before_training(self) -> None:
        rows, task = self.test_rows, self.task
        genes = world_genes()
        for name, rank in (("random", random_ranking(genes, self.seed)), ("overlap", overlap())):
            answers = as_samples(rank(rows))
            self.results[name] = measure(name, task, rows, answers, as_samples(rank(rows)))
        self.evaluate("mini base", load_policy("embedded:mini"), votes=VOTES)
        told = SamplingConfig(**{**self.settings.to_json(), "prefill": PREFILL})
        self.evaluate("mini base, told the plan", load_policy("embedded:mini"), settings=told)
        self.evaluate("large base", load_policy("embedded:large"), votes=VOTES)

    def reinforce(self) -> None:
        size = self.size
        config = RunConfig(
            model="embedded:mini",
            task="gene_ranking",
            prompts_per_step=size.prompts_per_step,
            steps=size.steps,
            learning_rate=2e-3,  # a tiny model's; chosen on validation genes
            eval_rows=size.eval_rows,
            gate="off",  # the gates of the shipped base are in the report
            seed=self.seed,
        )
        run = self.train("RFT mini", config, self.out, self.train_rows)
        self.evaluate("RFT mini", run.policy)

    def rivals(self) -> None:
        """SFT, same rows, adapter and looks: on the answers, and on the base's right samples."""
        common = dict(
            model="embedded:mini",
            task="gene_ranking",
            method="sft",
            prompts_per_step=16,
            steps=10_000,
            epochs=self.size.epochs,
            patience=0,
            keep_start=False,
            eval_rows=self.size.eval_rows,
            seed=self.seed,
        )
        answers = RunConfig(
            **common,
            eval_every=max(1, -(-len(self.train_rows) // 16)),
            completion_template="<think></think>" + self.task.answer_template,
        )
        run = self.train("SFT mini", answers, self.out / "sft", self.train_rows)
        self.evaluate("SFT mini", run.policy)
        kept, drawn = self.right_completions(self.runs["RFT mini"].training["samples"])
        own = RunConfig(**common, eval_every=max(1, -(-len(kept) // 16)))
        name = "rejection-sampling SFT mini"
        run = self.train(name, own, self.out / "rejection_sampling", kept)
        run.training |= {"samples": drawn, "kept": len(kept)}
        self.evaluate(name, run.policy)

    def right_completions(self, budget: int) -> tuple[list[dict[str, Any]], int]:
        """As many completions of the base as RFT drew; those with the right gene first are kept."""
        each = -(-budget // len(self.train_rows))  # rounded up: the rival never has fewer
        policy = load_policy("embedded:mini")
        self.reporter.stage("sampling the base for its right answers")
        settings = SamplingConfig(max_new_tokens=64, seed=2_000 + self.seed)
        prompts = [row["messages"] for row in self.train_rows]
        drawn = policy.sample(prompts, each, settings, progress=self.reporter.advance)
        kept = [
            row | {"completion": f"<think>{sample.reasoning}</think>{sample.output_text}"}
            for row, group in zip(self.train_rows, drawn)
            for sample in group
            if self.task.place(row, sample) == 1 and sample.finish_reason == "stop"
        ]
        if not kept:
            raise UserError("rejection sampling: not one right completion, expected some")
        return kept, each * len(self.train_rows)

    # --- what the steps share ------------------------------------------------------------------

    def evaluate(
        self,
        name: str,
        policy: LocalPolicy,
        votes: int = 0,
        settings: SamplingConfig | None = None,
    ) -> None:
        weight = LARGE if "large" in name else 1.0
        self.reporter.stage(f"evaluating {name}")
        self.results[name] = evaluate(
            policy,
            self.task,
            self.test_rows,
            settings or self.settings,
            samples=self.samples,
            extra_samples=votes if votes > self.samples else 0,
            name=name,
            progress=lambda done: self.reporter.advance(done * weight),
        )
        value = self.results[name].values[self.task.headline].mean()
        self.reporter.say(f"{name}: {self.task.headline} {value:.3f} at T = 1")

    def train(self, name: str, config: RunConfig, out: Path, rows: list[dict]) -> Run:
        grpo = config.method == "grpo"
        step_work = STEP * config.prompts_per_step * (config.answers_per_prompt if grpo else 1)
        look_work = self.size.eval_rows * config.eval_samples
        self.reporter.stage(f"training {name}")

        def heard(record: dict[str, Any]) -> None:
            self.reporter.advance(step_work + (look_work if "validation" in record else 0))
            look = record.get("validation")
            if look and grpo:
                share = look["patterns"].get("diagnose first", 0.0)
                self.reporter.say(
                    f"  step {record['step']}: held-out {look['metric']} {look['mean']:.3f}, "
                    f'"Diagnose first" in {share:.0%} of answers, '
                    f"mean reward {record['reward_mean']:.2f}"
                )

        run = train(config, out, [heard], self.task, rows, self.validation_rows, existing="replace")
        self.runs[name] = run
        best = run.best
        self.reporter.say(
            f"{name}: {run.training['steps']} steps in {run.training['seconds']:.0f} s; kept step "
            f"{best['step']} (held-out {best['metric']} {best['mean']:.3f})"
        )
        return run


def assert_unseen(seen: list[dict], test: list[dict], task: Task) -> None:
    """No answer of a test row stands in a row that trains or chooses."""
    shared = set(clusters_of(seen, task)) & set(clusters_of(test, task))
    if shared:
        raise ValueError(f"{len(shared)} test genes stand in training rows: {sorted(shared)[:3]}")
