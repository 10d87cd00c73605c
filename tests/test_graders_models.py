"""Judges over HTTP: a local endpoint that fails in every way. No grade is lost, the run ends."""

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rftkit.files import UserError
from rftkit.graders.answer import ERROR_FIELDS, GraderFailure
from rftkit.graders.grader import Grader, GraderSettings
from rftkit.graders.judge import JudgeSettings
from rftkit.graders.rewards import reward_function

SCORE = {
    "type": "score_model",
    "name": "judge",
    "model": "big",
    "input": [
        {"role": "developer", "content": "You grade."},
        {"role": "user", "content": "{{item.answer}} / {{sample.output_text}}"},
    ],
    "sampling_params": {"temperature": 0, "max_completions_tokens": 50, "seed": 1},
}
LABEL = {**SCORE, "type": "label_model", "labels": ["good", "fair", "bad"],
         "passing_labels": ["good", "fair"]}  # fmt: skip
LABEL.pop("sampling_params")


def completion(content, finish_reason="stop", **message):
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    choice = {
        "index": 0,
        "finish_reason": finish_reason,
        "message": {"role": "assistant", "content": content, **message},
    }
    return {"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage}


def result(value):
    return completion(json.dumps({"steps": [], "result": value}))


def answer_to(command):
    """(status, body) for a command that the tests put into the answer under judgement."""
    word, _, value = command.partition(" ")
    if word == "score":
        return 200, result(json.loads(value))
    if word == "say":
        return 200, completion(value)
    if word == "status":
        return int(value), {"error": {"message": "as ordered"}}
    return {
        "think": (200, completion('<think>{"result": 1}?</think>\n{"result": 0.3}')),
        "refuse": (200, completion(None, refusal="I would rather not")),
        "filter": (200, completion("", finish_reason="content_filter")),
        "cut": (200, completion('{"steps": [{"desc', finish_reason="length")),
        "garbage": (200, b"<html>busy</html>"),
        "list": (200, b"[]"),
        "nothing": (200, b""),
        "no choices": (200, {"choices": []}),
        "endless": (200, b"x" * 2_000_000),
    }.get(command, (200, result(0.5)))


class Endpoint(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        state = self.server.state
        command = str(body["messages"][-1]["content"]).partition(" / ")[2]
        with state.lock:
            state.requests.append(body)
            state.seen[command] += 1
            tries = state.seen[command]
        word, _, rest = command.partition(" ")
        if word == "later":  # fails twice, then obeys
            command = rest if tries > 2 else "status 500"
        if word == "hang":
            time.sleep(state.hang)
        if word == "hangup":
            self.close_connection = True
            return
        status, answer = answer_to(command)
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.send_header("retry-after-ms", "1")
        self.end_headers()
        if word == "drip":
            for byte in data:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.02)
        else:
            self.wfile.write(data)

    def log_message(self, *arguments):
        pass


class State:
    def __init__(self):
        self.lock, self.requests, self.seen, self.hang = threading.Lock(), [], Counter(), 1.0


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.02)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    server.handle_error = lambda *arguments: None  # a client that hung up is part of the test
    server.daemon_threads, server.state = True, State()
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def judge(endpoint, **settings):
    options = {"retries": 2, "timeout": 20, "cache": None, "api_key": "secret-key", **settings}
    return JudgeSettings(base_url=endpoint.url, **options)


def raised(report):
    return [name for name in ERROR_FIELDS if report["metadata"]["errors"][name]]


def run(endpoint, command, spec=SCORE, **settings):
    grader = Grader.load(spec, GraderSettings(judge=judge(endpoint, **settings)))
    return grader.run({"answer": "A"}, command)


def test_request_is_what_the_grader_says(endpoint):
    report = run(endpoint, "score 0.75")
    assert report["reward"] == 0.75 and raised(report) == []
    assert report["metadata"]["token_usage"] == 15
    assert report["metadata"]["sampled_model_name"] == "big"
    assert report["model_grader_token_usage_per_model"]["big"]["prompt_tokens"] == 10
    (request,) = endpoint.state.requests
    assert request["model"] == "big"
    assert request["messages"] == [
        {"role": "system", "content": "You grade."},
        {"role": "user", "content": "A / score 0.75"},
    ]
    assert (request["temperature"], request["seed"]) == (0, 1)
    assert request["max_completion_tokens"] == 50
    schema = request["response_format"]["json_schema"]
    assert schema["strict"] and schema["schema"]["required"] == ["steps", "result"]


@pytest.mark.parametrize(
    ("command", "limits", "reward"),
    [
        ("score 1.5", None, 1.0),
        ("score -3", None, 0.0),
        ("score 1.5", [0, 10], 1.5),
        ("score 99", [0, 10], 10.0),
        ("score -2", [-1, 1], -1.0),
        ('score "0.5"', None, 0.5),
        ("say 0.7", None, 0.7),
        ('say ```json\n{"result": 0.4}\n```', None, 0.4),
        ("think", None, 0.3),
    ],
)
@pytest.mark.filterwarnings("ignore:grader .* outside 0 to 1")
def test_score_is_read_and_cut_to_the_range(endpoint, command, limits, reward):
    spec = {**SCORE, "range": limits} if limits else SCORE
    assert run(endpoint, command, spec)["reward"] == reward


@pytest.mark.parametrize(
    "command",
    ["score null", "score true", "score [1]", 'score "NaN"', "score 1e999", "say good", "say",
     "say {}", "say []", "cut"],
)  # fmt: skip
def test_answer_without_a_number_scores_zero(endpoint, command):
    report = run(endpoint, command)
    assert report["reward"] == 0.0 and raised(report) == ["model_grader_parse_error"]


@pytest.mark.parametrize("command", ["refuse", "filter"])
def test_refusal_is_no_grade(endpoint, command):
    report = run(endpoint, command)
    assert report["reward"] is None and raised(report) == ["model_grader_refusal_error"]


@pytest.mark.parametrize(
    ("command", "tries", "word"),
    [
        ("status 500", 3, "500"),
        ("status 429", 3, "429"),
        ("status 401", 1, "401"),
        ("status 404", 1, "404"),
        ("garbage", 1, "not JSON"),
        ("nothing", 1, "not JSON"),
        ("list", 1, "not a JSON object"),
        ("no choices", 1, "no choices"),
        ("endless", 1, "exceeds"),
        ("drip", 1, "took more than"),
        ("hangup", 3, "Connection"),
        ("hang", 3, "imeout"),
    ],
)
def test_endpoint_that_fails_is_no_grade_and_is_retried_where_that_helps(
    endpoint, command, tries, word
):
    report = run(endpoint, command, timeout=0.25 if command in ("drip", "hang") else 20)
    assert report["reward"] is None and raised(report) == ["model_grader_server_error"]
    assert word in report["metadata"]["errors"]["model_grader_server_error_details"]
    assert endpoint.state.seen[command] == tries


def test_endpoint_that_recovers_costs_no_grade(endpoint):
    assert run(endpoint, "later score 0.25")["reward"] == 0.25


@pytest.mark.parametrize(
    ("label", "reward", "errors"),
    [
        ("good", 1.0, []),
        ("fair", 1.0, []),
        ("bad", 0.0, []),
        ("excellent", 0.0, ["model_grader_parse_error"]),
    ],
)
def test_label_passes_or_not(endpoint, label, reward, errors):
    report = run(endpoint, "say " + json.dumps({"steps": [], "label": label}), LABEL)
    assert report["reward"] == reward and raised(report) == errors
    schema = endpoint.state.requests[0]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["label"]["enum"] == ["good", "fair", "bad"]


def test_unreadable_sample_never_reaches_the_judge(endpoint):
    message = {"role": "user", "content": "{{sample.output_json.a}}"}
    report = run(endpoint, "no JSON", {**SCORE, "input": [message]})
    assert report["reward"] == 0.0 and raised(report) == ["sample_parse_error"]
    assert endpoint.state.requests == []


def test_content_parts_are_sent_in_the_chat_apis_words(endpoint):
    parts = [
        {"type": "input_text", "text": "x / {{sample.output_text}}"},
        {"type": "input_image", "image_url": "{{item.url}}", "detail": "low"},
    ]
    spec = {**SCORE, "input": [{"role": "user", "content": parts}]}
    grader = Grader.load(spec, GraderSettings(judge=judge(endpoint)))
    assert grader.run({"url": "data:,x"}, "half \ud800")["reward"] == 0.5
    text, image = endpoint.state.requests[0]["messages"][0]["content"]
    assert text == {"type": "text", "text": "x / half ?"}
    assert image == {"type": "image_url", "image_url": {"url": "data:,x", "detail": "low"}}
    joined = {**SCORE, "input": [{"role": "user", "content": ["a", parts[0]]}]}
    Grader.load(joined, GraderSettings(judge=judge(endpoint))).run({}, "b")
    assert endpoint.state.requests[1]["messages"][0]["content"] == "ax / b"


def test_cache_pays_once_for_good_answers_only(endpoint, tmp_path):
    def once(command, **settings):
        return run(endpoint, command, cache=tmp_path, **settings)["reward"]

    assert [once("score 1"), once("score 1")] == [1.0, 1.0]
    assert endpoint.state.seen["score 1"] == 1
    for bad in ("say nonsense", "refuse", "status 401"):
        once(bad)
        once(bad)
        assert endpoint.state.seen[bad] == 2
    (file,) = tmp_path.rglob("*.json")
    assert "secret-key" not in file.read_text()
    file.write_text('{"torn')
    assert once("score 1") == 1.0 and endpoint.state.seen["score 1"] == 2
    assert once("score 1") == 1.0 and endpoint.state.seen["score 1"] == 2  # mended
    assert once("score 1", model_names={"big": "small"}) == 1.0  # another request
    assert endpoint.state.seen["score 1"] == 3
    assert not list(tmp_path.rglob("*.tmp"))


def test_cache_that_cannot_be_written_does_not_stop_a_run(endpoint, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert run(endpoint, "score 1", cache=blocked)["reward"] == 1.0


def test_equal_requests_at_the_same_time_are_sent_once(endpoint, tmp_path):
    grader = Grader.load(
        SCORE, GraderSettings(judge=judge(endpoint, cache=tmp_path, concurrency=16))
    )
    grades = grader.evaluate_many([{"answer": "A"}] * 40, ["score 0.5"] * 40)
    assert [g.reward for g in grades] == [0.5] * 40
    assert endpoint.state.seen["score 0.5"] == 1


def test_model_names_are_mapped(endpoint):
    report = run(endpoint, "score 1", model_names={"big": "qwen"})
    assert endpoint.state.requests[0]["model"] == "qwen"
    assert report["metadata"]["sampled_model_name"] == "big"


def test_thousand_rows_over_a_failing_endpoint_lose_no_grade(endpoint, tmp_path):
    failing = ["status 429", "status 500", "garbage", "cut", "nothing", "refuse", "endless",
               "later score 0.25"]  # fmt: skip
    commands = [failing[i % 25] if i % 25 < 8 else f"score 0.{i % 25}" for i in range(1000)]
    commands[::250] = ["hang"] * 4  # few: each waits for the timeout three times
    endpoint.state.hang = 3
    settings = judge(endpoint, timeout=1.5, retries=2, concurrency=12, cache=tmp_path)
    grader = Grader.load(SCORE, GraderSettings(judge=settings))
    grades = grader.evaluate_many([{"answer": str(i % 50)} for i in range(1000)], commands)
    lost = (None, ["model_grader_server_error"])
    asked_for = {
        "cut": (0.0, ["model_grader_parse_error"]),
        "refuse": (None, ["model_grader_refusal_error"]),
        **dict.fromkeys(
            ["status 429", "status 500", "garbage", "nothing", "hang", "endless"], lost
        ),
    }
    as_asked = 0
    for command, grade in zip(commands, grades):
        expected = asked_for.get(command) or (float(command.rpartition(" ")[2]), [])
        got = (grade.reward, grade.errors)
        assert got in (expected, lost), command  # on a busy machine more requests time out
        as_asked += got == expected
    assert len(grades) == 1000 and as_asked > 500


def test_failing_judge_stops_training_before_it_learns_from_nothing(endpoint):
    reward = reward_function(Grader.load(SCORE, GraderSettings(judge=judge(endpoint))))
    good = ["score 0.5"] * 19
    assert reward(completions=[*good, "refuse"], answer=["A"] * 20) == [0.5] * 19 + [None]
    with pytest.raises(GraderFailure, match="2 of 20.*refused"):
        reward(completions=[*good[1:], "refuse", "refuse"], answer=["A"] * 20)


def test_judge_without_an_endpoint_is_refused_before_the_run(monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    grader = Grader.load(SCORE)
    run_one = lambda: grader.run({"answer": "A"}, "x")  # noqa: E731
    for use in (grader.check_ready, lambda: reward_function(grader), run_one):
        with pytest.raises(UserError, match="OPENAI_BASE_URL"):
            use()
    monkeypatch.setenv("OPENAI_BASE_URL", "localhost:8000")
    with pytest.raises(UserError, match="http"):
        Grader.load(SCORE).check_ready()


def test_endpoint_comes_from_the_environment(endpoint, monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Grader.load(SCORE).run({"answer": "A"}, "score 1")["reward"] == 1.0
    assert list((tmp_path / "rftkit" / "judge").rglob("*.json"))
