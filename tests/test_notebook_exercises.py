"""The notebooks' exercises: the solution passes its check, a typical wrong answer does not.

An exercise is four cells, known by their ids: `exercise-NAME` (the task, at the end of its cell),
`exercise-NAME-stub`, `exercise-NAME-check` and `exercise-NAME-solution`. Here they are run without
a kernel, after the few cells that they need.
"""

import contextlib
import io
import json
import re
from functools import cache

import pytest
from test_notebooks import NOTEBOOKS, python_of

# exercise -> its notebook and the cells that it needs
EXERCISES = {
    "faults": (
        "01_jsonl_data",
        "setup config read-leniently lenient-broken row-fault clean-by-hand check",
    ),
    "emotion": ("02_grader_design", "setup config"),
    "cheat": ("02_grader_design", "setup config load"),
    "json": ("02_grader_design", "setup config"),
    "estimate": ("03_signal", "setup"),
    "group": ("03_signal", "setup"),
    "verify": ("03_signal", "setup config gate-call scripted reports"),
    "advantages": ("04_grpo_by_hand", "setup"),
    "clip": ("04_grpo_by_hand", "setup"),
    "stop": ("05_train_lora_grpo", ""),
    "alarm": ("05_train_lora_grpo", "setup"),
    "paired": ("06_evaluate", "setup"),
    "object": ("07_real_model", "setup"),
    "luck": ("07_real_model_thinking", "setup"),
    "trl": ("09_your_own_task", "setup graded"),
    "rows": ("09_your_own_task", "setup"),
    "needed": ("08_sft_or_rft", "setup"),
    "steps": ("10_from_openai_rft", "setup"),
    "parting": ("11_ship_and_scale", ""),
    "pairs": ("12_reward_model", "setup"),
    "drift": ("12_reward_model", "setup"),
    "break": ("13_stepping_stone", ""),
    "dead": ("14_grpo_settings", "setup"),
}

# (exercise, a typical error, a part of the solution, what stands there instead)
WRONG = [
    ("faults", "a part of a word", r"(?<!\w){re.escape(answer)}(?!\w)", "{re.escape(answer)}"),
    (
        "faults",
        "an answer twice is a copy",
        '("copied", "messages")',
        '("copied", "reference_gene")',
    ),
    ("faults", "two rows without messages", "if row.get(key) is not None:", "if True:"),
    (
        "emotion",
        "two hits pay twice",
        "return value",
        "return value + (guesses[1:] == guesses[:1])",
    ),
    ("emotion", "case matters", ".lower()", ""),
    ("emotion", "a part is enough", "guess.lower() == right", "right in guess.lower()"),
    ("cheat", "five genes of all", '[" ".join(genes)]', "genes[:5]"),
    ("cheat", "all genes, of which five are read", '[" ".join(genes)]', "genes"),
    (
        "json",
        "1.5 for two hits",
        "max(first_holds * first_is_held,",
        "(first_holds * first_is_held +",
    ),
    ("json", "case matters", '"ilike"', '"like"'),
    ("estimate", "put back", "math.comb(n - right, k) / math.comb(n, k)", "(1 - right / n) ** k"),
    ("estimate", "the first k of all", "1 - math.comb(n - right, k)", "right"),
    ("estimate", "one hit", "1 - math.comb(n - right, k)", "right * math.comb(n - right, k - 1)"),
    ("group", "a group that is all right counts as alive", " - solved**k", ""),
    ("group", "one answer too many", "return k", "return k + 1"),
    ("verify", "the summary", 'reference": "{{item.improved', 'reference": "{{item.summary'),
    ("verify", "any answer that holds the number", '"eq"', '"ilike"'),
    ("advantages", "the whole batch is one group", "dim=1, keepdim=True", ""),
    ("advantages", "the std divides by G", ".std(dim=1, ", ".std(dim=1, unbiased=False, "),
    ("advantages", "a dead group is 0 / 0", " + 1e-4", ""),
    ("advantages", "the std always divides", "if scale", "if True"),
    ("clip", "the clip holds on both sides", "ratio * advantage", "clipped * advantage"),
    ("clip", "no clip", "clipped * advantage", "ratio * advantage"),
    ("clip", "the larger of the two", "torch.min", "torch.max"),
    ("clip", "as high as low", "1 + high", "1 + low"),
    ("dead", "each draw is put back", "comb(", "pow("),
    ("dead", "right or wrong alone", "Counter(grades)", "Counter(g > 0.9 for g in grades)"),
    ("stop", "validations after the end", "return best", "return means.index(max(means))"),
    ("stop", "as good counts as better", "mean > ", "mean >= "),
    ("alarm", "chance is a change", "/ error if error > 0 else 0.0", "* 1e9"),
    ("alarm", "unpaired", "differences.std(ddof=1)", "np.hypot(then.std(ddof=1), now.std(ddof=1))"),
    ("alarm", "the reward is not asked", "fell and rise(grade_then, grade_now) > 2", "fell"),
    ("alarm", "the std is the error of the mean", " / np.sqrt(len(differences))", ""),
    ("paired", "unpaired", "np.asarray(b)", "np.sort(b)"),
    ("paired", "rows are drawn in place of clusters", "np.asarray(clusters)", "np.arange(len(a))"),
    ("paired", "b - a", "np.asarray(a) - np.asarray(b)", "np.asarray(b) - np.asarray(a)"),
    ("object", "a list is an object", 'sign == "{"', 'sign in "[{"'),
    ("object", "the first brace alone", "pass", "return None"),
    (
        "object",
        "from the first brace to the last",
        "decoder.raw_decode(text, i)[0]",
        'json.loads(text[i : text.rindex("}") + 1])',
    ),
    ("luck", "one equation is enough", "len(right) < 2 or ", ""),
    ("luck", "false equations pass", " or not all(right)", ""),
    ("luck", "only the last equation counts", "not all(right)", "not right[-1]"),
    ("luck", "whatever the grade", "grade == 1 and ", ""),
    ("trl", "an unknown answer is a wrong one", "None if right is None else reward", "reward"),
    ("trl", "prose is JSON", "said = None", "said = {}"),
    ("trl", "one row's answer serves for all", '{"emotion": right}', '{"emotion": emotion[0]}'),
    ("trl", "a list is an object", '_json": said', '_json": {} if said == ["joy"] else said'),
    ("rows", "the variance is the std", "np.std(", "np.var("),
    ("rows", "the rows are not squared", " ** 2", ""),
    ("rows", "one standard error", "1.96 * ", ""),
    ("rows", "rounded down", "math.ceil", "math.floor"),
    ("rows", "the std divides by n", "ddof=1", "ddof=0"),
    ("needed", "as the points come", "sorted(curve.items())", "list(curve.items())"),
    (
        "needed",
        "a straight line over rows",
        "few * (many / few) ** share",
        "few + (many - few) * share",
    ),
    ("needed", "the last crossing", "if high >= target:", "if low < target <= high and many > 16:"),
    ("steps", "epoch by epoch", "-(-epochs * rows // size)", "epochs * -(-rows // size)"),
    ("steps", "the last step is dropped", "-(-epochs * rows // size)", "epochs * rows // size"),
    ("steps", "auto is one epoch", "return 70", "epochs = 1"),
    ("parting", "a list that ends is equal", "len(a) == len(b)", "True"),
    ("parting", "the longer one's end", "min(len(a)", "max(len(a)"),
    (
        "parting",
        "equal lists part at their end",
        "return None if len(a) == len(b) else ",
        "return ",
    ),
    ("parting", "the first equal place", "one != other", "one == other"),
    ("pairs", "ties are pairs", "if a != b", ""),
    ("pairs", "no opinion is right", "> 0", ">= 0"),
    ("pairs", "the worse answer is guessed higher", "(g - h)", "(h - g)"),
    ("drift", "any difference", "> 2 * error", "> 1e-9"),
    ("drift", "a fall", "apart[i].mean() - apart[0].mean()", "abs((apart[i] - apart[0]).mean())"),
    ("drift", "the std is the error of the mean", " / np.sqrt(len(d))", ""),
    ("drift", "the first stretch has no error", "np.hypot(errors[0], errors[i])", "errors[i]"),
    ("drift", "three standard errors", "2 * error", "3 * error"),
    ("drift", "the last stretch", "range(1, len(apart))", "range(len(apart) - 1, 0, -1)"),
    ("break", "a slower student pays", "return None", "return labels + 1"),
    ("break", "the labels come free", "labels + ", ""),
    ("break", "as many seconds are fewer", "int(rows) + 1", "-int(-rows // 1)"),
    ("break", "training is forgotten", "= training * ", "= "),
    ("break", "a row costs the student nothing", "* student_rate / gap", ""),
]

# What a check says about some of these errors: the learner is sent to the right place.
HINTS = {
    ("advantages", "the std divides by G"): "divides by G - 1",
    ("advantages", "a dead group is 0 / 0"): "1e-4 in the divisor",
}


@cache
def cells(notebook: str) -> dict[str, str]:
    """Cell id -> its Python, or a Markdown cell's text."""
    [path] = [path for path in NOTEBOOKS if path.stem == notebook]
    return {
        cell["id"]: python_of(cell) if cell["cell_type"] == "code" else "".join(cell["source"])
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
    }


def solution_of(exercise: str) -> str:
    text = cells(EXERCISES[exercise][0])[f"exercise-{exercise}-solution"]
    start = "<details><summary>Solution</summary>\n\n```python\n"
    return text.partition(start)[2].partition("```")[0]


@cache
def names_before(exercise: str) -> dict:
    """The names that its cells find when a learner comes to them."""
    notebook, needs = EXERCISES[exercise]
    names: dict = {"__name__": "__main__"}
    for cell in (*needs.split(), f"exercise-{exercise}-stub"):
        exec(cells(notebook)[cell], names)
    return names


def checked(exercise: str, answer: str) -> str:
    """What the check prints about an answer."""
    names, printed = dict(names_before(exercise)), io.StringIO()
    exec(answer, names)
    with contextlib.redirect_stdout(printed):
        exec(cells(EXERCISES[exercise][0])[f"exercise-{exercise}-check"], names)
    return printed.getvalue()


def test_every_exercise_of_the_notebooks_is_checked_here():
    stubs = {
        match[1]: path.stem
        for path in NOTEBOOKS
        for cell in cells(path.stem)
        if (match := re.fullmatch(r"exercise-(\w+)-stub", cell))
    }
    assert stubs == {name: notebook for name, (notebook, _) in EXERCISES.items()}


@pytest.mark.parametrize("exercise", EXERCISES)
def test_an_unsolved_exercise_is_called_so_and_its_solution_passes(exercise):
    unsolved = checked(exercise, "")
    assert "not solved yet" in unsolved and "passed" not in unsolved
    assert ": passed" in checked(exercise, solution_of(exercise))


@pytest.mark.parametrize(("exercise", "error", "right", "wrong"), WRONG)
def test_a_typical_error_is_seen(exercise, error, right, wrong):
    solution = solution_of(exercise)
    assert right in solution
    with pytest.raises(AssertionError, match=HINTS.get((exercise, error))):
        checked(exercise, solution.replace(right, wrong))
