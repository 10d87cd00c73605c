"""`score_model` and `label_model`: another model judges, over any OpenAI-compatible endpoint.

The endpoint is the environment's: OPENAI_BASE_URL and OPENAI_API_KEY, as the `openai` client
reads them. A judge is asked through chat completions and made to answer in JSON:

    score_model   {"steps": [{"description", "conclusion"}, …], "result": number}
    label_model   {"steps": …, "label": one of the labels}

What becomes of an answer:
- a number is cut to `range`; no number, no JSON, an unknown label: 0 and model_grader_parse_error
  ("default to 0 for all non-numeric outputs"; else an answer that breaks the judge would pay);
- the judge refuses, or the endpoint fails after all retries: no grade (None).

Each request is a file of the cache, named by its content, so a resumed run does not pay twice.
Only good answers are kept. A sample that was judged once keeps its grade even at temperature 1.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rftkit.files import UserError, shorten
from rftkit.graders.answer import Context, compile_template, grader_fault, sample_fault
from rftkit.records import split_completion

MAX_REPLY_BYTES = 1_000_000
_STEPS = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"description": {"type": "string"}, "conclusion": {"type": "string"}},
        "required": ["description", "conclusion"],
        "additionalProperties": False,
    },
}


def _default_cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "rftkit" / "judge"


@dataclass
class JudgeSettings:
    """How judges are reached. One object may serve several graders and threads.

    base_url, api_key  None: OPENAI_BASE_URL and OPENAI_API_KEY of the environment
    model_names        {"the grader's model": "the endpoint's name for it"}
    concurrency        requests at once
    timeout            seconds for one request, connection to last byte
    retries            after the first try: on timeouts, lost connections, 408, 409, 429 and 5xx,
                       waiting 0.5, 1, 2 … 8 seconds or as the endpoint asks (the client's own)
    cache              folder of answers; None: no cache
    """

    base_url: str | None = None
    api_key: str | None = None
    model_names: dict[str, str] = field(default_factory=dict)
    concurrency: int = 8
    timeout: float = 120.0
    retries: int = 4
    cache: Path | str | None = field(default_factory=_default_cache)
    _client: Any = field(default=None, init=False, repr=False, compare=False)
    _lock: Any = field(default_factory=threading.Lock, init=False, repr=False, compare=False)
    _in_flight: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def check_ready(self) -> None:
        """Raise UserError if no endpoint is named. Asks nothing of the network."""
        self.client()

    def client(self) -> Any:
        """The `openai` client, made once."""
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _connect(self) -> Any:
        base_url = self.base_url or os.environ.get("OPENAI_BASE_URL")
        api_key = self.api_key or os.environ.get("OPENAI_API_KEY")
        if not base_url and not api_key:
            raise UserError(
                "judge: neither OPENAI_BASE_URL nor OPENAI_API_KEY is set, expected an "
                "OpenAI-compatible endpoint: set OPENAI_BASE_URL=http://localhost:8000/v1 (a key "
                "only if it asks for one), or OPENAI_API_KEY for OpenAI itself"
            )
        if base_url and not base_url.startswith(("http://", "https://")):
            raise UserError(
                f"judge: the base URL is {base_url!r}, expected http://… or https://…: write it "
                f"whole, most often ending in /v1"
            )
        import openai

        return openai.OpenAI(
            base_url=base_url,
            api_key=api_key or "none",  # local endpoints ask for no key, the client for any
            timeout=self.timeout,
            max_retries=self.retries,
        )

    def ask(self, request: dict[str, Any], read: Callable[[dict[str, Any]], float]) -> float:
        """What `read` makes of the reply to a chat completion request.

        The reply comes from the cache if it is there, and is kept if `read` raises no Fault.
        Threads that ask the same at the same time send one request (given a cache).
        """
        client = self.client()
        named = {"base_url": str(client.base_url), **request}
        key = hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()
        with self._lock:
            turn = self._in_flight.setdefault(key, threading.Lock())
        try:
            with turn:
                reply = _read_cache(self.cache, key)
                if reply is not None:
                    return read(reply)
                reply = _send(client, request, self.timeout)
                value = read(reply)
                _write_cache(self.cache, key, request, reply)
                return value
        finally:
            with self._lock:
                self._in_flight.pop(key, None)


def compile_model_grader(
    spec: dict[str, Any], settings: JudgeSettings
) -> Callable[[Context], float]:
    """A scorer for a `score_model` or `label_model` spec."""
    messages = [_compile_message(message) for message in spec["input"]]
    model = settings.model_names.get(spec["model"], spec["model"])
    is_label = spec["type"] == "label_model"
    fixed = {"model": model, "response_format": _response_format(spec), **_sampling(spec)}
    low, high = spec.get("range") or (0.0, 1.0)

    def score(context: Context) -> float:
        filled = [message(context) for message in messages]

        def read(reply: dict[str, Any]) -> float:
            _count_tokens(context.usage, spec["model"], reply.get("usage"))
            return grade_of(reply)

        return settings.ask({**fixed, "messages": filled}, read)

    def grade_of(reply: dict[str, Any]) -> float:
        refusal = _refusal(reply)
        if refusal is not None:
            detail = f"{model} refused to judge: {shorten(refusal)}"
            raise grader_fault("model_grader_refusal_error", detail)
        answer = _read_answer(_content(reply))
        if is_label:
            label = answer.get("label") if isinstance(answer, dict) else answer
            if label not in spec["labels"]:
                raise _unreadable(model, reply, f"one of {spec['labels']}")
            return float(label in spec["passing_labels"])
        result = _as_number(answer.get("result") if isinstance(answer, dict) else answer)
        if result is None:
            raise _unreadable(model, reply, "a number as result")
        return float(min(max(result, low), high))

    return score


def _compile_message(message: dict[str, Any]) -> Callable[[Context], dict[str, Any]]:
    """A chat message whose texts are filled in from the context."""
    role, content = message["role"], message["content"]
    if role == "developer":
        role = "system"  # the same thing under the name that every endpoint knows
    if isinstance(content, str):
        text = _text(content)
        return lambda context: {"role": role, "content": text(context)}
    parts = [_compile_part(part) for part in (content if isinstance(content, list) else [content])]

    def fill(context: Context) -> dict[str, Any]:
        filled = [part(context) for part in parts]
        if all(part["type"] == "text" for part in filled):  # what every endpoint understands
            return {"role": role, "content": "".join(part["text"] for part in filled)}
        return {"role": role, "content": filled}

    return fill


def _compile_part(part: Any) -> Callable[[Context], dict[str, Any]]:
    """A content part in the words of the chat API (the spec uses those of the responses API)."""
    if isinstance(part, str):
        part = {"type": "input_text", "text": part}
    if part["type"] == "input_image":
        url = _text(part["image_url"])
        detail = part.get("detail") or "auto"
        return lambda context: {
            "type": "image_url",
            "image_url": {"url": url(context), "detail": detail},
        }
    if part["type"] == "input_audio":
        return lambda context: {"type": "input_audio", "input_audio": part["input_audio"]}
    text = _text(part["text"])
    return lambda context: {"type": "text", "text": text(context)}


def _text(template: str) -> Callable[[Context], str]:
    """A filled-in text that can be sent: half a surrogate pair becomes a question mark."""
    render = compile_template(template).renderer()
    return lambda context: render(context).encode("utf-8", "replace").decode("utf-8")


def _response_format(spec: dict[str, Any]) -> dict[str, Any]:
    """The form that the judge's answer is forced into (structured outputs)."""
    if spec["type"] == "label_model":
        last, schema = "label", {"type": "string", "enum": spec["labels"]}
    else:
        last, schema = "result", {"type": "number"}
    return {
        "type": "json_schema",
        "json_schema": {
            "name": "grade",
            "strict": True,
            "schema": {
                "type": "object",
                "properties": {"steps": _STEPS, last: schema},
                "required": ["steps", last],
                "additionalProperties": False,
            },
        },
    }


def _sampling(spec: dict[str, Any]) -> dict[str, Any]:
    """The spec's sampling_params under the chat API's names."""
    params = dict(spec.get("sampling_params") or {})
    if "max_completions_tokens" in params:
        params["max_completion_tokens"] = params.pop("max_completions_tokens")
    return params


def _send(client: Any, request: dict[str, Any], timeout: float) -> dict[str, Any]:
    """One request with the client's retries; a reply too long, too slow or not JSON is a fault."""
    import httpx
    import openai

    try:
        body = bytearray()
        with client.chat.completions.with_streaming_response.create(**request) as response:
            deadline = time.monotonic() + timeout
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > MAX_REPLY_BYTES:
                    raise _server_fault("long", f"the reply exceeds {MAX_REPLY_BYTES} bytes")
                if time.monotonic() > deadline:
                    raise _server_fault("slow", f"the reply took more than {timeout:g} s")
        reply = json.loads(body)
    except openai.APIStatusError as error:
        raise _server_fault(str(error.status_code), shorten(error.message, 200)) from None
    except (openai.OpenAIError, httpx.HTTPError) as error:
        cause = type(error.__cause__ or error).__name__
        raise _server_fault(type(error).__name__, f"{shorten(str(error))} ({cause})") from None
    except (ValueError, RecursionError):
        raise _server_fault(
            "reply", f"not JSON: {shorten(body.decode(errors='replace'))}"
        ) from None
    if not isinstance(reply, dict):
        raise _server_fault("reply", "not a JSON object")
    return reply


def _server_fault(kind: str, detail: str) -> Exception:
    return grader_fault("model_grader_server_error", f"{kind}: {detail}")


def _message(reply: dict[str, Any]) -> dict[str, Any]:
    try:
        choice = reply["choices"][0]
        return {**choice["message"], "finish_reason": choice.get("finish_reason")}
    except (KeyError, IndexError, TypeError):
        raise _server_fault("reply", f"no choices: {shorten(str(reply))}") from None


def _refusal(reply: dict[str, Any]) -> str | None:
    message = _message(reply)
    if message["finish_reason"] == "content_filter":
        return "content filter"
    return message.get("refusal") or None


def _content(reply: dict[str, Any]) -> str | None:
    content = _message(reply).get("content")
    return content if isinstance(content, str) else None


def _read_answer(content: str | None) -> Any:
    """The judge's JSON. Endpoints that ignore response_format may think aloud or fence it."""
    _, text = split_completion(content or "")
    start, end = text.find("{"), text.rfind("}")
    for candidate in (text, text[start : end + 1] if 0 <= start < end else ""):
        try:
            return json.loads(candidate)
        except (ValueError, RecursionError):
            continue
    return text.strip()


def _as_number(value: Any) -> float | None:
    """A finite number, also where it came as a text ("0.8"); else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _unreadable(model: str, reply: dict[str, Any], expected: str) -> Exception:
    finish = _message(reply)["finish_reason"]
    cut = " (it was cut at its token limit)" if finish == "length" else ""
    detail = f"{model} answered {shorten(_content(reply) or '')!r}{cut}, expected {expected}"
    return sample_fault("model_grader_parse_error", detail)


def _count_tokens(usage: dict[str, dict[str, int]], model: str, spent: Any) -> None:
    """Add a reply's usage to the report's, per model."""
    if not isinstance(spent, dict):
        return
    total = usage.setdefault(model, {})
    for key in ("prompt_tokens", "completion_tokens", "total_tokens"):
        if isinstance(spent.get(key), int):
            total[key] = total.get(key, 0) + spent[key]


def _cache_file(cache: Path | str, key: str) -> Path:
    return Path(cache) / key[:2] / f"{key}.json"


def _read_cache(cache: Path | str | None, key: str) -> dict[str, Any] | None:
    """A kept reply, or None; a torn or foreign file counts as none."""
    if cache is None:
        return None
    try:
        kept = json.loads(_cache_file(cache, key).read_text(encoding="utf-8"))
        _message(kept["reply"])
        return kept["reply"]
    except Exception:
        return None


def _write_cache(
    cache: Path | str | None, key: str, request: dict[str, Any], reply: dict[str, Any]
) -> None:
    """Keep a reply: written beside and renamed. A full or read-only disk must not stop a run."""
    if cache is None:
        return
    path = _cache_file(cache, key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, suffix=".tmp", delete=False
        ) as file:
            json.dump({"request": request, "reply": reply}, file)
        os.replace(file.name, path)
    except OSError:
        return
