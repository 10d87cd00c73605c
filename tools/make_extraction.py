"""datasets/extraction: business messages as a task folder, byte for byte.

    python -m tools.make_extraction --out datasets/extraction

A message of an invoice, an order or an insurance claim in, four fields as JSON out. Names, items
and sentence forms of one file occur in no other: what is measured is reading, not remembering.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from rftkit.attacks import attack
from rftkit.files import write_json, write_text
from rftkit.graders.presets import preset
from rftkit.rows import sha256_of, write_rows
from rftkit.task import load_task

NAME, SEED = "extraction", 20
FIELDS = ("customer", "item", "amount", "due")
ROWS = {"train": 64, "validation": 48, "test": 240}

# {customer} {item} {amount} {due} are what is asked for; where one is not in a form, null is right.
# {clerk}, {other_amount}, {other_date} and {number} are there to be confused with them.
FORMS = {
    "train": [
        "{customer} ordered {number} {item} for {amount} euros, payable by {due}.",
        "Please charge {amount} euros to {customer} for {item}; the due date is {due}.",
        "Invoice of {other_date}: {customer}, {item}, {amount} euros, to be paid by {due}.",
        "For the {item} that {customer} bought, {amount} euros are owed. {clerk} took the order.",
        "{customer} paid {other_amount} euros in advance for {item}; the remaining {amount} euros "
        "fall due on {due}.",
        "Claim by {customer}: {item} damaged on {other_date}. We will pay {amount} euros by {due}.",
        "{clerk} sold {number} {item} to {customer}. The price will follow; payment is expected by "
        "{due}.",
        "{customer} has reserved {number} {item}. No price and no date have been agreed.",
    ],
    "validation": [
        "On {other_date} {customer} took {number} {item} home and owes us {amount} euros until "
        "{due}.",
        "{amount} euros from {customer} for {item} are due on {due}, says {clerk}.",
        "{customer} returned {item}. We owe {amount} euros.",
        "{customer} wants {number} {item} delivered by {clerk}, to be paid on {due}.",
    ],
    "test": [
        "Reminder: {amount} euros for {number} {item} are still open, {customer} promised to pay "
        "by {due}.",
        "{number} {item} went out to {customer} on {other_date}. Total {amount} euros, to be paid "
        "no later than {due}.",
        "The account of {customer} shows {amount} euros for {item}, deadline {due}; {clerk} is in "
        "charge.",
        "Dear {customer}, thank you for buying {item}. We have received {other_amount} euros and "
        "ask for the other {amount} euros by {due}.",
        "{clerk} reports a loss for our client {customer}: {item}, worth {amount} euros.",
        "We expect {customer} to settle the bill for {number} {item} by {due}; {clerk} will send "
        "the sum.",
        "Order received on {other_date}: {number} {item}, {amount} euros, customer {customer}.",
        "Insurance case {number}: {customer} lost {item}. Our offer of {other_amount} euros was "
        "refused; {amount} euros are now due on {due}.",
    ],
}
FIRST = {
    "train": "Anna Luis Mei Omar Ruth Ivan Sara John Lena Paul Aiko Nora Hugo Tara Emil Zara",
    "validation": "Kofi Elsa Ravi Jana Otto Lucy Marek Dina",
    "test": "Ines Felix Yuki Amir Greta Pablo Vera Liam Noor Bruno Clara Jonas Petra Diego Mona "
    "Erik Leila Simon Alma Viktor",
}
LAST = {
    "train": "Berg Ortega Chen Haddad Klein Petrov Nilsen Okafor Fischer Martin Tanaka Walsh",
    "validation": "Mensah Lindqvist Kapoor Novak Brandt Doyle",
    "test": "Costa Weber Sato Rahman Lorenz Ruiz Ivanova Murphy Saleh Rossi Hansen Meyer Horvat "
    "Silva Dahl Karimi",
}
ITEMS = {
    "train": "desk lamps, oak shelves, printer paper, coffee beans, brake pads, garden hoses, "
    "winter tyres, paint rollers, office chairs, copper pipes, ceramic tiles, bike helmets",
    "validation": "wool blankets, steel bolts, water filters, picture frames, rain jackets, "
    "solar panels",
    "test": "leather sofas, glass bowls, power drills, cotton shirts, roof tiles, kitchen knives, "
    "laptop bags, garden chairs, wine glasses, fire alarms, floor mats, tea pots, snow shovels, "
    "door handles, phone cases, camping tents",
}
MONTHS = "January February March April May June July August September October November December"
INSTRUCTIONS = (
    "Read the message. Answer with JSON alone, such as "
    '{"customer": "Joe Hill", "item": "red bricks", "amount": 120, "due": "3 July"}. '
    "Copy the words of the message. Write null for what it does not say."
)
EXAMPLE = "Kim Lee bought 14 blue hats for 45 euros, to be settled until 2 May."
EXAMPLE_ANSWER = '{"customer": "Kim Lee", "item": "blue hats", "amount": 45, "due": "2 May"}'


def make_rows(split: str, number: int) -> list[dict[str, Any]]:
    """Every form equally often, in an order that the seed fixes."""
    draw = random.Random(f"{SEED} {split}")
    forms = FORMS[split]
    order = [forms[i % len(forms)] for i in range(number)]
    draw.shuffle(order)
    return [make_row(draw, split, form, f"{split}-{i:03d}") for i, form in enumerate(order, 1)]


def make_row(draw: random.Random, split: str, form: str, row_id: str) -> dict[str, Any]:
    def names() -> tuple[str, str]:
        first, last = (draw.sample(names[split].split(), 2) for names in (FIRST, LAST))
        return f"{first[0]} {last[0]}", f"{first[1]} {last[1]}"

    def dates() -> list[str]:
        return [f"{draw.randint(1, 28)} {month}" for month in draw.sample(MONTHS.split(), 2)]

    (customer, clerk), (due, other_date) = names(), dates()
    amount, other_amount = draw.sample(range(12, 990), 2)
    item = draw.choice(ITEMS[split].split(", "))
    truth = {"customer": customer, "item": item, "amount": amount, "due": due}
    others = {"clerk": clerk, "other_amount": other_amount, "other_date": other_date}
    message = form.format(**truth, **others, number=draw.randint(2, 90))
    said = {name: truth[name] if f"{{{name}}}" in form else None for name in FIELDS}
    messages = [
        {"role": "system", "content": INSTRUCTIONS},
        {"role": "user", "content": EXAMPLE},
        {"role": "assistant", "content": EXAMPLE_ANSWER},
        {"role": "user", "content": message},
    ]
    form_id = f"{split} {FORMS[split].index(form) + 1}"
    return {"messages": messages, "row_id": row_id, "message": message, "form": form_id, **said}


def grader() -> dict[str, Any]:
    """A tenth for a readable answer, the rest by fields; an invented value costs .05.

    A value is invented if the message does not contain it. Templates write null as "None", and a
    number as they write its text: so an amount in quotes is looked for in the JSON of the answer.
    """
    parts = {name: preset("exact_match", key=name, reference=name) for name in FIELDS}
    for name in FIELDS:
        value = f"{{{{sample.output_json.{name}}}}}"
        check = {"type": "string_check", "name": f"{name}_said", "operation": "like"}
        parts[f"{name}_said"] = check | {"input": "{{item.message}} None", "reference": value}
    quoted = {"type": "string_check", "name": "amount_quoted", "operation": "like"}
    texts = {"input": "{{sample.output_json}}", "reference": '"amount": "'}
    parts["amount_quoted"] = quoted | texts
    right = " + ".join(FIELDS).replace("amount", "amount * (1 - amount_quoted)")
    said = " + ".join(f"{name}_said" for name in FIELDS)
    formula = f"max(0, 0.1 + 0.225 * ({right}) - 0.05 * (4 - ({said})))"
    return {"type": "multi", "name": NAME, "graders": parts, "calculate_output": formula}


def task() -> dict[str, Any]:
    def answer(**values: str) -> str:
        """Without quotes a placeholder keeps its type: a number, or null."""
        fields = {name: f"{{{{item.{name}}}}}" for name in FIELDS} | values
        return "{" + ", ".join(f'"{name}": {value}' for name, value in fields.items()) + "}"

    return {
        "name": NAME,
        "question": "Who bought what, for how much, and when is it due?",
        "grader": "grader.json",
        "answer_template": answer(),
        "worse_answers": [
            answer(customer='"Nobody Else"'),
            answer(customer='"Nobody Else"', item='"nothing"'),
            answer(customer="null", item="null", amount="0", due='"1 May 2000"'),
        ],
        "group_by": "customer",
        "metrics": ["grade"],
        "headline": "grade",
    }


def data_card(out: Path) -> str:
    files = "\n".join(
        f"| `{split}.jsonl` | {number} | {len(FORMS[split])} | "
        f"{len(FIRST[split].split()) * len(LAST[split].split())} | "
        f"`{sha256_of(out / f'{split}.jsonl')}` |"
        for split, number in ROWS.items()
    )
    attacked = load_task(out)
    report = attack(
        attacked.grader, attacked.rows("test"), attacked.answer_template, attacked.worse_answers
    )
    first = json.loads((out / "train.jsonl").read_text().splitlines()[0])
    answer = json.dumps({name: first[name] for name in FIELDS})
    return f"""# extraction: four fields out of a business message

Invoices, orders and insurance claims in one or two sentences. Who is the customer, what is it
about, how many euros, due when? A model answers with strict JSON; `null` is right where the message
says nothing. For a model that reads English, such as SmolLM2 (`rftkit fetch smollm2`).

> {first["message"]}

`{answer}`

| file | rows | sentence forms | possible names | sha256 |
|---|---|---|---|---|
{files}

Sentence forms, names and items of one file occur in no other. Messages hold what can be confused
with the answer: a second date, a second amount, a second name, the number of pieces. Of the eight
training forms one names no due date, one no amount, one neither; of the eight test forms two name
no due date, one no amount. `form` says which form a row has. Each prompt holds one worked example:
without one a model of 135 million parameters copies that of the instructions, or writes prose.

All rows are made up, by `python -m tools.make_extraction --out datasets/extraction` (seed {SEED}),
byte for byte. No real person, firm or message is meant.

## Grader (`grader.json`)
`{grader()["calculate_output"]}`

A field earns its share where it is equal to the row's, word for word; one that is missing, or whose
value the message does not contain, costs .05. An answer that is no JSON earns 0. An amount in
quotes is wrong: the first grader took `"474"` for `474`, as templates write both alike, and after
32 steps of RFT 93 % of the answers at T = 1 had quotes (`python benchmarks/real_model.py --seeds 0`
at commit d7fca74, 30 Nov 2026).

What strategies that do not read the message earn on the test rows (`rftkit.attack`):

```
{report}
```

Rows of one customer are one group for intervals (`group_by`). License: that of this repository.
"""


def write_task(out: str | Path) -> None:
    """Write task.json, grader.json, three .jsonl files and README.md."""
    out = Path(out)
    write_json(out / "task.json", task())
    write_json(out / "grader.json", grader())
    for split, number in ROWS.items():
        write_rows(out / f"{split}.jsonl", make_rows(split, number))
    write_text(out / "README.md", data_card(out))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to write")
    write_task(parser.parse_args().out)
