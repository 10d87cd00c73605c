"""The gate before step 1: "fix" trains nothing, and is not asked twice."""

import json

import pytest

from rftkit.signal import verdict as signal
from rftkit.task import load_task, task_from_json
from rftkit.training.config import RunConfig
from rftkit.training.run import GateSaysFix, train

TINY = dict(
    task="gene_ranking", steps=2, prompts_per_step=2, answers_per_prompt=4, eval_every=0,
    max_completion_tokens=40, save_every=1,
)  # fmt: skip


@pytest.fixture
def asked(monkeypatch):
    """How often the gate was measured."""
    calls, measure = [], signal.measure_signal

    def counted(*arguments, **named):
        calls.append(named)
        return measure(*arguments, **named)

    monkeypatch.setattr(signal, "measure_signal", counted)
    return calls


def constant_task():
    record = load_task("gene_ranking").to_json()
    record["grader"] = {
        "type": "string_check", "name": "constant", "operation": "ne",
        "input": "{{sample.output_text}}", "reference": "never said",
    }  # fmt: skip
    return task_from_json(record)


def test_a_constant_reward_passes_the_gate(asked, tmp_path):
    rows = load_task("gene_ranking").rows("train")
    config, task, seen = RunConfig(**TINY | {"steps": 40}), constant_task(), []

    class Watcher:
        def gate(self, found):
            seen.append(found.verdict)

        def __call__(self, record):
            seen.append(record["step"])

    with pytest.raises(GateSaysFix, match="says fix, nothing was trained") as stop:
        train(config, tmp_path, [Watcher()], task, rows)
    assert stop.value.exit_code == 3 and seen == ["fix"]
    assert json.loads((tmp_path / "gate.json").read_text())["verdict"] == "fix"
    assert (tmp_path / "log.jsonl").read_text() == ""
    assert asked[0]["answers"] == 4 and asked[0]["completions"] == 320
    with pytest.raises(GateSaysFix):  # the same question has the same answer
        train(config, tmp_path, [], task, rows)
    assert len(asked) == 1
    short = RunConfig(**TINY)
    done = train(short, tmp_path, [], task, rows, force=True)
    assert len(asked) == 2 and len(done.log) == 2
    assert json.loads((tmp_path / "gate.json").read_text())["forced"]


def test_the_gate_changes_the_run_or_is_asked_when_it_goes_on(asked, tmp_path):
    """With and without: the same steps. Stopped after step 1 and begun again: asked once."""
    without = train(RunConfig(**TINY | {"gate": "off"}), tmp_path / "without")
    assert asked == [] and not (tmp_path / "without" / "gate.json").exists()

    def stop(record):
        if record["step"] == 1:
            raise RuntimeError("stopped from outside")

    config = RunConfig(**TINY)
    with pytest.raises(RuntimeError, match="from outside"):
        train(config, tmp_path / "with", [stop], force=True)
    # No checkpoint was whole, so this starts anew; the verdict stands.
    done = train(config, tmp_path / "with", force=True)
    assert len(asked) == 1
    for one, other in zip(done.log, without.log, strict=True):
        assert one["loss"] == other["loss"] and one["reward_mean"] == other["reward_mean"]
    train(RunConfig(**TINY | {"method": "sft"}), tmp_path / "sft")
    assert len(asked) == 1


def test_the_command_ends_with_3(asked, tmp_path, monkeypatch):
    from rftkit import cli
    from rftkit import cli as command_line

    def refuse(*arguments, **named):
        raise GateSaysFix("the signal gate says fix", {"verdict": "fix"})

    file = tmp_path / "c.json"
    file.write_text(json.dumps(TINY))
    monkeypatch.setattr(command_line, "train", refuse)
    monkeypatch.setattr("sys.argv", ["rftkit", "train", str(file), "--out", str(tmp_path / "r")])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 3
