"""Systems on the same rows and seeds: what they answered, as report.json, tables and report.md."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rftkit import evaluation, files
from rftkit.console import Reporter
from rftkit.environment import machine, peak_memory_mb, versions
from rftkit.evaluation import Interval, MetricFunction, SystemResult, clusters_of
from rftkit.files import markdown_table, read_json
from rftkit.graders.answer import PROGRAM_FAILED
from rftkit.logs import read_lines
from rftkit.policy import Policy, Prompt
from rftkit.records import Sample, SamplingConfig
from rftkit.rows import row_ids, write_rows
from rftkit.task import Task
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
        self,
        name: str,
        policy: Policy,
        votes: int = 0,
        prefill: str = "",
        examples: Sequence[dict[str, str]] = (),
    ) -> SystemResult:
        """Evaluate a system. votes: the k of maj@k; examples: messages before each question."""
        work = len(self.rows) * (max(self.samples, votes) + 1)
        self.reporter.stage(f"evaluating {name}", work)
        sampling = replace(self.sampling, prefill=prefill)
        more = {"extra_samples": votes, "progress": self.reporter.work, "functions": self.functions}
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

    def sample(
        self, prompts: list, n: int, config: SamplingConfig, progress: Any = None
    ) -> list[list[Sample]]:
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
        whole = [
            g for g in groups.values() if len(g) == (1 if g[0]["greedy"] else asked["samples"])
        ]
        answers = sum(whole, [])
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
    """Mean share of a list's places with an answer that no earlier place has; 5 genes fill 5."""
    answers = list(map(task.answers, samples))
    longest = max(map(len, answers)) or 1
    return round(sum(len(set(map(str, own))) for own in answers) / longest / len(answers), 4)


def save_samples(out: Path, result: SystemResult) -> None:
    """Append to samples.jsonl; the key `greedy` marks greedy completions."""
    for groups, greedy in ((result.samples, False), (result.greedy_samples, True)):
        append_samples(out / "samples.jsonl", sum(groups, []), greedy=greedy)


def systems_table(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """Table rows: the headline, sampled with an interval and greedy; other metrics' means."""
    systems, headline = report["systems"], report["headline"]
    metrics = {k: None for s in systems for k, v in s.items() if isinstance(v, dict) and "low" in v}
    others = report.get("columns") or [metric for metric in metrics if metric != headline]
    rows = []
    for system in systems:
        sampled = f"{Interval(**system[headline])}{' *' * system.get('ignores_temperature', False)}"
        row = {"system": system["name"], f"{headline} at T = 1": sampled}
        row["greedy"] = f"{system['greedy'][headline]:.3f}"
        row |= {name: f"{system[name]['mean']:.3f}" if name in system else "" for name in others}
        if any(system.get("distinct", 1) < 1 for system in systems):
            row["distinct"] = f"{system['distinct']:.2f}"
        row["tokens"] = f"{system['tokens']:.0f}" if system["tokens"] else ""
        row["ms"] = f"{1e3 * system['seconds']:.1f}" if system["tokens"] else ""
        rows.append(row)
    return rows


def paired_table(report: Mapping[str, Any]) -> list[dict[str, str]]:
    return [
        {
            "paired difference": f"{pair['a']} - {pair['b']}",
            "metric": pair["metric"],
            "difference, 95 % interval": paired_text(pair),
            "p": f"{pair['p']:.4f}",
            "visible from": f"{(pair['high'] - pair['low']) / 2:.3f}",
        }
        for pair in report["paired"]
    ]


def paired_text(pair: Mapping[str, Any]) -> str:
    return f"{Interval(pair['difference'], pair['low'], pair['high']):+}"


def write_report(report: dict[str, Any], sentences: Sequence[str], out: Path) -> None:
    """Write report.json, table.png, and report.md with the tables, the sentences and the setup."""
    from rftkit.plots import table_figure

    samples, by = report["sampling"]["samples"], report["clustered_by"] or "row"
    parts = [
        f"# {report['task']}: {report['n_cases']} rows, seed {report['seed']}",
        markdown_table(systems_table(report)),
        markdown_table(paired_table(report)),
        *sentences,
        f"{samples} answers per row at T = 1; 95 % intervals clustered by {by}. Measured "
        f"{report['date']}, {report['machine']}, in {report['seconds']:.0f} s.",
    ]
    files.write_json(out / "report.json", report)
    files.write_text(out / "report.md", "\n\n".join(filter(None, parts)) + "\n")
    table_figure(report, report["headline"]).savefig(out / "table.png")
