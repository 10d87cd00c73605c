"""Labels for rows that nobody has labelled: a stream, one row in, one line out, in input order.

A line of the output is the row with the model's answer as its `completion`, without the reasoning:
what `{"task": …, "method": "sft", "train_file": FILE}` learns. Beside it `confidence`, the share
of several samples that agree with it, and `line`, the row's number in the input. What got no label
stands, with its `reason`, in the file beside, FILE.failed.jsonl.

Both files grow row by row, so together they always hold the first rows of the input and none
twice: after a kill the same call goes on behind them.

Left out: vLLM's offline batches (its server is an endpoint).
"""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from rftkit.compare import token_limit
from rftkit.console import Reporter, argument, option
from rftkit.contract import ROW_FILES, Line, read_lines
from rftkit.files import UserError, read_json, write_json
from rftkit.loading import model_folder, run_folder
from rftkit.policy import EndpointPolicy, Policy, Prompt, load_policy
from rftkit.records import Sample, SamplingConfig
from rftkit.rows import own_id, sha256_of
from rftkit.task import Task, load_task

CHUNK = 64  # completions, at least, that are drawn before their rows are written


@dataclass
class Labelling:
    """The options of `rftkit label`, one field each."""

    rows: Annotated[Path, argument("ROWS", "Rows as for `check`; they need no answers.")]
    model: Annotated[str, option("M", "The model that labels, such as a run's folder.")]
    out: Annotated[Path, option("FILE", "The labels, as JSONL.")]
    samples: Annotated[int, option("K", "Answers per row; the commonest is the label.", min=1)] = 1
    threshold: Annotated[float, option("C", "Leave out labels with less agreement.")] = 0.0
    workers: Annotated[int, option("N", "Requests at a time, for an endpoint.", min=1)] = 8
    task: Annotated[str | None, option("T", "Says which part of an answer must agree.")] = None
    max_tokens: Annotated[int | None, option("N", "Default: the run's, or 1024.", min=1)] = None
    seed: Annotated[int, option("S", "Sampling seed.", min=0)] = 0

    @property
    def failed(self) -> Path:
        return self.out.with_name(self.out.name + ".failed.jsonl")

    def fixed(self) -> dict[str, Any]:
        """What may not change between the calls that write one file."""
        same = ("model", "samples", "threshold", "task", "max_tokens", "seed")
        _, adapter = model_folder(self.model)
        weights = sha256_of(Path(adapter) / "adapter_model.safetensors") if adapter else None
        return {name: getattr(self, name) for name in same} | {"adapter": weights}


def label(asked: Labelling, reporter: Reporter | None = None) -> dict[str, int]:
    """Label the rows that have no line yet. Returns {"rows", "labelled", "failed"}, earlier calls
    included. One sample is greedy; several are drawn at T = 1. UserError for an unfinished run, for
    an endpoint that answers nothing more, and where `out` is of another model, settings or rows."""
    reporter = reporter or Reporter(quiet=True)
    if not asked.rows.exists():
        raise UserError(f"{asked.rows}: no such file: correct the path")
    run = run_folder(asked.model)
    if run and not (run / "training.json").exists():
        raise UserError(f"--model {run}: an unfinished run: `rftkit train` ends it")
    settings = asked.out.with_name(asked.out.name + ".asked.json")
    counts = {path: whole_lines(path) for path in (asked.out, asked.failed)}
    done = max(last["line"] for _, last in counts.values())
    if done:
        check_same(asked, read_json(settings), counts[asked.out][1])
    task, policy, config = open_model(asked)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(settings, asked.fixed())
    if done:
        reporter.say(f"{asked.out}: goes on after row {done:,}")
    reporter.stage("labelling", row_count(asked.rows))
    reporter.work(done)
    numbers = {path: count for path, (count, _) in counts.items()}
    with ExitStack() as stack:
        files = {p: stack.enter_context(open(p, "a", encoding="utf-8")) for p in numbers}
        lines = (line for line in read_lines(asked.rows) if (line.number or 0) > done)
        while chunk := list(islice(lines, max(CHUNK, 4 * asked.workers) // asked.samples or 1)):
            for line, record in labels_of(chunk, task, policy, config, asked):
                path = asked.failed if "reason" in record else asked.out
                text = json.dumps({"line": line.number} | record, ensure_ascii=False)
                files[path].write(text + "\n")
                files[path].flush()
                numbers[path] += 1
            reporter.work(len(chunk))
    return {"rows": sum(numbers.values()), **dict(zip(("labelled", "failed"), numbers.values()))}


def check_same(asked: Labelling, before: dict[str, Any], last: dict[str, Any]) -> None:
    """UserError where `out`, which ends with `last`, is of another model, settings or rows."""
    now = asked.fixed()
    if changed := [name for name in now if before.get(name) != now[name]]:
        fault = f"labelled with another {', '.join(changed)}"
        raise UserError(f"{asked.out}: {fault}: name another --out")
    rows = (line.row for line in read_lines(asked.rows) if line.number == last["line"])
    row = next(rows, None) if last["line"] else last
    if row is None or row.get("messages") != last.get("messages"):
        fault = f"not the row that was labelled in {asked.out}"
        raise UserError(f"{asked.rows}:{last['line']}: {fault}: name another --out")


def open_model(asked: Labelling) -> tuple[Task | None, Policy, SamplingConfig]:
    """A run brings its task, chat template and token limit."""
    run = run_folder(asked.model)
    name = asked.task or (run if run and (run / "task.json").exists() else None)
    task = load_task(name) if name else None
    policy = load_policy(asked.model)
    if isinstance(policy, EndpointPolicy):
        policy.workers = asked.workers
    limit = asked.max_tokens or token_limit([asked.model], run)
    heat = 1.0 if asked.samples > 1 else 0.0
    return task, policy, SamplingConfig(heat, max_new_tokens=limit, seed=asked.seed)


def labels_of(
    lines: list[Line], task: Task | None, policy: Policy, config: SamplingConfig, asked: Labelling
) -> Iterator[tuple[Line, dict[str, Any]]]:
    """(line, its record) in order. A row's random numbers depend on its place in the file alone."""
    for line in lines:
        if line.number is None:
            raise UserError(str(line.faults[0]))
    good = [line for line in lines if not line.faults]
    prompts = [Prompt(line.row, line.number) for line in good]
    groups = policy.sample(prompts, asked.samples, config) if good else []
    drawn = [sample for group in groups for sample in group]
    if drawn and all(sample.finish_reason == "error" for sample in drawn):
        cause = f"no answer from row {good[0].number:,} on ({drawn[0].errors[0]})"
        raise UserError(f"--model {asked.model}: {cause}: mend it; the same call goes on")
    answered = iter(groups)
    for line in lines:
        if line.faults:
            yield line, {"row_id": own_id(line.row or {}), "reason": str(line.faults[0])}
        else:
            yield line, record_of(line, next(answered), task, asked.threshold)


def record_of(
    line: Line, group: list[Sample], task: Task | None, threshold: float
) -> dict[str, Any]:
    """The row with its label, or {"row_id", "reason"}."""
    votes = [vote_of(sample, task) for sample in group]
    counted = Counter(vote for vote in votes if vote)
    [(winner, count)] = counted.most_common(1) or [("", 0)]
    confidence = count / len(group)
    if not winner:
        first = group[0]
        reason = first.errors[0] if first.finish_reason == "error" else "no readable answer"
    elif confidence < threshold:
        reason = f"agreement {confidence:.2f}, under {threshold:g}"
    else:
        text = group[votes.index(winner)].output_text.strip()
        agreed = {"confidence": round(confidence, 4)} if len(group) > 1 else {}
        return line.row | {"completion": text} | agreed
    return {"row_id": own_id(line.row), "reason": reason}


def vote_of(sample: Sample, task: Task | None) -> str:
    """What must be equal for two samples to agree: the first answer, where a task says where it
    stands; else the JSON, else the text. Empty where there is nothing to read, or half a letter,
    which no check of rows lets pass."""
    if sample.finish_reason != "stop" or "\N{REPLACEMENT CHARACTER}" in sample.output_text:
        return ""
    if task and task.answer_template:
        answers = task.answers(sample)
        return json.dumps(answers[0], sort_keys=True) if answers else ""
    value = sample.output_json
    return sample.answer.strip() if value is None else json.dumps(value, sort_keys=True)


def whole_lines(path: Path) -> tuple[int, dict[str, Any]]:
    """(lines, the last one). A line that a kill cut short goes."""
    count, last, whole = 0, b'{"line": 0}', 0
    if path.exists():
        with open(path, "rb+") as file:
            for raw in file:
                if raw.endswith(b"\n"):
                    count, last, whole = count + 1, raw, whole + len(raw)
            file.truncate(whole)
    return count, json.loads(last)


def row_count(path: Path) -> int | None:
    """For the progress bar: the lines of a JSONL file; other forms are not counted."""
    if path.suffix not in ROW_FILES[:1]:
        return None
    with open(path, "rb") as file:
        return sum(1 for _ in file)
