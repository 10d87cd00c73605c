"""SmolLM2-135M-Instruct on the small tasks of datasets/: SFT, RFT, and one after the other.

    rftkit fetch smollm2
    python benchmarks/shapes.py --task emotions                  # seeds 0, 1, 2
    python benchmarks/shapes.py --task emotions --rows 16 --seeds 0
    python benchmarks/shapes.py --task contracts --size 4        # few rows, two steps: does it run?

RFT is the task's preset, `rftkit train emotions/smollm2`. SFT learns the same labels and keeps its
best epoch. "SFT, then RFT" takes one half of the rows each. `--rows`: so many training rows. Kept,
resumed and recorded like benchmarks/real_model.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from page_block import Block
from real_model import RECORDS, Row, add_run, arguments, evaluate_seed, kept, places

from rftkit import evaluate, load_policy, load_task, measure_signal, train
from rftkit.evaluation import Interval, bootstrap, clusters_of, paired_difference
from rftkit.files import markdown_table, read_json
from rftkit.policy import Policy
from rftkit.records import SamplingConfig
from rftkit.task import Task
from rftkit.training.config import read_run_config
from rftkit.training.run import Run

TASKS = ("emotions", "contracts", "mathematics")
PAGE = Block("docs/results.md", "shapes", "shapes.py")
SFT: Row = dict(method="sft", prompts_per_step=8, steps=10_000, epochs=4, learning_rate=1e-3)


class Work:
    """What the systems are made of and measured on; `size` takes few rows and two steps."""

    def __init__(self, name: str, out: Path, seed: int, number: int | None, size: int | None):
        self.task, self.out, self.seed, self.size = (
            load_task(name),
            out / f"seed-{seed}",
            seed,
            size,
        )
        self.preset = read_run_config(f"{name}/smollm2").replace(gate="off", seed=seed)
        rows = (self.task.rows(split)[:size] for split in ("train", "validation", "test"))
        self.rows, self.held_out, self.test = rows
        self.rows = self.rows[:number]
        self.sampling = SamplingConfig(max_new_tokens=self.preset.max_completion_tokens, seed=1_000)

    def train(self, name: str, rows: list[Row], **changes: Any) -> Run:
        config = self.preset.replace(**changes)
        if config.method == "sft":
            config = config.replace(eval_every=-(-len(rows) // config.prompts_per_step))
        if self.size:
            config = config.replace(steps=2, eval_every=2)
        return train(config, self.out / name, rows=rows, held_out=self.held_out)

    def rft(self) -> Run:
        return self.train("rft", self.rows)

    def sft(self) -> Run:
        return self.train("sft", self.rows, **SFT)

    def sft_then_rft(self) -> Run:
        half = len(self.rows) // 2
        self.train("sft_half", self.rows[:half], **SFT | dict(epochs=1))
        steps = self.preset.steps // 2
        start = str(self.out / "sft_half")
        return self.train("sft_then_rft", self.rows[half:], init_adapter=start, steps=steps)


TRAINED: dict[str, Callable[[Work], Run]] = {
    "SFT": Work.sft,
    "SFT, then RFT": Work.sft_then_rft,
    "RFT": Work.rft,
}


def answer(work: Work, policy: Policy, task: Task, rows: list[Row]) -> Row:
    """The grade and the headline metric of each row, at T = 1 and greedy; some of the texts."""
    result, record = evaluate(policy, task, rows, work.sampling), {}
    for how, values, samples in (
        ("sampled", result.values, result.samples),
        ("greedy", result.greedy, result.greedy_samples),
    ):
        record[how] = {key: [*map(float, values[key])] for key in {"grade", task.headline}}
        record[how]["texts"] = [group[0].output_text for group in samples]
    return record


def summary(results: dict[str, Row], clusters: list) -> Row:
    """Means with intervals, and each system's difference to the base, row by row."""
    systems, paired = [], []
    for name, result in results.items():
        record: Row = {"name": name}
        for how in ("sampled", "greedy"):
            values = {key: value for key, value in result[how].items() if key != "texts"}
            record[how] = {key: bootstrap(v, clusters).to_json() for key, v in values.items()}
            record[how]["texts"] = result[how]["texts"][:8]
            for key, own in values.items() if name != "base" else ():
                gap = paired_difference(own, results["base"][how][key], clusters).to_json()
                paired.append({"a": name, "b": "base", "how": how, "metric": key} | gap)
        systems.append(record)
    return {"systems": systems, "paired": paired}


def shapes_table() -> str:
    """A table for each task with a record: every system and seed, and the gate's verdict."""
    parts = []
    for task in TASKS:
        if not (file := RECORDS / f"{task}.json").exists():
            continue
        record, metric, lines = read_json(file), load_task(task).headline, []
        gaps = {
            (run["seed"], pair["a"]): Interval(*(pair[key] for key in ("mean", "low", "high")))
            for run in record["runs"]
            for pair in run["paired"]
            if (pair["how"], pair["metric"]) == ("sampled", metric)
        }
        for name in (system["name"] for system in record["runs"][0]["systems"]):
            for run in record["runs"]:
                [system] = (s for s in run["systems"] if s["name"] == name)
                line = {"system": name, "seed": str(run["seed"])}
                for column, how in (("T = 1", "sampled"), ("greedy", "greedy")):
                    line[column] = str(Interval(**system[how][metric]))
                gap, training = gaps.get((run["seed"], name)), run["training"].get(name, {})
                seconds = training.get("seconds", 0) + training.get("validation_seconds", 0)
                line["minus the base, T = 1"] = f"{gap:+}" if gap else ""
                line["minutes"] = f"{seconds / 60:.0f}" if training else ""
                lines.append(line)
        gate, last = record["gate"], record["runs"][-1]
        findings = ", ".join(finding["name"] for finding in gate["findings"])
        parts += [f"### {task}: {metric}, {last['machine']}, {last['date']}", markdown_table(lines)]
        parts.append(
            f"The gate on the untrained model: *{gate['verdict']}*: {findings or 'no fault'}."
        )
    return "\n\n".join(parts)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--task", choices=TASKS, default=TASKS[0])
    parser.add_argument("--rows", type=int, help="training rows; all of them without it")
    given = parser.parse_args()
    out, record = places(given, given.task + (f"_{given.rows}" if given.rows else ""))
    for seed in given.seeds:
        work = Work(given.task, out, seed, given.rows, given.size)
        results, training = evaluate_seed(work, TRAINED, partial(answer, work))
        base = partial(answer, work, load_policy("smollm2"), work.task, work.test)
        results = {"base": kept(out / "base.json", base)} | results
        run = {"seed": seed, **summary(results, clusters_of(work.test, work.task))}
        options = dict(answers=8, max_completion_tokens=work.preset.max_completion_tokens)
        gate = partial(measure_signal, load_policy("smollm2"), work.task, work.rows, **options)
        settings = {"rows": len(work.rows), "settings": {"RFT": work.preset.to_json(), "SFT": SFT}}
        settings["settings"]["RFT"] |= {"seed": 0}
        add_run(
            record, settings, run | {"training": training}, gate=lambda made=gate: made().to_json()
        )
    if record.parent == RECORDS:
        PAGE.write(shapes_table())


if __name__ == "__main__":
    main()
