"""A run that is killed and resumed ends as the one that was never killed: bit for bit, line for
line. The sessions are processes of their own: see resume_driver.py."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_training import TINY

from rftkit.logs import read_lines

DRIVER = Path(__file__).parent / "resume_driver.py"
LONGER = TINY | {"steps": 6, "eval_every": 2, "patience": 0, "learning_rate": 3e-3}
POINTS = "weights, state, rename, old ones go, best adapter, copied weights, log line".split(", ")
TIMES = ("seconds", "timings", "validation_seconds", "peak_rss_mb")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the driver forks")


def drive(folder, config, wounds, name):
    """Run with these wounds; -> (run folder, how each session ended, what was printed)."""
    (folder / "config.json").write_text(json.dumps(config))
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(folder / "config.json"), str(folder / name),
         json.dumps(wounds)],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert "ENDS" in done.stdout, (done.stdout[-2000:], done.stderr[-2000:])
    ends = json.loads(done.stdout.split("ENDS ")[1].split("]")[0] + "]")
    return folder / name, ends, done.stdout


def without_times(value):
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in TIMES}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def assert_same_run(one, other):
    """Weights, optimiser and logs; the wall clock may differ."""
    for name in ("log.jsonl", "samples.jsonl"):
        assert without_times(read_lines(one / name)) == without_times(read_lines(other / name))
    weights, others = (
        {p.relative_to(run): p.read_bytes() for p in run.rglob("adapter_model.safetensors")}
        for run in (one, other)
    )
    assert weights == others
    a, b = (torch.load(next(run.glob("checkpoints/step-*/optimizer.pt"))) for run in (one, other))
    assert a["state"].keys() == b["state"].keys() and a["state"]
    for key, moments in a["state"].items():
        assert all(torch.equal(moments[k], b["state"][key][k]) for k in moments)
    a, b = (json.loads((run / "training.json").read_text()) for run in (one, other))
    assert without_times(a) == without_times(b)


def ends_after(wounds, config, folder):
    """How each session of the wounded run ended; it must end as the run without wounds."""
    whole, ends, _ = drive(folder, config, [], "whole")
    assert ends == [0]
    run, ends, printed = drive(folder, config, wounds, "wounded")
    assert "resumes from step " in printed and ends[-1] == 0
    assert_same_run(whole, run)
    return ends


KILLS = [{"lines": 3}, {"at": "state", "call": 3}]


@pytest.mark.parametrize(
    ("changes", "wounds"),
    [
        ({}, [{"at": "rename", "call": 6}, {"lines": 3, "delay": random.uniform(0, 0.5)},
              {"at": "log line", "call": 2}, {"lines": 5, "signal": "SIGTERM"}]),
        ({"method": "sft", "prompts_per_step": 4, "save_every": 2}, KILLS),
        # Unsloth answers through TRL's own generation: answers follow from the generators' state.
        pytest.param({"engine": "unsloth"}, KILLS, marks=pytest.mark.prove),
    ],
)  # fmt: skip
def test_a_killed_run_ends_as_one_that_was_not(tmp_path, changes, wounds):
    """Killed while a checkpoint is written, in the middle of a log line, at any moment; then asked
    to stop. The sampler, the order of rows, Adam's moments, the validations: all resume."""
    ends = ends_after(wounds, LONGER | changes, tmp_path)
    assert {end for end, wound in zip(ends, wounds) if "at" in wound} == {-9}
    assert {end for end, wound in zip(ends, wounds) if "signal" in wound} <= {130, 0}


@pytest.mark.prove
def test_twenty_kills_leave_no_trace(tmp_path):
    """20 sessions, each killed: at a random moment, or before it while a checkpoint is written."""
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    wounds = []
    for lines in range(2, 42, 2):  # a step takes about a tenth of a second
        point = {"at": chance.choice(POINTS), "call": chance.randint(1, 6)} if lines % 4 else {}
        wounds.append({"lines": lines, "delay": chance.uniform(0, 0.3)} | point)
    print("seed", seed)
    ends = ends_after(wounds, LONGER | {"steps": 60, "eval_every": 3}, tmp_path)
    assert ends.count(-9) >= 18, ends
