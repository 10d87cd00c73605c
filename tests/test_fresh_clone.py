"""Slow proofs (`make prove`): README's two commands in a fresh copy, and the GPU script."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest
from project_files import ROOT, project_files

pytestmark = pytest.mark.prove


def run(words, folder):
    """As from a new shell: nothing of this test's Python or make."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "RFTKIT_", "MAKE"))}
    kept.pop("VIRTUAL_ENV", None)
    answer = subprocess.run(words, cwd=folder, env=kept, capture_output=True, text=True)
    return answer.returncode, answer.stdout + answer.stderr


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """What a clone would hold, without .venv."""
    folder = tmp_path_factory.mktemp("clone") / "rftkit"
    for path in project_files():
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    yield folder
    shutil.rmtree(folder)


def test_make_demo_fails_in_a_fresh_clone(clone):
    code, output = run(["make", "demo", "ARGS=--profile smoke"], clone)
    assert code == 0, output[-3000:]
    assert (clone / "runs" / "demo" / "report.json").is_file()
    assert not (clone / ".venv" / "bin" / "pytest").exists(), "the demo needs no test tools"
    warnings = [line for line in output.splitlines() if line.startswith("WARNING")]
    assert warnings == []


def test_make_test_fails_in_a_fresh_clone_or_installs_twice(clone):
    slice_of_it = ["make", "test", "ARGS=-k test_data_files"]
    code, output = run(slice_of_it, clone)
    assert code == 0 and "installing" in output, output[-3000:]
    assert " passed" in output.splitlines()[-1]
    code, output = run(slice_of_it, clone)
    assert code == 0 and "installing" not in output, "an environment that is fresh was made again"
    with open(clone / "constraints.txt", "a") as file:
        file.write("# another pin\n")
    code, output = run(["make", "lab", "ARGS=--version"], clone)
    assert code == 0 and "installing" in output, "a stale environment was taken for a fresh one"


def test_a_part_of_the_gpu_benchmark_fails(tmp_path):
    out = tmp_path / "gpu.json"
    code, output = run(
        ["bash", str(ROOT / "benchmarks/gpu.sh"), "--dry-run", "--out", str(out)], ROOT
    )
    assert code == 0, output[-3000:]
    parts = json.loads(out.read_text())["parts"]
    assert len(parts) == 3
    for name, found in parts.items():
        assert found["seconds_a_step"] > 0 and found["peak_rss_mb"] > 100, name
