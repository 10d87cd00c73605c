"""A run that is killed and goes on ends as the one that was never killed: bit for bit, line for
line. The sessions are processes of their own: see resume_driver.py."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = Path(__file__).parent / "resume_driver.py"
TINY = dict(
    task="gene_ranking", steps=6, prompts_per_step=2, answers_per_prompt=4, eval_every=2,
    eval_rows=4, eval_samples=1, save_every=1, max_completion_tokens=40, patience=0,
    learning_rate=3e-3, gate="off",
)  # fmt: skip
TIMES = ("seconds", "created_at", "timings")
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


def lines(path):
    return [without_times(json.loads(line)) for line in path.read_text().splitlines()]


def assert_same_run(one, other):
    """Weights, optimiser and logs; the wall clock may differ."""
    import torch

    for name in ("log.jsonl", "events.jsonl", "samples.jsonl"):
        assert lines(one / name) == lines(other / name), name
    last = sorted((one / "checkpoints").glob("step-*"))[-1].name
    names = ["adapter", f"checkpoints/{last}"]
    names += [f"checkpoints/best/{p.name}" for p in (one / "checkpoints" / "best").iterdir()]
    for name in names:
        a, b = (run / name / "adapter_model.safetensors" for run in (one, other))
        assert a.read_bytes() == b.read_bytes(), name
    a, b = (torch.load(run / "checkpoints" / last / "optimizer.pt") for run in (one, other))
    assert a["state"].keys() == b["state"].keys() and a["state"]
    for key, moments in a["state"].items():
        assert all(torch.equal(moments[k], b["state"][key][k]) for k in moments)
    a, b = (json.loads((run / "training.json").read_text()) for run in (one, other))
    for record in (a, b):
        for key in ("seconds", "validation_seconds", "peak_rss_mb"):
            record["training"].pop(key)
    assert without_times(a) == without_times(b)
    kept = {p.name for p in (other / "checkpoints").iterdir()}
    assert kept == {"best", *(p.name for p in (one / "checkpoints").glob("step-*"))}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run, ends, _ = drive(tmp_path_factory.mktemp("whole"), TINY, [], "run")
    assert ends == [0] and len(lines(run / "log.jsonl")) == TINY["steps"]
    return run


def test_a_killed_run_ends_elsewhere(whole, tmp_path):
    """Killed while a checkpoint is written, at a random moment, in the middle of a log line; then
    asked to stop. The sampler, the order of rows, Adam's moments, the looks: all go on."""
    moment = {"lines": 3, "delay": random.uniform(0, 0.5)}
    wounds = [
        {"at": "marker", "call": 2},
        moment,
        {"at": "log line", "call": 1},
        {"lines": 5, "signal": "SIGTERM"},
    ]
    run, ends, said = drive(tmp_path, TINY, wounds, "run")
    assert ends[0] == ends[2] == -9 and ends[1] in (-9, 0), (ends, moment)
    assert ends[-1] == 0 and ends[3] in (130, 0)
    assert "goes on from step 1" in said
    assert_same_run(whole, run)


def test_a_damaged_checkpoint_is_loaded(whole, tmp_path):
    """One byte of the newest weights is another: the checkpoint before it is taken."""
    import shutil

    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "training.json").unlink()
    (run / "checkpoints" / "step-000006" / "adapter_model.safetensors").open("r+b").write(b"x")
    _, ends, said = drive(tmp_path, TINY, [], "run")
    assert ends == [0] and "goes on from step 5" in said
    assert_same_run(whole, run)


def test_a_log_that_lost_lines_goes_on_without_them(whole, tmp_path):
    """Shortened under its checkpoints: an earlier one is taken, and the lost steps made again."""
    import shutil

    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "training.json").unlink()
    log = (run / "log.jsonl").read_bytes().splitlines(keepends=True)
    (run / "log.jsonl").write_bytes(b"".join(log[:5]))
    _, ends, said = drive(tmp_path, TINY, [], "run")
    assert ends == [0] and "goes on from step 5" in said
    assert_same_run(whole, run)


def test_a_finished_run_is_trained_again(whole, tmp_path):
    from rftkit.training.config import RunConfig
    from rftkit.training.run import train

    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.suffix != ".lock"}
    said, heard = [], []
    done = train(RunConfig(**TINY), whole, [heard.append], say=said.append)
    assert "finished" in said[0] and heard == [] and len(done.log) == TINY["steps"]
    after = {p: p.stat().st_mtime_ns for p in whole.rglob("*")}
    changed = {p.name for p in after if after[p] != before.get(p) and p.is_file()}
    assert changed <= {".lock", "config.json", "data.json"}


def test_sft_goes_on_too(tmp_path):
    config = TINY | {"method": "sft", "prompts_per_step": 4, "save_every": 2, "steps": 6}
    whole, _, _ = drive(tmp_path, config, [], "whole")
    run, ends, _ = drive(tmp_path, config, [{"lines": 3}, {"at": "rename", "call": 1}], "killed")
    assert ends[0] in (-9, 0) and ends[1:] == [-9, 0]
    assert_same_run(whole, run)


@pytest.mark.prove
def test_twenty_kills_leave_a_trace(tmp_path):
    """20 sessions, each killed: at a random moment, or at a point inside a checkpoint's writing."""
    config = TINY | {"steps": 24, "eval_every": 3}
    whole, _, _ = drive(tmp_path, config, [], "whole")
    chance = random.Random()
    seed = chance.randrange(10**6)
    chance = random.Random(seed)
    points = ["weights", "marker", "rename", "old ones go", "best adapter", "log line"]
    wounds = []
    for number in range(20):
        if number % 2:
            point = {"at": chance.choice(points), "call": chance.randint(1, 3)}
            wounds.append(point)
        else:
            wounds.append({"lines": number + 1, "delay": chance.uniform(0, 1.5)})
    run, ends, _ = drive(tmp_path, config, wounds, "killed")
    killed = sum(end == -9 for end in ends)
    assert killed >= 15, (seed, ends)
    assert_same_run(whole, run)


@pytest.mark.prove
def test_a_killed_unsloth_run_draws_other_answers(tmp_path):
    """Unsloth answers through TRL's own generation: its luck is the generators' state."""
    config = TINY | {"engine": "unsloth"}
    whole, _, _ = drive(tmp_path, config, [], "whole")
    run, ends, _ = drive(tmp_path, config, [{"lines": 2}, {"at": "marker", "call": 1}], "killed")
    assert ends == [-9, -9, 0]
    assert_same_run(whole, run)
