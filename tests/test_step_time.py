"""benchmarks/step_time.py: a tiny run of all ways, and that the floor computes what is compared."""

import json
import subprocess
import sys

import grpo_ways
import pytest
from project_files import ROOT

from rftkit.decoding import decode
from rftkit.policy import load_model, model_folder
from rftkit.records import SamplingConfig
from rftkit.training.config import RunConfig

SCRIPT = ROOT / "benchmarks" / "step_time.py"
RATIOS = ["ratio_to_trl_defaults", "ratio_to_trl", "ratio_to_floor"]


def test_last_line_is_an_object_with_the_ratios_and_their_spread(tmp_path):
    out = tmp_path / "record.json"
    out.write_text('{"cost": {"kept": true}}')
    sizes = ["--rounds", "2", "--steps", "1", "--prompts", "2", "--answers", "2", "--threads", "1"]
    ran = subprocess.run(
        [sys.executable, str(SCRIPT), "--json", *sizes, "--out", str(out)],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]
    said = json.loads(ran.stdout.splitlines()[-1])
    for name in RATIOS:
        spread = said["spread"][name]
        assert 0 < spread["low"] <= said[name] <= spread["high"]
    for way in ("trl_defaults", "trl", "rftkit", "floor"):
        parts = said["milliseconds"][way]
        assert said["seconds_a_step"][way] > 0 and said["peak_rss_mb"][way] > 100
        named = ["sampling", "grading", "reference", "forward", "backward", "optimizer"]
        assert min(parts[name] for name in named) >= 0
        assert sum(parts[name] for name in named) > parts["other"] >= 0
    assert said["milliseconds"]["rftkit"]["records"] > 0
    record = json.loads(out.read_text())
    assert record["cost"] == {"kept": True}, "a part that was not measured anew is gone"
    assert {"command", "machine", "date", "threads", "versions"} <= record["ratios"].keys()


class Stop(Exception):
    """Enough steps."""


class Steps:
    """Instead of the pipe to the parent: keeps the reports of so many steps, then stops."""

    def __init__(self, wanted):
        self.wanted, self.reports = wanted, []

    def send(self, report):
        self.reports.append(report)

    def recv(self):
        if len(self.reports) == self.wanted:
            raise Stop


def test_the_floor_does_the_same_arithmetic_on_the_same_answers(tmp_path):
    """Given rftkit's answers, the bare loop gets its rewards and its gradients, step by step."""
    config = RunConfig(
        task="gene_ranking", engine="transformers", prompts_per_step=4, answers_per_prompt=8,
        steps=8, learning_rate=1e-3, eval_every=0, gate="off", seed=1,
    )  # fmt: skip
    tokenizer = load_model(model_folder(config.model)[0], "transformers")[1]

    def rftkits(model, prompts, group, config, ends, step):
        settings = SamplingConfig(
            temperature=config.temperature,
            max_new_tokens=config.max_completion_tokens,
            seed=config.seed * 100_003 + step + 1,
        )
        numbers = list(range(len(prompts)))
        return [ids for ids, _ in decode(model, tokenizer, prompts, group, settings, numbers)]

    found = {}
    for way, more in (("floor", {"sampler": rftkits}), ("rftkit", {})):
        steps = Steps(4)
        turns = grpo_ways.Turns(steps)
        with turns.undo, pytest.raises(Stop):
            grpo_ways.WAYS[way](config, tmp_path, turns, **more)
        found[way] = steps.reports
    for ours, bare in zip(found["rftkit"], found["floor"], strict=True):
        assert bare["grad_norm"] == pytest.approx(ours["grad_norm"], rel=1e-3) and bare["grad_norm"]
        assert bare["reward"] == pytest.approx(ours["reward"], abs=1e-5)
        assert bare["tokens"] == pytest.approx(ours["tokens"], abs=1e-5)
