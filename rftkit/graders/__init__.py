"""Graders: OpenAI's grader JSON evaluated here, graders of our own, and TRL reward functions.

report.py      what can go wrong with a grade, and the report (shape: graders/run)
context.py     what one grade can see: the item and the sample
templates.py   {{ item.x }}, {{ sample.output_json.y[0] }}; an answer made from a row
formula.py     calculate_output: a small parser, no eval
spec.py        read a grader's JSON        spec_checker.py  name every fault in it
checks.py      string_check          similarity.py  text_similarity
models.py      score_model, label_model, over any OpenAI-compatible endpoint
python.py      python graders: checked here, run in isolation or not at all
multi.py       several graders and a formula
core.py        Grader: load, run, grade
rewards.py     a grader as a TRL reward function
reference.py   the reference answer must score the maximum
functions.py   Python functions as graders: @grader, and what native.py is made of
native.py      rank, exact, number, schema, format         shelf.py  the pre-built ones
strategies.py  how a model would cheat
attacks.py     what each strategy earns beside honest answers; ordered answers in order
command_line.py  what stands behind the commands grade, validate-grader, graders
"""

import importlib

_HOMES = {
    "Grader": "core",
    "Grade": "report",
    "GraderReport": "report",
    "GraderFailure": "report",
    "Fault": "report",
    "ERROR_FIELDS": "report",
    "GraderSpecError": "spec",
    "validate_spec": "spec",
    "compile_template": "templates",
    "fill_template": "templates",
    "render_value": "templates",
    "parse_formula": "formula",
    "FormulaError": "formula",
    "JudgeSettings": "models",
    "PythonResult": "python",
    "reward_function": "rewards",
    "ReferenceResult": "reference",
    "reference_check": "reference",
    "grader": "functions",
    "DECAYS": "native",
    "rank_grader": "native",
    "reciprocal_rank": "native",
    "ndcg": "native",
    "exact_match": "native",
    "numeric_match": "native",
    "math_match": "native",
    "json_schema_match": "native",
    "format_match": "native",
    "SHELF": "shelf",
    "attack": "attacks",
    "calibrate": "attacks",
    "STRATEGIES": "strategies",
    "Strategy": "strategies",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    """Load a name's module when it is first asked for (openai, nltk, … stay out until used)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
