"""When does RFT pay? The embedded mini on gene_ranking, by number of labelled rows.

    python benchmarks/data_efficiency.py                # seeds 0, 1, 2
    python benchmarks/data_efficiency.py --seeds 0      # one seed
    python benchmarks/data_efficiency.py --size 8       # 8 rows, 20 test cases: does it run?

N labelled rows to train on, and as many of other genes (at most 240) to choose the checkpoint by.
RFT takes 50 steps of 64 completions, and rejection sampling draws as many. "SFT on traces" has a
written diagnosis for each row, which nobody else gets: an upper bound. At 64 rows also: rejection
sampling in four rounds, which takes as long as four runs, and panels that change one setting of
RFT. What is finished stands in runs/data_efficiency and is not run again;
datasets/recorded_runs/data_efficiency.json holds all seeds.

A seed took 42 CPU minutes on one core (AMD EPYC without AVX-512, 30 Nov 2026): three take 126, or
63 minutes on two cores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from real_model import Row, add_run, arguments, kept, places

from rftkit import RunConfig, evaluate, load_policy, load_task, train
from rftkit.demo import PLAN, right_completions
from rftkit.evaluation import SystemResult, bootstrap, clusters_of, paired_difference
from rftkit.files import embedded_model
from rftkit.graders.answer import fill_template
from rftkit.policy import Prompt
from rftkit.records import SamplingConfig
from rftkit.rows import sha256_of
from rftkit.training.run import Run
from tools.medical_school.corpus import ANSWERS, END, GOOD_PLAN, answer, as_text, diagnoses
from tools.medical_school.world import World, build_world, cases, differential, row

NUMBERS = (8, 16, 32, 64, 128, 256)  # labelled rows
PANEL_ROWS = 64
COMMON = dict(model="embedded:mini", task="gene_ranking", patience=0, gate="off")
RFT = COMMON | dict(prompts_per_step=8, answers_per_prompt=8, steps=50, learning_rate=2e-3)
SFT = COMMON | dict(method="sft", prompts_per_step=16, steps=10_000, keep_start=False)
EPOCHS = 8  # the best is kept; with few rows more of them, so that there are 40 steps
SAMPLING = SamplingConfig(max_new_tokens=64, seed=1_000)
FIRST_RIGHT = {"type": "string_check", "name": "first right", "operation": "eq"}
FIRST_RIGHT |= {"input": "{{sample.output_json.genes[0]}}", "reference": "{{item.reference_gene}}"}
PANELS: dict[str, dict[str, Row]] = {  # panel: {variant: what it changes}
    "grader": {"partial credit": {}, "right or wrong": dict(grader=FIRST_RIGHT)},
    "answers per prompt": {
        "2": dict(answers_per_prompt=2, prompts_per_step=32),
        "4": dict(answers_per_prompt=4, prompts_per_step=16),
        "8": {},
        "16": dict(answers_per_prompt=16, prompts_per_step=4),
    },
    "KL weight": {"0": dict(beta=0.0), "0.04": {}, "0.2": dict(beta=0.2)},
    "temperature": {"0.7": dict(temperature=0.7), "1": {}, "1.3": dict(temperature=1.3)},
    "steps": {"50": {}, "150": dict(steps=150), "150, no KL": dict(steps=150, beta=0.0)},
}


class Point:
    """All systems on the first `number` labelled rows; `size` takes few cases and two steps."""

    def __init__(self, pool: list[Row], number: int, seed: int, out: Path, size: int | None):
        self.task, self.seed, self.size = load_task("gene_ranking"), seed, size
        self.rows, self.out = pool[:number], out / f"seed-{seed}" / f"{number}-rows"
        self.held_out = self.task.rows("validation")[:number]
        self.test = self.task.rows("test")[: size and 20]

    def train(self, name: str, settings: Row, rows: list[Row]) -> Run:
        config = RunConfig(**settings, eval_rows=len(self.held_out), seed=self.seed)
        if config.method == "sft":
            each = -(-len(rows) // config.prompts_per_step)  # steps an epoch
            config = config.replace(eval_every=each, epochs=max(EPOCHS, 40 // each))
        if self.size:
            config = config.replace(steps=2, epochs=1)
        place = {"rows": rows, "held_out": self.held_out, "existing": "replace"}
        return train(config, self.out / name, **place)

    def rft(self, name: str = "rft", **changes: Any) -> Run:
        return self.train(name, RFT | changes, self.rows)

    def sft_on_answers(self) -> Run:
        template = "<think></think>" + self.task.answer_template
        rows = [row | {"completion": fill_template(template, row)} for row in self.rows]
        return self.train("answers", SFT, rows)

    def sft_on_traces(self) -> Run:
        return self.train("traces", SFT, [r | {"completion": r["trace"]} for r in self.rows])

    def rejection_sampling(self, rounds: int = 1) -> Run:
        """SFT on the model's own right completions. All rounds together draw as many as RFT; each
        goes on from the model of the round before."""
        each = 2 if self.size else -(-50 * 64 // (rounds * len(self.rows)))
        start, prompts, own = "embedded:mini", list(map(Prompt, self.rows)), SFT
        for number in range(rounds):
            config = replace(SAMPLING, seed=2_000 + self.seed + 100 * number)
            drawn = load_policy(start).sample(prompts, each, config)
            right = right_completions(self.task, self.rows, drawn)
            name = "rejection" if rounds == 1 else f"rejection-{number + 1}-of-{rounds}"
            run = self.train(name, own, right or self.rows[:1])
            start = str(self.out / name)
            own = SFT | {"init_adapter": start}
        run.training["samples"] = rounds * each * len(self.rows)
        return run

    def four_rounds(self) -> Run:
        return self.rejection_sampling(rounds=4)

    def sft_then_rft(self) -> Run:
        """SFT on the answers of one half, RFT on the other half."""
        half = len(self.rows) // 2
        whole, self.rows = self.rows, self.rows[:half]
        self.sft_on_answers()
        self.rows = whole[half:]
        run = self.train("then_rft", RFT | {"init_adapter": str(self.out / "answers")}, self.rows)
        self.rows = whole
        return run


TRAINED = {
    "RFT": Point.rft,
    "SFT on answers": Point.sft_on_answers,
    "rejection-sampling SFT": Point.rejection_sampling,
    "SFT, then RFT": Point.sft_then_rft,
    "SFT on traces": Point.sft_on_traces,
}


def labelled_rows(world: World, number: int) -> list[Row]:
    """Train genes' rows, each with the trace that an expert would write."""
    rows = []
    for i, case in enumerate(cases(world, "train", number)):
        listed = differential(world, case.disease, ANSWERS, world.members("train"))
        genes = answer([world.diseases[d].gene for d in listed]).removesuffix(END)
        trace = f"<think>{GOOD_PLAN}{as_text(diagnoses(world, listed))}{genes}"
        rows.append(row(world, case, f"labelled-{i:03d}") | {"trace": trace})
    return rows


def values_of(result: SystemResult) -> Row:
    """top1 of each test row, sampled and greedy."""
    values = {"sampled": result.values["top1"], "greedy": result.greedy["top1"]}
    return {how: [float(value) for value in own] for how, own in values.items()}


def measured(point: Point, make: Callable[[], Run]) -> Row:
    run = make()
    took = {key: run.training[key] for key in ("steps", "samples", "seconds")}
    result = values_of(evaluate(run.policy, point.task, point.test, SAMPLING))
    return result | took | {"best_step": run.best["step"], "patterns": run.best.get("patterns")}


def last_step(point: Point) -> Row:
    """RFT's weights after the last step; `measured` takes those that validated best."""
    last = max((point.out / "rft" / "checkpoints").glob("step-*"))
    return values_of(evaluate(load_policy(str(last)), point.task, point.test, SAMPLING))


def without_training(point: Point) -> dict[str, Row]:
    """The base, the base with two worked examples, and with the plan that RFT has to find."""
    base, prompted = load_policy("embedded:mini"), replace(SAMPLING, prefill=PLAN)
    shown = [
        message
        for example in point.rows[:2]
        for message in (*example["messages"], {"role": "assistant", "content": example["trace"]})
    ]
    few_shot = [case | {"messages": [*shown, *case["messages"]]} for case in point.test]
    return {
        name: values_of(evaluate(base, point.task, rows, sampling))
        for name, rows, sampling in (
            ("base", point.test, SAMPLING),
            ("base, two worked examples", few_shot, SAMPLING),
            ("base, prompted with the plan", point.test, prompted),
        )
    }


def summary(results: dict[str, Row], reference: str, clusters: list) -> dict[str, Row]:
    """Means with intervals, and the difference of each to the reference, row by row."""
    records = {}
    for name, result in results.items():
        record = records[name] = {k: v for k, v in result.items() if k not in HOWS}
        for how in HOWS:
            record[how] = bootstrap(result[how], clusters).to_json()
            if name != reference:
                gap = paired_difference(results[reference][how], result[how], clusters)
                record[how]["difference"] = gap.to_json()
    return records


HOWS = ("sampled", "greedy")


def main() -> None:
    given = arguments(__doc__).parse_args()
    out, record = places(given, "data_efficiency")
    numbers = (given.size,) if given.size else NUMBERS
    pool = labelled_rows(build_world(), max(*NUMBERS))
    for seed in given.seeds:
        run: Row = {"seed": seed, "points": {}, "panels": {}}
        for number in numbers:
            point = Point(pool, number, seed, out, given.size)
            clusters, results = clusters_of(point.test, point.task), {}
            rounds = {"rejection-sampling SFT, four rounds": Point.four_rounds}
            for name, make in (TRAINED | (rounds if number == PANEL_ROWS else {})).items():
                print(f"seed {seed}, {number} rows: {name}", flush=True)
                file = point.out / f"{name}.json"
                results[name] = kept(file, partial(measured, point, partial(make, point)))
            results["RFT, last step"] = kept(point.out / "last.json", partial(last_step, point))
            run["points"][number] = summary(results, "RFT", clusters)
        for panel, variants in PANELS.items():
            results = {}
            for variant, changes in variants.items():
                print(f"seed {seed}, {panel}: {variant}", flush=True)
                point = Point(pool, PANEL_ROWS, seed, out, given.size)
                file = point.out / f"{panel} {variant}.json"
                make = partial(point.rft, "panel", **changes)
                results[variant] = kept(file, partial(measured, point, make))
            standard = next(name for name, changes in variants.items() if not changes)
            run["panels"][panel] = summary(results, standard, clusters)
        bases = kept(out / "bases.json", partial(without_training, point))
        run["bases"] = summary(bases, "base", clusters)
        mini = sha256_of(embedded_model("mini") / "model.safetensors")
        settings = {"settings": {"RFT": RFT, "SFT": SFT}, "panels": PANELS, "mini": mini}
        add_run(record, settings, run)


if __name__ == "__main__":
    main()
