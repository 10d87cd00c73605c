"""SmolLM2-135M-Instruct on a task with worked answers: does RFT improve the thinking?

    rftkit fetch smollm2
    python benchmarks/real_thinking.py               # datasets/stock, seeds 0, 1, 2
    python benchmarks/real_thinking.py --seeds 0     # one seed
    python benchmarks/real_thinking.py --size 4      # few rows, two steps: does it run?
    python benchmarks/real_thinking.py --task gene_candidates --cases cases/test.jsonl

A few rows have a worked answer, the others the answer alone. RFT starts from a short SFT on the
worked ones, the warm start, and so does rejection sampling, which draws as many completions as
RFT. What SFT keeps is the epoch that validates best. `--cases`: published cases in the same form
(`rftkit cases --help`). Kept, resumed and recorded like benchmarks/real_model.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from real_model import (
    README,
    RECORDS,
    Row,
    add_run,
    arguments,
    evaluate_seed,
    kept,
    places,
    readme_table,
)

from rftkit import RunConfig, load_policy, load_task, measure_signal, train
from rftkit.console import Reporter
from rftkit.evaluation import (
    Interval,
    bootstrap,
    clusters_of,
    paired_difference,
    sample_metric,
)
from rftkit.files import markdown_table, read_json, write_text
from rftkit.genes.cases import ladder
from rftkit.genes.hpo import load_hpo
from rftkit.graders.answer import fill_template
from rftkit.policy import Policy, Prompt
from rftkit.records import Sample, SamplingConfig
from rftkit.rows import read_rows, row_ids
from rftkit.task import Task
from rftkit.training.run import Run

COMMON = dict(model="smollm2", patience=0, eval_rows=48, gate="off")
RFT = dict(prompts_per_step=8, answers_per_prompt=8, learning_rate=3e-4, beta=0.0)
RFT |= dict(eval_every=8, save_every=4)
SFT = dict(method="sft", prompts_per_step=8, steps=10_000, learning_rate=1e-3)


@dataclass
class Setup:
    """What differs from task to task; the epochs are those of SFT."""

    task: str
    tokens: int  # at most, a completion
    steps: int  # of RFT
    warm: int  # epochs of the warm start
    gates: tuple[int, ...]  # warm starts that the signal gate judges
    longer: int  # epochs on the worked answers as a rival, at most
    answers: str  # what the answers are
    answer_epochs: int  # on answers alone, at most
    eval_samples: int = 2
    test_rows: int | None = None  # None: all
    systems: tuple[str, ...] = ()  # trained; none named: all

    def __post_init__(self) -> None:
        common = COMMON | dict(task=self.task, max_completion_tokens=self.tokens)
        common |= dict(eval_samples=self.eval_samples)
        self.rft, self.sft = common | RFT | dict(steps=self.steps), common | SFT
        self.sampling = SamplingConfig(max_new_tokens=self.tokens, seed=1_000)
        self.trained = {
            "warm start": Work.warm_start,
            "RFT": Work.rft,
            "rejection-sampling SFT": Work.rejection_sampling,
            "rejection-sampling SFT, four rounds": Work.four_rounds,
            "SFT on worked answers": Work.longer,
            f"SFT on {self.answers}": Work.answers_alone,
        }
        if self.systems:
            self.trained = {name: self.trained[name] for name in self.systems}


class Work:
    """What the systems are made of and measured on; `size` takes few rows and two steps."""

    def __init__(self, setup: Setup, out: Path, seed: int, size: int | None = None):
        self.setup, self.task, self.seed, self.size = setup, load_task(setup.task), seed, size
        self.out = out / f"seed-{seed}"
        splits = ("warm_start", "train", "validation", "test")
        self.worked, self.rows, self.held_out, self.test = (
            self.task.rows(split)[:size] for split in splits
        )
        self.test = self.test[: setup.test_rows]

    def train(self, name: str, settings: dict[str, Any], rows: list[Row]) -> Run:
        config = RunConfig(**settings, seed=self.seed)
        if self.size:
            config = config.replace(steps=2, epochs=min(1, config.epochs))
        return train(config, self.folder(name), rows=rows, held_out=self.held_out)

    def unseen(self, cases: list[Row]) -> list[Row]:
        """Those whose group no file has but the test rows'."""
        group = self.task.group_by
        seen = {row[group] for row in self.worked + self.rows + self.held_out}
        return [case for case in cases if case[group] not in seen][: self.size or len(self.test)]

    def folder(self, name: str) -> Path:
        return self.out / name.replace(" ", "_")

    def sft(self, name: str, rows: list[Row], epochs: int, each: bool = True, **more: Any) -> Run:
        """Validated after each epoch, of which the best is kept; or trained for all of them."""
        steps = -(-len(rows) // SFT["prompts_per_step"])
        own = dict(epochs=epochs, eval_every=steps * (1 if each else epochs), keep_start=each)
        return self.train(name, self.setup.sft | own | more, rows)

    def warm_start(self) -> Run:
        return self.sft("warm start", self.worked, self.setup.warm, each=False)

    def from_warm_start(self) -> dict[str, Any]:
        return dict(init_adapter=str(self.folder("warm start")))

    def longer(self) -> Run:
        return self.sft("longer", self.worked, self.setup.longer)

    def answers_alone(self) -> Run:
        """All labels without a worked step."""
        template = self.task.answer_template
        rows = [r | {"completion": fill_template(template, r)} for r in self.worked + self.rows]
        return self.sft(self.setup.answers, rows, self.setup.answer_epochs)

    def rft(self) -> Run:
        return self.train("rft", self.setup.rft | self.from_warm_start(), self.rows)

    def rejection_sampling(self, rounds: int = 1, epochs: int = 3) -> Run:
        """SFT of the warm start on its own right completions and the worked answers. All rounds
        together draw as many completions as RFT; each goes on from the round before."""
        drawn = 2 if self.size else self.setup.steps * RFT["prompts_per_step"] * 8
        each, start = -(-drawn // (rounds * len(self.rows))), self.folder("warm start")
        took = dict.fromkeys(("steps", "seconds", "validation_seconds"), 0)
        for number in range(rounds):
            with Reporter() as reporter:
                reporter.stage("drawing answers", each * len(self.rows))
                config = replace(self.setup.sampling, seed=2_000 + self.seed + 100 * number)
                policy, prompts = load_policy(str(start)), list(map(Prompt, self.rows))
                groups = policy.sample(prompts, each, config, reporter.work)
            self.task.grade(self.rows, groups)
            right = [
                row | {"completion": text, "row_id": f"{row_id}.{i}"}
                for row, row_id, group in zip(self.rows, row_ids(self.rows), groups)
                for i, text in enumerate({full_text(s): 0 for s in group if s.grade == 1})
            ]
            name = "rejection" if rounds == 1 else f"rejection {number + 1} of {rounds}"
            run = self.sft(name, self.worked + right, epochs, init_adapter=str(start))
            start = self.folder(name)
            took = {key: value + run.training[key] for key, value in took.items()}
        run.training |= took | {"samples": rounds * each * len(self.rows)}
        return run

    def four_rounds(self) -> Run:
        return self.rejection_sampling(rounds=4, epochs=2)


def full_text(sample: Sample) -> str:
    return f"<think>{sample.reasoning}</think>" * bool(sample.reasoning) + sample.output_text


TASKS = {
    "stock": Setup("stock", tokens=48, steps=32, warm=6, gates=(2, 6, 9), longer=12,
                   answers="numbers", answer_epochs=5),
    # Nothing taught SmolLM2 to match signs (docs/genes_tried.md): no rivals, fewer steps.
    "gene_candidates": Setup("gene_candidates", tokens=96, steps=16, warm=3, gates=(), longer=6,
                             answers="genes", answer_epochs=3, eval_samples=1,
                             test_rows=240, systems=("warm start", "RFT")),
}  # fmt: skip


def measure_gates(work: Work) -> dict[str, Row]:
    """What the signal gate says after warm starts of different lengths."""
    options = dict(answers=8, max_completion_tokens=work.setup.tokens)

    def gate(epochs: int) -> Row:
        name = "warm start" if epochs == work.setup.warm else f"warm start of {epochs}"
        policy = work.sft(name, work.worked, epochs, each=False).policy
        policy.name = name  # not its place on this machine
        return measure_signal(policy, work.task, work.rows, **options).to_json()

    return {str(epochs): gate(epochs) for epochs in work.setup.gates}


def few_shot(row: Row, examples: list[Row]) -> Row:
    """The row with worked answers before the question."""
    *head, question = row["messages"]
    for example in examples:
        answer = {"role": "assistant", "content": example["completion"]}
        head += [example["messages"][-1], answer]
    return row | {"messages": [*head, question]}


def answer(setup: Setup, policy: Policy, task: Task, rows: list[Row]) -> Row:
    """At T = 1 and greedy."""
    return {
        name: answer_at(temperature, setup, policy, task, rows)
        for name, temperature in (("sampled", 1.0), ("greedy", 0.0))
    }


def answer_at(t: float, setup: Setup, model: Policy | str, task: Task, rows: list[Row]) -> Row:
    """Right or not, a row; the texts; and the share of each thinking pattern."""
    policy = load_policy(model) if isinstance(model, str) else model
    groups = policy.sample(list(map(Prompt, rows)), 1, replace(setup.sampling, temperature=t))
    task.grade(rows, groups)
    samples = [sample for (sample,) in groups]
    shares = {
        pattern: sum(bool(regex.search(s.reasoning)) for s in samples) / len(samples)
        for pattern, regex in task.compiled_patterns.items()
    }
    right = [sample_metric(task.headline, task, *pair) for pair in zip(rows, samples)]
    return {"right": right, "patterns": shares, "texts": list(map(full_text, samples))}


def evaluate_bases(work: Work, place: Path) -> dict[str, Row]:
    # One worked answer of each form of question, where rows have forms.
    first = {row.get("form", i % 2): row for i, row in reversed([*enumerate(work.worked)])}
    few = f"base, {'two' if len(first) == 2 else 'four'} worked examples"
    shown = [few_shot(row, [*first.values()]) for row in work.test]
    measure = partial(answer, work.setup, load_policy("smollm2"), work.task)
    return {
        name: kept(place / f"{name}.json", partial(measure, rows))
        for name, rows in (("base", work.test), (few, shown))
    }


def add_cases(work: Work, results: dict[str, Row], rows: list[Row]) -> None:
    """Published cases of genes that were not trained on, greedily, for the base and what was
    trained. Their texts stay out of the record: they repeat what is written about a patient."""
    for name, result in results.items():
        folder = work.out / result.get("adapter", "../base")
        if name == "base" or "adapter" in result:
            model = "smollm2" if name == "base" else str(folder)
            measure = partial(answer_at, 0.0, work.setup, model, work.task, rows)
            result["published"] = kept(folder.with_suffix(".published.json"), measure)


def measure_ladder(rows: dict[str, list[Row]]) -> list[Row]:
    """What reads the same rows without a language model."""
    hpo, systems = load_hpo(), {}
    for how, own in rows.items():
        for rung in ladder(own, hpo):
            shares = {"mean": rung["top1"], "low": rung["low"], "high": rung["high"]}
            system = systems.setdefault(rung["method"], {"name": rung["method"]})
            system[how] = {key: round(share / 100, 4) for key, share in shares.items()}
    return [*systems.values()]


def summary(results: dict[str, Row], clusters: dict[str, list]) -> Row:
    """Means with intervals, and RFT minus each other system, row by row."""
    systems, paired = [], []
    for name, result in results.items():
        record: Row = {"name": name}
        for how in [how for how in clusters if how in result]:
            groups, own = clusters[how], result[how]
            record[how] = bootstrap(own["right"], groups).to_json()
            record[how] |= {"patterns": own["patterns"]}
            record[how]["rows"] = "".join(f"{right:.0f}" for right in own["right"])  # 1: right
            record[how] |= {} if how == "published" else {"texts": own["texts"][:8]}
            if name != "RFT":
                pair = results["RFT"][how]["right"], own["right"]
                interval = paired_difference(*pair, groups).to_json()
                paired.append({"a": "RFT", "b": name, "how": how} | interval)
        systems.append(record)
    return {"systems": systems, "paired": paired}


def page(record: Row) -> str:
    """What `rftkit demo --real` prints."""
    systems = [(rung["name"], rung) for rung in record["ladder"]]
    for run in record["runs"]:
        systems += [(f"{system['name']}, seed {run['seed']}", system) for system in run["systems"]]
    rows = []
    for name, system in systems:
        row = {"top1, 95 % interval": name}
        for how in ("sampled", "greedy", "published"):
            values = [system[how][key] for key in ("mean", "low", "high")] if how in system else []
            row[how] = str(Interval(*values)) if values else ""
        rows.append(row)
    run = record["runs"][-1]
    first = run["systems"][0]
    return f"""SmolLM2-135M-Instruct ranks three genes by the signs that the prompt shows.

{markdown_table(rows)}

Sampled (T = 1) and greedy: {len(first["greedy"]["rows"])} simulated cases. Published: greedy,
{len(first["published"]["rows"])} published cases of genes that were not trained on. The first four
rows read the same signs without a language model; likelihood reads all that is annotated to a gene.
What was tried: docs/genes_tried.md. Recorded by `python benchmarks/real_thinking.py --task
gene_candidates --cases FILE` on {run["machine"]}, {run["date"]}.
"""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--task", choices=TASKS, default="stock")
    parser.add_argument("--cases", type=Path, help="rows of the same form, such as published cases")
    given = parser.parse_args()
    setup, (out, record) = TASKS[given.task], places(given, given.task)
    for seed in given.seeds:
        work = Work(setup, out, seed, given.size)
        results, training = evaluate_seed(work, setup.trained, partial(answer, setup))
        results = evaluate_bases(work, out) | results
        clusters = dict.fromkeys(("sampled", "greedy"), clusters_of(work.test, work.task))
        gates = partial(kept, out / "gates.json", partial(measure_gates, work))
        once = {"gates": gates} if setup.gates else {}
        if given.cases:
            cases = work.unseen(read_rows(given.cases))
            add_cases(work, results, cases)
            clusters["published"] = clusters_of(cases, work.task)
            once["ladder"] = partial(measure_ladder, {"greedy": work.test, "published": cases})
        run = {"seed": seed, **summary(results, clusters), "training": training}
        shared = {"settings": {"RFT": setup.rft, "SFT": setup.sft}}
        add_run(record, shared, run, **once)
    if record.parent == RECORDS:
        README.write(readme_table())
        if given.cases:
            write_text(record.with_suffix(".md"), page(read_json(record)))


if __name__ == "__main__":
    main()
