"""Judges: an endpoint that fails in every way. No grade is lost, the run ends."""

import json
import math
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


def said(content, finish_reason="stop", **message):
    choice = {"finish_reason": finish_reason, "message": {"content": content, **message}}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    return {"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage}


def verdict(**fields):
    return said(json.dumps(fields))


HALF, REFUSAL = verdict(steps=[], result=0.5), said(None, refusal="I would rather not")


@pytest.fixture
def endpoint(monkeypatch):
    """Gives its answers, the last one over and over: a body, a status, or an error."""
    found = SimpleNamespace(requests=[], answers=[HALF], url="http://judge/v1")

    def handle(request):
        found.requests.append(json.loads(request.content))
        answer = found.answers.pop(0) if found.answers[1:] else found.answers[0]
        if isinstance(answer, Exception):
            raise answer
        status, body = (answer, {}) if isinstance(answer, int) else (200, answer)
        data = body if isinstance(body, bytes) else json.dumps(body)
        return httpx.Response(status, content=data, headers={"retry-after-ms": "1"})

    client = httpx.Client(transport=httpx.MockTransport(handle))
    monkeypatch.setattr("openai.OpenAI", partial(openai.OpenAI, http_client=client))
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.02)
    return found


def judge(endpoint, spec=SCORE, **changes):
    options = {"retries": 2, "cache": None, "api_key": "secret-key", **changes}
    return Grader.load(spec, GraderSettings(judge=JudgeSettings(endpoint.url, **options)))


def run(endpoint, *answers, spec=SCORE, **changes):
    """(reward, error fields, report) of one grade."""
    endpoint.answers[:] = answers
    report = judge(endpoint, spec, **changes).run({"answer": "A"}, "B")
    errors = [name for name in ERROR_FIELDS if report["metadata"]["errors"][name]]
    return report["reward"], errors, report


def test_the_request_is_what_the_grader_says(endpoint):
    reward, errors, report = run(endpoint, HALF, model_names={"big": "qwen"})
    assert (reward, errors) == (0.5, []) and report["metadata"]["token_usage"] == 15
    assert report["metadata"]["sampled_model_name"] == "big"
    assert report["model_grader_token_usage_per_model"]["big"]["prompt_tokens"] == 10
    (request,) = endpoint.requests
    assert request["messages"] == [{"role": "system", "content": "You grade."},
                                   {"role": "user", "content": "A / B"}]  # fmt: skip
    assert (request["model"], request["temperature"]) == ("qwen", 0)
    assert request["max_completion_tokens"] == 50
    schema = request["response_format"]["json_schema"]
    assert schema["strict"] and schema["schema"]["required"] == ["steps", "result"]


PARSE = "model_grader_parse_error"
BAD = [*(verdict(result=bad) for bad in (None, True, [1], "NaN", math.inf)), said("good"),
       said('{"steps": [{"desc', "length")]  # fmt: skip
VERDICTS = [
    (SCORE, verdict(result=1.5), 1.0, ""), (SCORE, verdict(result=-3), 0.0, ""),
    ({**SCORE, "range": [0, 10]}, verdict(result=1.5), 1.5, ""),
    ({**SCORE, "range": [-1, 1]}, verdict(result=-2), -1.0, ""),
    (SCORE, verdict(result="0.5"), 0.5, ""), (SCORE, said("0.7"), 0.7, ""),
    (SCORE, said('<think>{"result": 1}?</think>\n{"result": 0.3}'), 0.3, ""),
    (SCORE, said('```json\n{"result": 0.4}\n```'), 0.4, ""),
    *((SCORE, bad, 0.0, PARSE) for bad in BAD), (LABEL, verdict(label="none"), 0.0, PARSE),
    (LABEL, verdict(label="fair"), 1.0, ""), (LABEL, verdict(label="bad"), 0.0, ""),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "answer", "reward", "error"), VERDICTS)
def test_a_verdict_is_cut_to_the_range_or_scores_zero(endpoint, spec, answer, reward, error):
    assert run(endpoint, answer, spec=spec)[:2] == (reward, [error] * bool(error))


@pytest.mark.parametrize(
    ("answer", "tries", "word"),
    [
        (500, 3, "500"), (429, 3, "429"), (401, 1, "401"), (b"<html>busy</html>", 1, "not JSON"),
        ({"choices": []}, 1, "choices"), (httpx.RemoteProtocolError("gone"), 3, "Connection"),
        (httpx.ReadTimeout("late"), 3, "imeout"), (REFUSAL, 1, ""),
        (said("", "content_filter"), 1, ""),
    ],
)  # fmt: skip
def test_an_endpoint_that_fails_gives_no_grade_after_its_retries(endpoint, answer, tries, word):
    reward, errors, report = run(endpoint, answer)
    assert (reward, errors) == (None, [f"model_grader_{'server' if word else 'refusal'}_error"])
    details = report["metadata"]["errors"]["model_grader_server_error_details"]
    assert word in (details or "") and len(endpoint.requests) == tries
    assert word != "500" or run(endpoint, 500, 500, HALF)[0] == 0.5  # the third try answers


def test_content_parts_are_sent_in_the_chat_apis_words(endpoint):
    text = {"type": "input_text", "text": "x / {{sample.output_text}}"}
    image = {"type": "input_image", "image_url": "{{item.url}}", "detail": "low"}
    spec = {**SCORE, "input": [{"role": "user", "content": [text, image]}, *MESSAGES[1:]]}
    assert judge(endpoint, spec).grade({"answer": "A", "url": "data:,x"}, "B")[0] == 0.5
    assert endpoint.requests[0]["messages"][0]["content"] == [
        {"type": "text", "text": "x / B"},
        {"type": "image_url", "image_url": {"url": "data:,x", "detail": "low"}},
    ]


def test_the_cache_pays_once_and_for_good_replies_only(endpoint, tmp_path):
    def twice(answer, **changes):
        """(rewards of the same grade, asked for twice; requests)"""
        endpoint.requests.clear()
        rewards = [run(endpoint, answer, cache=tmp_path, **changes)[0] for _ in range(2)]
        return rewards, len(endpoint.requests)

    for bad in (said("nonsense"), REFUSAL, 401):
        assert twice(bad)[1] == 2
    assert twice(HALF) == ([0.5, 0.5], 1)
    (file,) = tmp_path.rglob("*.json")
    assert "secret-key" not in file.read_text()
    file.write_text('{"torn')
    assert twice(HALF) == ([0.5, 0.5], 1)
    assert twice(HALF, model_names={"big": "small"}) == ([0.5, 0.5], 1)  # another request


def test_a_judge_without_an_endpoint_is_refused_before_the_run(endpoint, monkeypatch, tmp_path):
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = Grader.load(SCORE)
    for use in (made.check_ready, lambda: made.run({"answer": "A"}, "x")):
        with pytest.raises(UserError, match="OPENAI_BASE_URL"):
            use()
    monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
    assert Grader.load(SCORE).grade({"answer": "A"}, "B")[0] == 0.5
    assert list((tmp_path / "rftkit" / "judge").rglob("*.json"))
