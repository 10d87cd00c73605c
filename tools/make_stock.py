"""datasets/stock: two-step sums in words as a task folder, byte for byte.

    python -m tools.make_stock --out datasets/stock

A small task in which written steps pay: few rows have a worked answer, with two verbs, the others
the number alone, with eight. No row of one file stands in another; the test rows have names and
things of their own.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

from rftkit.attacks import attack
from rftkit.files import write_json, write_text
from rftkit.rows import sha256_of, write_rows
from rftkit.task import load_task

NAME, SEED = "stock", 20
ROWS = {"warm_start": 32, "train": 192, "validation": 48, "test": 240}
WORKED = "warm_start"  # the rows that have a worked answer
VERBS = {"+": "buys gets finds receives", "-": "sells loses drops donates"}  # WORKED: the first two
NAMES = ("Ana Ben Eva Tom Mia Ali Lea Max", "Noor Hugo Ines Paul Vera Omar Kofi Jana")
THINGS = ("chairs lamps books cups pens desks", "bolts tiles hats forks bricks sofas")
INSTRUCTIONS = "Think step by step between <think> and </think>, then write the number alone."
PATTERNS = {"two steps": r"= \d+\..*= \d+\.", "one step": r"^[^=]*= \d+[^=]*$"}


def make_rows() -> dict[str, list[dict[str, Any]]]:
    """The four pairs of signs equally often, in an order that the seed fixes."""
    draw, seen, rows = random.Random(SEED), set(), {}
    for split, number in ROWS.items():
        signs = [("++", "+-", "-+", "--")[i % 4] for i in range(number)]
        draw.shuffle(signs)
        rows[split] = [
            make_row(draw, seen, pair, split, f"{split}-{i:03d}") for i, pair in enumerate(signs, 1)
        ]
    return rows


def make_row(draw: random.Random, seen: set, signs: str, split: str, row_id: str) -> dict[str, Any]:
    """A row that `seen` does not hold yet. Nothing is taken from ten or more: the model's
    subtraction of two digits is no better than a guess, and not what is to be learned."""
    names, things = (words[split == "test"].split() for words in (NAMES, THINGS))
    while True:
        verbs = [
            draw.choice(VERBS[sign].split()[: 1 if split == WORKED else None]) for sign in signs
        ]
        stock = [draw.randint(3, 9)]
        numbers = [draw.randint(1, 9 if sign == "+" else 4) for sign in signs]
        for sign, number in zip(signs, numbers):
            stock.append(stock[-1] + int(f"{sign}{number}"))
        possible = all(
            sign == "+" or 0 < after < before < 10
            for sign, before, after in zip(signs, stock, stock[1:])
        )
        if possible and (stock[0], *verbs, *numbers) not in seen:
            break
    seen.add((stock[0], *verbs, *numbers))
    moves = [f"{verb} {number}" for verb, number in zip(verbs, numbers)]
    steps = [
        f"{move}: {before} {sign} {number} = {after}."
        for move, before, sign, number, after in zip(moves, stock, signs, numbers, stock[1:])
    ]
    name, thing = draw.choice(names), draw.choice(things)
    question = f"{name} has {stock[0]} {thing}, {' and '.join(moves)}. How many are there now?"
    row = {
        "messages": [
            {"role": "system", "content": INSTRUCTIONS},
            {"role": "user", "content": question},
        ],
        "row_id": row_id,
        "form": " ".join(signs),
        "verbs": verbs,
        "reference_answer": str(stock[-1]),
    }
    if split == WORKED:
        row["completion"] = f"<think>{' '.join(steps)}</think>{stock[-1]}"
    return row


def task() -> dict[str, Any]:
    return {
        "name": NAME,
        "question": "How many are left, after one has bought or sold twice?",
        "grader": {
            "type": "string_check",
            "name": "right",
            "input": "{{sample.output_text}}",
            "reference": "{{item.reference_answer}}",
            "operation": "eq",
        },
        "answer_template": "{{item.reference_answer}}",
        "patterns": PATTERNS,
        "metrics": ["grade"],
        "headline": "grade",
    }


def data_card(out: Path) -> str:
    files = "\n".join(
        f"| `{split}.jsonl` | {number} | `{sha256_of(out / f'{split}.jsonl')}` |"
        for split, number in ROWS.items()
    )
    attacked = load_task(out)
    report = attack(attacked.grader, attacked.rows("test"), attacked.answer_template)
    first = load_task(out).rows(WORKED)[0]
    return f"""# {NAME}: sums of two steps, in words

For a model that reads English, such as SmolLM2 (`rftkit fetch smollm2`), which has to learn to
write the steps down, and to get them right.

> {first["messages"][-1]["content"]}

`{first["completion"]}`

| file | rows | sha256 |
|---|---|---|
{files}

`{WORKED}.jsonl` has worked answers in `completion`, for `"method": "sft"`, with the verbs buys and
sells alone. The other files have the number alone, in `reference_answer`, and eight verbs
({VERBS["+"]}; {VERBS["-"]}):
no worked answer shows which sign the other six have. No row (start, verbs, numbers) stands in two
files, and the test rows have names and things of their own.
Stocks of 3 to 9 to begin with; up to 9 come, up to 4 go, and nothing goes from ten or more. `form`
has a row's two signs, `verbs` its verbs.

All rows are made up, by `python -m tools.make_stock --out datasets/stock` (seed {SEED}), byte for
byte.

## Grader (in `task.json`)
1 for the right number alone after the thinking, 0 for anything else. What strategies that do not
read the question earn on the test rows (`rftkit.attack`):

```
{report}
```

License: that of this repository.
"""


def write_task(out: str | Path) -> None:
    """Write task.json, four .jsonl files and README.md."""
    out = Path(out)
    write_json(out / "task.json", task())
    for split, rows in make_rows().items():
        write_rows(out / f"{split}.jsonl", rows)
    write_text(out / "README.md", data_card(out))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to write")
    write_task(parser.parse_args().out)
