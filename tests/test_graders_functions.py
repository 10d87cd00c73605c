"""A Python function is a grader: three signatures, in this process and in the sandbox, from a file,
in a task folder, and in the record that a run keeps."""

import json
import os
from dataclasses import replace

import pandas
import pytest

from rftkit import RunConfig, Task, UserError, attack, load_task, reward_function
from rftkit.files import say_once
from rftkit.graders import functions
from rftkit.graders.grader import Grader, GraderSettings
from rftkit.task import task_from_json
from rftkit.training import store
from rftkit.training.config import config_task, read_run_config

pytestmark = pytest.mark.filterwarnings("ignore:grader .* outside 0 to 1")
BOXED = GraderSettings(sandbox=True, allow_weak_isolation=True)
ROW = {"messages": [{"role": "user", "content": "Which mood?"}], "label": "joy", "length": 3}
FUNCTIONS = {
    "of OpenAI": """
        import re
        def grade(sample, item):
            return float(re.sub("[.]", "", sample["output_text"]).strip() == item.get("label"))""",
    "of OpenAI, beside a helper": """
        def same(a, b): return a == b
        def mood(sample, item): return same(sample["output_text"], item["label"])""",
    "of TRL, texts": """
        def reward(completions, label, **columns):
            assert columns["length"] == [3] and columns["prompts"] == ["Which mood?"]
            return [float(text.strip() == right) for text, right in zip(completions, label)]""",
    "of TRL, messages, nothing raised": """
        def reward(prompts, completions, label):
            assert prompts[0][0]["role"] == "user"
            def one(said, right):
                try:
                    return float(said[-1]["content"] == right)
                except Exception:
                    return 0.0
            return list(map(one, completions, label))""",
    "of TRL, messages, by a helper": """
        def text(said): return said[0].get("content")
        def reward(completions, label, **columns):
            return [float(text(said) == right) for said, right in zip(completions, label)]""",
    "of Bedrock": """
        def lambda_handler(event, context):
            def score(said, right): return float(said["messages"][-1]["content"] == right)
            return [{"id": e["id"], "aggregate_reward_score": score(e, e["metadata"]["label"])}
                    for e in event]""",
    "of SageMaker": """
        def lambda_handler(event, context):
            right = [float(e["messages"][-1]["content"] == e["label"]) for e in event]
            return {"aggregate_reward_score": right[0]}""",
}  # fmt: skip
STRICT = "def strict(completions, label, **columns):\n    return [1.0 * (completions == label)]\n"


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text, name="own.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        lines = text.split("\n        ")
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        return name

    return write


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_each_signature_grades_alike_here_and_in_the_sandbox(kind, write):
    file = write(FUNCTIONS[kind])
    here, boxed = Grader.load(file), Grader.load(file, BOXED)
    again = Grader.load(here.record)  # what a run keeps comes from a file: boxed
    assert here.record == boxed.record == again.record
    assert (here.type, boxed.type, again.type) == ("function", "python", "python")
    assert here.to_json() == boxed.to_json() == again.to_json()
    for made in (here, boxed, Grader.load(functions.load(file, here.name))):
        assert [made.grade(ROW, text)[0] for text in ("<think>?</think>joy", "no")] == [1.0, 0.0]


def test_none_is_no_grade_and_an_exception_is_zero():
    made = Grader.load(lambda completions, **columns: [None if completions == ["x"] else 1 / 0])
    lost, failed = made.evaluate(ROW, "x"), made.evaluate(ROW, "y")
    assert (lost.reward, lost.errors) == (None, ["other_error"])
    assert (failed.reward, failed.errors) == (0.0, ["python_grader_runtime_error"])
    assert "ZeroDivisionError" in failed.explanations[0]


TWO = "def a(sample, item): return 1\ndef b(completions, **columns): return [1]\n"


@pytest.mark.parametrize(
    ("text", "source", "says"),
    [
        (TWO, "own.py", "a.*, b"), ("x = 1", "own.py", "no function"), (TWO, "own.py:c", "no .* c"),
        ("def f(a, b, c): return 1", "own.py:f", r"f\(a, b, c\)"),
        ("def f(a:\n", "own.py", "not Python"), ("", "none.py", "cannot be read"),
        ("import nothing_here\n" + TWO, "own.py:a", "nothing_here"),
    ],
)  # fmt: skip
def test_a_file_without_one_clear_grader_is_refused_with_what_it_has(text, source, says, write):
    write(text)
    with pytest.raises(UserError, match=f"^{source.split(':')[0]}: .*{says}") as error:
        Grader.load(source)
    assert "JSON" not in str(error.value)
    assert Grader.load(write(TWO) + ":b").grade(ROW, "x")[0] == 1.0


def test_what_is_no_grader_is_refused():
    for wrong in (5, lambda one: 1, len):
        with pytest.raises(UserError):
            Grader.load(wrong)
        with pytest.raises(UserError, match="grader"):
            RunConfig(task="gene_ranking", grader=wrong)


def test_that_a_function_runs_in_this_process_is_said_once(write, capsys):
    say_once.cache_clear()
    Grader.load(write(STRICT), BOXED)
    assert capsys.readouterr().err == ""
    for _ in range(2):
        Grader.load("own.py")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("note: grader strict ") and "--sandbox" in line


def test_a_function_of_a_task_folder_never_runs_in_this_process(write, tmp_path, monkeypatch):
    monkeypatch.delenv("RAN_HERE", raising=False)
    write("import os\nos.environ['RAN_HERE'] = 'yes'\n" + STRICT, "folder/own.py")
    record = {"name": "n", "grader": "own.py:strict", "maximum": 2}
    (tmp_path / "folder" / "task.json").write_text(json.dumps(record))
    task = load_task("folder")
    assert task.grader.grade(ROW, "joy")[0] == 1.0 and "RAN_HERE" not in os.environ
    assert (task.question, task.grader.maximum, task.to_json()["maximum"]) == ("", 2, 2)
    assert task_from_json(task.to_json()).grader.record == task.grader.record
    Grader.load("folder/own.py")  # named by its user
    assert os.environ.pop("RAN_HERE") == "yes"


def first(sample, item):
    return 1.0


def second(sample, item):
    return 0.0


def test_a_run_keeps_a_function_by_source_and_hash_and_resumes_with_the_same_alone(write, tmp_path):
    def opened(config):
        data = store.data_identity([ROW], [], config_task(config))
        resumes = store.open_folder(tmp_path / "run", config, data, "resume")
        (tmp_path / "run" / "log.jsonl").write_text("{}\n")
        return resumes

    (tmp_path / "run").mkdir()
    config = RunConfig(grader=first)
    assert not opened(config) and opened(config) and opened(config.replace(sandbox=True))
    kept = store.read_config(tmp_path / "run").grader
    assert kept["source"].startswith("def first(") and len(kept["sha256"]) == 64
    with pytest.raises(UserError, match=r"another run \(grader: changed\):"):
        opened(RunConfig(grader=second))
    with pytest.raises(UserError, match=r"another run \(grader: changed\):"):
        opened(RunConfig(grader=kept | {"source": "def first(sample, item):\n    return 0.5\n"}))
    assert opened(RunConfig(grader=kept))
    assert config_task(store.read_config(tmp_path / "run")).grader.grade(ROW, "x")[0] == 1.0


def test_a_config_takes_a_function_or_its_file_and_its_best_grade(write, tmp_path):
    write(STRICT, "d/own.py")
    record = {"task": "gene_ranking", "grader": "own.py:strict", "grader_maximum": 5}
    (tmp_path / "d" / "run.json").write_text(json.dumps(record))
    config = read_run_config("d/run.json")
    own = config_task(config)
    assert own.grader.type == "function" and (own.grader.name, own.grader.maximum) == ("strict", 5)
    assert own.headline == "top1" and json.loads(json.dumps(config.to_json()))["grader"]["sha256"]
    assert config_task(read_run_config("d/run.json", sandbox=True)).grader.type == "python"
    task = Task("n", first)
    assert task.grader.grade(ROW, "x")[0] == 1.0
    assert replace(task, settings=BOXED).grader.type == "python"


def test_an_attack_and_a_reward_function_take_a_function_too_and_measure_its_best_grade():
    def five(sample, item):
        return 5.0 * (sample["output_text"] == item["label"])

    rows = pandas.DataFrame([ROW, ROW | {"label": "fear"}])
    report = attack(five, rows, "{{item.label}}")
    assert (report.maximum, report.honest["best"]) == (5, 5) and "best grade 5" in repr(report)
    task = Task("n", five)
    attack(task.grader, rows, "{{item.label}}", strategies=())
    assert task.to_json()["maximum"] == 5
    assert reward_function(five)(completions=["joy", "no"], label=["joy", "joy"]) == [5.0, 0.0]


def test_an_attack_echoes_the_prompts_of_a_table():
    def parrot(sample, item):
        return 1.0 if "Mood?" in sample["output_text"] else 0.5

    rows = pandas.DataFrame([{"prompt": "Mood?", "label": label} for label in ("joy", "fear")])
    report = attack(parrot, rows, "{{item.label}}")
    assert {result.name: result.mean for result in report.results}["echo"] == 1.0
