"""Faults planted in the demo task and the embedded mini, as a stranger would plant them."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from rftkit.records import Sample
from rftkit.signal.checks import look_at_template, why_constant
from rftkit.signal.verdict import measure_signal

FIRST = {
    "type": "string_check", "name": "first", "input": "{{sample.output_json.genes[0]}}",
    "reference": "{{item.reference_gene}}", "operation": "eq",
}  # fmt: skip


class Told:
    """A policy that says what `answer(row, index, limit) -> (text, finish_reason)` says."""

    name = "told"

    def __init__(self, rows, answer):
        self.rows, self.answer, self.drawn = rows, answer, 0

    def sample(self, prompts, n, config):
        self.drawn += len(prompts) * n
        by_prompt = {str(row["messages"]): row for row in self.rows}
        return [
            [
                self.one(*self.answer(by_prompt[str(prompt)], index, config.max_new_tokens), config)
                for index in range(n)
            ]
            for prompt in prompts
        ]

    @staticmethod
    def one(text, reason, config):
        tokens = config.max_new_tokens if reason == "length" else 5
        return Sample.from_text(text, finish_reason=reason, completion_tokens=tokens)


# --- the chat template ---------------------------------------------------------------------------

TURNS = (
    "{% for m in messages %}<OPEN>{{ m.role }}\n{{ m.content }}<CLOSE>\n{% endfor %}"
    "{% if add_generation_prompt %}<OPEN>assistant\n{% endif %}"
)


def turns(opening, closing):
    return lambda own: TURNS.replace("<OPEN>", opening).replace("<CLOSE>", closing)


BROKEN = {
    "ChatML": (turns("<|im_start|>", "<|im_end|>"), "<|im_start|> is no token"),
    "Gemma's": (turns("<start_of_turn>", "<end_of_turn>"), "<start_of_turn> is no token"),
    "one strange marker": (
        lambda own: own.replace("{{ '<|assistant|>' }}", "{{ '<|asst|>' }}"),
        "<|asst|> is no token",
    ),
    "the turn is over": (lambda own: own + "<|end|>", "the prompt ends with <|end|>"),
    "the turn is over, then a line": (lambda own: own + "<|end|>\n", "the prompt ends with"),
    "the turns are swapped": (
        lambda own: own.replace("{{ '<|assistant|>' }}", "{{ '<|user|>' }}"),
        "ends with '<|user|>'",
    ),
    "no prompt for an answer": (
        lambda own: own.split("{% if add_generation_prompt")[0],
        "begins an answer with '<|assistant|>'",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_template_trains(mini, genes, kind, monkeypatch):
    plant, evidence = BROKEN[kind]
    planted = plant(mini.tokenizer.chat_template)
    assert planted != mini.tokenizer.chat_template
    monkeypatch.setattr(mini.tokenizer, "chat_template", planted)
    signal = measure_signal(mini, *genes)
    assert signal.verdict == "fix" and signal.names() == ["chat template broken"]
    assert evidence in signal.findings[0].evidence


def test_a_marker_that_is_unknown_to_the_tokenizer_passes_as_a_token(mini, genes):
    """One piece, but the unknown token; written as such it is a token like any other."""

    class Tokenizer:
        """The mini's, with <|user|> for its unknown token."""

        unk_token, unk_token_id = "<|user|>", mini.tokenizer.convert_tokens_to_ids("<|user|>")

        def __getattr__(self, name):
            return getattr(mini.tokenizer, name)

        def __call__(self, text, **settings):
            return mini.tokenizer(text.replace("<|assistant|>", "<|user|>"), **settings)

    look = look_at_template(replace(mini, tokenizer=Tokenizer()), genes[1][:2])
    assert len(look.faults) == 1 and "<|assistant|>, which this tokenizer" in look.faults[0]


SOUND = {
    "plain words": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}",
    "for questions alone": "{% for m in messages %}User: {{ m.content }}\nAssistant:{% endfor %}",
    "nothing but text": "{% for m in messages %}{{ m.content }}\n{% endfor %}",
    "an end token after every message": "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}",
    "an end token after the question": "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
    "an answer that always follows": "{% for m in messages %}{% if m.role == 'user' %}<|user|>"
    "{{ m.content }}<|assistant|>{% else %}{{ m.content }}<|end|>{% endif %}{% endfor %}",
    "thinking is opened": "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>{% endif %}",
    "an end token before an answer": "{% for m in messages %}{% if m.role == 'user' %}<|user|>"
    "{{ m.content }}<|end|>{% else %}{{ m.content }}<|end|>{% endif %}{% endfor %}",
    "an answer chooses its channel": "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.role == 'assistant' %}<|system|>{% endif %}{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    "refuses to write answers": "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{{ raise_exception('no') }}{% endif %}<|user|>{{ m.content }}{% endfor %}<|assistant|>",
}


@pytest.mark.parametrize("kind", SOUND)
def test_a_sound_template_of_another_family_is_called_broken(mini, genes, kind, monkeypatch):
    monkeypatch.setattr(mini.tokenizer, "chat_template", SOUND[kind])
    look = look_at_template(mini, genes[1][:2])
    assert (look.checked, look.faults, look.odd) == (True, [], [])


@pytest.mark.parametrize(
    "text", ["<b>1</b> <|im_start|> ", "<start_of_turn>[INST]", "a", "<|end|>"]
)
def test_what_the_user_wrote_is_called_a_broken_marker(mini, text):
    rows = [{"messages": [{"role": "user", "content": text}]}]
    look = look_at_template(mini, rows)
    assert (look.faults, look.odd) == ([], [])


def test_markers_in_letters_that_the_model_has_learnt_are_called_broken(mini, genes, monkeypatch):
    """Some models are trained on markers that are no tokens: the next piece does not surprise."""
    import torch

    class Learnt(torch.nn.Module):
        """Knows every next token."""

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.generation_config = mini.model.generation_config

        def forward(self, input_ids):
            following = input_ids.roll(-1, dims=1)
            logits = 20.0 * torch.nn.functional.one_hot(following, len(mini.tokenizer))
            return SimpleNamespace(logits=logits)

    monkeypatch.setattr(mini.tokenizer, "chat_template", turns("<|im_start|>", "<|im_end|>")(None))
    rows = genes[1][:2]
    assert look_at_template(mini, rows).faults
    look = look_at_template(replace(mini, model=Learnt()), rows)
    assert look.faults == [] and len(look.odd) == 2


# --- the limit -----------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 4])
def test_a_tiny_limit_passes_for_a_missing_end_token(mini, genes, limit):
    signal = measure_signal(mini, *genes, max_completion_tokens=limit)
    assert signal.verdict == "fix" and signal.names() == ["limit too short"]
    assert signal.lengths["probe"]["ended"] > 8 and "max_completion_tokens" in (
        signal.findings[0].knob
    )


def test_a_policy_that_is_always_cut_is_said_to_lack_an_end_token_alone(genes):
    policy = Told(genes[1], lambda row, index, limit: ("<think>abc", "length"))
    signal = measure_signal(policy, *genes)
    assert signal.verdict == "fix"
    assert signal.names() == ["end token missing", "limit too short"]
    assert "more than" in signal.findings[1].knob


def test_some_cut_answers_are_not_mentioned(genes):
    """A fifth is cut: too few for a finding, too many for a task said to be impossible."""

    def answer(row, index, limit):
        if index == 0 and limit <= 64:
            return "<think>abc", "length"
        return f'{{"genes": ["NOTAGENE{index}"]}}', "stop"

    signal = measure_signal(Told(genes[1], answer), *genes)
    assert "task impossible" in signal.names() and "limit too short" not in signal.names()
    (note,) = [note for note in signal.notes if "cut" in note]
    assert "cut at 64 tokens" in note and "16 ended" in note and "longer limit" in note


# --- the grader and the reference ----------------------------------------------------------------


def python(source):
    return {"type": "python", "name": "own", "source": source}


def text_check(reference, operation, path="{{sample.output_text}}"):
    return FIRST | {"input": path, "reference": reference, "operation": operation}


CONSTANT = {
    "python": python("def grade(sample, item):\n    return 0.5"),
    "any text": text_check("", "ne"),
}


@pytest.mark.parametrize("template", [True, False])
@pytest.mark.parametrize("kind", CONSTANT)
def test_a_constant_reward_is_not_named(genes, kind, template):
    task, rows = genes
    task = replace(task, grader_spec=CONSTANT[kind])
    if not template:
        task = replace(task, answer_template=None, worse_answers=[], metrics=["grade"])
    policy = Told(rows, None)
    signal = measure_signal(policy, task, rows)
    assert signal.verdict == "fix" and policy.drawn == 0
    assert signal.names() == ["no verifiable answer", "constant reward"]
    assert "all score" in signal.findings[1].evidence


@pytest.mark.parametrize("template", [True, False])
@pytest.mark.parametrize(
    "grader",
    [
        text_check("", "ne", FIRST["input"]),
        python("def grade(sample, item):\n    return min(1.0, len(sample['output_text']) / 90)"),
        python("def grade(sample, item):\n    raise ValueError"),
        FIRST,
    ],
    ids=["form", "length", "it fails", "the row"],
)
def test_a_grader_that_is_not_constant_is_called_so(genes, grader, template):
    task = replace(genes[0], grader_spec=grader)
    if not template:
        task = replace(task, answer_template=None, worse_answers=[])
    assert why_constant(task, genes[1]) is None


def inverted(task):
    formula = task.grader_spec["calculate_output"]
    return replace(task, grader_spec=task.grader_spec | {"calculate_output": f"1 - ({formula})"})


def half_right(row, index, limit):
    gene = row["reference_gene"] if index % 2 else "NOTAGENE"
    return f'{{"genes": ["{gene}", "NEITHER"]}}', "stop"


@pytest.mark.parametrize(
    "template", ['{"gene": ["{{item.reference_gene}}"]}', "{{item.reference_gene}}"]
)
def test_a_reference_in_another_form_passes_for_an_inverted_reward(genes, template):
    task, rows = genes
    task = replace(task, answer_template=template)
    signal = measure_signal(Told(rows, half_right), task, rows)
    assert signal.verdict == "fix" and signal.names() == ["reference cannot score"]
    assert "worse_answers 0.73" in signal.findings[0].evidence
    assert "answer_template" in signal.findings[0].knob


@pytest.mark.parametrize(
    "invert",
    [inverted, lambda task: replace(task, grader_spec=FIRST | {"operation": "ne"})],
    ids=["1 - x", "ne"],
)
@pytest.mark.parametrize("worse", [True, False])
def test_an_inverted_reward_passes_for_a_reference_in_another_form(genes, invert, worse):
    task, rows = genes
    task = invert(task) if worse else replace(invert(task), worse_answers=[])
    signal = measure_signal(Told(rows, half_right), task, rows)
    assert signal.verdict == "fix" and signal.names() == ["inverted reward"]


# --- undecided -----------------------------------------------------------------------------------


def test_undecided_in_pairs_names_no_number(genes):
    """One row in five has a right and a wrong answer: exactly at the threshold."""
    task, rows = genes
    live = {str(row["messages"]) for row in rows[::5]}

    def answer(row, index, limit):
        right = str(row["messages"]) in live and index % 2
        gene = row["reference_gene"] if right else "NOTAGENE"
        return f'{{"genes": ["{gene}", "{index}"]}}', "stop"

    signal = measure_signal(Told(rows, answer), replace(task, grader_spec=FIRST), rows, answers=2)
    assert signal.verdict == "undecided"
    assert signal.budget == 256 and "more than 5,120 more" in signal.reason
