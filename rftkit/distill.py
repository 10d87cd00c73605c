"""A student from a teacher's labels: a small model that answers at once, without a trace.

    from rftkit.distill import Distilling, distill
    distill(Distilling("labels.jsonl", "student", width=64, layers=2))

Random weights in the form of a larger model, all of them trained in plain torch (a LoRA on random
weights teaches nothing). `load_policy`, `rftkit label` and `rftkit evaluate` take its folder.

Left out: the teacher's probabilities ("soft labels"), which an endpoint does not give; resuming;
and a pretrained student, which `rftkit train` teaches the same lines by method sft.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rftkit.console import Reporter, argument, option
from rftkit.environment import choose_device, set_seed
from rftkit.files import UserError, write_json
from rftkit.loading import hub_place, load_tokenizer, model_folder
from rftkit.policy import LocalPolicy, Prompt
from rftkit.rows import read_rows, sha256_of
from rftkit.training.store import written_whole


@dataclass
class Distilling:
    """The options of `rftkit distill`, one field each."""

    labels: Annotated[Path, argument("LABELS", "Rows with completions, as `label` writes them.")]
    out: Annotated[Path, option("DIR", "The student's folder; it must not exist.")]
    model: Annotated[str, option("M", "Its form and tokenizer are taken.")] = "embedded:mini"
    width: Annotated[int, option("N", "Hidden numbers a token; heads shrink with it.", min=8)] = 64
    layers: Annotated[int, option("N", "Layers.", min=1)] = 2
    epochs: Annotated[int, option("N", "Passes over the labels.", min=1)] = 4
    batch: Annotated[int, option("N", "Rows a step.", min=1)] = 64
    learning_rate: Annotated[float, option("R", "Its peak.")] = 3e-3
    seed: Annotated[int, option("S", "Of the weights and the order of rows.", min=0)] = 0


def distill(asked: Distilling, reporter: Reporter | None = None) -> dict[str, Any]:
    """Train the student, write its folder, return student.json's object. UserError where `out`
    exists, the model is an adapter, or a row has no completion."""
    import torch

    reporter, began, out = reporter or Reporter(quiet=True), time.perf_counter(), Path(asked.out)
    if out.exists():
        raise UserError(f"{out}: there already: name another --out")
    set_seed(asked.seed)
    policy = new_student(asked)
    examples, model = sft_examples(policy, asked.labels), policy.model.train()
    steps = asked.epochs * -(-len(examples) // asked.batch)
    reporter.stage("training the student", steps)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(  # up for a tenth of the steps, then down to 0
        optimizer, asked.learning_rate, steps, pct_start=0.1, cycle_momentum=False
    )
    for _ in range(asked.epochs):
        for part in torch.randperm(len(examples)).split(asked.batch):
            loss = completion_loss(model, [examples[i] for i in part])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            rate.step()
            reporter.work(1)
    record = {"parameters": model.num_parameters(), "rows": len(examples), "steps": steps}
    record |= {"loss": round(loss.item(), 4), "seconds": round(time.perf_counter() - began, 1)}
    record |= {"labels": sha256_of(asked.labels), "seed": asked.seed}
    with written_whole(out, f".{out.name}.writing") as folder:
        for part in (model.eval(), policy.tokenizer):
            part.save_pretrained(folder)
        write_json(folder / "student.json", record)
    return record


def new_student(asked: Distilling) -> LocalPolicy:
    """Random weights in the model's form, made narrower and shallower."""
    from transformers import AutoConfig, AutoModelForCausalLM

    base, adapter = model_folder(asked.model)
    if adapter:
        raise UserError(f"--model {asked.model}: an adapter, expected a base: name that")
    config = AutoConfig.from_pretrained(**hub_place(base))
    for part in ("intermediate_size", "num_attention_heads", "num_key_value_heads"):
        setattr(config, part, max(1, getattr(config, part) * asked.width // config.hidden_size))
    config.hidden_size, config.num_hidden_layers = asked.width, asked.layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: asked.layers]
    model = AutoModelForCausalLM.from_config(config).float().to(choose_device()[0])
    return LocalPolicy(model, load_tokenizer(base), asked.model)


def sft_examples(policy: LocalPolicy, labels: Path) -> list[tuple[list[int], list[int]]]:
    """Token ids of each row's prompt, and of its completion with the end token."""
    rows = read_rows(labels)
    texts = [row.get("completion") for row in rows]
    if None in texts:
        lacks = f"{labels}: row {texts.index(None) + 1} has no completion"
        raise UserError(f"{lacks}: label the rows first, with `rftkit label`")
    ends = policy.tokenizer(texts, add_special_tokens=False).input_ids
    prompts = policy.encode(list(map(Prompt, rows)))
    return [(p, end + [policy.tokenizer.eos_token_id]) for p, end in zip(prompts, ends)]


def completion_loss(model: Any, examples: list[tuple[list[int], list[int]]]) -> Any:
    """Mean cross-entropy of the completions' tokens, in nats. Padding is on the right, so a causal
    model needs no mask; logits are made only where a token is learned."""
    import torch

    def padded(rows: list[list[int]]) -> torch.Tensor:
        rows = [torch.tensor(row, device=model.device) for row in rows]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

    ids = padded([prompt + end for prompt, end in examples])
    learned = padded([[0] * len(prompt) + [1] * len(end) for prompt, end in examples])[:, 1:] > 0
    states = model.get_decoder()(input_ids=ids[:, :-1], use_cache=False)[0]
    logits = model.get_output_embeddings()(states[learned])
    return torch.nn.functional.cross_entropy(logits, ids[:, 1:][learned])
