"""Does the model read what we think it reads? The chat template and the end token, looked at.

Looks at the rendered text alone. What is certain (the question is not in it) is a fault by itself;
what is only odd (a marker that the tokenizer breaks into letters: some models are trained so)
becomes one where the answers are garbage as well.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from rftkit.policy import Policy, end_tokens

MARKER = re.compile(r"<\|[^<>|\s]{1,40}\|>|<(?:start|end)_of_turn>")
PROBE = "Rftkit asks."  # an answer to close, as the template would


@dataclass
class TemplateLook:
    """faults: certain; odd: each a sentence; no_end: how an answer's end is not seen, or None.

    checked   False for a policy that renders elsewhere (an endpoint)
    """

    checked: bool = False
    faults: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    no_end: str | None = None


def look_at_template(policy: Policy, rows: list[dict[str, Any]]) -> TemplateLook:
    """Render the rows' prompts and read them."""
    tokenizer, render = getattr(policy, "tokenizer", None), getattr(policy, "render", None)
    if tokenizer is None or render is None:
        return TemplateLook()
    look = TemplateLook(checked=True)
    try:
        texts = [render(row["messages"]) for row in rows]
    except Exception as error:  # jinja's own errors, a ValueError where there is no template
        reason = str(error).strip().splitlines() or [type(error).__name__]
        look.faults.append(f"the chat template cannot be used: {reason[0][:200]}")
        return look
    for row, text in zip(rows, texts):
        missing = [str(m["content"]) for m in row["messages"] if said(m) not in text]
        if missing:
            look.faults.append(
                f"the prompt that the model reads does not hold {missing[0][:60]!r}: it reads "
                f"{text[:120]!r}"
            )
            break
    look.odd += odd_markers(tokenizer, rows[0]["messages"], texts[0])
    look.no_end = unseen_end(policy, rows[0]["messages"])
    return look


def said(message: dict[str, Any]) -> str:
    """A message's text without blanks around it, which templates may strip."""
    content = message.get("content")
    return content.strip() if isinstance(content, str) else ""


def odd_markers(tokenizer: Any, messages: list[dict[str, Any]], text: str) -> list[str]:
    """Markers of the template that are no tokens: it was written for another model."""
    written = " ".join(said(message) for message in messages)
    found = []
    for marker in dict.fromkeys(MARKER.findall(text)):
        pieces = tokenizer(marker, add_special_tokens=False).input_ids
        if marker not in written and len(pieces) > 1:
            found.append(f"{marker} is no token but {len(pieces)} pieces to this tokenizer")
    return found


def unseen_end(policy: Any, messages: list[dict[str, Any]]) -> str | None:
    """How the template closes an answer, if generation would not stop there."""
    tokenizer = policy.tokenizer
    talk = [*messages, {"role": "assistant", "content": PROBE}]
    try:
        closing = tokenizer.apply_chat_template(talk, tokenize=False).partition(PROBE)[2]
    except Exception:  # a template may refuse to write an answer; it is read for prompts only
        return None
    closing_ids = tokenizer(closing, add_special_tokens=False).input_ids
    ends = end_tokens(policy.model, tokenizer)
    if not closing_ids or ends & set(closing_ids):
        return None
    names = ", ".join(str(t) for t in tokenizer.convert_ids_to_tokens(sorted(ends)))
    return f"the template closes an answer with {closing.strip()!r}, generation stops at {names}"
