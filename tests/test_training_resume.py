"""A run that is killed and resumed ends as the one that was never killed: bit for bit, line for
line. The sessions are processes of their own: see resume_driver.py."""

import json
import os
import random
import re
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


def driven(folder, given):
    """[(what is printed, how the sessions ended), ...] of each (config, folder, wounds)."""
    (folder / "runs.json").write_text(json.dumps(given))
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(folder / "runs.json")],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    printed = re.findall(r"(.*?)^ENDS (.*?)$", done.stdout, flags=re.DOTALL | re.MULTILINE)
    assert len(printed) == len(given), (done.stdout[-2000:], done.stderr[-2000:])
    return printed


def ends_of(folder, runs):
    """{name: config, wounds} -> {name: how each session ended}. With its wounds a run must end as
    the same run without wounds."""
    given = []
    for name, (config, wounds) in runs.items():
        given += [(config, f"{folder}/{name} whole", []), (config, f"{folder}/{name}", wounds)]
    printed = driven(folder, given)
    assert {ends for _, ends in printed[::2]} == {"[0]"}
    for name, (text, ends) in zip(runs, printed[1::2]):
        assert "resumes from step " in text and ends.endswith(" 0]"), name
        assert_same_run(folder / f"{name} whole", folder / name)
    return {name: json.loads(ends) for name, (_, ends) in zip(runs, printed[1::2])}


KILLS = [{"lines": 3}, {"at": "state", "call": 3}]


def test_a_killed_run_ends_as_one_that_was_not(tmp_path):
    """Killed while a checkpoint is written, in the middle of a log line, at any moment; then asked
    to stop. The sampler, the order of rows, Adam's moments, the validations: all resume."""
    wounds = [{"at": "rename", "call": 6}, {"lines": 3, "delay": random.uniform(0, 0.5)},
              {"at": "log line", "call": 2}, {"lines": 5, "signal": "SIGTERM"}]  # fmt: skip
    sft = LONGER | {"method": "sft", "prompts_per_step": 4, "save_every": 2}
    ends = ends_of(tmp_path, {"grpo": (LONGER, wounds), "sft": (sft, KILLS)})
    assert (ends["grpo"][0], ends["grpo"][2], ends["sft"][1]) == (-9, -9, -9)
    assert ends["grpo"][3] in (130, 0)


@pytest.mark.prove
def test_a_killed_run_of_unsloth_ends_as_one_that_was_not(tmp_path):
    """It answers through TRL's own generation: answers follow from the generators' state."""
    assert ends_of(tmp_path, {"own": (LONGER | {"engine": "unsloth"}, KILLS)})["own"][1] == -9


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
    ends = ends_of(tmp_path, {"long": (LONGER | {"steps": 60, "eval_every": 3}, wounds)})["long"]
    assert ends.count(-9) >= 18, ends
