"""What a GRPO step takes on this GPU -> datasets/recorded_runs/gpu.json, docs/results.md's table.

    python benchmarks/gpu.py [--dry-run] [--parts NAME …] [--out FILE]

rates       memory copied and matrices multiplied a second, beside the card's data sheet
ways        Qwen3-4B's shape, groups of 8, 300 + 256 tokens: TRL + PEFT, rftkit with shared and
            with copied prompts, Unsloth; seconds and peak memory, beside what `rftkit plan` says
extraction  SmolLM2 learns datasets/extraction as in real_model.py, whose record is the CPU's

Weights are random in `ways`: they cost what trained ones cost, need no download, and hardly ever
say the end token. Each way has its own process; they take turns, three steps each after a first
one. A part that fails leaves its error in the record: exit code 1. Left out: vLLM, several GPUs.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import real_model
import torch
from page_block import Block, label
from step_time import WayFailed, long_task, settings, summary, take_turns

from rftkit.files import embedded_model, fetched_folder, markdown_table, read_json, write_json
from rftkit.training import memory

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "datasets" / "recorded_runs" / "gpu.json"
BLOCK = Block("docs/results.md", "gpu", "gpu.py")
QWEN3 = memory.known("models")["Qwen3-4B"]
TINY = SimpleNamespace(
    **vars(QWEN3) | dict(hidden_size=64, num_hidden_layers=2, head_dim=4, intermediate_size=128)
)
WAYS = {"trl": "TRL + PEFT", "copied": "rftkit, prompts copied", "rftkit": "rftkit, prompts shared"}
WAYS |= {"unsloth": "rftkit, Unsloth"}
REPEATS = 3
GPU = torch.cuda.is_available()


def card() -> SimpleNamespace | None:
    """This GPU in `rftkit plan`'s table."""
    name = torch.cuda.get_device_name().lower() if GPU else ""
    return next((c for n, c in memory.known("cards").items() if n.split("-")[0] in name), None)


def rates(dry: bool) -> dict[str, Any]:
    """Bytes read and written, operations in bf16: a second, median of ten."""

    def a_second(amount: float, function: Callable[[], Any]) -> float:
        seconds = []
        for _ in range(13):  # three to warm up
            began = time.perf_counter()
            function()
            torch.cuda.synchronize() if GPU else None
            seconds.append(time.perf_counter() - began)
        return amount / statistics.median(seconds[3:])

    device, size, side = "cuda" if GPU else "cpu", 2**22 if dry else 2**32, 256 if dry else 8192
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    matrix = torch.randn(side, side, dtype=torch.bfloat16, device=device)
    found = {
        "bandwidth": a_second(2 * size / 1e9, lambda: target.copy_(source)),  # GB/s
        "operations": a_second(2 * side**3 / 1e12, lambda: matrix @ matrix),  # 10^12/s
    }
    limits = {name: getattr(card(), name) for name in found} if card() else {}
    return found | {"of_the_limit": {name: found[name] / limits[name] for name in limits}}


def random_model(folder: Path, shape: SimpleNamespace) -> Path:
    """With the mini's tokenizer, whose vocabulary is smaller."""
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(embedded_model("mini"))
    ends = dict(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    form = dict(max_position_embeddings=40_960, tie_word_embeddings=True, bos_token_id=None)
    form["rope_parameters"] = {"rope_type": "default", "rope_theta": 1_000_000.0}
    torch.manual_seed(0)
    with torch.device("cuda" if GPU else "cpu"):
        model = Qwen3ForCausalLM(Qwen3Config(**vars(shape), **form, **ends))
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def ways(dry: bool) -> dict[str, Any]:
    shape, prompt, completion = (TINY, 120, 8) if dry else (QWEN3, 300, 256)
    size = dict(prompts_per_step=2, answers_per_prompt=2, micro_batch=2)
    size = size if dry else dict(prompts_per_step=4, answers_per_prompt=8, micro_batch=8)
    with tempfile.TemporaryDirectory(prefix="rftkit-gpu-") as folder:
        model = str(random_model(Path(folder) / "model", shape))
        torch.cuda.empty_cache() if GPU else None
        task = str(long_task(Path(folder) / "task", prompt))
        size |= dict(model=model, task=task, max_completion_tokens=completion, lora_rank=16)
        config, names, errors = settings(REPEATS + 1, **size), list(WAYS), {}
        if not importlib.util.find_spec("unsloth"):
            errors[names.pop()] = "not installed"
        while names:  # without the one that failed
            try:
                reports = take_turns(config, names, threads=16 if GPU else 1, exact=True)
                break
            except WayFailed as failure:
                way, _, error = str(failure).partition(": ")
                names.remove(way)
                errors[way] = error[-800:]
    found = {way: summary(steps[1:]) for way, steps in reports.items()}
    form = shape, config, prompt, completion, config.micro_batch
    planned = {"peak_mb": memory.peak(memory.parts(*form)) / 1e6}
    planned["seconds_a_step"] = sum(memory.seconds(*form, card())) if card() else None
    return {"settings": config.to_json(), "ways": found, "not_run": errors, "planned": planned}


def extraction(dry: bool) -> dict[str, Any]:
    """RFT's curve and what its model gets right of the test's fields, for each seed."""
    if not fetched_folder("smollm2").exists():
        return {"not_run": "no smollm2 here: rftkit fetch smollm2"}
    runs = []
    for seed in (0,) if dry else (0, 1, 2):
        with tempfile.TemporaryDirectory(prefix="rftkit-gpu-") as folder:
            work = real_model.Extraction(Path(folder), seed, 4 if dry else None)
            work.changes["engine"] = "transformers"  # as on the CPU
            run = work.rft()
            right = real_model.answer(run.policy, work.task, work.test)["sampled"]["fields"]
            curve = [line["reward_mean"] for line in run.log]
            found = {"fields": statistics.mean(right), "seconds": run.training["seconds"]}
            runs.append({"seed": seed, "reward_mean": curve, **found})
    return {"runs": runs}


def cpu_runs() -> list[dict[str, Any]]:
    """extraction()'s runs as the CPU did them."""
    runs = []
    for run in read_json(real_model.RECORDS / "extraction.json")["runs"]:
        training = run["training"]["RFT"]
        (rft,) = (system for system in run["systems"] if system["name"] == "RFT")
        curve = [line["reward_mean"] for line in training["log"]]
        found = {"fields": rft["sampled"]["fields"]["mean"], "seconds": training["seconds"]}
        runs.append({"seed": run["seed"], "reward_mean": curve, **found})
    return runs


def curves_text(runs: list[dict[str, Any]]) -> str:
    texts = []
    for run in runs:
        curve = " ".join(f"{part.mean():.2f}" for part in np.array_split(run["reward_mean"], 4))
        texts.append(f"{run['fields']:.2f}; {curve}; {run['seconds']:.0f}")
    return " / ".join(texts)


PARTS = {"rates": rates, "ways": ways, "extraction": extraction}


def gpu_table(record: dict[str, Any]) -> str:
    """For docs/results.md; what is not in the record has not been measured."""
    parts, none, rows = record.get("parts", {}), "not measured yet", []
    found = parts.get("ways", {}).get("ways", {})
    for way, title in WAYS.items():
        times = found.get(way) or {}
        step, peak = (times.get(name) for name in ("seconds_a_step", "peak_gpu_mb"))
        rows.append([title, f"{step:.1f} s a step, {peak / 1000:.0f} GB" if step else none])
    shares = parts.get("rates", {}).get("of_the_limit", {})
    for name in ("bandwidth", "operations"):
        rows.append([f"{name}, of the limit", f"{shares[name]:.0%}" if name in shares else none])
    name = "SmolLM2 on extraction, a seed each: fields right after RFT; reward by quarter; seconds"
    rows.append([name, curves_text(parts.get("extraction", {}).get("runs", [])) or none])
    rows.append(["the same on a CPU, recorded by real_model.py", curves_text(cpu_runs())])
    return markdown_table([{"what": name, record.get("gpu") or "GPU": text} for name, text in rows])


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, also without a GPU")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--out", type=Path, help="the record; its other parts stay")
    given = parser.parse_args(arguments)
    if not (given.dry_run or GPU):
        print("no CUDA GPU here, expected one: --dry-run tests this script on a CPU")
        return 1
    out = given.out or (ROOT / "runs" / "gpu_dry_run.json" if given.dry_run else RECORD)
    record = read_json(out) if out.exists() else {"parts": {}}
    record |= label("bash benchmarks/gpu.sh", arguments)
    record["gpu"] = torch.cuda.get_device_name() if GPU else None
    for name in given.parts:
        try:
            found = PARTS[name](given.dry_run)
        except Exception:
            found = {"error": traceback.format_exc()[-2000:]}
        record["parts"][name] = found
        print(name, found.get("error", "measured"), flush=True)
        write_json(out, record)
    if out.resolve() == RECORD:
        BLOCK.write(gpu_table(record))
    return int(any("error" in found for found in record["parts"].values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
