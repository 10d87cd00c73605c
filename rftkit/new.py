"""`rftkit new`: make a task folder from a table, as a start for your own.

The form of the answers determines how the prompt ends, how an answer is graded and which metric
counts. skeleton/ holds the files that do not depend on the rows.
"""

import json
import re
import shutil
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from string import Template
from typing import Annotated, Any

from rftkit.attacks import reference_check
from rftkit.check import check_rows
from rftkit.console import GRADER, argument, option
from rftkit.contract import read_records
from rftkit.files import PACKAGE, UserError, read_text, write_json, write_text
from rftkit.graders.answer import fill_template
from rftkit.graders.functions import FILE
from rftkit.graders.grader import read_grader
from rftkit.graders.presets import preset
from rftkit.rows import split_by_group, write_rows
from rftkit.task import load_task

# Forms that one preset grades: its name and arguments.
PLAIN = {"class": ("exact_match", {}), "number": ("numeric_match", {}),
         "text": ("fuzzy", {"metric": "gleu"})}  # fmt: skip
FORMS = ", ".join([*PLAIN, "ranked", "json"])
HELD_OUT, MOST_HELD_OUT = 0.2, 900  # each of validation and test; OpenAI takes 1,000 rows
LEAST_TOKENS = 64  # of a completion, for a short thought and the answer
COLUMN = re.compile(r"\{(\w[\w .-]*)\}")  # in a prompt, but not the braces of a JSON example


@dataclass
class NewTask:
    """The options of `rftkit new`, one field each."""

    folder: Annotated[Path, argument("NAME", "The new task folder.")]
    rows: Annotated[Path, option("FILE", "A .csv, .jsonl, .json, .parquet or saved Dataset.")]
    prompt: Annotated[str, option("TEXT", "The question; {COLUMN} inserts the row's value.")]
    answer: Annotated[str, option("COLUMN", "The column with the right answer.")]
    form: Annotated[str | None, option("F", f"{FORMS}; default: from the answers.")] = None
    group: Annotated[str | None, option("COLUMN", "No value may be on both sides.")] = None
    grader: Annotated[str | None, option("G", f"{GRADER} Default: by the form.")] = None


def make_task(options: NewTask) -> dict[str, Any]:
    """Write the folder. Return its "form", row counts ("rows"), records left out ("dropped"), and
    what the checks found ("check": a CheckReport, "reference": an attacks.Check)."""
    folder, field = Path(options.folder), field_name(options.answer)
    if folder.exists():
        raise UserError(f"{folder}: exists already, expected a new folder: choose another name")
    rows, dropped = read_table(options)
    answers = [row[field] for row in rows]
    form = options.form or form_of(answers)
    instruction, grader, task = make_grader(form, field, answers)
    grader = read_grader(options.grader)[0] if options.grader else grader
    for row in rows:
        row["messages"][0]["content"] += f"\n\n{instruction}"
        row[field] = row[field] if form == "json" else str(row[field])
    group = field_name(options.group) if options.group else None
    labels = labels_of(answers) if form in ("class", "ranked") else []
    sides = split_rows(rows, group, field if labels and not group else None)
    for side, side_rows in sides.items():
        write_rows(folder / f"{side}.jsonl", side_rows)
    task |= {"name": folder.name, "question": options.prompt, "grader": "grader.json"}
    task |= {"group_by": group} if group else {}
    if file := FILE.fullmatch(options.grader or ""):  # beside task.json, to edit
        task["grader"] = Path(options.grader).name
        shutil.copy(file[1], folder)
    else:
        write_json(folder / "grader.json", grader)
    write_json(folder / "task.json", task)
    # Without labels the task may be to extract the answer from the prompt.
    extract = task["headline"] == "grade"
    flags = f"--answer-key {field}" + " --answer-in-prompt-ok" * extract
    flags += f" --group-by {group}" if group else ""
    letters = max(len(fill_template(task["answer_template"], row)) for row in rows)
    values = vars(options) | task | {"form": form, "flags": flags}
    values["tokens"] = max(LEAST_TOKENS, letters)  # a token holds a letter at least
    for file in (PACKAGE / "skeleton").glob("*.*"):
        write_text(folder / file.name, Template(read_text(file)).safe_substitute(values))
    files = (folder / "train.jsonl", folder / "validation.jsonl")
    report = check_rows(*files, group, [field], extract)
    for one, other in combinations(labels, 2):
        if one.casefold() == other.casefold():
            report.notes.append(f"{one} and {other}: two answers, expected one spelling: choose")
    for side, side_rows in sides.items() if labels else ():
        if lacks := ", ".join(sorted({*labels} - {row[field] for row in side_rows})):
            report.notes.append(f"{side}.jsonl: no row with the answer {lacks}: add some")
    check = reference_check(load_task(folder).grader, task["answer_template"], rows)
    counts = {side: len(side_rows) for side, side_rows in sides.items()}
    known = {"form": form, "rows": counts, "dropped": dropped}
    return known | {"check": report, "reference": check}


def split_rows(rows: list[dict], group: str | None, label: str | None) -> dict[str, list[dict]]:
    """{side: rows}. With the field of a label each label is split by itself, so that the sides have
    the same mixture; labels with fewer rows than sides are split together."""
    share = min(HELD_OUT, MOST_HELD_OUT / len(rows))
    shares = {"train": 1 - 2 * share, "validation": share, "test": share}
    parts = defaultdict(list)
    for row in rows:
        parts[row[label] if label else None].append(row)
    rare = [row for part in parts.values() if len(part) < len(shares) for row in part]
    parts = [part for part in parts.values() if len(part) >= len(shares)]
    if len(rare) < len(shares) and parts:
        parts[0] += rare
    else:
        parts += [rare] if rare or not parts else []
    split = [split_by_group(part, group or "row_id", shares, seed=0) for part in parts]
    return {side: sum((sides[side] for sides in split), []) for side in shares}


def field_name(column: str) -> str:
    """The column as a name for grader templates: "Ticket text" becomes Ticket_text."""
    return re.sub(r"\W+", "_", column).strip("_")


def read_table(options: NewTask) -> tuple[list[dict[str, Any]], dict[str, list[int]]]:
    """Return (rows, {reason: numbers of the records left out})."""
    rows, dropped, used = {}, defaultdict(list), COLUMN.findall(options.prompt)
    if not used or options.answer in used:
        contains = f"contains the answer {{{options.answer}}}" if used else "contains no {COLUMN}"
        raise UserError(f"--prompt: {contains}, expected the column with the question: insert it")
    for number, record, faults in read_records(options.rows):
        if faults:
            raise UserError(f"{options.rows}:{number or 1}: {faults[0].found}: correct it")
        for name in {options.answer, *used, options.group} - {None} - record.keys():
            known = ", ".join(record)
            raise UserError(f"{options.rows}:{number}: no column {name!r}, expected one of {known}")
        prompt = COLUMN.sub(lambda match, record=record: str(record[match[1]]), options.prompt)
        answer = record[options.answer]
        with suppress(ValueError):  # an object in a cell is written as JSON
            if isinstance(answer, str):
                answer = json.loads(answer) if answer.lstrip()[:1] == "{" else answer.strip()
        empty = [name for name in used if record[name] is None or not str(record[name]).strip()]
        if prompt in rows or empty or answer in (None, "", [], {}):
            reason = f"no {empty[0]}" if empty else "no answer"
            dropped["repeated prompt" if prompt in rows else reason].append(number)
            continue
        row = {"row_id": str(number), "messages": [{"role": "user", "content": prompt}]}
        row |= {field_name(k): v for k, v in record.items() if k != "messages"}
        rows[prompt] = row | {field_name(options.answer): answer}
    if not rows:
        raise UserError(f"{options.rows}: no row has an answer, expected some: fill the column in")
    return list(rows.values()), dict(dropped)


def form_of(answers: list[Any]) -> str:
    if all(isinstance(answer, dict) for answer in answers):
        return "json"
    numbers = [re.fullmatch(r"[-+]?[\d,]*\.?\d+", str(answer)) for answer in answers]
    return "class" if labels_of(answers) else "number" if all(numbers) else "text"


def labels_of(answers: list[Any]) -> list[str]:
    """The distinct answers if they are few (as in rows.closed_set_note), else none."""
    labels = sorted({str(answer) for answer in answers})
    return labels if len(labels) ** 2 <= 2 * len(answers) else []


def make_grader(form: str, field: str, answers: list[Any]) -> tuple[str, dict, dict]:
    """Return (the last line of the prompt, grader JSON, fields of task.json)."""
    item, labels = f"{{{{item.{field}}}}}", ", ".join(labels_of(answers))
    task = {"answer_template": item, "metrics": ["grade"], "headline": "grade"}
    instruction = f"Answer with the {field} alone."
    if form in PLAIN:
        name, arguments = PLAIN[form]
        parts, formula = {"right": preset(name, reference=field, **arguments)}, "right"
        if form == "class":
            instruction = f"Answer with one of: {labels}." if labels else instruction
            task |= {"metrics": ["top1"], "headline": "top1"}
    elif form == "ranked":
        spec = preset("rank", key="answers", reference=field, length=3)
        parts, formula = spec["graders"], spec["calculate_output"]
        instruction = 'Answer as JSON, most likely first: {"answers": ["...", "...", "..."]}'
        instruction += f", each one of: {labels}." if labels else ""
        best, *worse = ({"answers": entries} for entries in ([item], ["-", item], ["-"]))
        task = {"answer_template": best, "worse_answers": worse}
        task |= {"metrics": ["top1", "mrr"], "headline": "top1"}
    elif form == "json":
        objects = [answer if isinstance(answer, dict) else {} for answer in answers]
        keys = [k for k in objects[0] if k.isidentifier() and all(k in o for o in objects)]
        if not keys:
            raise UserError(f"--form json: {field} has no common key, expected JSON objects")
        parts = {f"{k}_right": preset("exact_match", key=k, reference=f"{field}.{k}") for k in keys}
        formula = f"({' + '.join(parts)}) / {len(parts)}"
        instruction = f"Answer as JSON with the keys {', '.join(keys)}."
    else:
        raise UserError(f"--form {form}: expected one of {FORMS}: correct it")
    # Similarity earns at most 0.1, so that rewards differ before any answer is right.
    parts = {**parts, "similarity": preset("fuzzy", reference=field)}
    spec = {"type": "multi", "name": form, "calculate_output": f"max({formula}, 0.1 * similarity)"}
    return instruction, spec | {"graders": {k: v | {"name": k} for k, v in parts.items()}}, task
