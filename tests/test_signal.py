"""The signal gate: each planted fault is named, a good task goes, what is unsure is said so.

Scripted policies answer sums; the embedded mini stands in for a real model.
"""

import json
import random
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from typer.testing import CliRunner

from rftkit import Sample, UserError, cli, grader, measure_signal
from rftkit.graders.judge import JudgeSettings
from rftkit.signal.checks import check_template, prompt_notes
from rftkit.signal.numbers import dead_chance, pass_at_k, share_interval, spread_parts
from rftkit.signal.verdict import FEW_ROWS, completion_limit
from rftkit.task import task_from_json


def check(reference="{{item.answer}}", path="{{sample.output_json.sum}}", operation="eq"):
    texts = {"input": path, "reference": reference}
    return {"type": "string_check", "name": "sum", "operation": operation, **texts}


def formula(text, **parts):
    return {"type": "multi", "name": "sums", "graders": parts, "calculate_output": text}


GOOD, FORM = check(), check("", operation="ne")
PARTIAL = formula("0.9 * right + 0.1 * form", right=GOOD, form=FORM)
LIKE = {"type": "text_similarity", "name": "like", "evaluation_metric": "fuzzy_match",
        "input": "{{sample.output_text}}", "reference": "{{item.answer}}"}  # fmt: skip
OPINION = {"type": "score_model", "name": "n", "model": "m", "input": [
    {"role": "user", "content": "Is {{sample.output_text}} good? {{item.answer}}"}]}  # fmt: skip
TEMPLATE = '{"sum": "{{item.answer}}"}'


TIDY = formula(
    "0.9 * right + 0.1 * tidy",
    right=GOOD, tidy=check(reference="yes", path="{{sample.output_json.tidy}}"),
), 40, '{"sum": "{{item.answer}}", "tidy": "yes"}'  # fmt: skip


def sums(grader=GOOD, count=40, template=TEMPLATE):
    """(task, rows): row i asks for i + 100."""
    record = {"name": "sums", "question": "?", "grader": grader, "group_by": "answer"}
    rows = [
        {"messages": [{"role": "user", "content": f"What is {i} + 100?"}], "answer": str(i + 100)}
        for i in range(count)
    ]
    return task_from_json(record | ({"answer_template": template} if template else {})), rows


class Scripted:
    """A policy from `answer(right sum, index, random) -> text or (text, tokens)`."""

    name = "scripted"

    def __init__(self, answer):
        self.answer, self.drawn, self.seeds = answer, 0, []

    def sample(self, prompts, n, config):
        self.drawn += len(prompts) * n
        self.seeds.append(config.seed)
        return [[self.one(prompt, i, config) for i in range(n)] for prompt in prompts]

    def one(self, prompt, index, config):
        question = prompt[-1]["content"]
        rng = random.Random(f"{config.seed} {question} {index}")
        answer = self.answer(int(question.split()[2]) + 100, index, rng)
        text, tokens = answer if isinstance(answer, tuple) else (answer, 10)
        if tokens <= config.max_new_tokens:
            return Sample.from_text(text, index=index, completion_tokens=tokens)
        cut = text[: len(text) * config.max_new_tokens // tokens]
        known = {"finish_reason": "length", "completion_tokens": config.max_new_tokens}
        return Sample.from_text(cut, index=index, **known)


def written(value):
    return f'<think>Add.</think>{{"sum": "{value}"}}'


def guesses(share=0.3, tokens=10):
    """Right with probability `share`, else a number that is near."""
    return Scripted(lambda right, index, rng: (
        written(right + (rng.random() >= share) * rng.randint(1, 9)), tokens
    ))  # fmt: skip


def nearly_dead(right, index, rng):
    """Three rows in ten are live: just beside the threshold."""
    return written(right + (0 if right % 10 < 3 and index % 2 else rng.randint(1, 9)))


def form_only(right, index, rng):
    """Half of the answers can be read, none is right."""
    wrong = written(right + rng.randint(1, 9))
    return wrong if index % 2 else "I do not know, " * rng.randint(1, 3)


def gate(policy, task_and_rows, **settings):
    return measure_signal(policy, *task_and_rows, **{"max_completion_tokens": 64} | settings)


# fault -> (policy, the task's grader and template, what else may be named)
FAULTS = {
    "constant reward": (guesses(), [formula("0 * right + 0.5", right=GOOD)], []),
    "constant reward, nothing known right": (
        guesses(), [check("7", "{{item.answer}}"), 40, None], []),
    "inverted reward": (guesses(), [check(operation="ne")], []),
    "blind grader": (Scripted(form_only), [formula("f + 0 * right", right=GOOD, f=FORM)], []),
    "reference cannot score": (guesses(), [check("{{item.answer}}.0")], ["constant reward"]),
    "reference cannot score, weights": (guesses(), [formula("0.8 * right", right=GOOD)], []),
    "limit too short": (guesses(tokens=90), [], []),
    "limit too short, for a long thought": (guesses(tokens=100_000), [], []),
    "unreadable answers": (
        Scripted(lambda right, index, rng: "".join(rng.choices("abc {}", k=20))), [], []),
    "task too easy": (guesses(share=0.99), [], []),
    "task impossible": (guesses(share=0), [], []),
    "task impossible, form moves": (Scripted(form_only), [PARTIAL], []),
    "too little exploration": (Scripted(lambda *_: written(7)), [], []),
    "no verifiable answer, form": (guesses(), [FORM], []),
    "no verifiable answer, any text": (
        guesses(), [check("", "{{sample.output_text}}", "ne"), 40, None], ["constant reward"]),
    "no verifiable answer, wording": (
        guesses(), [LIKE | {"reference": "{{item.answer}}" + " word" * 30}, 40, None], []),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_named(fault):
    policy, task, beside = FAULTS[fault]
    policy.drawn, name = 0, fault.split(",")[0]
    signal = gate(policy, sums(*task))
    assert signal.verdict == "fix" and name in signal.reason
    # One fault, one cause: what follows from it is not called a fault of its own.
    assert signal.names() == [name, *beside]
    assert signal.findings[0].evidence and signal.findings[0].setting
    assert (policy.drawn == signal.samples == 0) is (name == "no verifiable answer")


def test_a_judges_opinion_is_a_note_and_the_other_findings_decide(monkeypatch):
    def ask(self, request, read):
        answer, _, right = request["messages"][0]["content"].partition(" good? ")
        return float(right in answer)

    monkeypatch.setattr(JudgeSettings, "ask", ask)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    for policy, verdict, names in (
        (guesses(), "go", []),
        (guesses(share=0), "fix", ["constant reward"]),
    ):
        signal = gate(policy, sums(OPINION, 40, None))
        assert (signal.verdict, signal.names()) == (verdict, names)
        assert any("opinion" in note for note in signal.notes)
        assert signal.questions[1].answer == "not measured"


def test_a_good_task_goes():
    signal = gate(guesses(), sums())
    assert signal.verdict == "go" and signal.findings == [] == signal.notes
    assert signal.pass_at[1].low < 0.3 < signal.pass_at[1].high
    assert signal.pass_at[8].mean > 0.85 and signal.format_share == 0.0
    assert [q.answer for q in signal.questions] == ["yes", "yes", "yes"]
    unknown = gate(guesses(), sums(LIKE, template=None))
    assert unknown.findings == [] and unknown.questions[1].answer == "not measured"


@pytest.mark.parametrize(("completions", "most"), [(0, 256), (100_000, 5_000), (100_000, 40)])
@pytest.mark.parametrize(("count", "answers"), [(1, 8), (7, 8), (600, 2), (600, 300)])
def test_the_gate_stays_within_its_budget(completions, most, count, answers):
    policy, known = guesses(share=0.05), {"answers": answers, "completions": completions}
    signal = gate(policy, sums(count=count), most=most, **known)
    assert policy.drawn == signal.samples <= most == signal.budget


def test_undecided_says_how_many_more_and_a_long_run_draws_them():
    few, policy = gate(Scripted(nearly_dead), sums(count=2000)), Scripted(nearly_dead)
    assert few.verdict == "undecided" and few.names() == ["task impossible"]
    assert few.findings[0].level == "open"
    assert few.dead_ability.low <= 0.8 <= few.dead_ability.high
    assert few.more_samples > 0 and f"{few.more_samples:,} more" in few.reason
    short = gate(Scripted(nearly_dead), sums(count=40))
    assert (short.verdict, short.more_samples) == ("undecided", None) and "add rows" in short.reason
    many = gate(policy, sums(count=2000), completions=200_000)
    assert many.verdict == "go" and few.samples < 256 < many.samples == policy.drawn <= 10_000
    assert len(set(policy.seeds)) == len(policy.seeds) > 1
    assert len({group[0].row_id for group in many.drawn}) == many.rows  # no row is drawn twice


def test_few_rows_do_not_pass_for_many():
    three = gate(guesses(share=0), sums(count=3))  # drawn often, and yet they prove little
    assert (three.answers, three.verdict) == (80, "undecided")
    few, enough = (gate(guesses(), sums(count=count)) for count in (FEW_ROWS - 1, FEW_ROWS))
    assert few.verdict == enough.verdict == "go" and len(few.notes) == 1 and not enough.notes


@pytest.mark.parametrize("unread", [0, 1, 3])
@pytest.mark.parametrize("rewards", [[], [1, 1], [0, 0, 1, 0.5], [0.1 + 0.2, 0.3, 0.3]])
def test_pass_at_k_and_dead_groups_are_means_over_all_groups_of_k(rewards, unread):
    marked = [round(r, 9) for r in rewards] + [None] * unread
    for k in (1, 2, 3):
        groups = list(combinations(marked, min(k, len(marked))))
        dead = [len({r for r in group if r is not None}) <= 1 for group in groups]
        assert dead_chance(rewards, k, unread) == pytest.approx(np.mean(dead))
    for k in range(1, len(marked) + 1):
        solved = [1 in group for group in combinations(marked, k)]
        assert pass_at_k(len(marked), marked.count(1), k) == pytest.approx(np.mean(solved))


def test_right_is_what_the_tasks_metric_says_and_the_reward_stands_beside_it():
    task, rows = sums(*TIDY)
    signal = gate(guesses(share=0.4), (replace(task, headline="top1"), rows))
    assert signal.metric == "top1" and signal.pass_at[1].low < 0.4 < signal.pass_at[1].high
    assert signal.pass_at_reward[8].mean == 0 and len(signal.never) < len(rows)
    assert signal.verdict == "go" and "by top1" in signal.questions[0].evidence
    easy = gate(guesses(share=0.99), (replace(task, headline="top1"), rows))
    assert easy.names() == ["task too easy"]


@pytest.mark.parametrize("maximum", [None, 5])
def test_a_grader_of_another_scale_is_read_by_its_best_grade(maximum):
    @grader
    def five(sample, item):
        answer = (sample["output_json"] or {}).get("sum")
        return 5 if answer == item["answer"] else bool(answer)

    task, rows = sums(five)
    with pytest.warns(UserWarning) if maximum is None else nullcontext():
        signal = gate(guesses(), (replace(task, maximum=maximum), rows))
    assert signal.verdict == "go" and signal.to_json()["reference"]["maximum"] == 5
    assert signal.pass_at[1].low < 0.3 < signal.pass_at[1].high
    too_much = gate(guesses(), (replace(task, maximum=6), rows))
    assert too_much.names() == ["reference cannot score"]


def test_an_interval_admits_what_no_row_showed():
    assert share_interval([0, 0, 0], [1, 2, 3]).high == pytest.approx(1 - 0.025 ** (1 / 3))
    assert share_interval([1, 1, 1], [1, 1, 2]).low == pytest.approx(0.025 ** (1 / 2))
    assert share_interval([0, 0, 0], [1, 2, 3], trials=240).high < 0.02
    mixed = share_interval([0, 1, 0, 1], [1, 2, 3, 4])
    assert mixed.low < mixed.mean == 0.5 < mixed.high


def test_variance_is_taken_apart_into_form_and_ability():
    assert spread_parts([0, 0, 1, 1], [False, False, True, True]) == (0.25, 0.0)
    assert spread_parts([0, 1, 0, 1], [False, False, True, True]) == (0.0, 0.25)
    rewards, flags = [0, 0.1, 1, 0.1, 0], [False, True, True, True, False]
    assert sum(spread_parts(rewards, flags)) == pytest.approx(np.var(rewards))
    signal = gate(Scripted(form_only), sums(PARTIAL))
    assert signal.format_share == 1.0 and signal.sub_graders["right"]["mean"] == 0.0
    assert f"  std: {signal.to_json()['spread']:.3g}\n" in signal.text()  # the field's word
    assert "spread" not in signal.text()


def test_a_spread_among_wrong_or_unreadable_answers_is_no_ability():
    wrong = Scripted(lambda m, i, rng: f'{{"sum": "0", "tidy": "{rng.choice(["yes", "no"])}"}}')
    signal = gate(wrong, sums(*TIDY))
    assert signal.dead_groups.mean < 0.2 and signal.dead_ability.mean == 1


def test_answers_that_cannot_be_read_say_why():
    texts = ["", "<think>for ever", "<think></think>", "text", "[1]", '{"sun": "1"}']
    stages = ["empty", "unclosed thinking", "empty", "not JSON"] + ["answer missing"] * 2
    signal = gate(Scripted(lambda right, index, rng: texts[index]), sums(), answers=6)
    assert signal.stages == pytest.approx({name: stages.count(name) / 6 for name in stages})


def test_cut_answers_are_drawn_again_with_more_room():
    def nearly(right, index, rng):
        return written(right + rng.randint(0, 3)), rng.randint(60, 100)

    signal = gate(Scripted(nearly), sums(), max_completion_tokens=64)
    assert signal.cut.low > 0.8 and signal.lengths["most"] == 64 and signal.samples <= 256
    assert signal.lengths["probe"]["room"] == 256 and signal.lengths["probe"]["ended"] == 16
    room = int(signal.findings[0].setting.split("about ")[1].split(",")[0])
    assert 90 <= signal.lengths["probe"]["p95"] <= 100 < room <= 128
    longer = gate(Scripted(nearly), sums(), max_completion_tokens=room)
    assert longer.verdict == "go" and "probe" not in longer.lengths
    grades = [sample["grade"] for sample in signal.shown]
    assert grades == sorted(grades) and len(grades) == 6


def test_what_cannot_run_is_refused_before_a_draw():
    policy, (task, rows) = guesses(), sums()
    del rows[3]["answer"]
    for arguments, answers in (((task, rows), 8), ((task, []), 8), (sums(), 1)):
        with pytest.raises(UserError):
            gate(policy, arguments, answers=answers)
    assert policy.drawn == 0


def test_lost_answers_and_lost_grades_are_not_taken_for_zeros():
    dead = Scripted(None)
    dead.one = lambda *_: Sample(finish_reason="error", errors=["refused"])
    with pytest.raises(UserError, match="240 of 240.*refused"):
        gate(dead, sums())
    signal = gate(guesses(), sums(formula("right / (right - right)", right=GOOD)))
    assert signal.verdict == "fix" and signal.names()[0] == "grader fails"
    assert signal.lost_grades == 1.0 and signal.reward is None and "lost" in signal.text()


BROKEN = {  # from the mini's own template
    "another model's": lambda own: own.replace("<|", "<|im_"),
    "without the question": lambda own: own.replace("'<|user|>' + message.content", "'<|user|>'"),
    "not a template": lambda own: "{% for m in messages %}",
    "the turn is over": lambda own: own + "<|end|>\n",
    "the turns are swapped": lambda own: own.replace("{{ '<|assistant|>' }}", "{{ '<|user|>' }}"),
    "no prompt for an answer": lambda own: own.split("{% if add_generation_prompt")[0],
}
SOUND = {
    "its own": lambda own: own,
    "for questions alone": lambda own: (
        "{% for m in messages %}User: {{ m.content }}\nAssistant:{% endfor %}"
    ),
    "thinking is opened": lambda own: (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|><think>{% endif %}"
    ),
}


@pytest.mark.parametrize("kind", [*BROKEN, *SOUND])
def test_a_broken_template_is_named_and_a_sound_one_of_another_family_is_not(
    mini, genes, kind, monkeypatch
):
    own, (task, rows) = mini.tokenizer.chat_template, genes
    planted = (BROKEN | SOUND)[kind](own)
    assert kind in SOUND or planted != own
    monkeypatch.setattr(mini.tokenizer, "chat_template", planted)
    foreign = {"messages": [{"role": "user", "content": "<|im_start|> <b>[INST] <|end|>"}]}
    assert bool(check_template(mini, [foreign, *rows[:2]])) is (kind in BROKEN)
    if kind in BROKEN:  # what the model reads is not the task: its answers say nothing
        signal = measure_signal(mini, task, rows)
        assert signal.names() == ["chat template broken"] and signal.samples == 0


@pytest.mark.parametrize("missing", [True, False])
def test_an_end_token_is_missing_only_where_it_is(mini, genes, monkeypatch, missing):
    """Neither model ends an answer: one has another end token, the other goes on."""
    if missing:
        monkeypatch.setattr(mini, "tokenizer", deepcopy(mini.tokenizer))
        mini.tokenizer.eos_token = "<|pad|>"
        monkeypatch.setattr(mini.model.generation_config, "eos_token_id", None)
    else:
        monkeypatch.setattr("rftkit.decoding.end_tokens", lambda *model: set())
    signal = measure_signal(mini, *genes, max_completion_tokens=16, most=64)
    assert signal.endless and ("end token missing" in signal.names()) is missing
    if missing:
        assert "<|end|> closes an answer" in signal.findings[0].setting


def test_the_limit_of_an_answer_comes_from_the_model(mini, genes):
    assert completion_limit(mini, genes[1], 1_000, 1.0, 0)[0] == 64
    rows = [{"messages": [{"role": "user", "content": f"What is {i} + 1?"}]} for i in range(40)]
    for most, limit in ((1_000, 112), (80, 80)):  # 90 to 100 tokens, and a tenth more
        long = Scripted(lambda right, index, rng: (written(right), rng.randint(90, 100)))
        assert completion_limit(long, rows, most, 1.0, 0)[0] == limit and long.drawn < 30
    signal = measure_signal(guesses(tokens=90), *sums())
    assert signal.lengths["limit"] == 112 and "max_completion_tokens 112" in signal.notes[0]


@pytest.mark.parametrize(
    ("role", "content", "named"),
    [
        ("user", "I feel so sad and lonely today, my best friend forgot me.", "of the words"),
        ("user", "Мой друг забыл меня, и я очень грустный сегодня.", "of the words"),
        ("developer", "Symptoms present: Ataxia.", '"developer" is given as "system"'),
        ("system", "Symptoms present: Ataxia.", None),
    ],
)
def test_what_the_model_does_not_know_is_said(mini, genes, role, content, named):
    rows = [{"messages": [{"role": role, "content": content}]}]
    notes = prompt_notes(mini, rows)
    assert [named in note for note in notes] == ([True] if named else [])
    assert prompt_notes(mini, genes[1]) == []
    own = guesses()  # a policy of one's own that wraps a model
    own.tokenizer = mini.tokenizer
    assert gate(own, sums()).verdict == "go"


@pytest.mark.parametrize(
    ("reference", "verdict", "named"),
    [
        ("{{item.answer}}", "undecided", ["model cannot read the rows"]),
        (
            "not {{item.answer}}",
            "fix",
            ["reference cannot score", "constant reward", "model cannot read the rows"],
        ),
    ],
)
def test_answers_of_a_model_that_cannot_read_the_rows_accuse_no_task(
    mini, reference, verdict, named
):
    task, rows = sums(check(reference))
    for row in rows:
        row["messages"][0]["content"] += " My best friend forgot me today, please tell the sum."
    signal = measure_signal(mini, task, rows, most=32, max_completion_tokens=32)
    assert (signal.verdict, signal.names()) == (verdict, named)
    assert "embedded:mini" in signal.findings[-1].evidence
    assert signal.samples == 16 + 16 * ("probe" in signal.lengths)
    untested = replace(task, answer_template=None, metrics=["grade"], headline="grade")
    signal = measure_signal(mini, untested, rows, most=32, max_completion_tokens=32)
    assert signal.names() == ["model cannot read the rows"], "only the answers speak of this grader"


def test_an_interrupted_command_says_what_shortens_it(tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("rftkit.training.run.run_signal", stopped)
    (tmp_path / "run.json").write_text(json.dumps({"task": "gene_ranking"}))
    result = CliRunner().invoke(cli.app, ["signal", str(tmp_path / "run.json")])
    assert result.exit_code == 130 and "max_completion_tokens" in result.stderr


def test_the_command_prints_the_verdict_and_ends_with_its_exit_code(monkeypatch, mini, tmp_path):
    monkeypatch.setattr("rftkit.policy.load_policy", lambda *given, settings: mini)
    config = tmp_path / "run.json"

    def run(record, *arguments):
        config.write_text(json.dumps({"task": "gene_ranking"} | record))
        return CliRunner().invoke(cli.app, ["signal", str(config), *arguments])

    good = run({}, "--json")
    signal = json.loads(good.stdout)
    assert good.exit_code == 0 and signal["verdict"] == "go"
    assert (signal["rows"], signal["answers"], signal["samples"]) == (30, 8, 240)
    assert (signal["pass_at_reward"]["1"]["mean"], signal["reward"]["mean"]) == (0.1292, 0.2231)
    assert (signal["metric"], signal["pass_at"]["1"]["mean"]) == ("top1", 0.1292)
    bad = run({"max_completion_tokens": 12}, "--json")
    (finding,) = json.loads(bad.stdout)["findings"]
    assert (bad.exit_code, finding["name"]) == (3, "limit too short") and finding["knob"]
    assert run({"method": "sft"}).exit_code == 1
