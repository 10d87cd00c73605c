"""benchmarks/step_time.py and gpu.py: tiny runs of all ways, and the lengths that they promise."""

import json
import os
import subprocess
import sys

import gpu
import pytest
import step_time
from project_files import ROOT

from rftkit.task import load_task

WAYS = {"rftkit", "trl", "trl_defaults", "floor"}


@pytest.mark.prove
def test_the_last_line_holds_ratios_and_times_and_the_record_the_parts(tmp_path):
    out = tmp_path / "record.json"
    out.write_text('{"cost": {"kept": true}}')
    size = ["--lengths", "140+8", "--rounds", "2", "--steps", "1", "--threads", "1"]
    script = str(ROOT / "benchmarks" / "step_time.py")
    ran = subprocess.run(
        [sys.executable, script, "--json", *size, "--out", str(out)], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    line = json.loads(ran.stdout.splitlines()[-1])
    for name in ("ratio_to_trl_defaults", "ratio_to_trl", "ratio_to_floor"):
        assert 0 < line["spread"][name]["low"] <= line[name] <= line["spread"][name]["high"]
    assert line["shared"]["140+8"].keys() == line["copied"]["140+8"].keys() == WAYS
    assert line["shared"]["140+8"]["rftkit"] != line["copied"]["140+8"]["rftkit"]
    record = json.loads(out.read_text())
    assert record["cost"] == {"kept": True}, "a part that was not measured anew is gone"
    assert {"command", "machine", "date", "threads", "versions"} <= record["ratios"].keys()
    for way, found in record["ratios"]["lengths"]["140+8"]["ways"].items():
        parts = found["milliseconds"]
        named = ["sampling", "grading", "reference", "forward", "backward", "optimizer"]
        assert min(parts[name] for name in named) > 0, way
        assert sum(parts[name] for name in named) > parts["other"] >= 0, way
        assert found["completion_tokens"] == 8 and found["peak_rss_mb"] > 100


@pytest.mark.parametrize("tokens", [140, 300])
def test_long_prompts_have_the_length_that_is_asked_for(tmp_path, mini, tokens):
    rows = load_task(step_time.long_task(tmp_path / "task", tokens)).rows("train")[:20]
    lengths = [len(ids) for ids in mini.encode([row["messages"] for row in rows])]
    assert all(abs(length - tokens) <= 3 for length in lengths), lengths


def test_the_rates_are_measured_on_a_cpu_too_and_other_parts_stay(tmp_path):
    out = tmp_path / "gpu.json"
    out.write_text('{"parts": {"ways": {"ways": {"trl": {"kept": true}}}}}')
    assert gpu.main(["--dry-run", "--parts", "rates", "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    assert record["gpu"] is None and record["parts"]["ways"]["ways"] == {"trl": {"kept": True}}
    assert min(record["parts"]["rates"][name] for name in ("bandwidth", "operations")) > 0
    assert gpu.gpu_table(record).count("not measured yet") == 7  # a CPU has no data sheet here


def test_the_gpu_stands_beside_the_recorded_cpu(tmp_path):
    record = json.loads((gpu.real_model.RECORDS / "extraction.json").read_text())
    cpu = gpu.cpu_runs()
    assert [run["seed"] for run in cpu] == [0, 1, 2] and len(cpu[0]["reward_mean"]) == 48
    assert cpu[1]["seconds"] == record["runs"][1]["training"]["RFT"]["seconds"]
    own = {"seed": 0, "reward_mean": [0, 0, 0.5, 0.5, 1, 1, 1, 1], "fields": 0.75, "seconds": 61}
    table = gpu.gpu_table({"parts": {"extraction": {"runs": [own]}}}).splitlines()
    assert "| 0.75; 0.00 0.50 1.00 1.00; 61 |" in table[-2]
    assert f"| {gpu.curves_text(cpu)} |" in table[-1] and gpu.curves_text(cpu).count("/") == 2


@pytest.mark.prove
def test_the_gpu_benchmark_runs_dry_on_a_cpu(tmp_path):
    out, script = tmp_path / "gpu.json", str(ROOT / "benchmarks" / "gpu.sh")
    own = os.environ | {"PYTHON": sys.executable}
    subprocess.run(["bash", script, "--dry-run", "--out", str(out)], env=own, check=True)
    parts = json.loads(out.read_text())["parts"]
    ways = parts["ways"]["ways"]
    assert ways.keys() | parts["ways"]["not_run"].keys() == gpu.WAYS.keys()
    assert all(way["seconds_a_step"] > 0 and way["completion_tokens"] == 8 for way in ways.values())
    assert "not_run" in parts["extraction"] or parts["extraction"]["runs"][0]["seconds"] > 0
