"""How long a GRPO step takes on this GPU, and what it needs: the parts, each in its own process.

    python benchmarks/gpu.py [--dry-run] [--parts NAME …] [--out FILE]

rftkit, embedded mini      the project's own run: RunConfig, its sampler, its grader
TRL + PEFT, Qwen3 shape    stock GRPOTrainer on a model of Qwen3-0.6B's shape with random weights
Unsloth, Qwen3 shape       the same through FastLanguageModel

Random weights cost what trained ones cost and need no download. They hardly ever say the end token,
so every completion is as long as it may be; the reward is a checksum of the text, so that every
group has a spread. Nothing is learned here, and no accuracy is measured.

A part that fails leaves its error in the record, and the others their numbers: the file is written
after each part. Exit code 0: every part ran, or its library is not installed. 1: a part failed.
Left out: vLLM, several GPUs, quantised weights.
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
import traceback
import zlib
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

# Qwen3-0.6B's shape, as its config.json gives it.
QWEN3 = dict(
    hidden_size=1024,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=128,
    intermediate_size=3072,
    vocab_size=151_936,
    max_position_embeddings=40_960,
    tie_word_embeddings=True,
)
TINY = QWEN3 | dict(
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    intermediate_size=128,
    vocab_size=2_048,  # more than the tokenizer has, as with the large shape
    max_position_embeddings=256,
)
FULL_SIZE = dict(
    steps=8, prompts_per_step=8, answers_per_prompt=8, prompt_tokens=256, completion_tokens=256,
    sequences_a_pass=8, lora_rank=16, shape=QWEN3, dry_run=False,
)  # fmt: skip
DRY_RUN = dict(
    steps=3, prompts_per_step=2, answers_per_prompt=2, prompt_tokens=16, completion_tokens=8,
    sequences_a_pass=2, lora_rank=4, shape=TINY, dry_run=True,
)  # fmt: skip

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


# --- the parts: each returns {"step_seconds": […], "completion_tokens": mean, …} ----------------


def rftkit_mini(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The embedded mini's RFT as `rftkit demo` runs it, without looks at held-out rows."""
    from rftkit.files import embedded_model
    from rftkit.training.config import RunConfig
    from rftkit.training.run import train

    config = RunConfig(
        model="embedded:mini",
        engine="transformers",
        task="gene_ranking",
        steps=settings["steps"] if settings["dry_run"] else 40,
        eval_every=0,
        gate="off",
    )
    if settings["dry_run"]:
        config.prompts_per_step, config.answers_per_prompt = 2, 2
    began = time.perf_counter()
    run = train(config, folder / "run")
    ends = [0.0] + [record["seconds"] for record in run.log]  # since the run began
    weights = embedded_model("mini") / "model.safetensors"
    return {
        "step_seconds": [after - before for before, after in zip(ends, ends[1:])],
        "completion_tokens": statistics.mean(r["completion_tokens"] for r in run.log),
        "answers": config.prompts_per_step * config.answers_per_prompt,
        "run_seconds": round(time.perf_counter() - began, 2),
        "config": config.to_json(),
        "crc32_of_weights": f"{zlib.crc32(weights.read_bytes()):08x}",
    }


def trl_peft(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM

    place = random_model(settings, folder / "model")
    model = AutoModelForCausalLM.from_pretrained(place, dtype=dtype())
    lora = LoraConfig(**adapter(settings), task_type="CAUSAL_LM")
    return grpo(settings, folder, model, tokenizer(), peft_config=lora)


def unsloth(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    os.environ["UNSLOTH_COMPILE_LOCATION"] = str(folder / "compiled")  # never a stale one
    from unsloth import FastLanguageModel  # before trl, transformers and peft

    place = random_model(settings, folder / "model")
    model, _ = FastLanguageModel.from_pretrained(
        str(place),
        dtype=dtype(),
        load_in_4bit=False,
        max_seq_length=settings["prompt_tokens"] + settings["completion_tokens"],
    )
    model = FastLanguageModel.get_peft_model(
        model,
        **adapter(settings),
        use_gradient_checkpointing="unsloth",
        random_state=0,
    )
    return grpo(settings, folder, model, tokenizer())


PARTS = {
    "rftkit, embedded mini": (rftkit_mini, ["trl", "peft"]),
    "TRL + PEFT, Qwen3 shape": (trl_peft, ["trl", "peft"]),
    "Unsloth, Qwen3 shape": (unsloth, ["unsloth", "trl", "peft"]),
}


# --- what the two large parts share --------------------------------------------------------------


def dtype() -> Any:
    """bf16 on a GPU, fp32 on a CPU."""
    import torch

    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


def tokenizer() -> Any:
    """The embedded mini's: small, always there; the shape's larger vocabulary stays unused."""
    from transformers import AutoTokenizer

    from rftkit.files import embedded_model

    return AutoTokenizer.from_pretrained(embedded_model("mini"), padding_side="left")


def adapter(settings: dict[str, Any]) -> dict[str, Any]:
    """The LoRA that both libraries put on every projection."""
    rank = settings["lora_rank"]
    return {"r": rank, "lora_alpha": rank, "target_modules": PROJECTIONS}


def random_model(settings: dict[str, Any], folder: Path) -> Path:
    """Save a Qwen3 model with random weights, and the tokenizer, for either library to load."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    words = tokenizer()
    torch.manual_seed(0)
    config = Qwen3Config(
        **settings["shape"],
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        dtype=dtype(),
    )
    Qwen3ForCausalLM(config).to(dtype()).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def questions(settings: dict[str, Any], words: Any) -> list[str]:
    """Different prompts, each close to the asked-for number of tokens."""
    wanted, texts = settings["prompt_tokens"], []
    for number in range(settings["prompts_per_step"] * settings["steps"]):
        ids = words(f"{number} " * wanted, add_special_tokens=False).input_ids
        texts.append(words.decode(ids[:wanted]))
    return texts


def checksum_reward(completions: list[str], **columns: Any) -> list[float]:
    """0 to 1, the same for the same text, different for nearly all others."""
    return [zlib.crc32(text.encode()) % 1000 / 1000 for text in completions]


def grpo(settings: dict[str, Any], folder: Path, model: Any, words: Any, **more: Any) -> dict:
    """A few GRPO steps with TRL's own generation; gradient checkpointing as each library has it."""
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    answers = settings["prompts_per_step"] * settings["answers_per_prompt"]
    texts = questions(settings, words)
    on_gpu = torch.cuda.is_available()
    seconds: list[float] = []
    lengths: list[float] = []

    def now() -> float:
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: Any, **rest: Any) -> None:
            self.began = now()

        def on_step_end(self, *args: Any, **rest: Any) -> None:
            seconds.append(now() - self.began)

        def on_log(
            self, args: Any, state: Any, control: Any, logs: Any = None, **rest: Any
        ) -> None:
            if logs and "completions/mean_length" in logs:
                lengths.append(float(logs["completions/mean_length"]))

    arguments = GRPOConfig(
        output_dir=str(folder / "trainer"),
        max_steps=settings["steps"],
        per_device_train_batch_size=settings["sequences_a_pass"],
        gradient_accumulation_steps=answers // settings["sequences_a_pass"],
        num_generations=settings["answers_per_prompt"],
        max_completion_length=settings["completion_tokens"],
        learning_rate=1e-5,
        beta=0.0,
        bf16=on_gpu,
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=0,
    )
    trainer = GRPOTrainer(
        model=model,
        processing_class=words,
        reward_funcs=checksum_reward,
        train_dataset=Dataset.from_list([{"prompt": text} for text in texts]),
        args=arguments,
        callbacks=[Clock()],
        **more,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return {
        "step_seconds": seconds,
        "completion_tokens": statistics.mean(lengths),
        "prompt_tokens": statistics.mean(len(words(text).input_ids) for text in texts),
        "answers": answers,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


# --- one part, in a process of its own -----------------------------------------------------------


def scratch_folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="rftkit-gpu-")


def measure(part: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Run a part; -> its numbers, rounded, with the peak memory of this process."""
    import torch

    from rftkit.environment import peak_memory_mb

    with scratch_folder() as folder:
        found = PARTS[part][0](settings, Path(folder))
    steady = found["step_seconds"][1:]  # the first one warms up caches and compilers
    step = statistics.median(steady)
    record = found | {
        "step_seconds": [round(s, 4) for s in found["step_seconds"]],
        "seconds_a_step": round(step, 4),
        "completion_tokens": round(found["completion_tokens"], 1),
        "completion_tokens_a_second": round(
            found["completion_tokens"] * found["answers"] / step, 1
        ),
        "peak_rss_mb": peak_memory_mb(),
    }
    if torch.cuda.is_available():
        record["peak_gpu_allocated_mb"] = round(torch.cuda.max_memory_allocated() / 1e6, 1)
        record["peak_gpu_reserved_mb"] = round(torch.cuda.max_memory_reserved() / 1e6, 1)
    return record


def run_child(part: str, settings: dict[str, Any], limit: float) -> dict[str, Any]:
    """measure() in a fresh process: Unsloth patches the other libraries, and memory peaks stay."""
    missing = [name for name in PARTS[part][1] if importlib.util.find_spec(name) is None]
    if missing:
        return {"not_run": f"not installed: {', '.join(missing)}"}
    with scratch_folder() as folder:
        result = Path(folder) / "result.json"
        words = [sys.executable, __file__, "--part", part, "--settings", json.dumps(settings)]
        try:
            ended = subprocess.run([*words, "--out", str(result)], cwd=folder, timeout=limit)
        except subprocess.TimeoutExpired:
            return {"error": f"stopped after {limit:.0f} s"}
        if result.exists():
            return json.loads(result.read_text())
        return {"error": f"the process ended with exit code {ended.returncode}"}


def child(part: str, settings: dict[str, Any], out: Path) -> int:
    try:
        record = measure(part, settings)
    except Exception as error:  # whatever it is, it goes into the record
        traceback.print_exc()
        record = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
    out.write_text(json.dumps(record))
    return 1 if "error" in record else 0


# --- the record -----------------------------------------------------------------------------------


def describe(arguments: list[str], settings: dict[str, Any]) -> dict[str, Any]:
    """Where and how the numbers were taken."""
    import torch

    from rftkit.environment import machine, versions

    gpu = None
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        gpu = {"name": found.name, "memory_mb": round(found.total_memory / 1e6)}
    revision = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    return {
        "command": " ".join(["bash benchmarks/gpu.sh", *arguments]),
        "date": date.today().isoformat(),
        "gpu": gpu,
        "machine": machine(),
        "code": revision.stdout.strip() or None,
        "versions": versions() | {"cuda": torch.version.cuda},
        "settings": settings,
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="a tiny shape, also without a GPU")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--limit", type=float, default=480, help="seconds for each part")
    parser.add_argument("--out", type=Path, help="where the record goes")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--settings", type=json.loads, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.part:
        return child(chosen.part, chosen.settings, chosen.out)

    settings = DRY_RUN if chosen.dry_run else FULL_SIZE
    record = describe(arguments, settings)
    if record["gpu"] is None and not chosen.dry_run:
        print("no CUDA GPU found, expected one: --dry-run tests this script on a CPU", flush=True)
        return 1
    default = "runs/gpu_dry_run.json" if chosen.dry_run else "datasets/recorded_runs/gpu.json"
    out = chosen.out or ROOT / default
    out.parent.mkdir(parents=True, exist_ok=True)
    record["parts"] = {}
    for part in chosen.parts:
        print(f"--- {part}", flush=True)
        record["parts"][part] = run_child(part, settings, chosen.limit)
        out.write_text(json.dumps(record, indent=2) + "\n")
    for part, found in record["parts"].items():
        print(f"{part}: {summary(found)}")
    print(f"written: {out}")
    return int(any("error" in found for found in record["parts"].values()))


def summary(found: dict[str, Any]) -> str:
    if "seconds_a_step" not in found:
        return found.get("error") or found["not_run"]
    memory = found.get("peak_gpu_reserved_mb", found["peak_rss_mb"])
    return (
        f"{found['seconds_a_step']} s a step, {found['completion_tokens_a_second']} tokens/s, "
        f"peak {memory} MB"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
