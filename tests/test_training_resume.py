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

from rftkit.training.store import read_lines

DRIVER = Path(__file__).parent / "resume_driver.py"
TINY = dict(
    task="gene_ranking", steps=6, prompts_per_step=2, answers_per_prompt=4, eval_every=2,
    eval_rows=4, eval_samples=1, save_every=1, max_completion_tokens=40, patience=0,
    learning_rate=3e-3, gate="off",
)  # fmt: skip
TIMES = ("seconds", "timings", "validation_seconds", "peak_rss_mb")
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="the driver forks")


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


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run, ends, _ = drive(tmp_path_factory.mktemp("whole"), TINY, [], "run")
    assert ends == [0] and len(read_lines(run / "log.jsonl")) == TINY["steps"]
    return run


@forks
def test_a_killed_run_ends_as_one_that_was_not(whole, tmp_path):
    """Killed while a checkpoint is written, at a random moment, in the middle of a log line; then
    asked to stop. The sampler, the order of rows, Adam's moments, the validations: all resume."""
    moment = {"lines": 3, "delay": random.uniform(0, 0.5)}
    wounds = [{"at": "rename", "call": 6}, moment, {"at": "log line", "call": 1}]
    wounds.append({"lines": 5, "signal": "SIGTERM"})
    run, ends, printed = drive(tmp_path, TINY, wounds, "run")
    assert ends[0] == ends[2] == -9 and ends[1] in (-9, 0), (ends, moment)
    assert ends[-1] == 0 and ends[3] in (130, 0)
    assert "resumes from step " in printed
    assert_same_run(whole, run)


@forks
def test_sft_resumes_too(tmp_path):
    config = TINY | {"method": "sft", "prompts_per_step": 4, "save_every": 2}
    whole, _, _ = drive(tmp_path, config, [], "whole")
    run, ends, _ = drive(tmp_path, config, [{"lines": 3}, {"at": "state", "call": 3}], "killed")
    assert ends[0] in (-9, 0) and ends[1:] == [-9, 0]
    assert_same_run(whole, run)


@forks
@pytest.mark.prove
def test_twenty_kills_leave_no_trace(tmp_path):
    """20 sessions, each killed: at a random moment, or at a point inside a checkpoint's writing."""
    config = TINY | {"steps": 24, "eval_every": 3}
    whole, _, _ = drive(tmp_path, config, [], "whole")
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    points = ["weights", "state", "rename", "old ones go", "best adapter", "copied weights",
              "log line"]  # fmt: skip
    wounds = []
    for lines in range(1, 20, 2):
        wounds.append({"lines": lines, "delay": chance.uniform(0, 1.5)})
        wounds.append({"at": chance.choice(points), "call": chance.randint(1, 6)})
    run, ends, _ = drive(tmp_path, config, wounds, "killed")
    assert sum(end == -9 for end in ends) >= 15, (seed, ends)
    assert_same_run(whole, run)


@forks
@pytest.mark.prove
def test_a_killed_unsloth_run_draws_the_same_answers(tmp_path):
    """Unsloth answers through TRL's own generation: they follow from the generators' state."""
    config = TINY | {"engine": "unsloth"}
    whole, _, _ = drive(tmp_path, config, [], "whole")
    run, ends, _ = drive(tmp_path, config, [{"lines": 2}, {"at": "state", "call": 3}], "killed")
    assert ends == [-9, -9, 0]
    assert_same_run(whole, run)
