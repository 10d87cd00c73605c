"""What keeps a trace intact under RFT: prompts that name a plan, or the model's width?

    python benchmarks/plan_names.py            # four base models, two RFT seeds each: 40 minutes

RFT pays for the answer alone, so a trace may degrade into something that no reader would
recognise, as long as the genes stay right. Two changes were once made together and cured that: a
quarter of the pretraining prompts name the plan they want, and the model is 128 wide instead of
64. Here they are made one at a time. Each base is trained by RFT for 70 steps without an early
stop and then sampled on validation genes; a trace is intact where it is, letter by letter, one of
the four plans with diseases (or a sign, or an onset) of this world in it.

Writes datasets/recorded_runs/plan_names.json. A killed run resumes when the command is repeated.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from rftkit.environment import machine, versions
from rftkit.evaluation import bootstrap, clusters_of, row_values
from rftkit.files import read_json, write_json
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
    def any_of(names) -> str:
        return "(?:" + "|".join(re.escape(name) for name in names) + ")"

    disease = any_of(d.name for d in world.diseases)
    return re.compile(
        rf"{re.escape(GOOD_PLAN)} Diseases: {disease}(?:, {disease}){{{ANSWERS - 1}}}\."
        rf"|Lead sign first\. Sign: {any_of(world.terms)}\."
        rf"|Common first\."
        rf"|Onset first\. Onset: {any_of(ONSETS)}\."
    )


def measure(policy, task, intact: re.Pattern) -> dict[str, Any]:
    """Top-1 and the share of intact traces, on validation rows, 2 samples each."""
    rows = task.rows("validation")
    settings = SamplingConfig(max_new_tokens=64, seed=77)
    groups = policy.sample([row["messages"] for row in rows], 2, settings)
    task.grade(rows, groups)
    top1 = bootstrap(row_values("top1", task, rows, groups), clusters_of(rows, task))
    traces = [sample.reasoning for group in groups for sample in group]
    worn = [trace for trace in traces if not intact.fullmatch(trace)]
    good = [trace for trace in traces if trace.lstrip().startswith(GOOD_PLAN.split()[0])]
    return {
        "top1": top1.to_json(),
        "intact": 1 - len(worn) / len(traces),
        "good_plan": len(good) / len(traces),
        "worn_examples": sorted(set(worn))[:3],
    }


def run_arm(size: str, requests: float, seeds: list[int], folder: Path, steps: int) -> dict:
    base = folder / f"{size}-{requests:g}"
    if not (base / "model.safetensors").exists():
        pretrain(base, size, seed=0, requests=requests)
    task, intact = load_task("gene_ranking"), intact_trace(build_world())
    record = {"size": size, "requests": requests, "runs": []}
    record["base"] = measure(load_policy(str(base)), task, intact)
    for seed in seeds:
        config = RunConfig(
            model=str(base), task="gene_ranking", steps=steps, eval_every=0, gate="off", seed=seed
        )
        run = train(config, folder / f"{base.name}-rft-{seed}")
        record["runs"].append({"seed": seed, **measure(run.policy, task, intact)})
    return record


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of the RFT runs")
    parser.add_argument("--steps", type=int, default=70, help="of each RFT run")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "plan_names")
    given = parser.parse_args()
    arms = []
    for size, requests in ARMS:
        done = given.folder / f"{size}-{requests:g}.json"
        if not done.exists():
            write_json(done, run_arm(size, requests, given.seeds, given.folder, given.steps))
        arms.append(read_json(done))
    record = {"command": "python benchmarks/plan_names.py", "machine": machine()}
    write_json(RECORD, record | {"versions": versions(), "steps": given.steps, "arms": arms})
    for arm in arms:
        for name, m in [("base", arm["base"]), *((f"RFT {r['seed']}", r) for r in arm["runs"])]:
            print(
                f"{arm['size']:6} named {arm['requests']:4.2f}  {name:7} top1 "
                f"{m['top1']['mean']:.3f}  good plan {m['good_plan']:.3f}  intact {m['intact']:.3f}"
            )
