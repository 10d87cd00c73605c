"""How long a GRPO step takes on this GPU, and what it needs: the parts, each in its own process.

    python benchmarks/gpu.py [--dry-run] [--parts NAME …] [--out FILE]

rftkit, embedded mini      the project's own run: its sampler, shared prompts, its grader
TRL + PEFT, Qwen3 shape    TRL's trainer on a model of Qwen3-0.6B's shape with random weights
Unsloth, Qwen3 shape       the same through FastLanguageModel

Random weights cost what trained ones cost and need no download. They hardly ever say the end token,
so every completion is as long as it may be; the reward is a checksum of the text, so that the
rewards of every group differ. Nothing is learned here, and no accuracy is measured.

A part that fails leaves its error in the record, which is written after each part. Exit code 0:
every part ran, or its library is not installed. 1: a part failed. Left out: vLLM, several GPUs,
quantised weights.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

from readme_block import label

from rftkit.files import embedded_model, write_json

ROOT = Path(__file__).resolve().parents[1]
# Qwen3-0.6B's shape, as its config.json gives it.
QWEN3 = dict(
    hidden_size=1024, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8,
    head_dim=128, intermediate_size=3072, vocab_size=151_936, max_position_embeddings=40_960,
    tie_word_embeddings=True,
)  # fmt: skip
# Its vocabulary is larger than the tokenizer's, as with the large shape.
TINY = QWEN3 | dict(
    hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    intermediate_size=128, vocab_size=2_048, max_position_embeddings=256,
)  # fmt: skip
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FULL_SIZE = dict(
    mini_steps=40, steps=8, prompts_per_step=8, answers_per_prompt=8, prompt_tokens=256,
    completion_tokens=256, sequences_a_pass=8, shape=QWEN3,
    lora=dict(r=16, lora_alpha=16, target_modules=PROJECTIONS),
)  # fmt: skip
DRY_RUN = dict(
    mini_steps=3, steps=3, prompts_per_step=2, answers_per_prompt=2, prompt_tokens=16,
    completion_tokens=8, sequences_a_pass=2, shape=TINY,
    lora=dict(r=4, lora_alpha=4, target_modules=PROJECTIONS),
)  # fmt: skip


class Clock:
    """Called after each step with its log: seconds since the last call, tokens a completion."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.tokens: list[float] = []
        self.mark = time.perf_counter()

    def __call__(self, log: dict[str, Any]) -> None:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds.append(now - self.mark)
        self.tokens.append(log["completion_tokens"])
        self.mark = now


# --- the parts -----------------------------------------------------------------------------------


def rftkit_mini(size: dict[str, Any], folder: Path, clock: Clock) -> None:
    """The embedded mini's RFT as `rftkit demo` runs it, without validation."""
    from rftkit.training.config import RunConfig
    from rftkit.training.run import train

    config = RunConfig(
        model="embedded:mini",
        engine="transformers",
        task="gene_ranking",
        steps=size["mini_steps"],
        prompts_per_step=size["prompts_per_step"],
        answers_per_prompt=size["answers_per_prompt"],
        eval_every=0,
        gate="off",
    )
    train(config, folder / "run", observers=[clock])


def trl_peft(size: dict[str, Any], folder: Path, clock: Clock) -> None:
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(random_model(size, folder), dtype=dtype())
    grpo(size, folder, clock, model, LoraConfig(**size["lora"], task_type="CAUSAL_LM"))


def unsloth(size: dict[str, Any], folder: Path, clock: Clock) -> None:
    os.environ["UNSLOTH_COMPILE_LOCATION"] = str(folder / "compiled")  # never a stale one
    from unsloth import FastLanguageModel  # before trl, transformers and peft

    model, _ = FastLanguageModel.from_pretrained(
        str(random_model(size, folder)),
        dtype=dtype(),
        load_in_4bit=False,
        max_seq_length=size["prompt_tokens"] + size["completion_tokens"],
    )
    model = FastLanguageModel.get_peft_model(
        model, **size["lora"], use_gradient_checkpointing="unsloth", random_state=0
    )
    grpo(size, folder, clock, model)


PARTS = {
    "rftkit, embedded mini": (rftkit_mini, ["trl", "peft"]),
    "TRL + PEFT, Qwen3 shape": (trl_peft, ["trl", "peft"]),
    "Unsloth, Qwen3 shape": (unsloth, ["unsloth", "trl", "peft"]),
}


def dtype() -> Any:
    """bf16 on a GPU, fp32 on a CPU."""
    import torch

    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


def tokenizer() -> Any:
    """The embedded mini's: small, always there; the shape's larger vocabulary stays unused."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(embedded_model("mini"), padding_side="left")


def random_model(size: dict[str, Any], folder: Path) -> Path:
    """Save a Qwen3 model with random weights, and the tokenizer, for either library to load."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    words, place = tokenizer(), folder / "model"
    torch.manual_seed(0)
    config = Qwen3Config(
        **size["shape"],
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        dtype=dtype(),
    )
    Qwen3ForCausalLM(config).to(dtype()).save_pretrained(place)
    words.save_pretrained(place)
    return place


def checksum_reward(completions: list[str], **columns: Any) -> list[float]:
    """0 to 1, the same for the same text, different for nearly all others."""
    return [zlib.crc32(text.encode()) % 1000 / 1000 for text in completions]


def grpo(size: dict[str, Any], folder: Path, clock: Clock, model: Any, lora: Any = None) -> None:
    """A few steps with TRL's own generation; gradient checkpointing as each library has it."""
    from grpo_ways import stock_trainer

    words, length = tokenizer(), size["prompt_tokens"]
    texts = []
    for number in range(size["prompts_per_step"] * size["steps"]):
        ids = words(f"{number} " * length, add_special_tokens=False).input_ids
        texts.append(words.decode(ids[:length]))
    completions = size["prompts_per_step"] * size["answers_per_prompt"]
    trainer = stock_trainer(
        model,
        words,
        checksum_reward,
        [{"prompt": text} for text in texts],
        clock,
        lora,
        output_dir=str(folder / "trainer"),
        max_steps=size["steps"],
        per_device_train_batch_size=size["sequences_a_pass"],
        gradient_accumulation_steps=completions // size["sequences_a_pass"],
        num_generations=size["answers_per_prompt"],
        max_completion_length=size["completion_tokens"],
        learning_rate=1e-5,
        beta=0.0,
        bf16=str(dtype()) == "torch.bfloat16",
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
    )
    clock.mark = time.perf_counter()
    trainer.train()


# --- one part, in a process of its own -----------------------------------------------------------


def measure(part: str, size: dict[str, Any]) -> dict[str, Any]:
    """A part's numbers, with the peak memory of this process."""
    import torch

    from rftkit.environment import peak_memory_mb

    clock = Clock()
    with tempfile.TemporaryDirectory(prefix="rftkit-gpu-") as folder:
        PARTS[part][0](size, Path(folder), clock)
    step = statistics.median(clock.seconds[1:])  # the first one warms up caches and compilers
    tokens = statistics.mean(clock.tokens)
    completions = size["prompts_per_step"] * size["answers_per_prompt"]
    record = {
        "step_seconds": [round(s, 4) for s in clock.seconds],
        "seconds_a_step": round(step, 4),
        "completion_tokens": round(tokens, 1),
        "completion_tokens_a_second": round(tokens * completions / step, 1),
        "peak_rss_mb": peak_memory_mb(),
    }
    if torch.cuda.is_available():
        record["peak_gpu_allocated_mb"] = round(torch.cuda.max_memory_allocated() / 1e6, 1)
        record["peak_gpu_reserved_mb"] = round(torch.cuda.max_memory_reserved() / 1e6, 1)
    return record


def run_child(part: str, dry_run: bool, limit: float) -> dict[str, Any]:
    """measure() in a fresh process: Unsloth patches the other libraries, and memory peaks stay."""
    missing = [name for name in PARTS[part][1] if importlib.util.find_spec(name) is None]
    if missing:
        return {"not_run": f"not installed: {', '.join(missing)}"}
    with tempfile.TemporaryDirectory(prefix="rftkit-gpu-") as folder:
        result = Path(folder) / "result.json"
        words = [sys.executable, __file__, "--part", part, "--out", str(result)]
        try:
            subprocess.run(words + ["--dry-run"] * dry_run, cwd=folder, timeout=limit, check=True)
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
            return {"error": str(error)[-500:]}
        return json.loads(result.read_text())


def graphics_card() -> dict[str, Any] | None:
    import torch

    if not torch.cuda.is_available():
        return None
    card = torch.cuda.get_device_properties(0)
    return {"name": card.name, "memory_mb": round(card.total_memory / 1e6)}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="a tiny shape, also without a GPU")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--limit", type=float, default=480, help="seconds for each part")
    parser.add_argument("--out", type=Path, help="where the record goes")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)  # in this very process
    given = parser.parse_args(arguments)
    size = DRY_RUN if given.dry_run else FULL_SIZE
    if given.part:
        given.out.write_text(json.dumps(measure(given.part, size)))
        return 0
    record = label("bash benchmarks/gpu.sh", arguments)
    record |= {"gpu": graphics_card(), "settings": size, "parts": {}}
    if record["gpu"] is None and not given.dry_run:
        print("no CUDA GPU here, expected one: --dry-run tests this script on a CPU")
        return 1
    default = "runs/gpu_dry_run.json" if given.dry_run else "datasets/recorded_runs/gpu.json"
    out = given.out or ROOT / default
    for part in given.parts:
        print(f"--- {part}", flush=True)
        record["parts"][part] = found = run_child(part, given.dry_run, given.limit)
        print(json.dumps({k: v for k, v in found.items() if k != "step_seconds"}), flush=True)
        write_json(out, record)
    print(f"written: {out}")
    return int(any("error" in found for found in record["parts"].values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
