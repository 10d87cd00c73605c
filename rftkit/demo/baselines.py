"""Systems that are no model: random order, and the annotation itself."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from typing import Any

from rftkit.data.records import Sample
from rftkit.embedded.world import build_world


def world_genes() -> list[str]:
    return sorted(build_world().genes())


Ranking = Callable[[list[dict[str, Any]]], list[list[str]]]


def random_ranking(genes: list[str], seed: int) -> Ranking:
    """Five genes of the world in random order, for each row."""

    def rank(rows: list[dict[str, Any]]) -> list[list[str]]:
        rng = random.Random(seed)
        return [rng.sample(genes, 5) for _ in rows]

    return rank


def overlap() -> Ranking:
    """The five genes of the world whose annotation shares most with the case.

    It reads the annotation itself, which no model here can: an upper mark, not a rival.
    """

    def rank(rows: list[dict[str, Any]]) -> list[list[str]]:
        from rftkit.genes.baselines import OverlapRanker
        from rftkit.genes.hpo import load_hpo

        world = build_world()
        ranker = OverlapRanker(load_hpo(), genes=world.genes())
        return ranker.rank_many([[term["id"] for term in row["present"]] for row in rows], k=5)

    return rank


def as_samples(rankings: Iterable[list[str]]) -> list[list[Sample]]:
    """Rankings as answers in the form that a model gives."""
    return [[Sample.from_text(json.dumps({"genes": genes}))] for genes in rankings]
