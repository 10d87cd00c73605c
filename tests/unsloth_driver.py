"""Unsloth in a process of its own, behind test_adapters.py: it answers, reads an adapter that
transformers, PEFT and TRL made, and trains one.

    python unsloth_driver.py BASE PEFT_RUN OWN_RUN
"""

from __future__ import annotations

import json
import sys
from typing import Any

SFT = dict(method="sft", task="gene_ranking", steps=3, prompts_per_step=2, learning_rate=5e-3,
           max_completion_tokens=40, eval_every=0, seed=1)  # fmt: skip


def measured(policy: Any) -> dict[str, Any]:
    """Logits after the first prompts with the adapter and without, and greedy answers' grades."""
    import torch

    from rftkit import SamplingConfig, load_task

    task = load_task("gene_ranking")
    rows = task.rows("validation")[:2]
    prompts, config = [row["messages"] for row in rows], SamplingConfig(0, max_new_tokens=16)
    with torch.no_grad():
        ids = [torch.tensor([tokens]) for tokens in policy.encode(prompts)]
        with policy.model.disable_adapter():
            base = [policy.model(input_ids=i).logits[0, -1].tolist() for i in ids]
        adapted = [policy.model(input_ids=i).logits[0, -1].tolist() for i in ids]
    samples = policy.sample(prompts, 1, config)
    texts = [f"{s.reasoning}|{s.output_text}" for [s] in samples]
    task.grade(rows, samples)
    grades = [s.grade for [s] in samples]
    return {"base": base, "adapted": adapted, "texts": texts, "grades": grades}


def main(base: str, peft_run: str, own_run: str) -> None:
    import torch
    from unsloth import FastLanguageModel

    from rftkit import RunConfig, load_policy, train
    from rftkit.policy import LocalPolicy

    model, tokenizer = FastLanguageModel.from_pretrained(
        f"{peft_run}/adapter", dtype=torch.float32, load_in_4bit=False
    )
    read = measured(LocalPolicy(model.eval(), tokenizer, "PEFT's"))
    own = train(RunConfig(**SFT, model=base, engine="unsloth"), own_run, say=print)
    found = {"engine": own.policy.engine, "read": read, "own": measured(own.policy)}
    found["loaded"] = measured(load_policy(peft_run, engine="unsloth"))
    print("RESULT", json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
