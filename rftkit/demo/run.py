"""What the demo trains and evaluates, step by step.

The test genes are read at the very end and choose nothing.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rftkit.data.check import check_file
from rftkit.data.errors import UserError
from rftkit.data.records import SamplingConfig
from rftkit.demo.baselines import as_samples, overlap, random_ranking, world_genes
from rftkit.demo.real import evaluate_real, real_cases
from rftkit.demo.report import make_report, write_report
from rftkit.demo.settings import LARGE, PREFILL, PROFILES, STEP, VOTES, Profile, Reporter
from rftkit.evaluation import SystemResult, clusters_of, evaluate, measure
from rftkit.policy import LocalPolicy, load_policy
from rftkit.task import Task, load_task
from rftkit.training import Run, RunConfig, train


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
        each = max(1, budget // len(self.train_rows))
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
