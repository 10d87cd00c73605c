"""`rftkit evaluate`: the same rows for every model, numbers that the samples bear out."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset
from typer.testing import CliRunner

from rftkit.cli import app
from rftkit.compare import load_metric
from rftkit.evaluation import distinct
from rftkit.files import UserError, embedded_model, write_json
from rftkit.logs import KEPT_START
from rftkit.policy import LocalPolicy
from rftkit.records import Sample
from rftkit.rows import write_rows
from rftkit.task import load_task
from rftkit.training.store import save_adapter

TASK = load_task("gene_ranking")
ROWS = TASK.rows("validation")[:12]
MINI = ("--model", "embedded:mini")
RANK = (*MINI, "--grader", "gene_rank")


def evaluate(*words):
    return CliRunner().invoke(app, ["evaluate", *map(str, words)])


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "some.jsonl"
    write_rows(path, ROWS)
    return path


@pytest.fixture(scope="module")
def run_folder(adapted, tmp_path_factory):
    """What training leaves."""
    folder = tmp_path_factory.mktemp("runs") / "tuned"
    for name, parameter in adapted.named_parameters():
        parameter.data *= 8 if "lora_B" in name else 1
    adapted.peft_config["default"].base_model_name_or_path = "embedded:mini"
    save_adapter(adapted, folder / "adapter")
    seen = [row | {"case_id": f"seen-{n}"} for n, row in enumerate(ROWS[:2])]
    write_rows(folder / "trained_on.jsonl", [*TASK.rows("train")[:3], *seen])
    config = {"train_file": str(folder / "trained_on.jsonl"), "grader": TASK.grader_spec}
    write_json(folder / "config.json", config | {"group_by": "reference_gene"})
    (folder / "log.jsonl").write_text("{}\n")
    training = {"examples": 5, "steps": 7, "seconds": 1.5, "peak_rss_mb": 100.0}
    write_json(folder / "training.json", {"training": training, "best": {"step": 0}})
    write_json(folder / "task.json", TASK.to_json())
    write_json(folder / "plan.json", {"max_completion_tokens": 40})
    write_json(folder / "data.json", {})
    return folder


def test_the_report_is_what_was_printed_and_the_samples_bear_it_out(tmp_path, rows, run_folder):
    out = tmp_path / "table"
    words = (rows, "--task", "gene_ranking", *MINI, "--model", run_folder, "--samples", 3)
    result = evaluate(*words, "--seed", 5, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    report, stderr = json.loads(result.stdout), result.stderr
    assert json.loads((out / "report.json").read_text()) == report
    fields = "task n_cases sampling systems paired training gates seed versions sha256".split()
    assert set(fields) <= report.keys() and report["n_cases"] == len(ROWS)
    assert report["seed"] == report["sampling"]["seed"] == 5
    assert {"some.jsonl", "grader", "embedded:mini"} <= report["sha256"].keys()
    assert len(report["sha256"]) == 4 and report["gates"].keys() == {"mini"}
    assert (out / "table.png").read_bytes()[:4] == b"\x89PNG"
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    by_id = {row["case_id"]: row for row in ROWS}
    for system in report["systems"]:
        own = [line for line in lines if line["model"] == system["name"]]
        assert len(own) == system["answers"] == len(ROWS) * 4
        for greedy, top1 in ((False, system["top1"]["mean"]), (True, system["greedy"]["top1"])):
            drawn = [line for line in own if line["greedy"] is greedy]
            samples = [Sample(output_text=line["output_text"]) for line in drawn]
            places = [TASK.place(by_id[x["row_id"]], s) for x, s in zip(drawn, samples)]
            assert top1 == pytest.approx(places.count(1) / len(drawn), abs=1e-4)
    base, tuned = report["systems"]
    assert base["patterns"] != tuned["patterns"]  # the adapter was loaded
    sampled, greedy = report["paired"]
    assert (sampled["a"], greedy["b"]) == (tuned["name"], base["name"])
    gain = tuned["top1"]["mean"] - base["top1"]["mean"]
    assert sampled["difference"] == pytest.approx(gain, abs=2e-4) and gain != 0
    training, shared = report["training"], {row["reference_gene"] for row in ROWS[:2]}
    assert training["model"] == str(run_folder) and training["steps"] == 7
    assert training["answer_groups_shared_with_eval"] == len(shared)
    assert f"{run_folder}: {len(shared)} answer groups" in stderr and "training" not in base
    assert training["copies"] == training["exact_copies"] + training["near_copies"] == 2
    assert training["exact_copies"] == 2 and "seen" not in base
    assert base["by_length"].keys() == {"absent", "present"}
    for parts in (system["by_length"]["present"] for system in report["systems"]):
        counts = Counter(str(len(row["present"])) for row in ROWS)
        assert {n: part["n"] for n, part in parts.items()} == counts and len(counts) > 1
    mean = sum(part["n"] * part["mean"] for part in parts.values()) / len(ROWS)
    assert mean == pytest.approx(tuned["top1"]["mean"], abs=1e-3)
    assert "| top1 by the number of |" in (out / "report.md").read_text()
    parts = [(tuned[part]["n"], tuned[part]["top1"]) for part in ("seen", "unseen")]
    assert [n for n, _ in parts] == [2, len(ROWS) - 2]
    both = sum(n * mean for n, mean in parts) / len(ROWS)
    assert both == pytest.approx(tuned["top1"]["mean"], abs=1e-3)
    [whole] = report["gains"]
    assert whole["gain"] == pytest.approx(gain, abs=2e-4)
    kinds = ("truncation", "form", "selection", "beyond")
    assert sum(whole[kind] for kind in kinds) == pytest.approx(gain, abs=5e-4)
    assert f"{run_folder}: {KEPT_START}" in " ".join(stderr.split())


def test_a_run_brings_task_grader_and_limit_to_a_dataset(tmp_path, run_folder):
    Dataset.from_list(ROWS[:3]).save_to_disk(tmp_path / "rows")
    words = (tmp_path / "rows", "--model", run_folder, "--samples", 1, "--out", tmp_path / "o")
    result = evaluate(*words, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["task"], report["headline"]) == (TASK.name, TASK.headline)
    assert report["sampling"]["max_new_tokens"] == 40
    assert report["n_cases"] == 3 and len(report["sha256"]["rows"]) == 64
    assert f"task and grader: those of {run_folder}" in " ".join(result.stderr.split())


SYSTEM = [{"role": "developer", "content": "Seizure Ataxia."}]


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ("{% elif message.role == 'system' %}<|system|>{{ message.content }}", None),
        ("{% elif message.role == 'tool' %}", "does not hold 'Seizure Ataxia.' (developer)"),
        ("{% else %}{{ raise_exception('Unexpected role.') }}", "roles developer, user: Unexpect"),
    ],
)
def test_a_developer_is_given_as_system_or_missed_before_sampling(
    tmp_path, monkeypatch, other, named
):
    model = shutil.copytree(embedded_model("mini"), tmp_path / "model")
    own, _ = (model / "chat_template.jinja").read_text().split("{% else %}")
    form = "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    (model / "chat_template.jinja").write_text(own + other + form)
    asked = [row | {"messages": SYSTEM + row["messages"]} for row in ROWS]
    write_rows(tmp_path / "rows.jsonl", asked)
    words = (tmp_path / "rows.jsonl", *RANK, "--model", model, "--out", tmp_path / "o")
    if named:
        monkeypatch.setattr("rftkit.compare.load_policy", pytest.fail)
    result = evaluate(*words, "--samples", 1, "--max-tokens", 8)
    assert (result.exit_code, named is not None) in ((0, False), (1, True)), result.output
    if named:
        assert f"--model {model}: " in str(result.exception) and named in str(result.exception)
    else:
        assert 'role "developer" is given as "system"' in " ".join(result.stderr.split())


METRICS = """
def tokens(sample, item): return sample["completion_tokens"]
def gene_length(sample, item): return len(item["reference_gene"])
def no_number(sample, item): return float("nan")
"""


def test_a_metric_of_ones_own_is_the_mean_over_rows_and_samples(tmp_path, monkeypatch, rows):
    (tmp_path / "own_metrics.py").write_text(METRICS)
    monkeypatch.chdir(tmp_path)
    names = ["own_metrics:tokens", "own_metrics:gene_length"]
    cut = ("--max-tokens", 3, "--samples", 1)
    result = evaluate(rows, *RANK, *cut, "--out", "o", "--metric", names[0], "--metric", names[1])
    assert result.exit_code == 0, result.output
    assert "100% of its answers were truncated at 3 tokens" in " ".join(result.stderr.split())
    report = json.loads((tmp_path / "o" / "report.json").read_text())
    (system,) = report["systems"]
    genes = [len(row["reference_gene"]) for row in ROWS]
    assert (system[names[0]]["mean"], report["headline"]) == (3, names[0])
    assert system[names[1]]["mean"] == pytest.approx(np.mean(genes), abs=1e-3)
    for name in ("own_metrics", "no_such_module:f", "own_metrics:missing"):
        with pytest.raises(UserError, match=f"--metric {name}: cannot be loaded"):
            load_metric(name)
    with pytest.raises(UserError, match="nan for row r-7"):
        load_metric("own_metrics:no_number")({}, Sample(row_id="r-7"))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (MINI, "--grader: missing"),
        ((*RANK, "--group-by", "gene"), 'some.jsonl:1: no "gene"'),
        ((*RANK, "--model", "endpoint:m"), "OPENAI_BASE_URL"),
        ((*RANK, "--model", "NOTHING"), "config.json"),
        ((*RANK, "--model", "CUT"), "no whole safetensors file"),
        ((*RANK, "--model", "nobody/nothing"), "--model nobody/nothing"),
        ((*RANK, "--out", "RUN"), "contains a training run"),
        (("--model", "SMALL", *RANK[2:]), "the model was made for 16"),
    ],
)
def test_a_mistake_is_named_before_anything_is_sampled(
    tmp_path, rows, run_folder, monkeypatch, words, named
):
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    loaded = []
    monkeypatch.setattr("rftkit.policy.load_model", lambda *given: loaded.append(given))
    cut = shutil.copytree(embedded_model("mini"), tmp_path / "cut")
    (cut / "model.safetensors").write_bytes(b"cut")
    small = shutil.copytree(embedded_model("mini"), tmp_path / "small")
    config = json.loads((small / "config.json").read_text())
    write_json(small / "config.json", config | {"max_position_embeddings": 16})
    places = {"NOTHING": tmp_path, "CUT": cut, "RUN": run_folder, "SMALL": small}
    for name, place in places.items():
        words = [word.replace(name, str(place)) for word in words]
    result = evaluate(rows, "--out", tmp_path / "o", *words)
    assert result.exit_code == 1 and named in str(result.exception) and loaded == []
    assert not (tmp_path / "o").exists() and not (run_folder / "samples.jsonl").exists()


def test_a_grader_that_fails_on_every_answer_is_a_finding(tmp_path, rows):
    grader = tmp_path / "grader.json"
    source = "def grade(sample, item):\n    return 1 / 0"
    grader.write_text(json.dumps({"type": "python", "name": "own", "source": source}))
    result = evaluate(rows, *MINI, "--grader", grader, "--out", tmp_path / "out")
    assert result.exit_code == 1 and "the python grader failed" in result.output
    (system,) = json.loads((tmp_path / "out" / "report.json").read_text())["systems"]
    assert system["grader_errors"] == system["answers"] > 0 and system["ungraded"] == 0


@pytest.mark.parametrize(
    ("lost", "error", "named"),
    [
        (0, "", ""),
        (4, "Timeout", ""),
        (12, "Timeout", "all answers failed"),
        (12, "NotFoundError", "no answer"),  # to the one that is asked for before all others
    ],
)
def test_answers_that_never_came_count_as_zero_and_are_counted(
    tmp_path, rows, monkeypatch, lost, error, named
):
    def sample(prompts, n, config, progress=None):
        assert config.max_new_tokens == 1024
        right = Sample(output_text='{"genes": ["A", "B", "C", "D", "E"]}')
        failed = Sample(finish_reason="error", errors=[error])
        return [[replace(failed if number < lost else right)] for number in range(len(prompts))]

    policy = SimpleNamespace(name="m", sample=sample)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    monkeypatch.setattr("rftkit.compare.load_policy", lambda model, settings=None: policy)
    words = ("--model", "endpoint:m", "--grader", "gene_rank", "--samples", 1)
    result = evaluate(rows, *words, "--out", tmp_path / "o")
    assert result.exit_code == (1 if lost else 0)
    if named:
        assert named in str(result.exception)
        return
    (system,) = json.loads((tmp_path / "o" / "report.json").read_text())["systems"]
    assert system["failed"] == 2 * lost
    # Cold or warm, it says the same.
    assert system["ignores_temperature"] and "ignores temperature" in result.output
    assert "] *" in (tmp_path / "o" / "report.md").read_text()
    assert system["grade"]["mean"] == pytest.approx(0.1 * (1 - lost / len(ROWS)), abs=1e-4)


def test_a_stopped_evaluation_goes_on_and_asks_for_nothing_twice(tmp_path, rows, monkeypatch):
    """As after a kill: some rows answered, one of them in part, the last line truncated."""
    words = (rows, *RANK, "--max-tokens", 24, "--out")
    assert evaluate(*words, tmp_path / "whole").exit_code == 0
    out = tmp_path / "stopped"
    assert evaluate(*words, out).exit_code == 0
    lines = (out / "samples.jsonl").read_text().splitlines(keepends=True)
    (out / "samples.jsonl").write_text("".join([*lines[:5], lines[-1][:40]]))
    (out / "report.json").unlink()
    asked, sample = [], LocalPolicy.sample

    def counting(self, prompts, n=1, config=None, progress=None):
        asked.append(len(prompts))
        return sample(self, prompts, n, config, progress)

    monkeypatch.setattr(LocalPolicy, "sample", counting)
    assert evaluate(*words, out).exit_code == 0
    assert asked == [len(ROWS) - 2, len(ROWS)]  # two rows had both answers; then greedily
    reports = [
        json.loads((place / "report.json").read_text()) for place in (tmp_path / "whole", out)
    ]
    for report in reports:
        report["systems"][0].pop("seconds")
    assert reports[0]["systems"] == reports[1]["systems"]
    samples = (out / "samples.jsonl").read_text()
    assert evaluate(*words, out).exit_code == 0 and len(asked) == 2  # nothing is left to ask
    assert (out / "samples.jsonl").read_text() == samples
    assert evaluate(*words, out, "--seed", 1).exit_code == 0 and len(asked) == 4  # asked anew


@pytest.mark.parametrize(
    ("lists", "share"),
    [
        (["AB", "AB", "AA", ""], 5 / 8),
        (["AB", "ABC"], 1.0),  # more than usual is not more distinct
        (["A", "A", ""], 1.0),  # one answer a sample: nothing can be named twice
    ],
)
def test_distinct_is_the_share_of_places_with_an_answer_of_their_own(lists, share):
    samples = [Sample.from_text(json.dumps({"genes": [*genes]})) for genes in lists]
    assert distinct(TASK, samples) == pytest.approx(share)
