"""The notebooks' exercises: a solution passes its check, a wrong answer does not.

An exercise is four cells, known by their ids: `exercise-NAME` (the task, at the end of its cell),
`exercise-NAME-stub`, `exercise-NAME-check` and `exercise-NAME-solution`. Here they are run without
a kernel, after the few cells that they need.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from dataclasses import dataclass
from functools import cache

import pytest
from test_notebooks import NOTEBOOKS, python_of


@dataclass
class Exercise:
    """Where it stands, which cells it needs, and answers that a learner may try in vain."""

    notebook: str
    needs: tuple[str, ...]
    wrong: dict[str, str]


# A drift alarm, right but for its RULE.
DRIFTED = """
def drifted(stretches):
    apart = [guesses - grades for guesses, grades in stretches]
    errors = [d.std(ddof=1) / np.sqrt(len(d)) for d in apart]
    for i in range(1, len(apart)):
        grown = apart[i].mean() - apart[0].mean()
        if RULE:
            return i
    return None
"""

EXERCISES = {
    "faults": Exercise(
        "01_jsonl_data",
        (
            *("setup", "config", "read-leniently", "lenient-broken"),
            *("row-fault", "clean-by-hand", "check"),
        ),
        {
            "a part of a word is taken for the answer": """
def find_faults(rows):
    found = solution(rows)
    found["told"] = [n for n, row in rows.items() if named(row) in text_of(row)]
    return found
""",
            "a copy with another answer is let through": """
def find_faults(rows):
    found, seen = solution(rows), []
    found["copied"] = []
    for number, row in rows.items():
        key = [row.get("messages"), row.get("reference_gene")]
        if key in seen:
            found["copied"].append(number)
        seen.append(key)
    return found
""",
        },
    ),
    "advantages": Exercise(
        "04_grpo_by_hand",
        ("setup",),
        {
            "the whole batch is one group": """
def advantages(rewards_P_G, scale=True):
    found = rewards_P_G - rewards_P_G.mean()
    return found / (rewards_P_G.std() + 1e-4) if scale else found
""",
            "the spread divides by G": """
def advantages(rewards_P_G, scale=True):
    found = rewards_P_G - rewards_P_G.mean(dim=1, keepdim=True)
    spread = rewards_P_G.std(dim=1, keepdim=True, unbiased=False)
    return found / (spread + 1e-4) if scale else found
""",
            "a dead group is 0 / 0": """
def advantages(rewards_P_G, scale=True):
    found = rewards_P_G - rewards_P_G.mean(dim=1, keepdim=True)
    return found / (found.abs().sum(dim=1, keepdim=True)) if scale else found
""",
            "the spread always divides": """
def advantages(rewards_P_G, scale=True):
    return solution(rewards_P_G)
""",
        },
    ),
    "clip": Exercise(
        "04_grpo_by_hand",
        ("setup",),
        {
            "the clip holds on both sides": """
def objective(ratio, advantage, low=0.2, high=0.28):
    return ratio.clamp(1 - low, 1 + high) * advantage
""",
            "no clip": """
def objective(ratio, advantage, low=0.2, high=0.28):
    return ratio * advantage
""",
            "the larger of the two": """
def objective(ratio, advantage, low=0.2, high=0.28):
    return torch.max(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
""",
            "as high as low": """
def objective(ratio, advantage, low=0.2, high=0.28):
    return solution(ratio, advantage, low, low)
""",
        },
    ),
    "dead": Exercise(
        "04_grpo_by_hand",
        ("setup",),
        {
            "each draw is put back": """
def dead_share(grades, group):
    return sum((grades.count(g) / len(grades)) ** group for g in set(grades))
""",
            "right or wrong are the only grades": """
def dead_share(grades, group):
    return solution([g > 0.9 for g in grades], group)
""",
        },
    ),
    "estimate": Exercise(
        "03_signal",
        ("setup",),
        {
            "answers are put back": """
def chance(n, right, k):
    return 1 - (1 - right / n) ** k
""",
            "the first k of all are looked at": """
def chance(n, right, k):
    return float(right > 0)
""",
            "exactly one right answer counts": """
import math


def chance(n, right, k):
    return right * math.comb(n - right, k - 1) / math.comb(n, k)
""",
        },
    ),
    "group": Exercise(
        "03_signal",
        ("setup",),
        {
            "a group that is all right counts as alive": """
def group_size(solved, live):
    k = 2
    while 1 - (1 - solved) ** k < live:
        k += 1
    return k
""",
            "one answer too many": """
def group_size(solved, live):
    return solution(solved, live) + 1
""",
        },
    ),
    "verify": Exercise(
        "03_signal",
        ("setup", "config", "gate-call", "scripted", "reports"),
        {
            "likeness to the summary": """
def verifiable():
    fields = solution()
    fields["grader"] = {
        "type": "text_similarity",
        "name": "likeness",
        "evaluation_metric": "rouge_l",
        "input": "{{sample.output_text}}",
        "reference": "{{item.summary}}",
    }
    return fields
""",
            "any answer that holds something is right": """
def verifiable():
    fields = solution()
    fields["grader"].update(operation="ne", reference="")
    return fields
""",
        },
    ),
    "emotion": Exercise(
        "02_grader_design",
        ("setup", "config"),
        {
            "the same guess twice pays 1.5": """
def two_guesses(sample, item):
    guesses = sample["output_json"]["emotions"][:2]
    hits = [guess.lower() == item["emotion"].lower() for guess in guesses]
    return sum(hit * value for hit, value in zip(hits, (1.0, 0.5)))
""",
            "case matters": """
def two_guesses(sample, item):
    for guess, value in zip(sample["output_json"]["emotions"], (1.0, 0.5)):
        if guess == item["emotion"]:
            return value
    return 0.0
""",
        },
    ),
    "cheat": Exercise(
        "02_grader_design",
        ("setup", "config", "load"),
        {
            "five genes of all": """
def cheat(genes):
    return json.dumps({"genes": genes[:5]})
""",
            "all genes, of which five are read": """
def cheat(genes):
    return json.dumps({"genes": genes})
""",
        },
    ),
    "json": Exercise(
        "02_grader_design",
        ("setup", "config"),
        {
            "the same guess twice pays 1.5": """
def emotion_json():
    spec = solution()
    spec["calculate_output"] = (
        "first_holds * first_is_held + 0.5 * second_holds * second_is_held"
    )
    return spec
""",
            "case matters": """
def emotion_json():
    spec = solution()
    for grader in spec["graders"].values():
        grader["operation"] = "eq"
    return spec
""",
        },
    ),
    "stop": Exercise(
        "05_train_lora_grpo",
        (),
        {
            "looks after the end are seen": """
def when_to_stop(means, patience):
    best = means.index(max(means))
    return best, min(best + patience, len(means) - 1)
""",
            "as good counts as better": """
def when_to_stop(means, patience):
    best = 0
    for look, mean in enumerate(means):
        if mean >= means[best]:
            best = look
        if look - best >= patience:
            break
    return best, look
""",
        },
    ),
    "alarm": Exercise(
        "05_train_lora_grpo",
        ("setup",),
        {
            "luck is taken for a change": """
def parted(metric_then, metric_now, grade_then, grade_now):
    return metric_now.mean() < metric_then.mean() and grade_now.mean() > grade_then.mean()
""",
            "the looks are not compared row by row": """
def parted(metric_then, metric_now, grade_then, grade_now):
    def rise(then, now):
        error = np.sqrt((then.var(ddof=1) + now.var(ddof=1)) / len(then))
        return (now.mean() - then.mean()) / error
    return rise(metric_then, metric_now) < -2 and rise(grade_then, grade_now) > 2
""",
            "the reward is not asked": """
def parted(metric_then, metric_now, grade_then, grade_now):
    return solution(metric_then, metric_now, 1 - metric_then, 1 - metric_now)
""",
            "the spread is taken for the error of the mean": """
def parted(metric_then, metric_now, grade_then, grade_now):
    def rise(then, now):
        return (now - then).mean() / ((now - then).std(ddof=1) + 1e-9)
    return rise(metric_then, metric_now) < -2 and rise(grade_then, grade_now) > 2
""",
        },
    ),
    "pairs": Exercise(
        "12_reward_model",
        ("setup",),
        {
            "ties are pairs": """
def share_right(guesses, grades):
    pairs = [
        (guesses[i] - guesses[j]) * (grades[i] - grades[j]) > 0
        for i in range(len(grades)) for j in range(i)
    ]
    return sum(pairs) / len(pairs) if any(a != grades[0] for a in grades) else float("nan")
""",
            "no opinion is right": """
def share_right(guesses, grades):
    pairs = [
        (guesses[i] - guesses[j]) * (grades[i] - grades[j]) >= 0
        for i in range(len(grades)) for j in range(i) if grades[i] != grades[j]
    ]
    return sum(pairs) / len(pairs) if pairs else float("nan")
""",
            "the worse answer is guessed higher": """
def share_right(guesses, grades):
    return solution([-guess for guess in guesses], grades)
""",
        },
    ),
    "drift": Exercise(
        "12_reward_model",
        ("setup",),
        {
            "any difference counts": DRIFTED.replace("RULE", "grown > 1e-9"),
            "a fall counts": DRIFTED.replace(
                "RULE", "abs(grown) > 2 * np.hypot(errors[0], errors[i])"
            ),
            "the spread is taken for the error of the mean": DRIFTED.replace(
                "RULE", "grown > 2 * np.hypot(apart[0].std(ddof=1), apart[i].std(ddof=1))"
            ),
            "the first stretch has no error": DRIFTED.replace("RULE", "grown > 2 * errors[i]"),
            "three standard errors are asked for": DRIFTED.replace(
                "RULE", "grown > 3 * np.hypot(errors[0], errors[i])"
            ),
            "the last stretch, not the first": """
def drifted(stretches):
    found = [i for i in range(1, len(stretches)) if solution([stretches[0], stretches[i]])]
    return found[-1] if found else None
""",
        },
    ),
    "paired": Exercise(
        "06_evaluate",
        ("setup",),
        {
            "the two systems are drawn apart": """
def paired_interval(a, b, clusters, resamples=1000):
    rng = np.random.default_rng(0)
    means = [
        rng.choice(a, len(a)).mean() - rng.choice(b, len(b)).mean() for _ in range(resamples)
    ]
    return np.quantile(means, [0.025, 0.975])
""",
            "rows are drawn in place of clusters": """
def paired_interval(a, b, clusters, resamples=1000):
    rng = np.random.default_rng(0)
    means = [rng.choice(a - b, len(a)).mean() for _ in range(resamples)]
    return np.quantile(means, [0.025, 0.975])
""",
            "the difference has the wrong sign": """
def paired_interval(a, b, clusters, resamples=1000):
    low, high = solution(a, b, clusters)
    return -high, -low
""",
        },
    ),
}

# What the wrong answers of "faults" share.
HELPERS = """
import re


def named(row):
    answer = row.get("reference_gene")
    return answer if isinstance(answer, str) else "no answer"


def text_of(row):
    messages = row.get("messages")
    messages = messages if isinstance(messages, list) else []
    return " ".join(str(m["content"]) for m in messages if m["role"] == "user")
"""


@cache
def cells(name: str) -> dict[str, str]:
    """Cell id -> its Python, or a Markdown cell's text."""
    [path] = [path for path in NOTEBOOKS if path.stem == name]
    return {
        cell["id"]: python_of(cell) if cell["cell_type"] == "code" else "".join(cell["source"])
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
    }


def solution_of(name: str, exercise: str) -> str:
    text = cells(name)[f"exercise-{exercise}-solution"]
    match = re.search(r"<details><summary>Solution</summary>\n\n```python\n(.*?)```", text, re.S)
    assert match, f"{name}: no python block in the solution of {exercise}"
    return match.group(1)


def run(code: str, namespace: dict) -> str:
    """Execute and return what was printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "<cell>", "exec"), namespace)
    return printed.getvalue()


@pytest.fixture(scope="module")
def context():
    """Exercise -> a copy of the names that its cells find when a learner comes to them."""
    made = {}

    def make(exercise: str) -> dict:
        about = EXERCISES[exercise]
        if exercise not in made:
            namespace: dict = {"__name__": "__main__"}
            for cell in (*about.needs, f"exercise-{exercise}-stub"):
                run(cells(about.notebook)[cell], namespace)
            made[exercise] = namespace
        return dict(made[exercise])

    return make


def check(exercise: str, namespace: dict) -> str:
    return run(cells(EXERCISES[exercise].notebook)[f"exercise-{exercise}-check"], namespace)


def test_an_exercise_stands_in_a_notebook_and_not_here():
    found = {
        match.group(1): path.stem
        for path in NOTEBOOKS
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if (match := re.fullmatch(r"exercise-(\w+)-stub", cell["id"]))
    }
    assert found == {name: exercise.notebook for name, exercise in EXERCISES.items()}
    assert all(len(exercise.wrong) >= 2 for exercise in EXERCISES.values())


@pytest.mark.parametrize("exercise", EXERCISES)
def test_an_unsolved_exercise_stops_the_notebook_or_passes(context, exercise):
    printed = check(exercise, context(exercise))
    assert "not solved yet" in printed and "passed" not in printed


@pytest.mark.parametrize("exercise", EXERCISES)
def test_a_solution_does_not_pass_its_own_check(context, exercise):
    namespace = context(exercise)
    run(solution_of(EXERCISES[exercise].notebook, exercise), namespace)
    assert ": passed" in check(exercise, namespace)


@pytest.mark.parametrize(
    ("exercise", "answer"),
    [(name, answer) for name, exercise in EXERCISES.items() for answer in exercise.wrong],
)
def test_a_wrong_answer_passes(context, exercise, answer):
    namespace = context(exercise)
    run(solution_of(EXERCISES[exercise].notebook, exercise), namespace)
    wrong = EXERCISES[exercise].wrong[answer]
    namespace["solution"] = namespace[re.search(r"^def (\w+)", wrong, re.M).group(1)]
    run(HELPERS + wrong, namespace)
    with pytest.raises(AssertionError):
        check(exercise, namespace)
