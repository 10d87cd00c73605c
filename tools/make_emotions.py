"""datasets/emotions: a short message, and how its writer feels, as a task folder, byte for byte.

    python -m tools.make_emotions --out datasets/emotions

The sentences stand in tools/material/emotions.txt, all written for this task. A file has sources of
its own (diary, chat, review; note; letter, voicemail), so no sentence of one file is in another.
"""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

from rftkit.attacks import Strategy
from rftkit.graders.presets import preset
from rftkit.task import Task
from tools.shapes import SEED, Rows, chat, choose, files_table, main, measure, sections, write

NAME = "emotions"
LABELS = "anger disgust fear gratitude joy pride sadness surprise".split()
FILLINGS = {"train": 1, "validation": 1, "test": 2}  # rows from one sentence
NAMES = {
    "train": "Anna Luis Mei Omar Ruth Ivan Sara John Lena Paul",
    "validation": "Kofi Elsa Ravi Jana Otto Lucy",
    "test": "Ines Felix Yuki Amir Greta Pablo Vera Liam Noor Bruno",
}
INSTRUCTIONS = (
    "How does the writer feel? Answer with JSON alone: at most three emotions, the most likely "
    f"first, each one of: {', '.join(LABELS)}."
)
EXAMPLES = {
    "The bus left without me again, and the driver even waved.": '{"emotions": ["anger"]}',
    "A rainbow over our tent, look!": '{"emotions": ["joy", "surprise"]}',
}
CHEATS = (Strategy("three labels", lambda m: m.output(LABELS[-3:])),)


def sentences() -> list[tuple[str, str, str, str]]:
    """(split, form, emotion, sentence with slots) for each line of the material."""
    made = []
    for title, text in sections("emotions.txt").items():
        source, split = title.split()
        for number, line in enumerate(text.splitlines()):
            emotion, sentence = line.split(maxsplit=1)
            made.append((split, f"{source} {emotion} {number % 4 + 1}", emotion, sentence))
    return made


def make_rows() -> Rows:
    """Every sentence with other words in its slots each time, in an order that the seed fixes."""
    rows: Rows = {split: [] for split in FILLINGS}
    for split, form, emotion, sentence in sentences():
        draw, texts = random.Random(f"{SEED} {form}"), []
        while len(texts) < FILLINGS[split]:
            text = choose(draw, sentence).replace("{name}", draw.choice(NAMES[split].split()))
            texts += [] if text in texts else [text]
        known = {"form": form, "source": form.split()[0], "emotion": emotion}
        rows[split] += [known | {"message": text} for text in texts]
    for split, made in rows.items():
        random.Random(f"{SEED} {split}").shuffle(made)
        rows[split] = [
            {
                "messages": chat(INSTRUCTIONS, EXAMPLES, row["message"]),
                "row_id": f"{split}-{number:03d}",
                **row,
            }
            for number, row in enumerate(made, 1)
        ]
    return rows


def task() -> dict[str, Any]:
    """1 for the right emotion in the first place, .5 in the second or third; no fourth place."""
    spec = preset("rank", decay=(1, 0.5, 0.5), key="emotions", reference="emotion")
    fourth = {"type": "string_check", "name": "fourth", "operation": "ne", "reference": ""}
    spec["graders"]["fourth"] = fourth | {"input": "{{sample.output_json.emotions[3]}}"}
    spec["calculate_output"] += " * (1 - fourth)"
    return {
        "name": NAME,
        "question": "How does the writer of a short message feel?",
        "grader": spec | {"name": NAME},
        "answer_template": {"emotions": ["{{item.emotion}}"]},
        "worse_answers": [{"emotions": ["-", "{{item.emotion}}"]}, {"emotions": ["-"]}],
        "group_by": "form",
        "metrics": ["top1", "mrr"],
        "headline": "top1",
    }


def data_card(out: Path, made: Task, rows: Rows) -> str:
    first, number = rows["train"][0], len(sentences())
    spec = made.grader.to_json()
    slots = sum(bool(re.search(r"[({]", sentence)) for *_, sentence in sentences())
    return f"""# {NAME}: how does the writer feel?

A message of one or two sentences in, a ranked list of at most three emotions out. The labels stand
in the prompt: {", ".join(LABELS)}. For a model
that reads English, such as SmolLM2 (`rftkit fetch smollm2`).

> {first["message"]}

`{{"emotions": ["{first["emotion"]}"]}}`

{files_table(out, rows, "form")}

All {number} sentences were written for this task, {number // len(LABELS)} for each emotion, four
for each of six sources; none is from a data set. {slots} have slots (a name, a word out of two), so
that a sentence of the test makes {FILLINGS["test"]} rows. Made from `tools/material/emotions.txt`
by `python -m tools.make_emotions --out datasets/emotions` (seed {SEED}), byte for byte.

**Split**: by source. Training has diary, chat and review, validation has note, test has letter and
voicemail: no sentence, and no name, stands in two files. `form` names the sentence, and groups rows
for intervals (`group_by`). Labels are equally frequent in each file, and no message holds a label.

**Limits**: one writer, one label a message, and no second opinion: where two emotions fit (a
child's first steps: joy or pride?), the label is what the writer meant. The words are plainer than
those of real messages. The prompt holds two worked examples, which a small model may copy.

## Grader (in `task.json`)
`{spec["calculate_output"]}`

1 for the right emotion in the first place, .5 in the second or third, 0 otherwise, as in
[OpenPipe's article on RFT](https://openpipe.ai/blog/openai-rft) (30 December 2024). At most three
were asked for: a fourth entry costs everything. What strategies that do not read the message earn
on the test rows (`rftkit.attack`; "three labels" is this task's own, the same three each time):

```
{measure(made, CHEATS)}
```

License: that of this repository.
"""


def write_task(out: str | Path) -> None:
    rows = make_rows()
    write(out, task(), {}, rows, lambda folder, made: data_card(folder, made, rows))


if __name__ == "__main__":
    main(__doc__, write_task)
