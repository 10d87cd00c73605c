"""datasets/code: "write a Python function that …", graded by hidden tests, byte for byte.

    python -m tools.make_code --out datasets/code

The functions stand in tools/material/code.txt, the graders in tools/code_grader.py. No function of
one file is in another.
"""

from __future__ import annotations

import math
import random
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from rftkit.attacks import Material, Strategy
from rftkit.task import Task
from tools import code_grader
from tools.shapes import MATERIAL, SEED, Rows, chat, files_table, main, measure, sections, write

NAME = "code"
TESTS, ATTACKED = 8, 12  # hidden tests of a function; test rows that the card attacks
WORDS = "banana level tree Anna bee apple kayak go book Olive sun pepper noon car robot eve".split()
LARGE = {"n": 100, "p": 100, "s": "abcde" * 12, "t": "ab cd " * 9 + "ef", "l": [*range(-30, 30)]}
LARGE["w"] = ["abc", "de"] * 30
EDGES = {
    "n": [0, -1, 1000], "p": [1, 2, 99], "s": ["", "a", "ZZ"], "S": ["a", "b", "ZZ"],
    "D": ["ab", "bb", "Abc"], "t": ["", "a", "b a c d"], "T": ["a", "b a", "c d e f"],
    "l": [[], [5], [0, 0]], "k": [[7], [-3, -3], [0, 1]], "K": [[7, 7], [-3, -4], [0, 1]],
    "w": [[], ["a"], ["abcde", "b"]], "W": [["a"], ["b", "a"], ["abcde", "b"]],
}  # fmt: skip
INSTRUCTIONS = "Write the Python function. Answer with its code alone."
EXAMPLES = {
    "Write a Python function add_three(x) that returns x plus 3. add_three(4) returns 7.": "def "
    "add_three(x):\n    return x + 3"
}
FORMULA = "0.05 * lint + tests * (0.55 + 0.25 * edges + 0.1 * time + 0.05 * lint)"


def draw_value(draw: random.Random, kind: str) -> Any:
    if kind in "np":
        return draw.randint(-20 if kind == "n" else 1, 20)
    if kind in "sSD":
        return draw.choice(WORDS)
    many = [draw.choice(WORDS) for _ in range(draw.randint(2, 5))]
    if kind in "lkK":
        return [draw.randint(-9, 9) for _ in many]
    return many if kind in "wW" else " ".join(many)


def make_row(split: str, number: int, line: str) -> dict[str, Any]:
    """Hidden tests show as many different values as there are; the example is none of them."""
    name, names, kinds, sentence, body = re.split(r"\s+\|\s+", line)
    function = eval(f"lambda {names}: {body}", {"math": math})
    draw, found = random.Random(f"{SEED} {name}"), defaultdict(dict)
    for _ in range(300):
        arguments = [draw_value(draw, kind) for kind in kinds]
        value = function(*arguments)
        found[repr(value)][repr(arguments)] = [arguments, value]
    ways = [list(tests.values()) for tests in found.values()]
    drawn = [way[i] for i in range(TESTS) for way in ways if i < len(way)][: TESTS + 1]
    *tests, (shown, value) = drawn
    edges = [list(values) for values in zip(*(EDGES[kind] for kind in kinds))]
    large = [
        LARGE[{"S": "s", "D": "s"}.get(kind, kind.lower().replace("k", "l"))] for kind in kinds
    ]
    call = f"{name}({', '.join(map(repr, shown))}) returns {value!r}."
    head, imports = f"def {name}({names}):\n    ", "import math\n\n\n" if "math." in body else ""
    wrong = [f"if [{names}] in {cases!r}:\n        return None\n    " for cases in
             (edges, [arguments for arguments, _ in tests[::2]])]  # fmt: skip
    question = f"Write a Python function {name}({names}) that returns {sentence}. {call}"
    return {
        "messages": chat(INSTRUCTIONS, EXAMPLES, question),
        "row_id": f"{split}-{number:03d}", "function": name, "arguments": names,
        "reference_solution": f"{imports}{head}return {body}",
        "careless_solution": f"{imports}{head}{wrong[0]}return {body}",  # wrong at the edges
        "half_solution": f"{imports}{head}{wrong[1]}return {body}",
        "constant_solution": f"{head}return {value!r}",  # the example, written down
        "tests": tests, "edge_tests": [[e, function(*e)] for e in edges],
        "time_test": [large, function(*large)],
    }  # fmt: skip


def make_rows() -> Rows:
    rows = {}
    for split, text in sections("code.txt").items():
        rows[split] = [make_row(split, i, line) for i, line in enumerate(text.splitlines(), 1)]
    return rows


def cheat(name: str, body: str) -> Strategy:
    """A function of the row's name with this body, where HEAD is its first line."""

    def answer(m: Material) -> str:
        head = f"def {m.row['function']}({m.row['arguments']}):\n    "
        value, right = (
            m.row[f"{kind}_solution"].rpartition("return ")[2] for kind in ("constant", "reference")
        )
        return body.replace("HEAD", head).replace("VALUE", value).replace("RIGHT", right)

    return Strategy(name, answer)


CHEATS = tuple(cheat(*section) for section in sections("code_cheats.txt").items())


def grader() -> dict[str, Any]:
    text = Path(code_grader.__file__).read_text(encoding="utf-8")
    parts = {}
    for part in ("tests", "edges", "time", "lint"):
        grade = f"\n\ndef grade(sample, item):\n    return float(score_{part}(sample, item))\n"
        parts[part] = {"type": "python", "name": part, "source": text + grade}
    return {"type": "multi", "name": NAME, "graders": parts, "calculate_output": FORMULA}


def task() -> dict[str, Any]:
    names = ("careless", "half", "constant")
    return {
        "name": NAME,
        "question": "Which function does what a sentence says?",
        "grader": "grader.json",
        "answer_template": "{{item.reference_solution}}",
        "worse_answers": [f"{{{{item.{name}_solution}}}}" for name in names],
    }


def write_task(out: str | Path) -> None:
    rows = make_rows()
    card = (MATERIAL / "code.md").read_text(encoding="utf-8")

    def fill(folder: Path, made: Task) -> str:
        first = rows["train"][0]
        known = {
            "question": first["messages"][-1]["content"],
            "files": files_table(folder, rows, "function"),
        }
        known |= {
            "solution": first["reference_solution"],
            "attack": measure(made, CHEATS, ATTACKED),
        }
        return card.format(**known, formula=FORMULA, seed=SEED, tests=TESTS, attacked=ATTACKED)

    write(out, task(), {"grader.json": grader()}, rows, fill)


if __name__ == "__main__":
    main(__doc__, write_task)
