"""Systems on the same rows and seeds: what they answered, as report.json, tables and report.md."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mode
from typing import Any

from rftkit import evaluation, files
from rftkit.console import Reporter
from rftkit.environment import machine, peak_memory_mb, versions
from rftkit.evaluation import Groups, MetricFunction, SystemResult, clusters_of
from rftkit.files import read_json
from rftkit.graders.answer import PROGRAM_FAILED
from rftkit.logs import read_lines
from rftkit.policy import Policy, Prompt
from rftkit.records import Sample, SamplingConfig
from rftkit.rows import row_ids, write_rows
from rftkit.task import Task
from rftkit.training.report import report_text
from rftkit.training.store import append_samples

Rows = list[dict[str, Any]]
CHUNK = 64  # rows that are answered and graded before their answers are written


@dataclass
class Bench:
    """Evaluates systems on the same rows and seeds. samples: answers per row for the headline."""

    task: Task
    rows: Rows
    sampling: SamplingConfig
    samples: int
    reporter: Reporter
    functions: Mapping[str, MetricFunction] = field(default_factory=dict)  # custom metrics
    settings: dict[str, Any] = field(default_factory=dict)  # for load_policy
    results: dict[str, SystemResult] = field(default_factory=dict)
    kept: Path | None = None  # samples.jsonl: answers that stand there are not asked for again

    @property
    def headline(self) -> str:
        return next(iter(self.functions), self.task.headline)

    def add(
        self, name: str, policy: Policy, tries: int = 0, prefill: str = "", examples: Sequence = ()
    ) -> SystemResult:
        """Evaluate a system. tries: the k of pass@k; examples: messages before each question."""
        work = len(self.rows) * (max(self.samples, tries) + 1)
        self.reporter.stage(f"evaluating {name}", work)
        sampling = replace(self.sampling, prefill=prefill)
        more = {"extra_samples": tries, "progress": self.reporter.work, "functions": self.functions}
        task, rows = self.task, self.rows
        if examples:
            rows = [row | {"messages": [*examples, *row["messages"]]} for row in rows]
        if self.kept:
            policy = Kept(policy, name, task, rows, self.kept)
        result = evaluation.evaluate(policy, task, rows, sampling, self.samples, name, **more)
        self.results[name], value = result, result.values[self.headline].mean()
        self.reporter.say(f"{name}: {self.headline} {value:.3f} at T = 1")
        return result

    def to_json(self, names: Iterable[str], pairs: Iterable[tuple]) -> dict[str, Any]:
        """The common part of report.json. pairs: (later system, earlier system, metric, greedy)"""
        clusters, results = clusters_of(self.rows, self.task), self.results
        return {
            "task": self.task.name,
            "n_cases": len(self.rows),
            "headline": self.headline,
            "clustered_by": self.task.group_by,
            "sampling": {"samples": self.samples, **self.sampling.to_json()},
            "systems": [
                results[n].to_json(clusters) | count_answers(results[n], self.task) for n in names
            ],
            "paired": [
                evaluation.paired_record(results[a], results[b], metric, clusters, greedy)
                for a, b, metric, greedy in pairs
            ],
            "peak_rss_mb": peak_memory_mb(),
            "seed": self.sampling.seed,
            "machine": machine(),
            "date": time.strftime("%Y-%m-%d"),
            "versions": versions(),
        }


class Kept:
    """A policy whose answers are graded and appended to a file, some rows at a time. Those that
    stand there already are read, not asked for again."""

    def __init__(self, policy: Policy, name: str, task: Task, rows: Rows, file: Path):
        self.policy, self.name, self.task, self.rows, self.file = policy, name, task, rows, file
        self.known: dict[tuple[str, bool], list[Sample]] = defaultdict(list)
        for record in read_lines(file):
            greedy = record.pop("greedy")
            if record["model"] == name:
                self.known[record["row_id"], greedy].append(Sample(**record))

    def sample(self, prompts: list, n: int, config: SamplingConfig, progress: Any = None) -> Groups:
        ids = row_ids(self.rows)
        missing = [i for i, row_id in enumerate(ids) if not self.known[row_id, config.greedy]]
        if progress:
            progress((len(ids) - len(missing)) * n)
        for start in range(0, len(missing), CHUNK):
            places = missing[start : start + CHUNK]
            asked = [Prompt(self.rows[i], i) for i in places]
            drawn = self.policy.sample(asked, n, config, progress)
            self.task.grade([self.rows[i] for i in places], drawn)
            for i, group in zip(places, drawn):
                for sample in group:
                    sample.model = self.name
                self.known[ids[i], config.greedy] = group
            append_samples(self.file, sum(drawn, []), greedy=config.greedy)
        return [self.known[row_id, config.greedy] for row_id in ids]


def resumed(out: Path, asked: dict[str, Any]) -> int:
    """How many answers of an earlier call, stopped or not, stay in samples.jsonl: if it asked for
    the same, those of rows whose answers are all there and graded. The others go."""
    file, answers = out / "samples.jsonl", []
    if (out / "asked.json").exists() and read_json(out / "asked.json") == asked:
        groups = defaultdict(list)
        for line in read_lines(file):
            if line["grade"] is not None:
                groups[line["model"], line["row_id"], line["greedy"]].append(line)
        n = asked["samples"]
        answers = sum((g for g in groups.values() if len(g) == (1 if g[0]["greedy"] else n)), [])
    write_rows(file, answers)
    files.write_json(out / "asked.json", asked)
    return len(answers)


def count_answers(result: SystemResult, task: Task) -> dict[str, Any]:
    drawn, greedy = sum(result.samples, []), sum(result.greedy_samples, [])
    samples = drawn + greedy
    ended = Counter(sample.finish_reason for sample in samples)
    groups = map(list.__add__, result.samples, result.greedy_samples)
    same = all(len({(s.reasoning, s.answer) for s in group}) == 1 for group in groups)
    return {
        "answers": len(samples),
        "tokens": round(sum(s.completion_tokens for s in samples) / len(samples), 1),  # an answer
        "seconds": round(sum(s.seconds for s in samples) / len(samples), 5),  # an answer
        **({"distinct": distinct(task, drawn)} if task.answer_template else {}),
        "truncated": round(ended["length"] / len(samples), 4),
        "failed": ended["error"],  # the request failed
        "ignores_temperature": same and result.name.startswith("endpoint:"),
        "ungraded": sum(sample.grade is None for sample in samples) - ended["error"],
        "grader_errors": sum(PROGRAM_FAILED in sample.errors for sample in samples),
    }


def distinct(task: Task, samples: list[Sample]) -> float:
    """Mean share of a list's usual places that hold an answer of their own; 5 genes fill 5."""
    answers = [list(map(str, task.answers(sample))) for sample in samples]
    usual = mode(map(len, answers))
    filled = sum(min(len({*own}), usual) for own in answers)
    return round(filled / usual / len(answers), 4) if usual > 1 else 1.0


def write_report(report: dict[str, Any], sentences: Sequence[str], out: Path) -> None:
    """Write report.json, report.md and table.png."""
    from rftkit.plots import table_figure

    files.write_json(out / "report.json", report)
    files.write_text(out / "report.md", report_text(report, sentences))
    table_figure(report, report["headline"]).savefig(out / "table.png")
