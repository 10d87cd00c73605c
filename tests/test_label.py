"""`rftkit label`: exactly one line a row, in order, also across kills."""

import json
import re
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import numpy as np
import pytest

from rftkit import RunConfig, load_task, train, write_rows
from rftkit import label as module
from rftkit.console import Reporter
from rftkit.files import UserError
from rftkit.label import Labelling, label
from rftkit.records import Sample

GENES = '{"genes": ["A", "B"]}'


class Scripted:
    """Answers from a dict {prompt: [answer, ...]}; None: the request fails."""

    name = "scripted"

    def __init__(self, answers):
        self.answers, self.asked, self.together = answers, [], []

    def sample(self, prompts, n, config, progress=None):
        groups = []
        self.together.append(len(prompts) * n)
        for prompt in prompts:
            text = prompt[-1]["content"]
            self.asked.append(text)
            said = self.answers.get(text, [text])
            group = [said[i % len(said)] for i in range(n)]
            lost = Sample(finish_reason="error", errors=["APIConnectionError: gone"])
            groups.append([lost if a is None else Sample.from_text(a) for a in group])
        return groups


@pytest.fixture
def scripted(monkeypatch):
    policy = Scripted({})
    monkeypatch.setattr(module, "load_policy", lambda model: policy)
    return policy


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write_pool(path, texts):
    write_rows(path, [{"prompt": text, "row_id": f"r{i}"} for i, text in enumerate(texts)])


def asked_for(folder, texts, **options):
    write_pool(folder / "pool.jsonl", texts)
    return Labelling(folder / "pool.jsonl", "endpoint:m", folder / "labels.jsonl", **options)


def test_the_commonest_answer_is_the_label_and_what_has_none_says_why(tmp_path, scripted):
    scripted.answers = {
        "json": ["<think>x</think>[1, 2]", "<think>y</think>[1,2]", "[3]", None],
        "torn": ["<think>never closed"],
        "split": ["a", "b", "c", "d"],
        "lost": [None],
        "half a letter": ["a \ufffd"],
    }
    texts = ["json", "torn", "plain", "split", "lost", "half a letter"]
    asked = asked_for(tmp_path, texts, samples=4, threshold=0.5)
    pool = asked.rows.read_text().splitlines()
    asked.rows.write_text("\n".join([*pool[:2], "{broken", *pool[2:]]) + "\n")
    assert label(asked) == {"rows": 7, "labelled": 2, "failed": 5}
    made = [(r["line"], r["row_id"], r["completion"], r["confidence"]) for r in lines_of(asked.out)]
    assert made == [(1, "r0", "[1, 2]", 0.5), (4, "r2", "plain", 1.0)]
    assert all(record["messages"] for record in lines_of(asked.out))
    reasons = {r["line"]: r["reason"] for r in lines_of(asked.failed)}
    assert list(reasons) == [2, 3, 5, 6, 7]
    assert reasons[2] == reasons[7] == "no readable answer" and "pool.jsonl:3" in reasons[3]
    assert reasons[5] == "agreement 0.25, under 0.5" and "gone" in reasons[6]


def test_a_task_says_which_part_of_an_answer_must_agree(tmp_path, scripted):
    scripted.answers = {"case": [GENES, '{"genes": ["A", "C"]}', '{"genes": ["B", "A"]}']}
    asked = asked_for(tmp_path, ["case"], samples=3, task="gene_ranking")
    label(asked)
    [record] = lines_of(asked.out)
    assert record["completion"] == GENES and record["confidence"] == pytest.approx(2 / 3, abs=1e-4)


def test_one_answer_has_no_agreement(tmp_path, scripted):
    label(asked_for(tmp_path, ["case"]))
    [record] = lines_of(tmp_path / "labels.jsonl")
    assert record["completion"] == "case" and "confidence" not in record


def test_every_worker_has_requests(tmp_path, scripted):
    label(asked_for(tmp_path, [f"t{i}" for i in range(1_000)], workers=200))
    assert sum(scripted.together) == 1_000 and scripted.together[0] >= 200


def test_an_endpoint_that_nobody_named_is_not_asked(tmp_path, monkeypatch):
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="OPENAI_BASE_URL is not set"):
        label(asked_for(tmp_path, ["case"]))
    assert not (tmp_path / "labels.jsonl").exists()


def test_an_endpoint_that_is_gone_ends_the_call_and_the_next_goes_on(tmp_path, scripted):
    texts = [f"t{i}" for i in range(600)]
    asked = asked_for(tmp_path, texts)
    scripted.answers = {text: [None] for text in texts[300:]}
    scripted.answers[texts[5]] = [None]  # one lost request is a row's failure
    with pytest.raises(UserError, match="row 321 .*gone"):
        label(asked)
    scripted.answers, scripted.asked = {}, []
    counts = label(asked)
    assert scripted.asked == texts[320:]
    assert counts == {"rows": 600, "labelled": 600 - 21, "failed": 21}
    both = lines_of(asked.out) + lines_of(asked.failed)
    assert sorted(record["line"] for record in both) == list(range(1, 601))


def test_other_settings_do_not_go_on_with_a_file(tmp_path, scripted):
    label(asked_for(tmp_path, ["a", "b"]))
    before = (tmp_path / "labels.jsonl").read_bytes()
    with pytest.raises(UserError, match="another samples"):
        label(asked_for(tmp_path, ["a", "b"], samples=2))
    with pytest.raises(UserError, match="pool.jsonl:2: not the row"):
        label(asked_for(tmp_path, ["b", "a"]))
    label(asked_for(tmp_path, ["a", "b", "c"]))  # the pool grew
    assert (tmp_path / "labels.jsonl").read_bytes().startswith(before)
    assert [r["completion"] for r in lines_of(tmp_path / "labels.jsonl")] == ["a", "b", "c"]


def test_a_stopped_call_ends_with_the_same_bytes(tmp_path, run):
    rows = load_task("gene_ranking").rows("test")[:160]
    write_rows(tmp_path / "pool.jsonl", rows)
    words = ["label", tmp_path / "pool.jsonl", "--model", "embedded:mini", "--samples", 2]
    words += ["--task", "gene_ranking", "--threshold", 0.6]
    code, out, error = run(*words, "--out", tmp_path / "whole.jsonl", "--json")
    counts = json.loads(out)
    assert code == 0 and counts["rows"] == 160 and counts["labelled"] > 5 and counts["failed"] > 5
    for name in ("whole.jsonl", "whole.jsonl.failed.jsonl"):
        head = (tmp_path / name).read_bytes().splitlines(keepends=True)
        own = [line for line in head if json.loads(line)["line"] <= 71]
        torn = b'{"line": 72, "row' if name == "whole.jsonl" else b""
        (tmp_path / name.replace("whole", "cut")).write_bytes(b"".join(own) + torn)
    record = json.loads((tmp_path / "whole.jsonl.asked.json").read_text())
    (tmp_path / "cut.jsonl.asked.json").write_text(json.dumps(record))
    code, out, error = run(*words, "--out", tmp_path / "cut.jsonl")
    assert code == 0 and "goes on after row 71" in error
    for name in ("whole.jsonl", "whole.jsonl.failed.jsonl"):
        assert (tmp_path / name.replace("whole", "cut")).read_bytes() == (
            tmp_path / name
        ).read_bytes()


def test_a_run_labels_once_it_is_finished_and_sft_learns_its_labels(tmp_path):
    pool, out = tmp_path / "pool.jsonl", tmp_path / "labels.jsonl"
    write_rows(pool, load_task("gene_ranking").rows("test")[:8])
    known = dict(task="gene_ranking", method="sft", epochs=1, steps=1, eval_every=0, gate="off")
    label(Labelling(pool, "embedded:mini", out))
    run = train(RunConfig(**known, train_file=str(out)), tmp_path / "run")
    asked = Labelling(pool, str(run.out), tmp_path / "again.jsonl")
    assert label(asked)["rows"] == 8
    weights = run.out / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")  # trained again
    with pytest.raises(UserError, match="another adapter"):
        label(asked)
    (run.out / "training.json").unlink()
    with pytest.raises(UserError, match="unfinished"):
        label(asked)


@pytest.mark.prove
def test_ten_kills_lose_nothing_and_double_nothing(tmp_path):
    write_pool(tmp_path / "pool.jsonl", [])
    rows = load_task("gene_ranking").rows("test") * 4
    rows = [row | {"row_id": f"r{i}", "case_id": f"r{i}"} for i, row in enumerate(rows)]
    write_rows(tmp_path / "pool.jsonl", rows)
    out, kills = tmp_path / "labels.jsonl", 0
    words = [sys.executable, "-m", "rftkit.cli", "label", "pool.jsonl", "--model", "embedded:mini"]
    words += ["--samples", "4", "--threshold", "0.5", "--out", "labels.jsonl"]
    while True:
        before = len(out.read_bytes()) if out.exists() else 0
        call = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.DEVNULL)
        while kills < 10 and call.poll() is None:
            if out.exists() and len(out.read_bytes()) > before:
                call.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.01)
        if call.wait() == 0:
            break
    both = lines_of(out) + lines_of(tmp_path / "labels.jsonl.failed.jsonl")
    assert kills == 10 and sorted(record["line"] for record in both) == list(
        range(1, len(rows) + 1)
    )
    assert [r["line"] for r in lines_of(out)] == sorted(r["line"] for r in lines_of(out))


@pytest.mark.prove
def test_a_hundred_thousand_rows_take_the_memory_of_a_few(tmp_path, scripted):
    """The slope of the resident memory over the rows, past the first tenth."""
    write_pool(tmp_path / "pool.jsonl", (f"text {i}" for i in range(100_000)))
    measured = []

    class Probe(Reporter):
        def work(self, done):
            status = Path("/proc/self/status").read_text()
            measured.append(int(re.search(r"VmRSS:\s*(\d+)", status)[1]) / 1e3)

    asked = Labelling(tmp_path / "pool.jsonl", "endpoint:m", tmp_path / "labels.jsonl")
    scripted.asked = deque(maxlen=1)  # keeps nothing
    assert label(asked, Probe(quiet=True))["labelled"] == 100_000
    late = measured[len(measured) // 10 :]
    slope, _ = np.polyfit(np.linspace(0, 90_000, len(late)), late, 1)
    print(f"{slope * 100_000:.2f} MB in 100,000 rows, {late[-1]:.0f} MB resident")
    assert slope * 100_000 < 5
