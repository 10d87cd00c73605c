"""From what a user calls a model to a policy: which engine, which folder, which adapter."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rftkit.data.errors import UserError
from rftkit.embedded import embedded_model
from rftkit.environment import choose_device
from rftkit.policy.endpoint import EndpointPolicy
from rftkit.policy.local import LocalPolicy
from rftkit.policy.protocol import Policy


def choose_engine(engine: str, device: str) -> tuple[str, str]:
    """("transformers" or "unsloth", the reason). `auto` takes Unsloth on a GPU that has it."""
    if engine == "auto":
        import importlib.util

        found = importlib.util.find_spec("unsloth") is not None
        if device == "cuda" and found and "trl" not in sys.modules:
            return "unsloth", "a CUDA GPU is here and Unsloth is installed"
        why = "no CUDA GPU" if device != "cuda" else "Unsloth is not installed"
        return "transformers", f"{why}: transformers + PEFT"
    if engine not in ("transformers", "unsloth"):
        raise UserError(
            f'engine: "{engine}", expected auto, transformers or unsloth: leave it at auto'
        )
    if engine == "unsloth" and "unsloth" not in sys.modules:
        early = [name for name in ("trl", "peft") if name in sys.modules]
        if early:
            raise UserError(
                f"engine: unsloth was asked for after {' and '.join(early)} had been imported, "
                "expected to come first, since it patches them at import: start a new process "
                "(restart the kernel) and load with engine='unsloth' before anything else"
            )
    return engine, "asked for"


def model_folder(model: str) -> tuple[str, str | None]:
    """What a user calls a model -> (where the base is, where the adapter is or None).

    "embedded:mini", a folder with a model, a folder with an adapter, a run folder, a hub name.
    """
    if model.startswith("embedded:"):
        return str(embedded_model(model.removeprefix("embedded:"))), None
    path = Path(model)
    if (path / "adapter" / "adapter_config.json").exists():
        path = path / "adapter"
    if (path / "adapter_config.json").exists():
        return model_folder(adapter_base(path / "adapter_config.json"))[0], str(path)
    if path.exists() and not is_model_config(path / "config.json"):
        raise UserError(
            f"{model}: no adapter_config.json there and no config.json of a model, expected a "
            "model, an adapter or a finished run's folder: name one of these"
        )
    return model, None


def adapter_base(file: Path) -> str:
    """The base that an adapter names in its adapter_config.json.

    Raises UserError for a file that is torn, or names none, or names the adapter itself.
    """
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{file}: cannot be read ({error}), expected PEFT's JSON: take this file from a whole "
            "copy of the adapter"
        ) from None
    base = record.get("base_model_name_or_path") if isinstance(record, dict) else None
    if not isinstance(base, str) or not base:
        raise UserError(
            f'{file}: no "base_model_name_or_path", expected the model that the adapter was made '
            "for: write its name there, such as embedded:mini"
        )
    if Path(base).resolve() in (file.parent.resolve(), file.parent.parent.resolve()):
        raise UserError(
            f'{file}: "base_model_name_or_path" is the adapter itself, expected the model that it '
            "was made for: write its name there"
        )
    return base


def check_weights(folder: str | Path) -> None:
    """Raise UserError where a local model's or adapter's weight files are missing or cut short.

    Reads the files' headers alone, so that it can come before a long evaluation.
    """
    from safetensors import SafetensorError, safe_open

    place = Path(folder)
    weights = ("adapter_model.safetensors", "adapter_model.bin")
    is_adapter = (place / "adapter_config.json").exists()
    if is_adapter and not any((place / name).is_file() for name in weights):
        raise UserError(
            f"{place}: no {weights[0]}, expected the adapter's weights beside its "
            "adapter_config.json: copy the file there, or name another checkpoint of the run"
        )
    for file in sorted(place.glob("*.safetensors")):
        try:
            with safe_open(str(file), framework="numpy"):
                pass
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{file}: no whole safetensors file ({error}), expected a model's weights: "
                "copy or download it again, or take another checkpoint"
            ) from None


def is_model_config(path: Path) -> bool:
    """Is this config.json a model's? An unfinished run's folder has one too: its RunConfig."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and "model_type" in record


def load_policy(
    model: str, engine: str = "auto", adapter: str | None = None, name: str | None = None
) -> Policy:
    """Load a model for sampling: see model_folder for what `model` may be.

    "endpoint:NAME" is a model behind an OpenAI-compatible endpoint, its address and key taken from
    OPENAI_BASE_URL and OPENAI_API_KEY.
    """
    if model.startswith("endpoint:"):
        return EndpointPolicy(model.removeprefix("endpoint:"), name=name or model)
    base, found = model_folder(model)
    loaded, tokenizer, engine, reason = load_model(base, engine)
    if adapter or found:
        loaded = load_adapter(loaded, adapter or found)
    return LocalPolicy(loaded.eval(), tokenizer, name or model, engine, reason)


def load_adapter(model: Any, adapter: str) -> Any:
    """The model with a PEFT adapter on it; UserError where the two do not fit."""
    from peft import PeftModel

    check_weights(adapter)
    try:
        return PeftModel.from_pretrained(model, adapter)
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError) as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UserError(
            f"{adapter}: the adapter could not be loaded ({reason}), expected adapter_config.json "
            "and adapter_model.safetensors of one adapter, made for this base: check both files, "
            "or take another checkpoint"
        ) from None


def load_model(base: str, engine: str = "auto") -> tuple[Any, Any, str, str]:
    """(model, tokenizer, engine, reason): fp32 on a CPU, bf16 on a GPU that has it."""
    device, dtype, reason = choose_device()
    engine, why = choose_engine(engine, device)
    check_weights(base)
    try:
        if engine == "unsloth":
            return (*load_unsloth(base, dtype), engine, f"{why}; {reason}")
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()  # one bar a weight file says nothing about a small model
        tokenizer = AutoTokenizer.from_pretrained(base)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype)).to(device)
    except UserError:
        raise
    except (OSError, ValueError) as error:  # ValueError: no such architecture, a broken tokenizer
        raise UserError(
            f'model: "{base}" could not be loaded ({str(error).splitlines()[0]}), expected '
            '"embedded:mini", "embedded:large", a folder or a hub name: check its spelling, and '
            "whether this machine may reach the hub (HF_HUB_OFFLINE)"
        ) from None
    return model, prepare_tokenizer(tokenizer), engine, f"{why}; {reason}"


def load_unsloth(base: str, dtype: str) -> tuple[Any, Any]:
    import unsloth  # noqa: F401  must come before trl, transformers and peft
    import torch  # isort: skip
    from unsloth import FastLanguageModel

    model, tokenizer = FastLanguageModel.from_pretrained(
        base, dtype=getattr(torch, dtype), load_in_4bit=False, max_seq_length=1024
    )
    return model, prepare_tokenizer(tokenizer)


def prepare_tokenizer(tokenizer: Any) -> Any:
    """Left padding, a pad token: what batched decoding needs."""
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.eos_token is None:
        raise UserError("tokenizer: no end token, expected eos_token: set it in its config")
    return tokenizer
