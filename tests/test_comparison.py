"""`rftkit evaluate`: the same rows for every model, numbers that the samples bear out."""

from __future__ import annotations

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from typer.testing import CliRunner

from rftkit.cli import app
from rftkit.compare import Inputs, compare_models, comparison_text, load_metric, make_report
from rftkit.evaluation import SystemResult
from rftkit.files import UserError
from rftkit.records import Sample, SamplingConfig
from rftkit.rows import write_rows
from rftkit.task import load_task

TASK = load_task("gene_ranking")
ROWS = TASK.rows("validation")[:12]


def evaluate(*words):
    return CliRunner().invoke(app, ["evaluate", *map(str, words)])


def text_of(result) -> str:
    said = result.output + (str(result.exception) if result.exception else "")
    return " ".join(said.split())


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "some.jsonl"
    write_rows(path, ROWS)
    return path


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, rows):
    """What training leaves, with an adapter that does change the answers."""
    import torch
    from peft import LoraConfig, get_peft_model

    from rftkit.policy import load_policy

    folder = tmp_path_factory.mktemp("runs") / "tuned"
    policy = load_policy("embedded:mini")
    model = get_peft_model(policy.model, LoraConfig(r=2, target_modules="all-linear"))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.15)
    model.peft_config["default"].base_model_name_or_path = "embedded:mini"
    model.save_pretrained(folder / "adapter")
    seen = [row | {"case_id": f"seen-{n}"} for n, row in enumerate(ROWS[:2])]
    write_rows(folder / "trained_on.jsonl", [*TASK.rows("train")[:3], *seen])
    config = {"train_file": str(folder / "trained_on.jsonl"), "grader": TASK.grader_spec}
    (folder / "config.json").write_text(json.dumps(config | {"group_by": "reference_gene"}))
    training = {"examples": 5, "steps": 7, "seconds": 1.5, "peak_rss_mb": 100.0}
    (folder / "training.json").write_text(json.dumps({"training": training}))
    return folder


@pytest.fixture(scope="module")
def compared(tmp_path_factory, rows, run_folder):
    out = tmp_path_factory.mktemp("out") / "table"
    result = evaluate(
        rows, "--task", "gene_ranking", "--model", "embedded:mini", "--model", run_folder,
        "--samples", 3, "--seed", 5, "--out", out, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, text_of(result)
    return json.loads(result.stdout), out, result.stderr


def lines_of(out):
    return [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]


def test_the_report_is_not_what_was_printed_or_lacks_a_field(compared):
    report, out, _ = compared
    assert json.loads((out / "report.json").read_text()) == report
    fields = "task n_cases sampling systems paired training gates seed versions sha256".split()
    assert set(fields) <= report.keys() and report["n_cases"] == len(ROWS)
    assert report["seed"] == report["sampling"]["seed"] == 5
    assert {"some.jsonl", "grader", "embedded:mini"} <= report["sha256"].keys()
    assert len(report["sha256"]) == 4 and report["gates"].keys() == {"mini"}
    assert (out / "table.png").read_bytes()[:4] == b"\x89PNG"
    assert (out / "report.md").read_text() == comparison_text(report)


def test_a_number_of_the_table_is_not_borne_out_by_the_samples(compared):
    report, out, _ = compared
    lines = lines_of(out)
    by_id = {row["case_id"]: row for row in ROWS}
    for system in report["systems"]:
        own = [line for line in lines if line["model"] == system["name"]]
        assert len(own) == system["answers"] == len(ROWS) * 4
        for greedy, found in ((False, system["top1"]["mean"]), (True, system["greedy"]["top1"])):
            drawn = [line for line in own if line["greedy"] is greedy]
            right = [
                TASK.place(by_id[line["row_id"]], Sample.from_json(line)) == 1 for line in drawn
            ]
            assert found == pytest.approx(sum(right) / len(drawn), abs=1e-4)
        assert system["top1"]["low"] <= system["top1"]["mean"] <= system["top1"]["high"]
    assert {line["seed"] for line in lines} == {5}
    texts = [[x["reasoning"] for x in lines if x["model"] == s["name"]] for s in report["systems"]]
    assert texts[0] != texts[1]  # the adapter was loaded


def test_a_paired_difference_is_the_earlier_less_the_later_or_of_other_rows():
    """By hand: three rows, two systems; the later model less the earlier, row by row."""

    def system(name, *values):
        one = [[Sample(grade=value)] for value in values]
        numbers = {"grade": np.array(values)}
        return SystemResult(name, 3, numbers, dict(numbers), samples=one, greedy_samples=one)

    inputs = Inputs(TASK.folder / "test.jsonl", ROWS[:3], TASK)
    systems = [system("endpoint:base", 0.0, 0.5, 0.0), system("endpoint:tuned", 1.0, 1.0, 0.0)]
    report = make_report(inputs, systems, SamplingConfig(), 1, {})
    sampled, greedy = report["paired"]
    assert (sampled["a"], sampled["b"]) == ("endpoint:tuned", "endpoint:base")
    assert sampled["difference"] == greedy["difference"] == 0.5
    assert (sampled["metric"], greedy["metric"]) == ("grade", "greedy grade")
    assert 0 <= sampled["low"] < 0.5 < sampled["high"] <= 1
    assert [s["grade"]["mean"] for s in report["systems"]] == [0.1667, 0.6667]


def test_the_paired_differences_of_a_run_do_not_fit_its_table(compared, run_folder):
    report, _, _ = compared
    assert {(p["a"], p["b"]) for p in report["paired"]} == {(str(run_folder), "embedded:mini")}
    assert [p["metric"] for p in report["paired"]] == ["top1", "greedy top1"]
    base, tuned = report["systems"]
    expected = tuned["top1"]["mean"] - base["top1"]["mean"]
    assert report["paired"][0]["difference"] == pytest.approx(expected, abs=2e-4)


def test_rows_that_were_trained_on_pass_for_held_out(compared, run_folder):
    report, _, said = compared
    training = report["training"]
    assert training["model"] == str(run_folder) and training["steps"] == 7
    shared = {row["reference_gene"] for row in ROWS[:2]}
    genes = [row["reference_gene"] for row in ROWS]
    assert training["answer_groups_shared_with_eval"] == len(shared) and set(genes) > shared
    assert f"{len(shared)} answer groups of these rows stand in its training rows" in said
    assert "training" not in report["systems"][0]


def test_an_adapter_folder_is_another_model_than_its_run(tmp_path, rows, run_folder, compared):
    adapter = str(run_folder / "adapter")
    report = compare_models(
        rows, [adapter], None, tmp_path / "o", samples=3, seed=5, task="gene_ranking"
    )
    again, before = report["systems"][0], compared[0]["systems"][1]
    assert {k: v for k, v in again.items() if k != "name"} == {
        k: v for k, v in before.items() if k != "name"
    }


def test_another_seed_draws_the_same_answers(tmp_path, rows, compared):
    again = tmp_path / "again"
    compare_models(rows, ["embedded:mini"], None, again, 3, seed=6, task="gene_ranking")
    mine = [(x["greedy"], x["output_text"]) for x in lines_of(again)]
    first = [x for x in lines_of(compared[1]) if x["model"] == "embedded:mini"]
    theirs = [(x["greedy"], x["output_text"]) for x in first]
    assert [x for x in mine if x[0]] == [x for x in theirs if x[0]]  # greedy knows no seed
    assert mine != theirs


# Metrics of your own.

METRICS = """
def tokens(sample, item): return sample["completion_tokens"]
def gene_length(sample, item): return len(item["reference_gene"])
def fails(sample, item): raise KeyError("genes")
def no_number(sample, item): return float("nan")
number = 3
"""


@pytest.fixture
def metrics_here(tmp_path, monkeypatch):
    (tmp_path / "metrics_of_mine.py").write_text(METRICS)
    monkeypatch.chdir(tmp_path)


def test_a_metric_of_ones_own_is_not_the_mean_over_rows_and_samples(metrics_here, tmp_path, rows):
    names = ["metrics_of_mine:tokens", "metrics_of_mine:gene_length"]
    options = [word for name in names for word in ("--metric", name)]
    result = evaluate(rows, "--model", "embedded:mini", "--grader", "gene_rank", "--out", "o",
                      "--json", *options)  # fmt: skip
    assert result.exit_code == 0, text_of(result)
    report = json.loads(result.stdout)
    (system,) = report["systems"]
    sampled = [line for line in lines_of(tmp_path / "o") if not line["greedy"]]
    lengths = [line["completion_tokens"] for line in sampled]
    assert system[names[0]]["mean"] == pytest.approx(sum(lengths) / len(lengths), abs=1e-3)
    genes = [len(row["reference_gene"]) for row in ROWS]
    assert system[names[1]]["mean"] == pytest.approx(sum(genes) / len(genes), abs=1e-3)
    assert report["headline"] == names[0] and "top1" not in system
    assert "--task names one" in result.stderr  # why there is no top1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("metrics_of_mine", "expected module:function"),
        ("no_such_module:f", "ModuleNotFoundError"),
        ("metrics_of_mine:missing", "missing(sample, item) in metrics_of_mine.py"),
        ("metrics_of_mine:number", "a int, expected a function"),
    ],
)
def test_a_metric_that_is_none_is_called(metrics_here, name, said):
    with pytest.raises(UserError, match="--metric") as refused:
        load_metric(name)
    assert said in str(refused.value)


@pytest.mark.parametrize(("name", "said"), [("fails", "KeyError"), ("no_number", "nan")])
def test_a_metric_that_fails_does_not_say_on_which_row(metrics_here, name, said):
    value = load_metric(f"metrics_of_mine:{name}")
    with pytest.raises(UserError, match="row r-7") as refused:
        value({"reference_gene": "A"}, Sample(row_id="r-7", model="m", output_text="x"))
    assert said in str(refused.value)


# What cannot be evaluated.


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "embedded:mini"], "--grader: missing, and no task.json"),
        (["--model", "embedded:mini", "--grader", "nowhere.json"], "nowhere.json"),
        (["--model", "embedded:giant", "--grader", "gene_rank"], "embedded:giant"),
        (["--model", "embedded:mini", "--grader", "exact_match"], "answer"),
        (["--model", "embedded:mini", "--grader", "gene_rank", "--group-by", "gene"], '"gene"'),
        (["--model", "embedded:mini", "--model", "embedded:mini", "--grader", "rank"], "twice"),
        (["--model", "endpoint:m", "--grader", "gene_rank"], "OPENAI_BASE_URL"),
        (["--model", "embedded:mini", "--task", "no_such_task"], "no_such_task"),
    ],
)
def test_a_mistake_is_found_late_or_without_its_name(tmp_path, rows, monkeypatch, words, said):
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    loaded = []
    monkeypatch.setattr("rftkit.compare.load_policy", loaded.append)
    result = evaluate(rows, *words, "--out", tmp_path / "o")
    assert result.exit_code == 1 and isinstance(result.exception, UserError), text_of(result)
    assert said in str(result.exception) and loaded == []
    assert not (tmp_path / "o").exists()


def test_a_run_is_written_over(tmp_path, rows, run_folder):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(UserError, match="a run stands here"):
        compare_models(rows, ["embedded:mini"], "gene_rank", folder)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_an_unfinished_run_is_taken_for_a_model(tmp_path, rows):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"task": "gene_ranking"}')
    with pytest.raises(UserError, match="finished run's folder"):
        compare_models(rows, [str(tmp_path / "run")], "gene_rank", tmp_path / "o")


def test_a_grader_that_fails_on_every_answer_gives_a_table_of_zeros(tmp_path, rows):
    grader = tmp_path / "grader.json"
    source = "def grade(sample, item):\n    return 1 / 0"
    grader.write_text(json.dumps({"type": "python", "name": "own", "source": source}))
    words = ["evaluate", str(rows), "--model", "embedded:mini", "--grader", str(grader)]
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "out")])
    assert done.exit_code == 1 and "the grader's own program failed" in done.output
    (system,) = json.loads((tmp_path / "out" / "report.json").read_text())["systems"]
    assert system["grader_errors"] == system["answers"] > 0 and system["ungraded"] == 0


def test_answers_that_were_cut_are_not_named(tmp_path, rows):
    result = evaluate(rows, "--model", "embedded:mini", "--grader", "gene_rank", "--max-tokens", 3,
                      "--samples", 1, "--out", tmp_path / "o")  # fmt: skip
    assert result.exit_code == 0
    assert "100% of its answers were cut at 3 tokens" in text_of(result)
    assert "cut at 3 tokens" in (tmp_path / "o" / "report.md").read_text()


# Endpoints.


class Stub(BaseHTTPRequestHandler):
    refused = 0  # every n-th call, none for 0
    calls = 0

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        Stub.calls += 1
        if Stub.refused and Stub.calls % Stub.refused == 0:
            self.send_response(400)
            self.end_headers()
            return
        said = {"role": "assistant", "content": '{"genes": ["A", "B", "C", "D", "E"]}'}
        body = {
            "id": "x", "object": "chat.completion", "created": 0, "model": "m",
            "choices": [{"index": 0, "finish_reason": "stop", "message": said}],
        }  # fmt: skip
        raw = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_):
        pass


@pytest.fixture
def endpoint(monkeypatch):
    server = HTTPServer(("127.0.0.1", 0), Stub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    Stub.calls = Stub.refused = 0
    yield Stub
    server.shutdown()


def test_an_endpoint_that_answers_is_not_evaluated(tmp_path, rows, endpoint):
    result = evaluate(rows, "--model", "endpoint:m", "--grader", "gene_rank", "--samples", 1,
                      "--out", tmp_path / "o", "--json")  # fmt: skip
    assert result.exit_code == 0, text_of(result)
    (system,) = json.loads(result.stdout)["systems"]
    assert system["grade"]["mean"] == pytest.approx(0.1) and system["failed"] == 0
    assert json.loads(result.stdout)["sampling"]["max_new_tokens"] == 1024


def test_answers_that_never_came_go_unsaid(tmp_path, rows, endpoint):
    endpoint.refused = 3
    result = evaluate(rows, "--model", "endpoint:m", "--grader", "gene_rank", "--samples", 1,
                      "--out", tmp_path / "o")  # fmt: skip
    assert result.exit_code == 1 and result.exception.__class__ is SystemExit
    assert "endpoint:m: 8 of 24 answers never came and count as 0" in text_of(result)
    assert (tmp_path / "o" / "report.json").exists()


def test_an_endpoint_that_never_answers_gives_a_table_of_zeros(tmp_path, rows, endpoint):
    endpoint.refused = 1
    result = evaluate(rows, "--model", "embedded:mini", "--model", "endpoint:m", "--grader",
                      "gene_rank", "--samples", 1, "--out", tmp_path / "o")  # fmt: skip
    assert "none of 12 answers came" in str(result.exception) and result.exit_code == 1
    assert not (tmp_path / "o" / "report.json").exists()
    assert {x["model"] for x in lines_of(tmp_path / "o")} == {"embedded:mini"}  # not lost
