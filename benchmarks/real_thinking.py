"""SmolLM2-135M-Instruct on datasets/stock: does RFT improve the thinking, beside its rivals?

    rftkit fetch smollm2
    python benchmarks/real_thinking.py               # seeds 0, 1, 2
    python benchmarks/real_thinking.py --seeds 0     # one seed
    python benchmarks/real_thinking.py --size 4      # few rows, two steps: does it run?

32 rows have a worked answer, 192 the number alone. RFT starts from a short SFT on the worked ones,
the warm start, and so does rejection sampling, which draws as many completions as RFT. What SFT
keeps is the epoch that validates best. Kept, resumed and recorded like benchmarks/real_model.py.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from real_model import ROOT, Row, add_run, arguments, evaluate_seed, kept

from rftkit import RunConfig, load_policy, load_task, measure_signal, train
from rftkit.console import Reporter
from rftkit.evaluation import bootstrap, clusters_of, paired_difference
from rftkit.policy import Policy, Prompt
from rftkit.records import Sample, SamplingConfig
from rftkit.task import Task
from rftkit.training.run import Run

RECORD = ROOT / "datasets" / "recorded_runs" / "stock.json"
TOKENS = 48  # a worked answer has 36 to 42
SAMPLING = SamplingConfig(max_new_tokens=TOKENS, seed=1_000)
COMMON = dict(model="smollm2", task="stock", max_completion_tokens=TOKENS, patience=0)
COMMON |= dict(eval_rows=48, eval_samples=2, gate="off")
RFT = COMMON | dict(prompts_per_step=8, answers_per_prompt=8, learning_rate=3e-4, beta=0.0)
RFT |= dict(steps=32, eval_every=8, save_every=4)
WARM = 6  # epochs of the warm start
SFT = COMMON | dict(method="sft", prompts_per_step=8, steps=10_000, learning_rate=1e-3)


class Stock:
    """What the systems are made of and measured on; `size` takes few rows and two steps."""

    def __init__(self, out: Path, seed: int, size: int | None = None):
        self.task, self.seed, self.size = load_task("stock"), seed, size
        self.out = out / f"seed-{seed}"
        splits = ("warm_start", "train", "validation", "test")
        self.worked, self.rows, self.held_out, self.test = (
            self.task.rows(split)[:size] for split in splits
        )

    def train(self, name: str, settings: dict[str, Any], rows: list[Row]) -> Run:
        config = RunConfig(**settings, seed=self.seed)
        if self.size:
            config = config.replace(steps=2, epochs=min(1, config.epochs))
        return train(config, self.folder(name), rows=rows, held_out=self.held_out)

    def folder(self, name: str) -> Path:
        return self.out / name.replace(" ", "_")

    def sft(self, name: str, rows: list[Row], epochs: int, each: bool = True, **more: Any) -> Run:
        """Validated after each epoch, of which the best is kept; or trained for all of them."""
        steps = -(-len(rows) // SFT["prompts_per_step"])
        own = dict(epochs=epochs, eval_every=steps * (1 if each else epochs), keep_start=each)
        return self.train(name, SFT | own | more, rows)

    def warm_start(self) -> Run:
        return self.sft("warm start", self.worked, WARM, each=False)

    def from_warm_start(self) -> dict[str, Any]:
        return dict(init_adapter=str(self.folder("warm start")))

    def longer(self) -> Run:
        return self.sft("longer", self.worked, 12)

    def numbers(self) -> Run:
        """All labels without a worked step."""
        rows = [row | {"completion": row["reference_answer"]} for row in self.worked + self.rows]
        return self.sft("numbers", rows, 5)

    def rft(self) -> Run:
        return self.train("rft", RFT | self.from_warm_start(), self.rows)

    def rejection_sampling(self) -> Run:
        """SFT of the warm start on its own right completions, among as many as RFT draws, and on
        the worked answers."""
        drawn = 2 if self.size else RFT["steps"] * RFT["prompts_per_step"] * 8
        each = -(-drawn // len(self.rows))
        with Reporter() as reporter:
            reporter.stage("drawing answers", each * len(self.rows))
            config = replace(SAMPLING, seed=2_000 + self.seed)
            policy, prompts = load_policy(str(self.folder("warm start"))), map(Prompt, self.rows)
            groups = policy.sample(list(prompts), each, config, reporter.work)
        self.task.grade(self.rows, groups)
        right = [
            row | {"completion": text, "row_id": f"{row['row_id']}.{i}"}
            for row, group in zip(self.rows, groups)
            for i, text in enumerate({full_text(s): 0 for s in group if s.grade == 1})
        ]
        return self.sft("rejection", self.worked + right, 3, **self.from_warm_start())


def full_text(sample: Sample) -> str:
    return f"<think>{sample.reasoning}</think>" * bool(sample.reasoning) + sample.output_text


TRAINED = {
    "warm start": Stock.warm_start,
    "RFT": Stock.rft,
    "rejection-sampling SFT": Stock.rejection_sampling,
    "SFT on worked answers": Stock.longer,
    "SFT on numbers": Stock.numbers,
}


def measure_gates(work: Stock) -> dict[str, Row]:
    """What the signal gate says after warm starts of different lengths."""
    options = dict(answers=8, max_completion_tokens=TOKENS)

    def gate(epochs: int) -> Row:
        name = "warm start" if epochs == WARM else f"warm start of {epochs}"
        policy = work.sft(name, work.worked, epochs, each=False).policy
        policy.name = name  # not its place on this machine
        return measure_signal(policy, work.task, work.rows, **options).to_json()

    return {str(epochs): gate(epochs) for epochs in (2, WARM, 9)}


def few_shot(row: Row, worked: list[Row]) -> Row:
    """The row with four worked answers before the question, one of each form."""
    first = {row["form"]: row for row in reversed(worked)}
    system, question = row["messages"]
    messages = [system]
    for example in first.values():
        answer = {"role": "assistant", "content": example["completion"]}
        messages += [example["messages"][-1], answer]
    return row | {"messages": [*messages, question]}


def answer(policy: Policy, task: Task, rows: list[Row]) -> Row:
    """Right or not, a row; the texts; and the share of each thinking pattern."""
    record, prompts = {}, list(map(Prompt, rows))
    for name, temperature in (("sampled", 1.0), ("greedy", 0.0)):
        groups = policy.sample(prompts, 1, replace(SAMPLING, temperature=temperature))
        task.grade(rows, groups)
        samples = [sample for (sample,) in groups]
        shares = {
            pattern: sum(bool(regex.search(s.reasoning)) for s in samples) / len(samples)
            for pattern, regex in task.compiled_patterns.items()
        }
        right = [sample.grade or 0.0 for sample in samples]
        record[name] = {"right": right, "patterns": shares, "texts": list(map(full_text, samples))}
    return record


def evaluate_bases(work: Stock, place: Path) -> dict[str, Row]:
    policy = load_policy("smollm2")
    systems = {
        "base": work.test,
        "base, four worked examples": [few_shot(row, work.worked) for row in work.test],
    }
    return {
        name: kept(place / f"{name}.json", partial(answer, policy, work.task, rows))
        for name, rows in systems.items()
    }


def summary(results: dict[str, Row], clusters: list) -> Row:
    """Means with intervals, and RFT minus each other system, row by row."""
    systems, paired = [], []
    for name, result in results.items():
        record: Row = {"name": name}
        for how in ("sampled", "greedy"):
            own = result[how]
            record[how] = bootstrap(own["right"], clusters).to_json()
            record[how] |= {"patterns": own["patterns"], "texts": own["texts"][:8]}
            if name != "RFT":
                pair = results["RFT"][how]["right"], own["right"]
                interval = paired_difference(*pair, clusters).to_json()
                paired.append({"a": "RFT", "b": name, "how": how} | interval)
        systems.append(record)
    return {"systems": systems, "paired": paired}


def main() -> None:
    given = arguments(__doc__, "real_thinking", RECORD)
    for seed in given.seeds:
        work = Stock(given.out, seed, given.size)
        results, training = evaluate_seed(work, TRAINED, answer)
        results = evaluate_bases(work, given.out) | results
        report = summary(results, clusters_of(work.test, work.task))
        shared = {"settings": {"RFT": RFT, "SFT": SFT}}
        gates = partial(kept, given.out / "gates.json", partial(measure_gates, work))
        add_run(given.record, shared, {"seed": seed, **report, "training": training}, gates=gates)


if __name__ == "__main__":
    main()
