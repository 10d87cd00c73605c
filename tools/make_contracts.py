"""datasets/contracts: five fields out of a clause, as a task folder, byte for byte.

    python -m tools.make_contracts --out datasets/contracts

Clauses of insurance, finance and supply; null where the clause is silent. The forms of one file,
its firms and its goods occur in no other.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from rftkit.attacks import Strategy
from rftkit.task import Task
from tools.shapes import SEED, Rows, chat, field_grader, files_table, main, measure, sections, write

NAME = "contracts"
KINDS = {"party": str, "amount": int, "currency": str, "due": str, "notice": int}
EACH = {"train": 8, "validation": 12, "test": 12}  # rows of one form
FIRMS = {
    "train": "Alder Birch Cedar Dorset Ember Falcon Garnet Harbour Indigo Juniper Kestrel Linden",
    "validation": "Maple Nimbus Orchard Pioneer Quarry Raven",
    "test": "Saffron Thistle Umber Velvet Willow Yarrow Zephyr Amber Beacon Cobalt Drift Elm",
}
FORMS_OF_FIRM = {"train": "Ltd Bank Mills", "validation": "Inc Works", "test": "Group Foods Trust"}
GOODS = {
    "train": "pumps, steel beams, office desks, solar panels",
    "validation": "glass doors, engines",
    "test": "cranes, oak floors, boilers, cargo bikes, printing presses",
}
MONTHS = "January February March April May June July August September October November December"
INSTRUCTIONS = (
    "Read the clause. Answer with JSON alone: party (who pays), amount, currency, due (the day of "
    "payment), notice (of leaving the contract, in days). Write null for what it does not say."
)
EXAMPLES = {
    "Ivory Corp pays EUR 320 to Jade Corp by 7 May.": '{"party": "Ivory Corp", "amount": 320, '
    '"currency": "EUR", "due": "7 May", "notice": null}',
    "Jade Corp pays. Both sides may leave with 20 days' notice.": '{"party": "Jade Corp", '
    '"amount": null, "currency": null, "due": null, "notice": 20}',
}
CHEATS = (Strategy("all null", lambda m: json.dumps(dict.fromkeys(KINDS))),)


def forms(split: str) -> list[list[str]]:
    """[domain, clause with slots] for each line of the split's material."""
    return [line.split(" | ") for line in sections("contracts.txt")[split].splitlines()]


def make_rows() -> Rows:
    """Every form equally often, in an order that the seed fixes."""
    rows: Rows = {}
    for split, each in EACH.items():
        draw = random.Random(f"{SEED} {split}")
        order = [*range(len(forms(split)))] * each
        draw.shuffle(order)
        rows[split] = [make_row(draw, split, form, i) for i, form in enumerate(order, 1)]
    return rows


def make_row(draw: random.Random, split: str, form: int, number: int) -> dict[str, Any]:
    """A field is the drawn value where the form has its slot, else null. Other slots confuse."""
    domain, text = forms(split)[form]
    firms, days = draw.sample(FIRMS[split].split(), 2), draw.sample((10, 14, 21, 30, 45, 60, 90), 2)
    party, other = (f"{firm} {draw.choice(FORMS_OF_FIRM[split].split())}" for firm in firms)
    due, other_date = (f"{draw.randint(1, 28)} {m}" for m in draw.sample(MONTHS.split(), 2))
    amount, other_amount = (10 * n for n in draw.sample(range(11, 990), 2))
    values = {"party": party, "amount": amount, "due": due, "notice": days[0]}
    values["currency"] = draw.choice(("EUR", "USD", "CHF", "GBP"))
    others = {"other": other, "other_amount": other_amount, "other_date": other_date}
    others |= {"days": days[1], "number": draw.randint(2, 9)}
    clause = text.format(**values, **others, item=draw.choice(GOODS[split].split(", ")))
    said = {field: values[field] if f"{{{field}}}" in text else None for field in KINDS}
    messages = chat(INSTRUCTIONS, EXAMPLES, clause)
    known = {"clause": clause, "form": f"{split} {form + 1}", "domain": domain}
    return {"messages": messages, "row_id": f"{split}-{number:03d}", **known, **said}


def task() -> dict[str, Any]:
    def answer(**values: str) -> str:
        """Without quotes a placeholder keeps its type: a number, or null."""
        fields = {name: f"{{{{item.{name}}}}}" for name in KINDS} | values
        return "{" + ", ".join(f'"{name}": {value}' for name, value in fields.items()) + "}"

    nobody, day, nothing = '"Nobody Corp"', '"30 February"', dict.fromkeys(KINDS, '"nothing"')
    return {
        "name": NAME,
        "question": "Who pays what by when, and how can the contract be left?",
        "grader": "grader.json",
        "answer_template": answer(),
        "worse_answers": [answer(party=nobody), answer(party=nobody, due=day), answer(**nothing)],
        "group_by": "form",
    }


def data_card(out: Path, made: Task, rows: Rows) -> str:
    first = rows["train"][0]
    nulls = {field: [row[field] for row in rows["test"]].count(None) for field in KINDS}
    shares = ", ".join(f"{name} {count / len(rows['test']):.0%}" for name, count in nulls.items())
    return f"""# {NAME}: five fields out of a clause

Who pays, how much, in which currency, by when, and with how many days' notice can one leave? Short
clauses of insurance, finance and supply in, strict JSON out; `null` is right where the clause is
silent. For a model that reads English, such as SmolLM2 (`rftkit fetch smollm2`).

> {first["clause"]}

`{json.dumps({field: first[field] for field in KINDS})}`

{files_table(out, rows, "form")}

Forms, firms and goods of one file occur in no other. All were written for this task; no real firm
or contract is meant. Made from `tools/material/contracts.txt` by
`python -m tools.make_contracts --out datasets/contracts` (seed {SEED}), byte for byte. `form` says
which form a row has, and groups rows for intervals (`group_by`).

Clauses hold what can be confused with the answer: a second firm, date or amount, a number of
pieces, a period that is no notice. Silent in the test:
{shares}.

**Limits**: one or two sentences, a dozen forms; a contract has pages, and says a thing twice. As
silence is often right, "all null" below beats a poor reader: a run may go there first. The prompt
holds two worked examples. This is no legal advice.

## Grader (`grader.json`)
`{made.grader.to_json()["calculate_output"]}`

As in [extraction](../extraction/README.md): a field earns its share where it equals the row's, a
value that the clause does not contain costs .05, an answer that is no JSON earns 0. A number in
quotes, or null as `"None"`, is wrong; a key too many costs nothing. What strategies that do not
read the clause earn on the test rows (`rftkit.attack`; "all null" is this task's own):

```
{measure(made, CHEATS)}
```

License: that of this repository.
"""


def write_task(out: str | Path) -> None:
    rows, graders = make_rows(), {"grader.json": field_grader(NAME, KINDS, "clause")}
    write(out, task(), graders, rows, lambda folder, made: data_card(folder, made, rows))


if __name__ == "__main__":
    main(__doc__, write_task)
