"""What the tools of the task shapes share: prompts, slots, fields, and how a folder is written."""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rftkit.attacks import STRATEGIES, AttackReport, Strategy, attack
from rftkit.files import write_json, write_text
from rftkit.graders.grader import Grader
from rftkit.graders.presets import preset
from rftkit.rows import sha256_of, write_rows
from rftkit.task import Task, load_task

SEED = 20
MATERIAL = Path(__file__).with_name("material")  # what was written by hand, as text
Rows = dict[str, list[dict[str, Any]]]  # by split


def chat(instructions: str, examples: dict[str, str], question: str) -> list[dict[str, str]]:
    """Instructions, worked examples {question: answer}, the question."""
    messages = [{"role": "system", "content": instructions}]
    for asked, answer in examples.items():
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return [*messages, {"role": "user", "content": question}]


def choose(draw: random.Random, text: str) -> str:
    """One word of each (bus/train)."""
    return re.sub(r"\(([^()]*/[^()]*)\)", lambda match: draw.choice(match[1].split("/")), text)


def sections(file: str) -> dict[str, str]:
    """{title: text} of a file of the material, whose titles stand behind ==."""
    text = (MATERIAL / file).read_text(encoding="utf-8")
    parts = (part.partition("\n") for part in text.removeprefix("== ").split("\n== "))
    return {title: body.rstrip("\n") for title, _, body in parts}


def check(name: str, text: str, reference: str, operation: str = "like") -> dict[str, Any]:
    known = {"type": "string_check", "name": name, "operation": operation}
    return known | {"input": text, "reference": reference}


def field_grader(name: str, kinds: dict[str, type], text: str) -> dict[str, Any]:
    """A tenth for a readable answer, the rest by fields; an invented value costs .05.

    A value is invented if the row's `text` does not contain it. Templates write null as "None", and
    a number as they write its text: so the JSON of the answer is searched for these in quotes.
    """
    parts = {field: preset("exact_match", key=field, reference=field) for field in kinds}
    for field, kind in kinds.items():
        value = f"{{{{sample.output_json.{field}}}}}"
        parts[f"{field}_said"] = check(f"{field}_said", f"{{{{item.{text}}}}} None", value)
        quoted = f'"{field}": "' + ("None" if kind is str else "")
        parts[f"{field}_quoted"] = check(f"{field}_quoted", "{{sample.output_json}}", quoted)
    right = " + ".join(f"{field} * (1 - {field}_quoted)" for field in kinds)
    said = " + ".join(f"{field}_said" for field in kinds)
    number = len(kinds)
    formula = f"max(0, 0.1 + {0.9 / number:g} * ({right}) - 0.05 * ({number} - ({said})))"
    return {"type": "multi", "name": name, "graders": parts, "calculate_output": formula}


def measure(task: Task, own: Sequence[Strategy] = (), rows: int | None = None) -> AttackReport:
    """What cheating earns on the first test rows: the kit's strategies, and the task's own."""
    honest = task.answer_template, task.worse_answers
    return attack(task.grader, task.rows("test")[:rows], *honest, strategies=(*STRATEGIES, *own))


def files_table(out: Path, rows: Rows, group: str) -> str:
    lines = [f"| file | rows | {group}s | sha256 |", "|---|---|---|---|"]
    for split, made in rows.items():
        groups = len({row[group] for row in made})
        digest = sha256_of(out / f"{split}.jsonl")
        lines.append(f"| `{split}.jsonl` | {len(made)} | {groups} | `{digest}` |")
    return "\n".join(lines)


def write(
    out: str | Path,
    task: dict[str, Any],
    graders: dict[str, dict[str, Any]],
    rows: Rows,
    card: Callable[[Path, Task], str],
) -> None:
    """Write task.json, the graders' files, three .jsonl files and README.md."""
    out = Path(out)
    write_json(out / "task.json", task)
    for name, spec in graders.items():
        write_json(out / name, Grader.load(spec).to_json())  # refuses a faulty one
    for split, made in rows.items():
        write_rows(out / f"{split}.jsonl", made)
    write_text(out / "README.md", card(out, load_task(out)))


def main(doc: str, write_task: Callable[[str], None]) -> None:
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to write")
    write_task(parser.parse_args().out)
