"""SmolLM2-135M-Instruct on datasets/extraction: RFT beside its rivals, three seeds.

    rftkit fetch smollm2
    python benchmarks/real_model.py               # seeds 0, 1, 2
    python benchmarks/real_model.py --seeds 0     # one seed
    python benchmarks/real_model.py --size 4      # few rows, two steps: does it run?

Everything stands in runs/extraction: what is finished is not run again, a run that was stopped
resumes. Each seed goes into datasets/recorded_runs/extraction.json beside the others.

All systems answer the same test rows, sampled with the same random numbers and once greedily. The
seed is that of training: the order of rows and what RFT and rejection sampling draw.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections import defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from page_block import Block

from rftkit import RunConfig, load_policy, load_task, measure_signal, train
from rftkit.console import Reporter
from rftkit.environment import machine, versions
from rftkit.evaluation import bootstrap, clusters_of, paired_difference
from rftkit.files import markdown_table, read_json, write_json
from rftkit.graders.answer import fill_template
from rftkit.policy import Policy, Prompt
from rftkit.records import Sample, SamplingConfig
from rftkit.task import Task
from rftkit.training.run import Run

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "datasets" / "recorded_runs"
FIELDS = ("customer", "item", "amount", "due")
TOKENS = 48  # an answer has 26 to 37
SAMPLING = SamplingConfig(max_new_tokens=TOKENS, seed=1_000)
COMMON = dict(model="smollm2", task="extraction", max_completion_tokens=TOKENS, patience=0)
COMMON |= dict(eval_rows=48, eval_samples=1, gate="off")
RFT = COMMON | dict(prompts_per_step=4, answers_per_prompt=8, learning_rate=5e-4, beta=0.0)
RFT |= dict(steps=48, eval_every=8, save_every=4)
# SFT validates after every epoch, and keeps the best one.
SFT = COMMON | dict(method="sft", prompts_per_step=8, steps=10_000, epochs=4, learning_rate=1e-3)
# task -> what is measured, and what two of the systems are called there
IN_SHORT = {
    "extraction": ("right fields", "base, five examples", "SFT"),
    "stock": ("right answers", "base, four worked examples", "SFT on numbers"),
}
COLUMNS = ("base", "worked examples in the prompt", "SFT on all labels")
COLUMNS += ("rejection-sampling SFT", "the same in four rounds", "RFT")
README = Block("README.md", "real model", "real_model.py")

Row = dict[str, Any]
Answers = list[list[Sample]]


class Extraction:
    """What the systems are made of and measured on; `size` takes few rows and two steps."""

    def __init__(self, out: Path, seed: int, size: int | None = None):
        self.task, self.out, self.seed = load_task("extraction"), out / f"seed-{seed}", seed
        splits = ("train", "validation", "test")
        self.rows, self.held_out, self.test = (self.task.rows(split)[:size] for split in splits)
        for row in self.rows:
            row["completion"] = fill_template(self.task.answer_template, row)
        first = {row["form"]: row for row in reversed(self.task.rows("train"))}
        self.examples = [first[f"train {form}"] for form in (4, 5, 7, 8)]
        self.changes = dict(steps=2, eval_every=2, epochs=1) if size else {}

    def train(self, name: str, settings: dict[str, Any], rows: list[Row]) -> Run:
        config = RunConfig(**settings | self.changes, seed=self.seed)
        if config.method == "sft":
            config = config.replace(eval_every=-(-len(rows) // config.prompts_per_step))
        return train(config, self.out / name, rows=rows, held_out=self.held_out)

    def rft(self) -> Run:
        return self.train("rft", RFT, self.rows)

    def sft(self) -> Run:
        return self.train("sft", SFT, self.rows)

    def rejection_sampling(self) -> Run:
        """SFT on the base's best answer to each row, among as many as RFT draws."""
        steps = (RFT | self.changes)["steps"]
        each = -(-steps * RFT["prompts_per_step"] * RFT["answers_per_prompt"] // len(self.rows))
        with Reporter() as reporter:
            reporter.stage("drawing answers", each * len(self.rows))
            config = replace(SAMPLING, seed=2_000 + self.seed)
            prompts = list(map(Prompt, self.rows))
            drawn = load_policy("smollm2").sample(prompts, each, config, reporter.work)
        self.task.grade(self.rows, drawn)
        best = [max(group, key=lambda sample: sample.grade or 0) for group in drawn]
        kept = [
            row | {"completion": sample.output_text}
            for row, sample in zip(self.rows, best)
            if sample.grade
        ]
        run = self.train("rejection_sampling", SFT, kept)
        run.training["samples"] = each * len(self.rows)
        return run

    def sft_then_rft(self) -> Run:
        """One epoch of SFT on half of the labels, RFT on the other half: on the same rows every
        group would be right, and none would teach anything."""
        half = len(self.rows) // 2
        self.train("sft_half", SFT | dict(epochs=1), self.rows[:half])
        start = dict(init_adapter=str(self.out / "sft_half"), steps=16)
        return self.train("sft_then_rft", RFT | start, self.rows[half:])


TRAINED = {
    "RFT": Extraction.rft,
    "SFT": Extraction.sft,
    "rejection-sampling SFT": Extraction.rejection_sampling,
    "SFT, then RFT": Extraction.sft_then_rft,
}


def without_example(row: Row) -> Row:
    return row | {"messages": [row["messages"][0], row["messages"][-1]]}


def with_examples(row: Row, examples: list[Row]) -> Row:
    """More worked examples: training rows of different forms."""
    *head, question = row["messages"]
    for example in examples:
        text = json.dumps({key: example[key] for key in FIELDS})
        head += [example["messages"][-1], {"role": "assistant", "content": text}]
    return row | {"messages": [*head, question]}


class SchemaPolicy:
    """The base behind a strict schema: the keys are written for it, it fills in the values."""

    name = "base, strict schema"

    def __init__(self, policy: Policy):
        self.policy = policy

    def sample(self, prompts: list, n: int = 1, config: Any = None, progress: Any = None) -> list:
        texts, outputs = [self.policy.render(prompt) for prompt in prompts], [{} for _ in prompts]
        config = replace(config, max_new_tokens=14, stop=[",", "}", "\n"])
        for key in FIELDS:
            texts = [f'{text}{", " if outputs[0] else "{"}"{key}":' for text in texts]
            drawn = self.policy.sample(texts, 1, config)
            for i, (sample,) in enumerate(drawn):
                value = re.split(r"[,}\n]", sample.output_text)[0].strip()
                try:
                    outputs[i][key] = json.loads(value)
                except ValueError:
                    outputs[i][key] = value.strip('"')
                texts[i] += f" {json.dumps(outputs[i][key])}"
        return [[Sample.from_text(json.dumps(output))] for output in outputs]


MONTHS = "January February March April May June July August September October November December"
DATE = rf"\d{{1,2}} (?:{'|'.join(MONTHS.split())})"


def by_regex(message: str) -> Row:
    """What an afternoon of rules gives, written on the training rows alone."""
    found = {
        "customer": re.search(r"[A-Z][a-z]+ [A-Z][a-z]+(?= (?:ordered|bought|paid|has))", message)
        or re.search(r"(?:to|by|\d:|[a-z]:) ?([A-Z][a-z]+ [A-Z][a-z]+)", message)
        or re.search(r"[A-Z][a-z]+ [A-Z][a-z]+", message),
        "item": re.search(r"(?:\d+|for|, |: |the) ?([a-z]+ (?:[a-z]+s|paper))\b", message),
        "amount": re.search(r"(?:remaining |for |pay |charge |, )(\d+)(?= euros)", message)
        or re.search(r"(\d+)(?= euros)", message),
        "due": re.search(rf"(?:payable by|paid by|by|is|due on|until) ({DATE})(?=\.|;|$)", message),
    }
    answer = {key: match and match[match.lastindex or 0] for key, match in found.items()}
    return answer | {"amount": answer["amount"] and int(answer["amount"])}


def values_of(row: Row, sample: Sample) -> dict[str, float]:
    """What is measured in one answer. All fields of one that is no JSON are wrong."""
    answer = sample.output_json if isinstance(sample.output_json, dict) else {}
    right = [key in answer and answer[key] == row[key] for key in FIELDS]
    return dict(grade=sample.grade or 0.0, fields=sum(right) / 4, all_four=float(all(right)))


def readable(text: str) -> float:
    """Is it an object with all four keys?"""
    answer = Sample.from_text(text).output_json
    return float(isinstance(answer, dict) and answer.keys() >= {*FIELDS})


def by_field(rows: list[Row], texts: list[str]) -> dict[str, float]:
    """The share right of each field, apart where null is right."""
    found = defaultdict(list)
    for row, text in zip(rows, texts):
        answer = Sample.from_text(text).output_json
        for key in FIELDS:
            right = isinstance(answer, dict) and key in answer and answer[key] == row[key]
            found[f"{key} (null)" if row[key] is None else key].append(right)
    return {key: round(float(np.mean(right)), 4) for key, right in sorted(found.items())}


def measured(task: Task, rows: list[Row], sampled: Answers, greedy: Answers) -> Row:
    """Values a row, and the answers' texts."""
    record: Row = {}
    for name, answers in (("sampled", sampled), ("greedy", greedy)):
        task.grade(rows, answers)
        values = [values_of(row, sample) for row, (sample,) in zip(rows, answers)]
        record[name] = {key: [value[key] for value in values] for key in values[0]}
        record[name]["texts"] = [sample.output_text for (sample,) in answers]
    return record


def answer(policy: Policy, task: Task, rows: list[Row]) -> Row:
    prompts = list(map(Prompt, rows))
    sampled = policy.sample(prompts, 1, SAMPLING)
    return measured(
        task, rows, sampled, policy.sample(prompts, 1, replace(SAMPLING, temperature=0))
    )


def evaluate_bases(work: Extraction, place: Path) -> dict[str, Row]:
    """The systems without training, each in a file once it is done."""
    policy, task, test = load_policy("smollm2"), work.task, work.test
    systems = {
        "base, no example": (policy, list(map(without_example, test))),
        "base": (policy, test),
        "base, five examples": (policy, [with_examples(row, work.examples) for row in test]),
        "base, strict schema": (SchemaPolicy(policy), test),
    }
    results = {}
    for name, (system, rows) in systems.items():
        results[name] = kept(place / f"{name}.json", partial(answer, system, task, rows))
    rules = [[Sample.from_text(json.dumps(by_regex(row["message"])))] for row in test]
    return results | {"regex": measured(task, test, rules, rules)}


def measure_gates(work: Extraction) -> dict[str, Row]:
    """What the signal gate says of the training rows, with the example and without it."""
    forms = {"base, no example": list(map(without_example, work.rows)), "base": work.rows}
    policy, options = load_policy("smollm2"), dict(answers=8, max_completion_tokens=TOKENS)
    return {
        name: measure_signal(policy, work.task, rows, **options).to_json()
        for name, rows in forms.items()
    }


def kept(place: Path, make: Any) -> Row:
    if not place.exists():
        write_json(place, make())
    return read_json(place)


def evaluate_seed(work: Any, trained: dict, answer: Any) -> tuple[dict[str, Row], dict[str, Row]]:
    """(results, what training took) of the `trained` systems, each in a file once it is done."""
    results, training = {}, {}

    def made(name: str) -> Row:
        run = trained[name](work)
        took = run.training | {"start": run.start, "best": run.best}
        result = answer(run.policy, work.task, work.test)
        return result | {"training": took, "log": run.log, "adapter": run.out.name}

    for name in trained:
        print(f"seed {work.seed}: {name}", flush=True)
        results[name] = kept(work.out / f"{name}.json", partial(made, name))
        training[name] = results[name]["training"] | {"log": results[name]["log"]}
    return results, training


def add_run(path: Path, shared: Row, run: Row, **once: Any) -> None:
    """Write a seed's run into the record, beside those of other seeds with the same `shared`;
    what `once` makes is taken from there."""
    known = read_json(path) if path.exists() else {}
    if any(known.get(key) != value for key, value in shared.items()):
        known = {}
    run |= {"machine": machine(), "date": time.strftime("%Y-%m-%d"), "versions": versions()}
    runs = [run, *(other for other in known.get("runs", []) if other["seed"] != run["seed"])]
    made = {key: known[key] if key in known else make() for key, make in once.items()}
    runs.sort(key=lambda run: run["seed"])
    write_json(path, {**shared, "runs": runs, **made})


def summary(results: dict[str, Row], rows: list[Row], task: Task) -> Row:
    """Means with intervals, clustered by customer, and every difference to RFT; the answers to
    the first rows in full."""
    clusters, systems, paired, answers = clusters_of(rows, task), [], [], {}
    for name, result in results.items():
        record: Row = {"name": name}
        for how in ("sampled", "greedy"):
            values = {key: v for key, v in result[how].items() if key != "texts"}
            values["readable"] = list(map(readable, result[how]["texts"]))
            record[how] = {key: bootstrap(v, clusters).to_json() for key, v in values.items()}
            right = np.array(values["fields"])[np.array(values["readable"]) > 0]
            record[how]["fields_if_readable"] = float(right.mean()) if len(right) else None
            record[how]["by_field"] = by_field(rows, result[how]["texts"])
            if name != "RFT" and "RFT" in results:
                pair = results["RFT"][how]["fields"], values["fields"]
                interval = paired_difference(*pair, clusters).to_json()
                paired.append({"a": "RFT", "b": name, "how": how, "metric": "fields"} | interval)
        systems.append(record)
        answers[name] = {how: result[how]["texts"][:8] for how in ("sampled", "greedy")}
    return {"systems": systems, "paired": paired, "answers": answers}


def readme_table() -> str:
    """Greedy answers to the test rows; the range over the seeds."""
    rows = []
    for task, (measured, prompted, labelled) in IN_SHORT.items():
        means = defaultdict(list)
        for run in read_json(RECORDS / f"{task}.json")["runs"]:
            for system in run["systems"]:
                greedy = system["greedy"].get("fields", system["greedy"])
                means[system["name"]].append(f"{greedy['mean']:.3f}")
        row = {"greedy, share of": f"{measured} (`{task}`)"}
        names = ("base", prompted, labelled, "rejection-sampling SFT")
        names += ("rejection-sampling SFT, four rounds", "RFT")
        for column, name in zip(COLUMNS, names):
            ends = {f(means[name]) for f in (min, max) if means[name]}
            row[column] = " to ".join(sorted(ends)) or "not run"
        rows.append(row)
    return markdown_table(rows)


def arguments(text: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--size", type=int, help="so many rows of each file, and two steps")
    parser.add_argument("--out", type=Path, help="runs/TASK without it")
    parser.add_argument("--record", type=Path, help="datasets/recorded_runs/TASK.json without it")
    return parser


def places(given: argparse.Namespace, task: str) -> tuple[Path, Path]:
    """(folder of the runs, record). A trial with --size touches neither the full runs nor their
    record."""
    out = given.out or ROOT / "runs" / (f"{task}-{given.size}-rows" if given.size else task)
    return out, given.record or (out / "record.json" if given.size else RECORDS / f"{task}.json")


def main() -> None:
    given = arguments(__doc__).parse_args()
    out, record = places(given, "extraction")
    for seed in given.seeds:
        work = Extraction(out, seed, given.size)
        results, training = evaluate_seed(work, TRAINED, answer)
        report = summary(evaluate_bases(work, out) | results, work.test, work.task)
        sizes = {"train": len(work.rows), "validation": len(work.held_out), "test": len(work.test)}
        shared = {"rows": sizes, "settings": {"RFT": RFT, "SFT": SFT}}
        gates = partial(kept, out / "gates.json", partial(measure_gates, work))
        run = {"seed": seed, **report, "training": training}
        add_run(record, shared, run, gates=gates)
    if record.parent == RECORDS:
        README.write(readme_table())


if __name__ == "__main__":
    main()
