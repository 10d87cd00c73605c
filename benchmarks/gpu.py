"""How long a GRPO step of rftkit takes on this GPU, and what it needs.

    python benchmarks/gpu.py [--dry-run] [--parts NAME …] [--out FILE]

mini          the embedded model, as `rftkit demo` trains it
transformers  a model of Qwen3-0.6B's shape with random weights, prompts and completions of 256
unsloth       the same through FastLanguageModel

Random weights cost what trained ones cost and need no download. They hardly ever say the end token,
so every completion is as long as it may be. Nothing is learned there, and no accuracy is measured.
Each part runs in its own process: Unsloth patches the other libraries, and memory peaks stay.

A part that fails leaves its error in the record: exit code 1. Left out: vLLM, several GPUs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from page_block import label
from step_time import long_task

from rftkit.environment import peak_memory_mb
from rftkit.files import embedded_model, write_json

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("mini", "transformers", "unsloth")
QWEN3 = dict(  # Qwen3-0.6B's shape, as its config.json gives it
    hidden_size=1024, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8,
    head_dim=128, intermediate_size=3072, vocab_size=151_936, max_position_embeddings=40_960,
    tie_word_embeddings=True,
)  # fmt: skip
TINY = QWEN3 | dict(hidden_size=64, num_hidden_layers=2, head_dim=4, intermediate_size=128)
RUN = dict(task="gene_ranking", engine="transformers", eval_every=0, gate="off", watchdog_steps=0)


def random_model(folder: Path, shape: dict[str, Any]) -> Path:
    """A Qwen3 model with random weights and the mini's tokenizer, whose vocabulary is smaller."""
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(embedded_model("mini"))
    ends = dict(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    rope = {"rope_type": "default", "rope_theta": 1_000_000.0}
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**shape, rope_parameters=rope, bos_token_id=None, **ends))
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def measure(part: str, dry_run: bool, folder: Path) -> dict[str, Any]:
    """A part's settings and numbers, with the peak memory of this process."""
    if part == "unsloth":
        import unsloth  # noqa: F401  (before trl, transformers and peft)
    import torch
    from grpo_ways import replace

    from rftkit.training.config import RunConfig
    from rftkit.training.run import train

    replace("garbage_in_first_batch", lambda *given: [])  # it asks for end tokens
    small = dict(steps=3, prompts_per_step=2, answers_per_prompt=2)
    config = RunConfig(**RUN, **(small if dry_run else dict(steps=40)))
    if part != "mini":
        config = config.replace(
            engine=part,
            model=random_model(folder / "model", TINY if dry_run else QWEN3),
            task=long_task(folder / "task", 120 if dry_run else 256),
            max_completion_tokens=8 if dry_run else 256,
            steps=min(config.steps, 8),
            lora_rank=16,
            learning_rate=1e-5,
        )
    log = train(config, folder / "run").log
    seconds = [now["seconds"] - before["seconds"] for before, now in zip(log, log[1:])]
    step = statistics.median(seconds)  # without the first one, which warms up
    tokens = statistics.mean(record["completion_tokens"] for record in log)
    return {
        "settings": config.to_json(),
        "step_seconds": seconds,
        "seconds_a_step": step,
        "completion_tokens": tokens,
        "completion_tokens_a_second": tokens * config.batch / step,
        "peak_rss_mb": peak_memory_mb(),
        "peak_gpu_allocated_mb": torch.cuda.max_memory_allocated() / 1e6,
        "peak_gpu_reserved_mb": torch.cuda.max_memory_reserved() / 1e6,
    }


def run_child(part: str, dry_run: bool) -> dict[str, Any]:
    if part == "unsloth" and importlib.util.find_spec(part) is None:
        return {"not_run": "not installed"}
    with tempfile.TemporaryDirectory(prefix="rftkit-gpu-") as folder:
        result = Path(folder) / "result.json"
        words = [sys.executable, __file__, "--part", part, "--out", str(result)]
        try:
            subprocess.run(words + ["--dry-run"] * dry_run, cwd=folder, timeout=480, check=True)
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
            return {"error": str(error)[-500:]}
        return json.loads(result.read_text())


def main(arguments: list[str]) -> int:
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="a tiny shape, also without a GPU")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--out", type=Path, help="where the record goes")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)  # in this very process
    given = parser.parse_args(arguments)
    if given.part:
        write_json(given.out, measure(given.part, given.dry_run, given.out.parent))
        return 0
    if not (given.dry_run or torch.cuda.is_available()):
        print("no CUDA GPU here, expected one: --dry-run tests this script on a CPU")
        return 1
    record = label("bash benchmarks/gpu.sh", arguments) | {"parts": {}}
    record["gpu"] = None if given.dry_run else torch.cuda.get_device_name()
    default = "runs/gpu_dry_run.json" if given.dry_run else "datasets/recorded_runs/gpu.json"
    for part in given.parts:
        record["parts"][part] = found = run_child(part, given.dry_run)
        print(part, found.get("seconds_a_step", found), flush=True)
        write_json(given.out or ROOT / default, record)
    return int(any("error" in found for found in record["parts"].values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
