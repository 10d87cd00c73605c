"""What a base model must pass before any RFT: `python -m tools.medical_school.gates FOLDER`.

RFT can only reinforce what the base already does now and then, and only a trace that carries
weight can be worth reinforcing. So, on genes that never were the good plan's answer:

prompted with the plan  the plan, once taken, works                            greedy >= .65
second hop              the gene follows from the right disease                       >= .95
swap                    exchange the diseases in the trace: the answer follows        >= .9
no shortcut             a direct answer, even among these genes alone, stays behind
                        the plan: lower end of the paired interval                    >= .25
wrong plans             none of them is good enough by itself, nor any cue that does
                        not read the annotation                                       <= .35
base                    right now and then: neither never nor often           top1 .05 to .2
open to all             each wrong plan names genes of this split too                 >= .001
all five distinct       the plan's answer names five genes, greedy and sampled        >= .95

By default the VALIDATION genes are measured: choices may rest on these. `--split test` is for the
report alone, after every choice has been made.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

from rftkit.evaluation import paired_difference
from rftkit.files import write_text
from rftkit.policy import LocalPolicy, load_policy
from rftkit.records import Sample, SamplingConfig
from tools.medical_school.corpus import (
    ANSWERS,
    GOOD_PLAN,
    OPEN_LIST,
    PLANS,
    as_text,
    diagnoses,
    prompt,
)
from tools.medical_school.world import Case, World, build_world, cases, question

LIMIT = 64  # tokens of a completion


@dataclass
class Gate:
    """One measured gate: passed where `value` lies inside `expected`."""

    name: str
    value: float
    expected: str
    passed: bool
    detail: str = ""


def at_least(name: str, value: float, limit: float, detail: str = "") -> Gate:
    return Gate(name, value, f">= {limit:g}", value >= limit, detail)


def mean(values: list[float] | list[bool]) -> float:
    return sum(values) / max(len(values), 1)


def top_gene(sample: Sample) -> str | None:
    genes = (sample.output_json or {}).get("genes")
    return genes[0] if genes else None


def all_distinct(groups: list[list[Sample]]) -> float:
    """The share of the answers that list five different genes."""
    lists = [(sample.output_json or {}).get("genes") or [] for group in groups for sample in group]
    return mean([len(genes) == len(set(genes)) == ANSWERS for genes in lists])


def rates(groups: list[list[Sample]], genes: list[str]) -> list[float]:
    """One number a row: the share of its samples whose first gene is the right one."""
    return [mean([top_gene(s) == gene for s in group]) for group, gene in zip(groups, genes)]


def cue_rates(world: World, rows: list[Case]) -> dict[str, float]:
    """Top-1 of what can be guessed without weighing the annotation; ties count by their share."""

    def credit(case: Case, tied: list[int]) -> float:
        return (case.disease in tied) / len(tied)

    weights = [disease.weight for disease in world.diseases]
    credits: dict[str, list[float]] = {"first sign": [], "votes": [], "onset": [], "common": []}
    for case in rows:
        votes = Counter(world.recalled[term] for term in case.present)
        most = [d for d, count in votes.items() if count == max(votes.values())]
        same = [d for d, disease in enumerate(world.diseases) if disease.onset == case.onset]
        credits["first sign"].append(credit(case, [world.recalled[case.present[0]]]))
        credits["votes"].append(credit(case, most))
        credits["onset"].append(credit(case, same))
        credits["common"].append(float(weights[case.disease] == max(weights)))
    return {name: mean(values) for name, values in credits.items()}


def direct_answers(policy: LocalPolicy, prompts: list, among: list[str], forced: str) -> list[str]:
    """The likeliest of some genes as the first of the list, right after a forced, empty trace."""
    import torch

    tokenizer, model = policy.tokenizer, policy.model
    allowed = torch.tensor([i[0] for i in tokenizer(among, add_special_tokens=False).input_ids])
    texts = [policy.render(messages, forced) for messages in prompts]
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    with torch.inference_mode():
        logits = model(**batch, logits_to_keep=1).logits[:, -1]
    return [among[i] for i in logits[:, allowed].argmax(-1).tolist()]


def swap_rate(
    policy: LocalPolicy, world: World, split: str, prompts: list, genes: list[str]
) -> float:
    """How often the answer follows diseases that were put into the trace of another case."""
    rng, members = random.Random(3), world.members(split)
    texts, wanted = [], []
    for messages, gene in zip(prompts, genes):
        others = [d for d in members if world.diseases[d].gene != gene]
        listed = rng.sample(others, min(ANSWERS, len(others)))
        trace = f"<think>{GOOD_PLAN}{as_text(diagnoses(world, listed))}"
        texts.append(prompt(messages[-1]["content"]) + trace)
        wanted.append(world.diseases[listed[0]].gene)
    groups = policy.sample(texts, 1, SamplingConfig(temperature=0, max_new_tokens=LIMIT))
    starts = [f'{OPEN_LIST}{gene}"' for gene in wanted]
    return mean([group[0].output_text.startswith(s) for group, s in zip(groups, starts)])


def measure(
    policy: LocalPolicy, world: World, split: str, number: int = 480, samples: int = 8
) -> tuple[list[Gate], dict[str, Any]]:
    """All gates of one base model, and the figures behind them.

    number   cases, dealt evenly over the split's genes
    samples  of each case without a plan
    """
    rows = cases(world, split, number, seed=1)
    own = [world.diseases[case.disease] for case in rows]
    genes, among = [d.gene for d in own], world.genes(split)
    prompts = [[{"role": "user", "content": question(world, case)}] for case in rows]

    # The plan as a prefill: greedy, and sampled.
    think = f"<think>{GOOD_PLAN}"
    settings = SamplingConfig(temperature=0, max_new_tokens=LIMIT, prefill=think)
    prompted = policy.sample(prompts, 1, settings)
    prompted_rates = rates(prompted, genes)
    named = [f"Diseases: {d.name}," in group[0].reasoning for d, group in zip(own, prompted)]
    second_hop = [rate for rate, right in zip(prompted_rates, named) if right]
    settings = SamplingConfig(max_new_tokens=LIMIT, prefill=think)
    sampled = policy.sample(prompts, 2, settings)

    # The base as it is: which plans it takes, and what each is worth.
    groups = policy.sample(prompts, samples, SamplingConfig(max_new_tokens=LIMIT, seed=1))
    base = rates(groups, genes)
    by_plan = {
        plan: [
            (top_gene(sample), gene)
            for group, gene in zip(groups, genes)
            for sample in group
            if sample.reasoning.startswith(plan)
        ]
        for plan in PLANS
    }
    plan_rates = {plan: mean([top == g for top, g in pairs]) for plan, pairs in by_plan.items()}
    naming = [
        mean([top in among for top, _ in pairs])
        for plan, pairs in by_plan.items()
        if plan != GOOD_PLAN
    ]
    cues = cue_rates(world, rows)
    wrong = {plan: rate for plan, rate in plan_rates.items() if plan != GOOD_PLAN} | cues
    worst = max(wrong, key=wrong.get)

    # No trace at all.
    direct = {
        trace: [float(a == g) for a, g in zip(direct_answers(policy, prompts, among, text), genes)]
        for trace, text in (
            ("empty trace", f"<think></think>{OPEN_LIST}"),
            ("plan without diseases", f"{think}</think>{OPEN_LIST}"),
        )
    }
    lead = paired_difference(prompted_rates, max(direct.values(), key=sum), genes)

    measured = [
        at_least("prompted with the plan, greedy", mean(prompted_rates), 0.65),
        at_least("second hop: gene given the right disease", mean(second_hop), 0.95),
        at_least(
            "swap: the answer follows the trace",
            swap_rate(policy, world, split, prompts, genes),
            0.9,
        ),
        at_least(
            "no shortcut: plan - direct answer, lower end", lead.low, 0.25, f"difference {lead}"
        ),
        Gate(
            "wrong plans and cues, the best", wrong[worst], "<= 0.35", wrong[worst] <= 0.35, worst
        ),
        Gate("base, sampled", mean(base), "0.05 to 0.2", 0.05 <= mean(base) <= 0.2),
        at_least("open to all: wrong plans naming this split", min(naming), 0.001),
        at_least("all five distinct, greedy", all_distinct(prompted), 0.95),
        at_least("all five distinct, sampled", all_distinct(sampled), 0.95),
    ]
    figures = {
        "split": split,
        "cases": number,
        "genes": len(among),
        "prompted_sampled": mean(rates(sampled, genes)),
        "disease_named": mean(named),
        "plan_shares": {plan: len(pairs) / (number * samples) for plan, pairs in by_plan.items()},
        "plan_rates": plan_rates,
        "direct": {trace: mean(values) for trace, values in direct.items()},
        "cues": cues,
    }
    return measured, figures


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
        f"{figures['cases']} cases of {figures['genes']} {figures['split']} genes. Prompted with "
        f"the plan, sampled: {figures['prompted_sampled']:.3f}; the case's disease named first, "
        f"greedy: {figures['disease_named']:.3f}.",
        f"Plans in the base's own samples: {shares}.",
        f"Direct answer among these genes alone: {direct}. Cues without annotation: {cues}.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a model folder, or embedded:mini")
    parser.add_argument("--split", default="validation", choices=("validation", "test"))
    parser.add_argument("--save", metavar="FILE", help="write gates and figures as JSON")
    given = parser.parse_args()
    measured, figures = measure(load_policy(given.model), build_world(), given.split)
    print(as_table(measured, figures))
    if given.save:
        record = {"gates": [vars(gate) for gate in measured], "figures": figures}
        write_text(given.save, json.dumps(record, indent=1) + "\n")
    raise SystemExit(not all(gate.passed for gate in measured))
