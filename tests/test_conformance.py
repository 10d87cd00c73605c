"""datasets/conformance against our own evaluator; and an evaluator that is broken is seen."""

import json
from functools import partial

import httpx
import openai
import pytest

from rftkit.files import UserError, dataset
from rftkit.graders import answer, judge, scorers
from rftkit.graders.grader import Grader, GraderSettings
from rftkit.rows import sha256_of
from rftkit.sandbox.isolation import Limits
from rftkit.sandbox.runner import Runner

pytestmark = pytest.mark.filterwarnings("ignore:grader .* outside 0 to", "ignore:sandbox")
FOLDER = dataset("conformance")
CASES = [json.loads(line) for line in (FOLDER / "cases.jsonl").read_text("utf-8").splitlines()]


def settings_of(case, asked):
    """The judge answers what the case says; the sandbox has the case's limit."""

    def handle(request):
        asked.append(json.loads(request.content)["messages"])
        reply = {"content": None, **case["judge"]}
        if reply.pop("timeout", False):
            raise httpx.ReadTimeout("no byte")
        choice = {"index": 0, "finish_reason": reply.pop("finish_reason", "stop")}
        status = reply.pop("status", 200)
        return httpx.Response(status, json={"choices": [choice | {"message": reply}]})

    judges = judge.JudgeSettings(cache=None)
    transport = httpx.Client(transport=httpx.MockTransport(handle))
    form = dict(base_url="http://judge/v1", api_key="none", max_retries=0)
    judges.client = openai.OpenAI(http_client=transport, **form)
    seconds = case.get("limit_seconds")
    runner = Runner(Limits(seconds=seconds), 1) if seconds else None
    return GraderSettings(judges, None, runner, allow_weak_isolation=True)


def differences(case):
    """What our evaluator gives otherwise than the case expects: {} where nothing."""
    expected, asked = case["expected"], []
    try:
        made = Grader.load(case["grader"], settings_of(case, asked))
    except UserError as error:
        return {} if expected.get("valid") is False else {"valid": str(error)}
    if "valid" in expected:
        return {"valid": True}
    report = made.run(case["item"], case["sample"])
    flags = report["metadata"]["errors"]
    given = {
        "reward": report["reward"],
        "errors": [name for name, value in flags.items() if value is True],
        "sub_rewards": report["sub_rewards"],
        "asked": asked[0] if asked else [],
    }
    close = partial(pytest.approx, abs=1e-6)
    wanted = {k: close(v) if k in ("reward", "sub_rewards") else v for k, v in expected.items()}
    return {key: given[key] for key in expected if given[key] != wanted[key]}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_a_case_comes_out_as_its_file_says(case):
    assert differences(case) == {}, case["note"]


def uncut(read, said, spec):
    return read(said, spec | {"range": [-9, 9]})


BROKEN = {
    "string_check": lambda m: m.setitem(
        scorers.OPERATIONS, "like", lambda text, part: text in part
    ),
    "text_similarity": lambda m: m.setattr(scorers, "get_metric", lambda name: lambda a, b: 1.0),
    "score_model": lambda m: m.setattr(judge, "_read_verdict", partial(uncut, judge._read_verdict)),
    "label_model": lambda m: m.setattr(judge, "_read_verdict", lambda said, spec: 1.0),
    "python": lambda m: m.setattr(scorers, "as_score", lambda value: value),
    "multi": lambda m: m.setattr(scorers.Formula, "evaluate", lambda self, v: sum(v.values())),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_an_evaluator_that_is_broken_is_seen(monkeypatch, kind):
    BROKEN[kind](monkeypatch)
    cases = [c for c in CASES if c["name"].startswith(f"{kind}:") and "limit_seconds" not in c]
    fixed = [case["name"] for case in cases if "choice" not in case and differences(case)]
    assert fixed, "no case that the contract fixes turned red"


def test_the_card_counts_the_cases():
    card = (FOLDER / "README.md").read_text("utf-8")
    for kind in BROKEN:
        of_kind = [case for case in CASES if case["name"].startswith(f"{kind}:")]
        assert all(case["grader"]["type"] == kind for case in of_kind)
        choices = sum(case.get("choice", False) for case in of_kind)
        assert f"| `{kind}` | {len(of_kind) - choices} | {choices} |" in card
    flags = {flag for case in CASES for flag in case["expected"].get("errors", ())}
    assert flags <= answer.ERROR_FIELDS.keys() and len(CASES) >= 60
    assert sha256_of(FOLDER / "cases.jsonl") in card


def test_the_runner_of_the_card_runs():
    code = (FOLDER / "README.md").read_text("utf-8").split("```python\n")[1].split("```")[0]
    names = {"mine": lambda case: case["expected"]}
    exec(code, names)
    assert names["wrong"] == []
