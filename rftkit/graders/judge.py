"""`score_model` and `label_model`: another model judges, over any OpenAI-compatible endpoint.

The judge is asked through chat completions and made to answer in JSON: {"steps": […], "result":
number} or {"steps": […], "label": one of the labels}. A number is cut to `range`. No number, no
JSON or an unknown label is 0 and model_grader_parse_error ("default to 0 for all non-numeric
outputs": an answer that breaks the judge must not pay). Where the judge refuses, or the endpoint
fails after all retries, there is no grade. Each good reply is a file of the cache, named by the
request's content, so a resumed run does not pay twice.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rftkit.files import UserError, shorten, write_json
from rftkit.graders.answer import Context, Fault, Scorer, Template, grader_fault, sample_fault
from rftkit.records import split_completion

TOKENS = ("prompt_tokens", "completion_tokens", "total_tokens")


@dataclass
class JudgeSettings:
    """How judges are reached; one object may serve several graders and threads. An endpoint that
    times out or answers 408, 409, 429, 5xx is asked again, after 0.5, 1, 2 … 8 s or as it says."""

    base_url: str | None = None  # else OPENAI_BASE_URL
    api_key: str | None = None  # else OPENAI_API_KEY
    model_names: dict[str, str] = field(default_factory=dict)  # {the grader's: the endpoint's}
    concurrency: int = 8
    timeout: float = 120.0  # seconds without a byte
    retries: int = 4
    cache: Path | str | None = field(
        default_factory=lambda: Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "rftkit/judge")
    )  # a folder of replies; None keeps none

    @cached_property
    def client(self) -> Any:
        """The `openai` client. Raises UserError if no endpoint is named."""
        base_url = self.base_url or os.environ.get("OPENAI_BASE_URL")
        api_key = self.api_key or os.environ.get("OPENAI_API_KEY")
        if not base_url and not api_key:
            own = "set the first, http://…/v1, for your own endpoint, or the second for OpenAI's"
            raise UserError(f"judge: no OPENAI_BASE_URL and no OPENAI_API_KEY: {own}")
        from openai import OpenAI

        limits = {"timeout": self.timeout, "max_retries": self.retries}
        # local endpoints ask for no key, the client for any
        return OpenAI(base_url=base_url, api_key=api_key or "none", **limits)

    def ask(self, request: dict[str, Any], read: Callable[[Any], float]) -> float:
        """What `read` makes of the reply to a chat completion request. It comes from the cache if
        it is there, and is kept if `read` raises no Fault."""
        named = {"base_url": str(self.client.base_url), **request}
        key = hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()
        file = Path(self.cache, key[:2], f"{key}.json").expanduser() if self.cache else None
        if file is not None and file.exists():
            with suppress(OSError, ValueError, KeyError, Fault):  # damaged: ask anew
                return read(json.loads(file.read_text(encoding="utf-8"))["reply"])
        reply = _send(self.client, request)
        value = read(reply)
        if file is not None:
            with suppress(OSError, ValueError):  # a full disk must not stop a run
                write_json(file, {"request": request, "reply": reply})
        return value


def _send(client: Any, request: dict[str, Any]) -> Any:
    """The reply to one request, with the client's retries."""
    import httpx
    import openai

    try:
        answer = client.chat.completions.with_raw_response.create(**request)
        return json.loads(answer.content)
    except (openai.OpenAIError, httpx.HTTPError) as error:
        kind = str(getattr(error, "status_code", type(error).__name__))
        cause = type(error.__cause__ or error).__name__
        raise _server_fault(kind, f"{shorten(str(error), 200)} ({cause})") from None
    except ValueError:
        raise _server_fault("reply", f"not JSON: {shorten(answer.text)}") from None


def _server_fault(kind: str, detail: str) -> Fault:
    return grader_fault("model_grader_server_error", f"{kind}: {detail}")


def compile_model_grader(spec: dict[str, Any], settings: JudgeSettings) -> Scorer:
    model = settings.model_names.get(spec["model"], spec["model"])
    sampling = dict(spec.get("sampling_params") or {})
    if "max_completions_tokens" in sampling:  # the chat API's name has no s
        sampling["max_completion_tokens"] = sampling.pop("max_completions_tokens")
    fixed = {"model": model, "response_format": _response_format(spec), **sampling}

    def score(context: Context) -> float:
        messages = [_fill_message(message, context) for message in spec["input"]]
        request = {**fixed, "messages": messages}
        return settings.ask(request, lambda reply: _read_reply(reply, spec, context))

    return Scorer(score, lambda: settings.client, settings.concurrency)


def _fill_message(message: dict[str, Any], context: Context) -> dict[str, Any]:
    content = message["content"]
    parts = content if isinstance(content, list) else [content]
    parts = [_fill_part(part, context) for part in parts]
    if all(part["type"] == "text" for part in parts):  # what every endpoint understands
        parts = "".join(part["text"] for part in parts)
    role = message["role"].replace("developer", "system")  # the name that every endpoint knows
    return {"role": role, "content": parts}


def _fill_part(part: Any, context: Context) -> dict[str, Any]:
    """A content part in the words of the chat API (the spec uses those of the responses API)."""
    text = part if isinstance(part, str) else part.get("image_url") or part.get("text")
    if text is None:  # audio
        return part
    filled = Template(text).render(context)
    if isinstance(part, dict) and part["type"] == "input_image":
        image = {"url": filled, "detail": part.get("detail") or "auto"}
        return {"type": "image_url", "image_url": image}
    return {"type": "text", "text": filled}


def _response_format(spec: dict[str, Any]) -> dict[str, Any]:
    """The form that the judge's answer is forced into (structured outputs)."""
    step = _record(description={"type": "string"}, conclusion={"type": "string"})
    verdict = {"result": {"type": "number"}}
    if spec["type"] == "label_model":
        verdict = {"label": {"type": "string", "enum": spec["labels"]}}
    schema = _record(steps={"type": "array", "items": step}, **verdict)
    named = {"name": "grade", "strict": True, "schema": schema}
    return {"type": "json_schema", "json_schema": named}


def _record(**properties: Any) -> dict[str, Any]:
    names = {"properties": properties, "required": list(properties)}
    return {"type": "object", **names, "additionalProperties": False}


def _read_reply(reply: Any, spec: dict[str, Any], context: Context) -> float:
    """The grade in a chat completion; raises a Fault where there is none."""
    model = spec["model"]
    try:
        choice = reply["choices"][0]
        message = choice["message"]
    except (KeyError, IndexError, TypeError):
        raise _server_fault("reply", f"no choices: {shorten(reply)}") from None
    if reply.get("usage"):
        used = context.usage.setdefault(model, dict.fromkeys(TOKENS, 0))
        used.update({key: used[key] + reply["usage"].get(key, 0) for key in TOKENS})
    finish = choice.get("finish_reason")
    refusal = "content filter" if finish == "content_filter" else message.get("refusal")
    if refusal:
        detail = f"{model} refused to judge: {shorten(refusal)}"
        raise grader_fault("model_grader_refusal_error", detail)
    content = message.get("content") or ""
    value = _read_verdict(_find_json(content), spec)
    if value is None:
        cut = " (cut at its token limit)" if finish == "length" else ""
        detail = f"{model} gave no readable verdict{cut}: {shorten(content)!r}"
        raise sample_fault("model_grader_parse_error", detail)
    return value


def _find_json(content: str) -> Any:
    """The judge's JSON. Endpoints that ignore response_format may think aloud or fence it."""
    text = split_completion(content)[1].strip()
    for candidate in (text, text[text.find("{") : text.rfind("}") + 1]):
        with suppress(ValueError):
            return json.loads(candidate)
    return text


def _read_verdict(answer: Any, spec: dict[str, Any]) -> float | None:
    """1 or 0 for a label, a number cut to the range; None where there is neither."""
    if spec["type"] == "label_model":
        label = answer.get("label") if isinstance(answer, dict) else answer
        return float(label in spec["passing_labels"]) if label in spec["labels"] else None
    result = answer.get("result") if isinstance(answer, dict) else answer
    try:
        number = math.nan if isinstance(result, bool) else float(result)  # also of a text: "0.8"
    except (ValueError, TypeError, OverflowError):
        return None
    low, high = spec.get("range") or (0.0, 1.0)
    return float(min(max(number, low), high)) if math.isfinite(number) else None
