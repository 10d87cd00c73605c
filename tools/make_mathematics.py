"""datasets/mathematics: word problems with a number as the answer, as a task folder, byte for byte.

    python -m tools.make_mathematics --out datasets/mathematics

The forms of one file occur in no other. Each problem holds a number that is not needed.
"""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

from rftkit.attacks import Material, Strategy
from rftkit.graders.presets import preset
from rftkit.rows import messages_text
from rftkit.task import Task
from tools.shapes import SEED, Rows, chat, files_table, main, measure, sections, write

NAME = "mathematics"
EACH = {"train": 8, "validation": 12, "test": 12}  # rows of one form
ATTACKED = 24  # test rows: a python grader starts a process for each grade
WORDS = {  # names, things
    "train": ("Anna Luis Mei Omar Ruth Ivan Sara John", "apple pen book stamp plate chair cap"),
    "validation": ("Kofi Elsa Ravi Jana", "brick lamp mug tile"),
    "test": ("Ines Felix Yuki Amir Greta Pablo Vera", "ticket nail candle spoon melon card rug"),
}
INSTRUCTIONS = "Solve the problem. Write one short sum, then the answer."
EXAMPLES = {
    "Tim has 2 red hats, 9 cups and 3 blue hats. How many hats?": "2 + 3 = 5. The answer is 5.",
    "In 6 trees 4 birds share 12 nuts. How many for each bird?": "12 / 4 = 3. The answer is 3.",
}


def forms(split: str) -> list[tuple[str, str]]:
    """(formula of the answer, problem with slots) for each line of the split's material."""
    lines = sections("mathematics.txt")[split].splitlines()
    return [tuple(re.split(r"\s*\|\s*", line)) for line in lines]


def make_rows() -> Rows:
    """Every form equally often, in an order that the seed fixes; no problem twice."""
    rows, seen = {}, set()
    for split, each in EACH.items():
        draw = random.Random(f"{SEED} {split}")
        order = [*range(len(forms(split)))] * each
        draw.shuffle(order)
        rows[split] = []
        for number, form in enumerate(order, 1):
            while (row := make_row(draw, split, form))["problem"] in seen:
                pass
            seen.add(row["problem"])
            messages = chat(INSTRUCTIONS, EXAMPLES, row["problem"])
            rows[split].append({"messages": messages, "row_id": f"{split}-{number:03d}", **row})
    return rows


def make_row(draw: random.Random, split: str, form: int) -> dict[str, Any]:
    """a, b and c are drawn; s = a + b, m = a * b, d = 2 * a, odd = 2 * a + 1; x is not needed."""
    formula, problem = forms(split)[form]
    a, b, c = draw.sample(range(2, 10), 3)
    known = {"a": a, "b": b, "c": c, "s": a + b, "m": a * b, "d": 2 * a, "odd": 2 * a + 1}
    answer = eval(formula, {}, known)
    x = draw.choice([n for n in range(2, 30) if n not in {*known.values(), answer}])
    (name, other), (one, two) = (draw.sample(words.split(), 2) for words in WORDS[split])
    words = {"name": name, "other": other, "one": one, "things": f"{one}s", "others": f"{two}s"}
    text = problem.format(**known, **words, x=x)
    return {"problem": text, "form": f"{split} {form + 1}", "reference_answer": f"{answer:g}"}


def numbers(m: Material) -> list[int]:
    """The numbers of a row's own problem."""
    return [int(n) for n in re.findall(r"\d+", messages_text(m.row).rpartition("\n")[2])]


CHEATS = (
    Strategy("sum of all numbers", lambda m: str(sum(numbers(m)))),
    Strategy("sum of the first two", lambda m: str(sum(numbers(m)[:2]))),
    Strategy("largest number", lambda m: str(max(numbers(m)))),
    Strategy("numbers up to 100", lambda m: " ".join(map(str, range(101)))),
)


def graders() -> dict[str, dict[str, Any]]:
    """The equal number, and the same question to math-verify."""
    return {
        "grader.json": preset("numeric_match", reference="reference_answer"),
        "grader_math_verify.json": preset("math_match", reference="reference_answer"),
    }


def task() -> dict[str, Any]:
    return {
        "name": NAME,
        "question": "What is the number, and which number of the problem is not needed?",
        "grader": "grader.json",
        "answer_template": "{{item.reference_answer}}",
        "group_by": "form",
    }


def data_card(out: Path, made: Task, rows: Rows) -> str:
    first = rows["train"][0]
    return f"""# {NAME}: word problems with a number too many

One or two steps of arithmetic, in one to three sentences, each with a number that is not needed.
The answer is a number. For a model that reads English, such as SmolLM2 (`rftkit fetch smollm2`).

> {first["problem"]}

`{first["reference_answer"]}`

{files_table(out, rows, "form")}

Forms, names and things of one file occur in no other: a test form is another story, though the
arithmetic below it (sum, difference, product, quotient, two of them) is that of training. All were
written for this task. Made by `python -m tools.make_mathematics --out datasets/mathematics` (seed
{SEED}) from `tools/material/mathematics.txt`, byte for byte. `form` says which form a row has, and
groups rows for intervals (`group_by`).

**Limits**: numbers of 2 to 9 and what they give. One form of training and one of the test ask for
a half (4.5), none for a negative number. A dozen test forms are few to generalise from: intervals
by form are wide. The prompt shows two worked examples.

## Grader (`grader.json`)
1 if the last number of the output equals the row's, 0 otherwise: `4.5`, `4.50` and "It is 4.5." are
equal. So a model may write its steps, and a list of guesses is worth its last entry. What
strategies that do not understand the problem earn on the first {ATTACKED} test rows
(`rftkit.attack`; those with numbers in their names are this task's own):

```
{measure(made, CHEATS, ATTACKED)}
```

`grader_math_verify.json` asks [math-verify](https://github.com/huggingface/Math-Verify) (the extra
`math`) instead, and also takes `$\\frac{{9}}{{2}}$` for 4.5. Use it where answers are formulas.
Here both agree wherever a test tries them; the first needs no extra.

License: that of this repository.
"""


def write_task(out: str | Path) -> None:
    rows = make_rows()
    write(out, task(), graders(), rows, lambda folder, made: data_card(folder, made, rows))


if __name__ == "__main__":
    main(__doc__, write_task)
