"""`rftkit new`: the folder that it makes passes the kit's own checks, and runs."""

import csv
import json
import random
from collections import Counter

import pytest
from typer.testing import CliRunner

from rftkit import load_task
from rftkit.cli import app
from rftkit.new import NewTask, make_task
from rftkit.rows import read_rows, write_rows

MOODS = {"joy": "great lovely", "anger": "furious mad", "fear": "scared afraid"}
RNG = random.Random(0)
NOTES = [
    {
        "Message text": f"Note {n}: I feel {RNG.choice(words.split())} about {RNG.random():.9f}",
        "mood": f" {mood}",
        "author": f"author {n % 9}",
        "stars": n % 97,
        "title": f"The long way {n * n}",
        "order": json.dumps({"customer": f"Ann {n}", "chairs": n % 5}),
    }
    for n in range(16)
    for mood, words in MOODS.items()
]
FORMS = {
    "class": ("mood", "joy", "Answer with one of: anger, fear, joy."),
    "ranked": ("mood", '{"answers": ["joy", "fear", "anger"]}', '{"answers": ["...'),
    "number": ("stars", "I count 3", "the stars alone"),
    "text": ("title", "The long way 9", "the title alone"),
    "json": ("order", '{"customer": "Ann 3", "chairs": 3}', "the keys customer, chairs"),
}
ROW = {"mood": "joy", "stars": "3", "title": "The long way 9"}
ROW |= {"order": {"customer": "Ann 3", "chairs": 3}}


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open("notes.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, NOTES[0])
        writer.writeheader()
        writer.writerows([*NOTES, NOTES[0], NOTES[1] | {"mood": "", "Message text": "No mood"}])
    return tmp_path


def new(*words, prompt="Read it. {Message text}"):
    given = ["new", "mine", "--rows", "notes.csv", "--prompt", prompt, *words]
    return CliRunner().invoke(app, [str(word) for word in given])


def commands(folder) -> list[list[str]]:
    block = (folder / "README.md").read_text().split("```")[1]
    return [line.split()[1:] for line in block.strip().splitlines()]


@pytest.mark.parametrize("form", FORMS)
def test_a_task_of_each_form_passes_its_own_checks(table, monkeypatch, form):
    answer, right, asks = FORMS[form]
    result = new("--answer", answer, "--form", form, "--json")
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    assert made["check"]["ok"] and made["reference"].startswith("reference check: passed")
    left_out = {"repeated prompt": [50]} | ({"no answer": [51]} if answer == "mood" else {})
    assert made["rows"]["train"] == (30 if answer == "mood" else 29)
    assert made["dropped"] == left_out
    assert sum(made["rows"].values()) + len(left_out) == len(NOTES) + 2
    monkeypatch.chdir("mine")
    check, validate, signal, *_ = commands(table / "mine")
    for command in (check, validate, signal):
        answered = CliRunner().invoke(app, command)
        assert answered.exit_code == 0, (command, answered.output)
    assert "undecided: " in answered.output and "cannot read the rows" in answered.output
    task = load_task(".")
    [message] = task.rows("train")[0]["messages"]
    assert message["content"].startswith("Read it. Note ") and asks in message["content"]
    assert task.grader.grade(ROW, right)[0] == 1.0
    assert 0 <= task.grader.grade(ROW, "something else")[0] < 0.2


def labels_by_side(folder):
    sides = [read_rows(folder / f"{side}.jsonl") for side in ("train", "validation", "test")]
    return [Counter(row["mood"] for row in side) for side in sides]


@pytest.mark.parametrize("form", ["class", "ranked"])
def test_every_side_has_each_label_in_the_same_share(tmp_path, form):
    moods = ["joy"] * 20 + ["fear"] * 10 + ["anger"] * 5 + ["awe", "envy"]
    rows = [{"text": f"Note {i}", "mood": mood} for i, mood in enumerate(moods)]
    write_rows(tmp_path / "notes.jsonl", rows)
    made = make_task(NewTask(tmp_path / "t", tmp_path / "notes.jsonl", "{text}", "mood", form))
    for side, share in zip(labels_by_side(tmp_path / "t"), (0.6, 0.2, 0.2)):
        for mood, count in {"joy": 20, "fear": 10, "anger": 5}.items():
            assert abs(side[mood] - share * count) <= 1
    notes = made["check"].notes  # awe and envy have a row each
    assert "test.jsonl: no row with the answer awe, envy: add some" in notes


def test_the_limit_holds_the_longest_answer(tmp_path):
    for name, answer, tokens in (("short", "joy", 64), ("long", "a" * 300, 300)):
        rows = [{"text": f"Note {i}", "mood": answer} for i in range(9)]
        write_rows(tmp_path / f"{name}.jsonl", rows)
        table = tmp_path / f"{name}.jsonl"
        make_task(NewTask(tmp_path / name, table, "{text}", "mood", "text"))
        run = json.loads((tmp_path / name / "run.json").read_text())
        assert run["max_completion_tokens"] == tokens


def test_the_form_follows_from_the_answers(table):
    for answer, form in (("mood", "class"), ("stars", "number"), ("order", "json")):
        made = json.loads(new("--answer", answer, "--json").stdout)
        assert made["form"] == form
        (table / "mine").rename(table / form)


def test_a_group_stays_on_one_side_and_the_notebook_runs_to_its_end(table, monkeypatch):
    assert new("--answer", "mood", "--group", "author").exit_code == 0
    monkeypatch.chdir("mine")
    sides = [read_rows(f"{side}.jsonl") for side in ("train", "validation", "test")]
    authors = [{row["author"] for row in side} for side in sides]
    assert sum(map(len, authors)) == len(set.union(*authors)) == 9
    small = {"steps": 2, "prompts_per_step": 2, "answers_per_prompt": 4, "eval_samples": 1}
    run = json.loads((table / "mine" / "run.json").read_text())
    (table / "mine" / "run.json").write_text(json.dumps(run | small))
    notebook = json.loads((table / "mine" / "notebook.ipynb").read_text())
    names: dict = {}
    for cell in notebook["cells"]:
        assert "gene" not in "".join(cell["source"])
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert names["report"].ok and names["run"].training["steps"] == 2
    assert (table / "mine" / "runs" / "first" / "adapter").is_dir()


@pytest.mark.parametrize(
    ("words", "prompt", "named"),
    [
        (("--answer", "moood"), "{Message text}", "moood"),
        (("--answer", "mood"), "{Mesage text}", "Mesage text"),
        (("--answer", "mood", "--group", "writer"), "{Message text}", "writer"),
        (("--answer", "mood"), "{Message text} {mood}", "{mood}"),
        (("--answer", "mood"), "No column", "no {COLUMN}"),
        (("--answer", "mood", "--form", "best"), "{Message text}", "best"),
        (("--answer", "mood", "--form", "json"), "{Message text}", "mood"),
        (("--answer", "mood", "--grader", "none.py"), "{Message text}", "none.py"),
    ],
)
def test_a_mistake_is_named_and_no_folder_is_left(table, words, prompt, named):
    result = new(*words, prompt=prompt)
    assert result.exit_code == 1 and named in str(result.exception)
    assert not (table / "mine").exists()


def test_a_grader_of_ones_own_comes_along_boxed(table):
    (table / "own.py").write_text("def mine(completions, mood, **row):\n    return [0.5]\n")
    made = new("--answer", "mood", "--grader", "own.py")
    assert made.exit_code == 1 and "reference check: failed" in made.stdout  # 0.5 at most
    (table / "own.py").unlink()
    grader = load_task("mine").grader
    assert grader.type == "python" and grader.grade(ROW, "joy")[0] == 0.5


def test_empty_cells_are_left_out_and_two_spellings_of_a_label_are_named(table):
    with open("notes.csv", "a") as file:
        file.write(" ,joy,nobody,1,t,o\nNew,JOY,nobody,1,t,o\n")
    made = json.loads(new("--answer", "mood", "--json").stdout)
    assert made["dropped"]["no Message text"] == [52]
    assert any(note.startswith("JOY and joy") for note in made["check"]["notes"])


def test_a_table_without_an_answer_is_refused(table):
    (table / "notes.csv").write_text("Message text,mood\nHello,\n")
    assert "notes.csv" in str(new("--answer", "mood").exception)


def test_a_task_is_made_in_python_with_plain_strings(table):
    made = make_task(NewTask("mine", "notes.csv", "Read it. {Message text}", "mood"))
    assert made["check"].ok and load_task("mine").rows("train")


def test_a_folder_that_exists_is_left_alone(table):
    (table / "mine").mkdir()
    assert new("--answer", "mood").exit_code == 1 and not any((table / "mine").iterdir())
