"""What keeps a trace intact under RFT: prompts that name a plan, or the model's width?

    python benchmarks/plan_names.py            # four base models, two RFT seeds each: 40 minutes

RFT pays for the answer alone, so nothing stops it from wearing a trace down to something that no
reader would recognise, as long as the genes stay right. Two changes were once made together and
cured that: a quarter of the pretraining prompts name the plan they want, and the model is 128 wide
instead of 64. Here they are made one at a time. Each base is trained by RFT for 70 steps without an
early stop and then sampled on validation genes; a trace is intact where it is, letter by letter,
one of the four plans with diseases (or a sign, or an onset) of this world in it.

Writes datasets/recorded_runs/plan_names.json. A killed run goes on when the command is repeated.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from rftkit.environment import machine, versions
from rftkit.evaluation import bootstrap, clusters_of, row_values
from rftkit.files import write_json
from rftkit.policy import load_policy
from rftkit.real_cases import ONSETS
from rftkit.records import SamplingConfig
from rftkit.task import load_task
from rftkit.training.config import RunConfig
from rftkit.training.run import train
from tools.medical_school.corpus import ANSWERS, GOOD_PLAN, PLAN_REQUESTS
from tools.medical_school.pretrain import pretrain
from tools.medical_school.world import World, build_world

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "datasets" / "recorded_runs" / "plan_names.json"
ARMS = [(size, requests) for size in ("mini", "small") for requests in (PLAN_REQUESTS, 0.0)]


def intact_trace(world: World) -> re.Pattern:
    """The traces that the pretraining text knows, with any names of this world in them."""

    def any_of(names) -> str:
        return "(?:" + "|".join(re.escape(name) for name in names) + ")"

    disease = any_of(d.name for d in world.diseases)
    return re.compile(
        rf"{re.escape(GOOD_PLAN)} Diseases: {disease}(?:, {disease}){{{ANSWERS - 1}}}\."
        rf"|Lead sign first\. Sign: {any_of(world.terms)}\."
        rf"|Common first\."
        rf"|Onset first\. Onset: {any_of(ONSETS)}\."
    )


def look(policy, task, rows, whole: re.Pattern) -> dict:
    """Top-1 and the share of intact traces, on validation rows, 2 samples each."""
    prompts = [row["messages"] for row in rows]
    samples = policy.sample(prompts, 2, SamplingConfig(max_new_tokens=64, seed=77))
    task.grade(rows, samples)
    flat = [sample for group in samples for sample in group]
    good = [s for s in flat if s.reasoning.lstrip().startswith(GOOD_PLAN.split()[0])]
    traces = [float(bool(whole.fullmatch(s.reasoning))) for s in flat]
    worn = [s.reasoning for s, kept in zip(flat, traces) if not kept]
    return {
        "top1": bootstrap(
            row_values("top1", task, rows, samples), clusters_of(rows, task)
        ).to_json(),
        "intact": sum(traces) / len(traces),
        "good_plan": len(good) / len(flat),
        "worn_examples": sorted(set(worn))[:3],
    }


def arm(size: str, requests: float, seeds: list[int], folder: Path, steps: int) -> dict:
    base = folder / f"{size}-{requests:g}"
    if not (base / "model.safetensors").exists():
        pretrain(base, size, seed=0, requests=requests)
    world, task = build_world(), load_task("gene_ranking")
    whole, rows = intact_trace(world), task.rows("validation")
    found = {"size": size, "requests": requests, "runs": []}
    found["base"] = look(load_policy(str(base)), task, rows, whole)
    for seed in seeds:
        config = RunConfig(
            model=str(base), task="gene_ranking", steps=steps, eval_every=0, gate="off", seed=seed
        )
        run = train(config, folder / f"{base.name}-rft-{seed}")
        found["runs"].append({"seed": seed, **look(run.policy, task, rows, whole)})
    return found


def main() -> None:
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parse.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of the RFT runs")
    parse.add_argument("--steps", type=int, default=70, help="of each RFT run")
    parse.add_argument("--folder", type=Path, default=ROOT / "runs" / "plan_names")
    given = parse.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    arms = []
    for size, requests in ARMS:
        done = given.folder / f"{size}-{requests:g}.json"
        if not done.exists():
            write_json(done, arm(size, requests, given.seeds, given.folder, given.steps))
        arms.append(json.loads(done.read_text(encoding="utf-8")))
    record = {
        "command": "python benchmarks/plan_names.py",
        "machine": machine(),
        "versions": versions(),
        "steps": given.steps,
        "arms": arms,
    }
    write_json(RECORD, record)
    print(f"{'size':6} {'named':>6}  {'':10} {'top1':>6} {'good plan':>10} {'intact':>7}")
    for found in arms:
        for name, seen in [("base", found["base"])] + [
            (f"RFT seed {run['seed']}", run) for run in found["runs"]
        ]:
            print(
                f"{found['size']:6} {found['requests']:6.2f}  {name:10} "
                f"{seen['top1']['mean']:6.3f} {seen['good_plan']:10.3f} {seen['intact']:7.3f}"
            )


if __name__ == "__main__":
    main()
