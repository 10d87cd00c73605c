"""Slow proofs (`make prove`): the README's two commands in a fresh copy, and the GPU script."""

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
    output = answer.stdout + answer.stderr
    assert answer.returncode == 0, output[-3000:]
    return output


def test_make_demo_and_make_test_install_what_they_need_once(tmp_path):
    clone = tmp_path / "rftkit"
    for path in project_files():
        target = clone / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    run(["make", "demo", "ARGS=--profile smoke"], clone)
    assert (clone / "runs" / "demo" / "report.json").is_file()
    assert not (clone / ".venv" / "bin" / "pytest").exists(), "the demo needs no test tools"
    some_tests = ["make", "test", "ARGS=-k every_requirement"]
    output = run(some_tests, clone)
    assert "installing" in output and " passed" in output.splitlines()[-1]
    assert "installing" not in run(some_tests, clone)
    with open(clone / "constraints.txt", "a") as file:
        file.write("# another pin\n")
    assert "installing" in run(["make", "lab", "ARGS=--version"], clone)


def test_the_gpu_benchmark_runs_dry_on_a_cpu(tmp_path):
    out = tmp_path / "gpu.json"
    run(["bash", str(ROOT / "benchmarks/gpu.sh"), "--dry-run", "--out", str(out)], ROOT)
    parts = json.loads(out.read_text())["parts"]
    assert parts and all(p["seconds_a_step"] > 0 and p["peak_rss_mb"] > 100 for p in parts.values())
