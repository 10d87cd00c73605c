"""Judges: an endpoint that fails in every way. No grade is lost, the run ends."""

import json
from collections import Counter
from functools import partial
from types import SimpleNamespace

import httpx
import openai
import pytest

from rftkit.files import UserError
from rftkit.graders.answer import ERROR_FIELDS
from rftkit.graders.grader import Grader, GraderSettings
from rftkit.graders.judge import JudgeSettings

pytestmark = pytest.mark.filterwarnings("ignore:grader .* outside 0 to 1")
MESSAGES = [{"role": "developer", "content": "You grade."},
            {"role": "user", "content": "{{item.answer}} / {{sample.output_text}}"}]  # fmt: skip
LABEL = {"type": "label_model", "name": "judge", "model": "big", "input": MESSAGES,
         "labels": ["good", "fair", "bad"], "passing_labels": ["good", "fair"]}  # fmt: skip
SCORE = {"type": "score_model", "name": "judge", "model": "big", "input": MESSAGES,
         "sampling_params": {"temperature": 0, "max_completions_tokens": 50}}  # fmt: skip


def completion(content, finish_reason="stop", **message):
    choice = {"finish_reason": finish_reason, "message": {"content": content, **message}}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    return {"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage}


def answer_to(command):
    """(status, body) for a command that the tests put into the answer under judgement."""
    word, _, value = command.partition(" ")
    if word == "score":
        return 200, completion(json.dumps({"steps": [], "result": json.loads(value)}))
    if word in ("say", "label"):
        return 200, completion(value if word == "say" else json.dumps({"label": value}))
    if word == "status":
        return int(value), {"error": {"message": "as ordered"}}
    return {
        "think": (200, completion('<think>{"result": 1}?</think>\n{"result": 0.3}')),
        "refuse": (200, completion(None, refusal="I would rather not")),
        "filter": (200, completion("", finish_reason="content_filter")),
        "cut": (200, completion('{"steps": [{"desc', finish_reason="length")),
        "garbage": (200, b"<html>busy</html>"), "no choices": (200, {"choices": []}),
    }.get(command, (200, completion('{"result": 0.5}')))  # fmt: skip


@pytest.fixture
def endpoint(monkeypatch):
    """Obeys the command after " / " in the last message of a request."""
    found = SimpleNamespace(requests=[], seen=Counter(), url="http://judge/v1")

    def handle(request):
        body = json.loads(request.content)
        command = str(body["messages"][-1]["content"]).partition(" / ")[2]
        found.requests.append(body)
        found.seen[command] += 1
        word, _, rest = command.partition(" ")
        if word == "hang":
            raise httpx.ReadTimeout("nothing came")
        if word == "hangup":
            raise httpx.RemoteProtocolError("hung up")
        if word == "later":  # fails twice, then obeys
            command = rest if found.seen[command] > 2 else "status 500"
        status, answer = answer_to(command)
        data = answer if isinstance(answer, bytes) else json.dumps(answer)
        return httpx.Response(status, content=data, headers={"retry-after-ms": "1"})

    client = httpx.Client(transport=httpx.MockTransport(handle))
    monkeypatch.setattr("openai.OpenAI", partial(openai.OpenAI, http_client=client))
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.02)
    return found


def judge(endpoint, spec=SCORE, **changes):
    options = {"retries": 2, "cache": None, "api_key": "secret-key", **changes}
    return Grader.load(spec, GraderSettings(judge=JudgeSettings(endpoint.url, **options)))


def run(endpoint, command, spec=SCORE, **changes):
    """(reward, error fields, report) of one answer."""
    report = judge(endpoint, spec, **changes).run({"answer": "A"}, command)
    errors = [name for name in ERROR_FIELDS if report["metadata"]["errors"][name]]
    return report["reward"], errors, report


def test_the_request_is_what_the_grader_says(endpoint):
    reward, errors, report = run(endpoint, "score 0.75", model_names={"big": "qwen"})
    assert (reward, errors) == (0.75, []) and report["metadata"]["token_usage"] == 15
    assert report["metadata"]["sampled_model_name"] == "big"
    assert report["model_grader_token_usage_per_model"]["big"]["prompt_tokens"] == 10
    (request,) = endpoint.requests
    assert request["messages"] == [{"role": "system", "content": "You grade."},
                                   {"role": "user", "content": "A / score 0.75"}]  # fmt: skip
    assert (request["model"], request["temperature"]) == ("qwen", 0)
    assert request["max_completion_tokens"] == 50
    schema = request["response_format"]["json_schema"]
    assert schema["strict"] and schema["schema"]["required"] == ["steps", "result"]


PARSE = "model_grader_parse_error"


@pytest.mark.parametrize(
    ("command", "limits", "reward", "error"),
    [
        ("score 1.5", None, 1.0, ""), ("score -3", None, 0.0, ""), ("score 1.5", [0, 10], 1.5, ""),
        ("score -2", [-1, 1], -1.0, ""), ('score "0.5"', None, 0.5, ""), ("think", None, 0.3, ""),
        ("say 0.7", None, 0.7, ""), ('say ```json\n{"result": 0.4}\n```', None, 0.4, ""),
        ("later score 0.25", None, 0.25, ""), ("label fair", None, 1.0, ""),
        ("label bad", None, 0.0, ""), ("label none", None, 0.0, PARSE),
        *((bad, None, 0.0, PARSE) for bad in ("score null", "score true", "score [1]", "cut")),
        *((bad, None, 0.0, PARSE) for bad in ('score "NaN"', "score 1e999", "say good")),
    ],
)  # fmt: skip
def test_a_verdict_is_cut_to_the_range_or_scores_zero(endpoint, command, limits, reward, error):
    spec = LABEL if command.startswith("label") else {**SCORE, "range": limits}
    assert run(endpoint, command, spec)[:2] == (reward, [error] * bool(error))


@pytest.mark.parametrize(
    ("command", "tries", "word"),
    [
        ("status 500", 3, "500"), ("status 429", 3, "429"), ("status 401", 1, "401"),
        ("garbage", 1, "not JSON"), ("no choices", 1, "choices"), ("hangup", 3, "Connection"),
        ("hang", 3, "imeout"), ("refuse", 1, ""), ("filter", 1, ""),
    ],
)  # fmt: skip
def test_an_endpoint_that_fails_gives_no_grade_after_its_retries(endpoint, command, tries, word):
    reward, errors, report = run(endpoint, command)
    assert (reward, errors) == (None, [f"model_grader_{'server' if word else 'refusal'}_error"])
    details = report["metadata"]["errors"]["model_grader_server_error_details"]
    assert word in (details or "") and endpoint.seen[command] == tries


def test_content_parts_are_sent_in_the_chat_apis_words(endpoint):
    text = {"type": "input_text", "text": "x / {{sample.output_text}}"}
    image = {"type": "input_image", "image_url": "{{item.url}}", "detail": "low"}
    spec = {**SCORE, "input": [{"role": "user", "content": [text, image]}, *MESSAGES[1:]]}
    assert judge(endpoint, spec).grade({"answer": "A", "url": "data:,x"}, "half")[0] == 0.5
    assert endpoint.requests[0]["messages"][0]["content"] == [
        {"type": "text", "text": "x / half"},
        {"type": "image_url", "image_url": {"url": "data:,x", "detail": "low"}},
    ]


def test_the_cache_pays_once_and_for_good_replies_only(endpoint, tmp_path):
    def twice(command, **changes):
        rewards = [run(endpoint, command, cache=tmp_path, **changes)[0] for _ in range(2)]
        return rewards, endpoint.seen[command]

    assert twice("score 1") == ([1.0, 1.0], 1)
    for bad in ("say nonsense", "refuse", "status 401"):
        assert twice(bad)[1] == 2
    (file,) = tmp_path.rglob("*.json")
    assert "secret-key" not in file.read_text()
    file.write_text('{"torn')
    assert twice("score 1") == ([1.0, 1.0], 2)
    assert twice("score 1", model_names={"big": "small"}) == ([1.0, 1.0], 3)  # another request


def test_a_judge_without_an_endpoint_is_refused_before_the_run(endpoint, monkeypatch, tmp_path):
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = Grader.load(SCORE)
    for use in (made.check_ready, lambda: made.run({"answer": "A"}, "x")):
        with pytest.raises(UserError, match="OPENAI_BASE_URL"):
            use()
    monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
    assert Grader.load(SCORE).grade({"answer": "A"}, "score 1")[0] == 1.0
    assert list((tmp_path / "rftkit" / "judge").rglob("*.json"))
