"""What a user calls a model: where its base and adapter are, and how they are loaded."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rftkit.environment import choose_device, process
from rftkit.files import FETCHED, MODELS, UserError, embedded_model, fetched_folder, read_json


def run_folder(model: str) -> Path | None:
    """The run folder that a model is, or lies in."""
    path = Path(model).absolute()
    folders = (path, *path.parents[:3])  # RUN/checkpoints/best/step-000010
    return next((folder for folder in folders if (folder / "data.json").exists()), None)


def model_folder(model: str) -> tuple[str, str | None]:
    """(where the base is, where the adapter is or None) of what a user calls a model:
    "embedded:mini", "smollm2" once it is fetched, a folder with a model or an adapter, a run
    folder, a hub name or NAME@REVISION."""
    if model.startswith("embedded:"):
        return str(embedded_model(model.removeprefix("embedded:"))), None
    if model in FETCHED:
        if not (folder := fetched_folder(model)).exists():
            raise UserError(f'model "{model}": not in {folder.parent}: run `rftkit fetch {model}`')
        return str(folder), None
    path = Path(model)
    for folder in (path / "adapter", path):
        if (folder / "adapter_config.json").exists():
            return adapter_base(folder / "adapter_config.json"), str(folder)
    # An unfinished run's folder has a config.json too: its RunConfig.
    if path.exists() and "model_type" not in read_json(path / "config.json"):
        raise UserError(f"{path}: not a model, an adapter or a finished run: name one of these")
    if not path.exists() and (len(path.parts) > 2 or model[:1] in "./~"):  # a hub name: OWNER/NAME
        raise UserError(f"{path}: no such folder: name that of a model, an adapter or a run")
    return model, None


def adapter_base(config: Path) -> str:
    """Where the base of an adapter is. A relative path is looked for in the adapter's run first."""
    record = read_json(config)
    base = isinstance(record, dict) and record.get("base_model_name_or_path")
    if not base:
        raise UserError(f'{config}: no "base_model_name_or_path": write the base it was made for')
    if Path(base).parent.parts[-2:] == MODELS.parts[-2:]:  # an embedded one, of any installation
        return str(embedded_model(Path(base).name))
    for folder in config.parents[:4]:  # RUN/checkpoints/best/step-000010
        if (folder / base).is_dir():
            return str(folder / base)
    if Path(base).name in FETCHED:  # the cache has moved
        return model_folder(Path(base).name)[0]
    if Path(base).is_absolute():
        raise UserError(f"{config}: its base {base} is not there: write its new place or hub name")
    revision = record.get("revision")
    return model_folder(f"{base}@{revision}" if revision else base)[0]


def is_embedded(base: str) -> bool:
    return Path(base).parent == MODELS


def called(base: str) -> str:
    """What a user calls a base: the kit's own by name, wherever they lie."""
    name = Path(base).name
    if is_embedded(base):
        return f"embedded:{name}"
    return name if Path(base) == fetched_folder(name) else base


def hub_place(base: str) -> dict[str, str | None]:
    """Arguments of from_pretrained: a folder, or a hub name and its revision."""
    name, _, revision = (base, "", "") if Path(base).exists() else base.partition("@")
    return {"pretrained_model_name_or_path": name, "revision": revision or "main"}


def check_weights(folder: str | Path) -> None:
    """UserError where weight files are missing or cut short. Only their headers are read."""
    from safetensors import SafetensorError, safe_open

    folder = Path(folder)
    if (folder / "adapter_config.json").exists() and not any(folder.glob("adapter_model.*")):
        raise UserError(f"{folder}: no adapter_model.safetensors: copy it there or name another")
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(str(file), framework="numpy"):
                pass
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file}: no whole safetensors file ({error}): copy it again") from None


def load_tokenizer(base: str, adapter: str | None = None) -> Any:
    """The tokenizer beside the adapter, with its chat template; where there is none, the base's."""
    if choose_engine("auto", choose_device()[0])[0] == "unsloth":
        import unsloth  # noqa: F401  (before transformers)
    from transformers import AutoTokenizer

    own = adapter and (Path(adapter) / "tokenizer_config.json").exists()
    tokenizer = AutoTokenizer.from_pretrained(**hub_place(adapter if own else base))
    if "BPE" in str(type(getattr(tokenizer, "backend_tokenizer", tokenizer).model)):
        tokenizer.clean_up_tokenization_spaces = False  # transformers ignores it, and warns
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def load_model(
    base: str, engine: str = "auto", load_in_4bit: bool = False
) -> tuple[Any, Any, str, str]:
    """(model, tokenizer, engine, reason): fp32 on a CPU, bf16 on a GPU that has it."""
    device, dtype, reason = choose_device()
    engine, why = choose_engine(engine, device)
    check_weights(base)
    place = hub_place(base)
    try:
        if engine == "unsloth":
            import unsloth  # it patches trl, transformers and peft, and must come before them
            import torch  # isort: skip
            from transformers import AutoConfig

            # Unsloth cuts what is longer off, without a word.
            most = AutoConfig.from_pretrained(**place).get_text_config().max_position_embeddings
            name, revision = place.values()
            form = dict(dtype=getattr(torch, dtype), load_in_4bit=load_in_4bit, revision=revision)
            model, _ = unsloth.FastLanguageModel.from_pretrained(name, max_seq_length=most, **form)
        else:
            import torch
            from transformers import AutoModelForCausalLM, BitsAndBytesConfig
            from transformers.utils import logging

            logging.disable_progress_bar()  # a bar for each weight file says nothing here
            form = {"dtype": getattr(torch, dtype)}
            if load_in_4bit:  # QLoRA's settings (Dettmers et al. 2023, arXiv 2305.14314)
                nf4 = dict(bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=form["dtype"])
                form["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, **nf4)
                form["device_map"] = device
            model = AutoModelForCausalLM.from_pretrained(**place, **form)
            model = model if load_in_4bit else model.to(device)
        return model, load_tokenizer(base), engine, f"{why}; {reason}"
    except (OSError, ValueError, ImportError) as error:  # no such architecture, no bitsandbytes
        cause = f'model: "{base}" could not be loaded ({str(error).strip().splitlines()[0]})'
        raise UserError(f"{cause}: check its name, and HF_HUB_OFFLINE") from None


def choose_engine(engine: str, device: str) -> tuple[str, str]:
    """("transformers" or "unsloth", the reason). `auto` takes Unsloth on a GPU that has it."""
    if engine not in ("auto", "transformers", "unsloth"):
        raise UserError(f'engine: "{engine}", expected auto, transformers or unsloth')
    several = process()[1] > 1
    early = [m for m in ("trl", "peft") if m in sys.modules and "unsloth" not in sys.modules]
    if engine == "auto":
        if device != "cuda" or several:
            why = "several processes" if several else "no CUDA GPU"
            return "transformers", f"{why}: transformers + PEFT"
        if find_spec("unsloth") and not early:
            return "unsloth", "a CUDA GPU is here and Unsloth is installed"
        return "transformers", "Unsloth is not installed, or came too late: transformers + PEFT"
    if engine == "unsloth" and several:
        raise UserError("engine: unsloth trains in one process: set it to transformers")
    if engine == "unsloth" and early:
        cause = f"engine: unsloth after {' and '.join(early)}, which it patches"
        raise UserError(f"{cause}: start a new process (restart the kernel) and load it first")
    return engine, "asked for"


def load_adapter(model: Any, adapter: str) -> Any:
    """The model with a PEFT adapter on it; UserError where the two do not fit."""
    from peft import PeftModel

    check_weights(adapter)
    try:
        return PeftModel.from_pretrained(model, adapter)
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError) as error:
        cause = f"{adapter}: could not be loaded ({type(error).__name__}: {str(error)[:200]})"
        raise UserError(f"{cause}, expected an adapter of this base: name another") from None
