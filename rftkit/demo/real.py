"""Published cases of real patients, put to every system of the demo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rftkit.data.records import SamplingConfig
from rftkit.demo.baselines import as_samples, overlap, random_ranking, world_genes
from rftkit.demo.settings import LARGE, PREFILL, SYSTEMS
from rftkit.embedded.real_cases import RealCases, tell_real_cases
from rftkit.embedded.world import build_world
from rftkit.evaluation import bootstrap, clusters_of, evaluate, measure, paired_record
from rftkit.policy import load_policy

if TYPE_CHECKING:
    from rftkit.demo.run import Demo


def real_cases(source: str | Path) -> RealCases:
    return tell_real_cases(source, build_world())


def evaluate_real(demo: Demo, real: RealCases) -> dict[str, Any]:
    """Every system on the real cases that the world can be told."""
    rows, task = real.rows, demo.task
    genes = world_genes()
    rankings = {"random": random_ranking(genes, demo.seed), "overlap": overlap()}
    results = [
        measure(name, task, rows, as_samples(rank(rows)), as_samples(rank(rows)))
        for name, rank in rankings.items()
    ]
    told = SamplingConfig(**{**demo.settings.to_json(), "prefill": PREFILL})
    mini = load_policy("embedded:mini")
    policies = {
        "mini base": (mini, demo.settings),
        "mini base, told the plan": (mini, told),
        "large base": (load_policy("embedded:large"), demo.settings),
        **{name: (run.policy, demo.settings) for name, run in demo.runs.items()},
    }
    for name in [name for name in SYSTEMS if name in policies]:
        policy, settings = policies[name]
        weight = LARGE if "large" in name else 1.0
        demo.reporter.stage(f"real cases: {name}")
        results.append(
            evaluate(
                policy,
                task,
                rows,
                settings,
                samples=demo.samples,
                name=name,
                progress=lambda done, weight=weight: demo.reporter.advance(done * weight),
            )
        )
    clusters = clusters_of(rows, task)
    unseen = [i for i, row in enumerate(rows) if row["split"] == "test"]
    record = real.to_json() | {"systems": [r.to_json(clusters) for r in results]}
    by_name = {r.name: r for r in results}
    record["paired"] = [
        paired_record(by_name["RFT mini"], by_name[name], "top1", clusters)
        for name in ("mini base", "large base", "overlap")
    ]
    record["test_genes_alone"] = {
        "n": len(unseen),
        "top1": {
            r.name: bootstrap(r.values["top1"][unseen], [clusters[i] for i in unseen]).to_json()
            for r in results
            if unseen
        },
    }
    return record
