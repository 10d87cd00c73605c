"""The tiny base models that the project makes and ships, and the world they know.

world.py     the closed medical world: terms, diseases, genes, simulated cases
corpus.py    the text that a base is pretrained on, its tokenizer
pretrain.py  makes a base model: python -m rftkit.embedded.pretrain
gates.py     what a base must pass before any RFT: python -m rftkit.embedded.gates
models/      mini and large: weights in bf16, tokenizer, pretraining record, model card
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rftkit.data.errors import UserError

MODELS = Path(__file__).parent / "models"


def embedded_model(name: str) -> Path:
    """The folder of an embedded model: "mini" or "large"."""
    folder = MODELS / name
    if not (folder / "config.json").exists():
        here = sorted(p.name for p in MODELS.glob("*") if (p / "config.json").exists())
        raise UserError(
            f'model: "embedded:{name}", expected one of {", ".join(here) or "none (not built)"}: '
            "see rftkit/embedded/models"
        )
    return folder


def model_gates(names: Iterable[str] = ("mini", "large")) -> dict[str, Any]:
    """The gates that each embedded base passed, from the record beside its weights."""
    found = {}
    for name in names:
        path = embedded_model(name) / "gates.json"
        if path.exists():
            found[name] = {
                gate["name"]: {k: gate[k] for k in ("value", "expected", "passed")}
                for gate in json.loads(path.read_text())["gates"]
            }
    return found
