"""A run's model for use elsewhere, and the proof that it is the same model there.

    report = export("runs/first", to="merged", out="models/first", prove=20)

adapter: the PEFT folder. merged: one folder of safetensors for transformers, vLLM or TGI. gguf: one
file for llama.cpp, with a Modelfile for Ollama. A model card stands in each of them.

Left out: quantising (llama.cpp's llama-quantize takes model.gguf), and uploading.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rftkit.decoding import end_tokens
from rftkit.evaluation import bootstrap, clusters_of, paired_difference, row_values
from rftkit.files import (
    UserError,
    is_full_disk,
    markdown_table,
    plural,
    read_json,
    write_json,
    write_text,
)
from rftkit.gguf_file import llama_server, modelfile, write_gguf
from rftkit.policy import LocalPolicy, Policy, Prompt, load_policy
from rftkit.records import THINK_CLOSE, THINK_OPEN, Sample, SamplingConfig
from rftkit.rows import Source, read_rows, sha256_of
from rftkit.task import Task, load_task
from rftkit.training.config import RunConfig, config_rows
from rftkit.training.store import read_config, written_whole

FORMS = {"adapter": "peft", "merged": "transformers", "gguf": "gguf"}  # form: its library
CARD = """---
base_model: {base}
library_name: {library}
tags: [rftkit, reinforcement-fine-tuning]
---

{base} after {steps} steps of {method} with a LoRA of rank {rank}, by rftkit {version}, for the \
task "{task}". The reward was the grader "{grader}". It was tried on prompts like its training \
rows alone.

{what}

Licence: these weights hold or change those of {base}; its licence, and the terms of the rows, \
bind whoever passes them on.

{report}
## How it was trained

{settings}
"""
WHAT = {
    "adapter": "The adapter alone: load it on its base with PEFT, or vLLM's `--enable-lora`.",
    "merged": "The adapter is merged into the base, in {dtype}. It was trained at temperature 1.",
    "gguf": "The adapter is merged into the base, in {dtype}, for llama.cpp. With Ollama: "
    "`ollama create NAME -f Modelfile`.",
}


def export(
    run: Any,
    to: str,
    out: str | Path,
    prove: int = 0,
    endpoint: str | None = None,
    rows: Source | None = None,
    say: Callable[[str], Any] = print,
) -> dict[str, Any]:
    """Write the model of a finished run (a Run or its folder) to the folder `out`, then prove it.

    With `prove` the first so many of `rows` (by default the run's test rows, else its held-out
    ones) are answered greedily by the run and by what lies in `out`, or by the model `endpoint` of
    OPENAI_BASE_URL. The report has `equal` texts `of` so many, the `mismatches` with the place
    where two texts part and the `margin` of the logits there, `max_logit_difference` over all
    tokens (None where no logits come back), `logit_difference_from_base`, and the `score` of both.

    An export of the same run that stands in `out` is only proved. Nothing is left of one that
    fails. Weights keep the dtype that they are loaded in: fp32 on a CPU, bf16 on a GPU. UserError
    for anything else in `out`, a family without GGUF, a missing package, a full disk.
    """
    run, out = Path(getattr(run, "out", run)), Path(out)
    if to not in FORMS:
        raise UserError(f'to: "{to}", expected one of {", ".join(FORMS)}')
    if not (run / "training.json").exists():
        raise UserError(f"{run}: no training.json, expected a finished run: `rftkit train` ends it")
    of = {"to": to, "adapter": sha256_of(run / "adapter" / "adapter_model.safetensors")}
    if (out / "export.json").exists() and read_json(out / "export.json") == of:
        say(f"{out}: this run as {to} stands there; to write it anew, delete it first")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: there already, and not this run as {to}: name another folder")
    else:
        try:
            with written_whole(out, f".{out.name}.writing") as folder:
                folder.mkdir(parents=True)
                dtype = write_form(run, to, folder)
                write_text(folder / "README.md", model_card(run, to, dtype))
                write_json(folder / "export.json", of)
                for file in folder.iterdir():  # safetensors writes for its owner alone
                    shutil.copymode(folder / "README.md", file)
        except Exception as error:
            if not is_full_disk(error, out.absolute().parent):
                raise
            raise UserError(f"{out}: the disk is full: free some of it, or name another") from error
        say(f"{out}: written")
    report = {"run": str(run), "to": to, "out": str(out)}
    if not prove:
        return report
    source, rows = proof_rows(run, rows)
    rows = rows[:prove]
    say(f"proving on {plural(len(rows), 'row')}: {source}")
    with exported_policy(run, to, out, endpoint) as exported:
        return report | compare(load_run_policy(run), exported, load_task(run), rows, run)


def load_run_policy(run: Path) -> LocalPolicy:
    """The adapter on its base, which has 16 bits or more here, also after training on four."""
    settings = read_json(run / "config.json") | {"load_in_4bit": False}
    return load_policy(str(run), "transformers", settings=settings)


def write_form(run: Path, to: str, folder: Path) -> str:
    """Fill the folder with the weights and what is needed to load them; return their dtype."""
    if to == "adapter":
        shutil.copytree(run / "adapter", folder, dirs_exist_ok=True)
        return ""
    policy = load_run_policy(run)
    policy.model = policy.model.merge_and_unload()
    # Servers would sample greedily whatever a request says.
    policy.model.generation_config.do_sample = True
    if to == "merged":
        parse_for_servers(policy)
        policy.model.save_pretrained(folder)
        policy.tokenizer.save_pretrained(folder)
    else:
        write_gguf(policy.model, policy.tokenizer, folder / "model.gguf")
        limit = read_json(run / "plan.json")["max_completion_tokens"]
        write_text(folder / "Modelfile", modelfile(policy, limit))
    return str(policy.model.dtype).removeprefix("torch.")


def parse_for_servers(policy: LocalPolicy) -> None:
    """Say in the tokenizer's config how an answer is read. `transformers serve` takes each Qwen for
    one that speaks ChatML, and would give the prompt back with the answer of another."""
    tokenizer, asked = policy.tokenizer, [{"role": "user", "content": "?"}]
    if getattr(tokenizer, "response_template", None) or "<|im_start|>" in tokenizer.chat_template:
        return
    led = policy.apply_template(asked, add_generation_prompt=True)
    anchor = led.removeprefix(policy.apply_template(asked)).partition(THINK_OPEN)[0]
    ends = tokenizer.convert_ids_to_tokens(sorted(end_tokens(policy.model, tokenizer)))
    thinking = {"open": THINK_OPEN, "close": THINK_CLOSE, "content": "text"}
    fields = {"thinking": thinking, "content": {"close": ends, "content": "text"}}
    form = {"defaults": {"role": "assistant"}, "start_anchor": anchor, "fields": fields}
    tokenizer.response_template = form


def model_card(run: Path, to: str, dtype: str) -> str:
    """README.md: base, task, grader, the run's report, its settings, a word on the licence."""
    report, config = read_json(run / "report.json"), read_config(run)
    base = Path(config.model).name if os.path.isabs(config.model) else config.model
    usual = {name: field.default for name, field in RunConfig.model_fields.items()}
    own = {k: str(v) for k, v in dict(config).items() if v != usual[k] and k != "model"}
    settings = [
        {"setting": name, "value": value[:60].replace("|", "/").replace("\n", " ")}
        for name, value in own.items()
        if name != "grader" and not os.path.isabs(value)
    ]
    return CARD.format(
        base=base,
        library=FORMS[to],
        what=WHAT[to].format(dtype=dtype),
        task=report["task"],
        grader=report["grader"],
        steps=report["training"]["steps"],
        method={"grpo": "GRPO", "sft": "SFT"}[config.method],
        rank=config.lora_rank,
        version=report["versions"]["rftkit"],
        report=(run / "report.md").read_text("utf-8"),
        settings=markdown_table(settings) or "All settings were RunConfig's own.",
    )


def proof_rows(run: Path, rows: Source | None) -> tuple[str, list[dict[str, Any]]]:
    """(what they are, the rows): those given, else the test rows of the run's task, else those it
    was validated on."""
    if rows is not None:
        return "those given", read_rows(rows)
    config = read_config(run)
    task = load_task(config.task) if config.task else None
    if task and task.folder and (task.folder / "test.jsonl").exists():
        return "the task's test rows", task.rows("test")
    held_out = config_rows(config, task or load_task(run))[1]
    if not held_out:
        raise UserError(f"{run}: its held-out rows are in no file: pass them, export(…, rows=…)")
    return "the run's validation rows", held_out


@contextmanager
def exported_policy(run: Path, to: str, out: Path, endpoint: str | None) -> Iterator[Policy]:
    """What was exported, loaded from its folder or asked where it is served."""
    if endpoint:
        yield load_policy(f"endpoint:{endpoint}")
    elif to == "gguf":
        with llama_server(out / "model.gguf", read_config(run).chat_template_kwargs) as policy:
            yield policy
    else:
        policy = load_policy(str(out), "transformers")
        policy.chat_template_kwargs = read_config(run).chat_template_kwargs or {}
        yield policy


def whole_text(sample: Sample) -> str:
    """What was written, without what servers drop: outer white space, half a character at a cut."""
    opened = f"{THINK_OPEN}{sample.reasoning}{THINK_CLOSE}" if sample.reasoning else ""
    return opened + sample.answer.rstrip("\ufffd").strip()


def compare(
    trained: LocalPolicy, exported: Policy, task: Task, rows: list[dict[str, Any]], run: Path
) -> dict[str, Any]:
    """The same rows through both, greedily: what export() reports."""
    limit = read_json(run / "plan.json")["max_completion_tokens"]
    greedy = SamplingConfig(temperature=0.0, max_new_tokens=limit)
    prompts, texts, values = list(map(Prompt, rows)), [], []
    for policy in (trained, exported):
        samples = policy.sample(prompts, 1, greedy)
        if failed := [s for [s] in samples if s.finish_reason == "error"]:
            raise UserError(f"{policy.name}: no answer ({failed[0].errors[0]}): is it served?")
        task.grade(rows, samples)
        values.append(row_values("grade", task, rows, samples))
        texts.append([whole_text(sample) for [sample] in samples])
    clusters, mismatches = clusters_of(rows, task), []
    for prompt, [sample], ours, theirs in zip(prompts, samples, *texts):
        if ours != theirs:
            at = len(os.path.commonprefix([ours, theirs]))
            parts = {"trained": ours[at : at + 40], "exported": theirs[at : at + 40]}
            parts["margin"] = margin(trained, prompt, ours, theirs)
            mismatches.append({"row_id": sample.row_id, "at": at, **parts})
    score = dict(zip(("trained", "exported"), (bootstrap(v, clusters).to_json() for v in values)))
    score["difference"] = paired_difference(*values[::-1], clusters).to_json()
    away = logit_differences(trained, exported, prompts, texts[0])
    return {
        "equal": len(rows) - len(mismatches),
        "of": len(rows),
        **away,
        "score": score,
        "mismatches": mismatches,
    }


def margin(trained: LocalPolicy, prompt: Prompt, ours: str, theirs: str) -> float | None:
    """How far apart the run's logits of the two tokens are with which the texts part: next to 0 it
    was a tie, which rounding decides. None where the same tokens made two texts."""
    import torch

    tokenizer, [ids] = trained.tokenizer, trained.encode([prompt])
    one, other = tokenizer([ours, theirs], add_special_tokens=False).input_ids
    pairs = enumerate(zip([*one, tokenizer.eos_token_id], [*other, tokenizer.eos_token_id]))
    for place, (token, instead) in pairs:
        if token != instead:
            tokens = torch.tensor([ids + one[:place]], device=trained.model.device)
            with torch.inference_mode():
                logits = trained.model(tokens).logits[0, -1].float()
            return float(logits[token] - logits[instead])
    return None


def logit_differences(
    trained: LocalPolicy, exported: Policy, prompts: list[Prompt], answers: list[str]
) -> dict[str, float | None]:
    """The largest absolute differences of a token's logits, over prompts and the run's answers."""
    import torch

    away: dict[str, Any] = {"max_logit_difference": [], "logit_difference_from_base": []}
    for ids, answer in zip(trained.encode(prompts), answers):
        ids = ids + trained.tokenizer(answer, add_special_tokens=False).input_ids
        tokens = torch.tensor([ids], device=trained.model.device)
        with torch.inference_mode():
            logits = trained.model(tokens).logits
            with trained.model.disable_adapter():
                others = {"logit_difference_from_base": trained.model(tokens).logits}
            if isinstance(exported, LocalPolicy):
                others["max_logit_difference"] = exported.model(tokens).logits
        for name, other in others.items():
            away[name].append(float((logits - other).abs().max()))
    return {name: max(values, default=None) for name, values in away.items()}
