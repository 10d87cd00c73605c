"""This machine and what follows from it: device, dtype, profile, seed; and a run's processes."""

import os
import platform
import random
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from rftkit.files import UserError


def choose_device() -> tuple[str, str, str]:
    """(device, dtype name, reason). The CPU computes in fp32: most are slower in bf16."""
    import torch

    if not torch.cuda.is_available():
        return "cpu", "float32", "no CUDA GPU: CPU in fp32"
    name = torch.cuda.get_device_name(0)
    if torch.cuda.is_bf16_supported():
        return "cuda", "bfloat16", f"{name}, which computes in bf16"
    return "cuda", "float16", f"{name}, which has no bf16"


def profile() -> str:
    """smoke or full, from RFTKIT_PROFILE: the same cells and steps, smaller or whole."""
    chosen = os.environ.get("RFTKIT_PROFILE", "full")
    if chosen not in ("smoke", "full"):
        raise UserError(f'RFTKIT_PROFILE: "{chosen}", expected smoke or full: unset it for full')
    return chosen


def process() -> tuple[int, int]:
    """(the number of this process, how many train together), as accelerate or torchrun says."""
    names = ("RANK", "WORLD_SIZE")
    return tuple(int(os.environ[n]) for n in names) if "LOCAL_RANK" in os.environ else (0, 1)


@cache
def joined() -> Any:
    """The process group for objects: gloo on GPUs too, so that a process which waits while the
    first one validates meets no time-out of NCCL's, and sees at once when another has ended."""
    import torch
    from accelerate import PartialState

    if on_cpu := not torch.cuda.is_available():
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"  # by itself cpu:0, where torch loads no file
    PartialState(cpu=on_cpu)  # this process's GPU, and the group of all
    return torch.distributed.new_group(backend="gloo", timeout=timedelta(days=7))


def gathered(value: Any) -> list[Any]:
    """The value of every process, in their order; each waits here for the others."""
    number, count = process()
    values = [value] * count
    if count > 1:
        import torch

        torch.distributed.all_gather_object(values, value, group=joined())
    return values


@contextmanager
def together() -> Iterator[None]:
    """A UserError in one of the processes is one in all, so that none waits for those that ended;
    the first one prints it (see console.py)."""
    own = None
    try:
        yield
    except UserError as error:
        own = error
    errors = gathered(own and str(own))
    if own:
        raise own
    if others := [f"process {n}: {text}" for n, text in enumerate(errors) if text]:
        raise UserError(others[0])


def set_seed(seed: int) -> None:
    """Seed Python, NumPy and torch."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def versions() -> dict[str, str]:
    """Versions of what a number may depend on; read from the metadata, nothing is imported."""
    known = {"python": platform.python_version()}
    for package in ("rftkit", "torch", "transformers", "trl", "peft", "datasets", "unsloth"):
        with suppress(metadata.PackageNotFoundError):
            known[package] = metadata.version(package)
    return known


def machine() -> str:
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    processor = platform.processor() or "unknown processor"
    with suppress(OSError):  # Linux alone has this file
        if name := re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text()):
            processor = name[1].strip()
    return f"{platform.system()} {platform.machine()}, {cores} CPU cores, {processor}"


def peak_memory_mb() -> float | None:
    """Peak resident memory of this process in MB (10^6 bytes); None where it cannot be read."""
    with suppress(OSError):  # Linux, where ru_maxrss starts from the parent process's
        if found := re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text()):
            return round(int(found[1]) * 1024 / 1e6, 1)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6, 1)


def needed(pins: dict[str, str]) -> list[Any]:
    """The requirements of rftkit without its extras, with the version that `pins` names."""
    from packaging.requirements import Requirement  # comes with transformers

    asked = [r for r in map(Requirement, metadata.requires("rftkit") or ()) if not r.marker]
    return [Requirement(f"{r.name}=={pins[r.name]}") if r.name in pins else r for r in asked]


def wrong_packages(pins: dict[str, str]) -> list[str]:
    """What rftkit needs and this Python lacks, or has at another version, as pip's requirements.
    pins: {package: version}, where one alone is right; the others have a range."""
    wrong = []
    for asked in needed(pins):
        with suppress(metadata.PackageNotFoundError):
            if metadata.version(asked.name) in asked.specifier:
                continue
        wrong.append(str(asked))
    return wrong


def repair() -> str:
    """The one command that repairs the packages on disk, or those loaded here; "" for none."""
    if wrong := wrong_packages({}):
        return shlex.join(["pip", "install", *wrong])
    stale = []
    for name in {requirement.name for requirement in needed({})}:
        if module := sys.modules.get(name):  # by its dict: jsonschema's getattr warns
            disk = metadata.version(name)
            loaded = vars(module).get("__version__", disk)
            if loaded.partition("+")[0] != disk.partition("+")[0]:
                stale.append(f"{name} {disk} on disk, {loaded} loaded")
    return f"restart the kernel ({'; '.join(stale)})" if stale else ""


def report() -> dict[str, Any]:
    """What `rftkit environment` and the notebooks' setup cells show."""
    import torch

    found = {"machine": machine(), **dict(zip(("device", "dtype", "reason"), choose_device()))}
    if found["device"] == "cuda":
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found["capability"] = ".".join(map(str, torch.cuda.get_device_capability()))
        with suppress(OSError):  # some containers have no nvidia-smi
            found["driver"] = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    found |= {"profile": profile(), "versions": versions()}
    return found | ({"repair": command} if (command := repair()) else {})
