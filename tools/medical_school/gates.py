"""What a base model must pass before any RFT: `python -m tools.medical_school.gates FOLDER`.

RFT can only reinforce what the base already does now and then, and only a trace that carries
weight can be worth reinforcing. So, on genes that never were the good plan's answer:

told the plan      the plan, once taken, works                                greedy >= .65
second hop         the gene follows from the right disease                           >= .95
swap               exchange the diseases in the trace: the answer follows them       >  .9
no shortcut        a direct answer, even among these genes alone, stays behind the
                   plan: lower end of the paired interval                            >  .25
wrong plans        none of them is good enough by itself, nor any cue that does not
                   read the annotation                                               <= .35
base               right now and then: neither never nor often               top1 .05 to .2
open to all        each wrong plan names genes of this split too                     >  0

By default the VALIDATION genes are measured: choices may rest on these. `--split test` is for the
report alone, after every choice has been made.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rftkit.records import SamplingConfig
from tools.medical_school.corpus import (
    ANSWERS,
    GOOD_PLAN,
    OPEN_LIST,
    PLANS,
    as_text,
    diagnoses,
    prompt,
)
from tools.medical_school.world import WORLD_SEED, Case, World, build_world, cases, question

LIMIT = 64  # tokens of a completion


@dataclass
class Gate:
    """One measured gate: passed where `value` lies inside `expected`."""

    name: str
    value: float
    expected: str
    passed: bool
    detail: str = ""


def top_gene(sample: Any) -> str | None:
    listed = (sample.output_json or {}).get("genes") if sample.output_json else None
    return listed[0] if listed else None


def rates(groups: list, genes: list[str]) -> list[float]:
    """One number a row: the share of its samples whose first gene is the right one."""
    return [
        sum(top_gene(s) == gene for s in group) / len(group) for group, gene in zip(groups, genes)
    ]


def cue_rates(world: World, rows: list[Case]) -> dict[str, float]:
    """Top-1 of what can be guessed without weighing the annotation; ties count by their share."""

    def credit(case: Case, tied: list[int]) -> float:
        return (case.disease in tied) / len(tied) if tied else 0.0

    weights = [d.weight for d in world.diseases]
    found: dict[str, list[float]] = {"first sign": [], "votes": [], "onset": [], "common": []}
    for case in rows:
        found["first sign"].append(credit(case, [world.recalled[case.present[0]]]))
        votes = Counter(world.recalled[t] for t in case.present)
        top = max(votes.values())
        found["votes"].append(credit(case, [d for d, v in votes.items() if v == top]))
        same = [d for d, disease in enumerate(world.diseases) if disease.onset == case.onset]
        found["onset"].append(credit(case, same))
        found["common"].append(float(weights[case.disease] == max(weights)))
    return {name: sum(values) / len(values) for name, values in found.items()}


def direct_answers(policy: Any, prompts: list, among: list[str], forced: str) -> list[str]:
    """The likeliest of some genes as the first of the list, right after a forced, empty trace."""
    import torch

    tokenizer, model = policy.tokenizer, policy.model
    allowed = torch.tensor([i[0] for i in tokenizer(among, add_special_tokens=False).input_ids])
    texts = [policy.render(messages, forced) for messages in prompts]
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    with torch.inference_mode():
        logits = model(**batch, logits_to_keep=1).logits[:, -1]
    return [among[i] for i in logits[:, allowed].argmax(-1).tolist()]


def measure(
    policy: Any,
    world: World,
    split: str,
    paired_difference: Callable,
    number: int = 480,
    samples: int = 8,
) -> tuple[list[Gate], dict[str, Any]]:
    """All gates of one base model, and the figures behind them.

    policy             a LocalPolicy (policy.py)
    paired_difference  evaluation.py's: (a, b, clusters) -> Interval
    number             cases, dealt evenly over the split's genes
    """
    rows = cases(world, split, number, seed=1)
    own = [world.diseases[case.disease] for case in rows]
    genes, among = [d.gene for d in own], world.genes(split)
    prompts = [[{"role": "user", "content": question(world, case)}] for case in rows]
    think = f"<think>{GOOD_PLAN}"
    greedy = SamplingConfig(temperature=0, max_new_tokens=LIMIT, prefill=think)
    told = policy.sample(prompts, 1, greedy)
    told_rates = rates(told, genes)
    named = [f"Diseases: {d.name}," in g[0].reasoning for d, g in zip(own, told)]
    second = [rate for rate, right in zip(told_rates, named) if right]
    sampled = SamplingConfig(max_new_tokens=LIMIT, prefill=think)
    told_sampled = rates(policy.sample(prompts, 2, sampled), genes)
    free = policy.sample(prompts, samples, SamplingConfig(max_new_tokens=LIMIT, seed=1))
    base = rates(free, genes)
    flat = [(s, gene) for group, gene in zip(free, genes) for s in group]
    plans = {plan: [(s, g) for s, g in flat if s.reasoning.startswith(plan)] for plan in PLANS}
    plan_rates = {
        plan: sum(top_gene(s) == g for s, g in found) / max(len(found), 1)
        for plan, found in plans.items()
    }
    naming = {
        plan: sum(top_gene(s) in among for s, _ in found) / max(len(found), 1)
        for plan, found in plans.items()
        if plan != GOOD_PLAN
    }
    direct = {
        trace: [float(a == g) for a, g in zip(direct_answers(policy, prompts, among, text), genes)]
        for trace, text in (
            ("empty trace", f"<think></think>{OPEN_LIST}"),
            ("plan without diseases", f"{think}</think>{OPEN_LIST}"),
        )
    }
    best_direct = max(direct.values(), key=sum)
    ahead = paired_difference(told_rates, best_direct, genes)
    swapped = swap_rate(policy, world, split, prompts, genes)
    cues = cue_rates(world, rows)
    wrong = {p: r for p, r in plan_rates.items() if p != GOOD_PLAN} | cues
    worst = max(wrong, key=wrong.get)

    def mean(values: list[float]) -> float:
        return sum(values) / max(len(values), 1)

    gates = [
        at_least("told the plan, greedy", mean(told_rates), 0.65),
        at_least("second hop: gene given the right disease", mean(second), 0.95),
        at_least("swap: the answer follows the trace", swapped, 0.9),
        at_least(
            "no shortcut: plan - direct answer, lower end", ahead.low, 0.25, f"difference {ahead}"
        ),
        Gate(
            "wrong plans and cues, the best", wrong[worst], "<= 0.35", wrong[worst] <= 0.35, worst
        ),
        Gate("base, sampled", mean(base), "0.05 to 0.2", 0.05 <= mean(base) <= 0.2),
        at_least("open to all: wrong plans naming this split", min(naming.values()), 0.001),
    ]
    figures = {
        "split": split,
        "cases": number,
        "genes": len(among),
        "told_sampled": mean(told_sampled),
        "disease_named": mean([float(n) for n in named]),
        "plan_shares": {plan: len(found) / len(flat) for plan, found in plans.items()},
        "plan_rates": plan_rates,
        "direct": {trace: mean(values) for trace, values in direct.items()},
        "cues": cues,
    }
    return gates, figures


def at_least(name: str, value: float, limit: float, detail: str = "") -> Gate:
    return Gate(name, value, f">= {limit:g}", value >= limit, detail)


def swap_rate(policy: Any, world: World, split: str, prompts: list, genes: list[str]) -> float:
    """How often the answer follows diseases that were put into the trace of another case."""
    rng, members = random.Random(3), world.members(split)
    config = SamplingConfig(temperature=0, max_new_tokens=LIMIT)
    hits = []
    texts, wanted = [], []
    for messages, gene in zip(prompts, genes):
        others = [d for d in members if world.diseases[d].gene != gene]
        listed = rng.sample(others, min(ANSWERS, len(others)))
        trace = f"<think>{GOOD_PLAN}{as_text(diagnoses(world, listed))}"
        texts.append(prompt(messages[-1]["content"]) + trace)
        wanted.append(world.diseases[listed[0]].gene)
    for group, gene in zip(policy.sample(texts, 1, config), wanted):
        text = group[0].output_text
        hits.append(text.startswith(f'{OPEN_LIST}{gene}"'))
    return sum(hits) / len(hits)


def as_table(gates: list[Gate], figures: dict[str, Any]) -> str:
    """The gates as a Markdown table, for the terminal and the model card."""
    lines = ["| gate | measured | expected | |", "|---|---|---|---|"]
    for gate in gates:
        detail = f" ({gate.detail})" if gate.detail else ""
        verdict = "passed" if gate.passed else "FAILED"
        lines.append(f"| {gate.name}{detail} | {gate.value:.3f} | {gate.expected} | {verdict} |")
    shares = ", ".join(
        f"{plan} {share:.3f} (right {figures['plan_rates'][plan]:.3f})"
        for plan, share in figures["plan_shares"].items()
    )
    direct = ", ".join(f"{trace} {rate:.3f}" for trace, rate in figures["direct"].items())
    cues = ", ".join(f"{cue} {rate:.3f}" for cue, rate in figures["cues"].items())
    lines += [
        "",
        f"{figures['cases']} cases of {figures['genes']} {figures['split']} genes. Told the plan, "
        f"sampled: {figures['told_sampled']:.3f}; the case's disease named first, greedy: "
        f"{figures['disease_named']:.3f}.",
        f"Plans in the base's own samples: {shares}.",
        f"Direct answer among these genes alone: {direct}. Cues without annotation: {cues}.",
    ]
    return "\n".join(lines)


def main() -> int:
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parse.add_argument("model", help="a model folder, or embedded:mini")
    parse.add_argument("--split", default="validation", choices=("validation", "test"))
    parse.add_argument("--cases", type=int, default=480)
    parse.add_argument("--world", type=int, default=WORLD_SEED)
    parse.add_argument("--json", action="store_true")
    parse.add_argument("--save", help="write the table as JSON to this file")
    given = parse.parse_args()
    # This command stands above the library: sampling and intervals are looked up by name, so
    # that the module itself imports nothing that is built on it.
    policy = importlib.import_module("rftkit.policy").load_policy(given.model)
    paired = importlib.import_module("rftkit.evaluation").paired_difference
    world = build_world(given.world)
    gates, figures = measure(policy, world, given.split, paired, given.cases)
    record = {"gates": [vars(gate) for gate in gates], "figures": figures}
    if given.save:
        Path(given.save).write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1) if given.json else as_table(gates, figures))
    return 0 if all(gate.passed for gate in gates) else 1


if __name__ == "__main__":
    raise SystemExit(main())
