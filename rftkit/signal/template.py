"""Does the model read what we think it reads? The chat template and the end token, looked at.

Looks at the rendered text, and asks the model itself about markers that are no tokens. What is
certain (the question is not in it, the answer is not opened) is a fault by itself; what is only odd
(a marker in letters that the model may know: some are trained so) becomes one where the answers are
garbage as well.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from rftkit.policy import Policy, end_tokens

MARKER = re.compile(
    r"<[|\uff5c][^<>|\uff5c\s]{1,40}[|\uff5c]>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>"
)
LAST_MARKER = re.compile(rf"({MARKER.pattern})\s*$")
QUESTION, ANSWER = "Rftkit asks.", "Rftkit answers."  # what the template is tried on
KNOWN = 0.01  # ours: who has ever read `<|user|>` in pieces finds one of them likelier than that


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
    messages = [message | {"content": QUESTION} for message in rows[0]["messages"]]
    look_at_markers(policy, messages, look)
    look_at_opening(policy, messages, look)
    look.no_end = unseen_end(policy, messages)
    return look


def said(message: dict[str, Any]) -> str:
    """A message's text without blanks around it, which templates may strip."""
    content = message.get("content")
    return content.strip() if isinstance(content, str) else ""


def look_at_markers(policy: Any, messages: list[dict[str, Any]], look: TemplateLook) -> None:
    """Markers of the template that are no tokens: was it written for another model?

    messages   with a text of ours in them: what a user wrote is no marker, whatever it looks like
    """
    tokenizer, text = policy.tokenizer, policy.render(messages)
    for marker in dict.fromkeys(MARKER.findall(text)):
        pieces = tokenizer(marker, add_special_tokens=False).input_ids
        unknown = getattr(tokenizer, "unk_token_id", None)
        if unknown is not None and unknown in pieces and marker != tokenizer.unk_token:
            look.faults.append(
                f"the template writes {marker}, which this tokenizer does not know: the model "
                f"reads {tokenizer.unk_token} instead"
            )
        if len(pieces) < 2 or look.faults:
            continue
        told = f"{marker} is no token but {len(pieces)} pieces to this tokenizer"
        chance = best_piece(policy, text[: text.rindex(marker)], pieces)
        if chance is not None and chance < KNOWN:
            look.faults.append(
                f"{told}, and the model does not know them (having read the pieces before it, the "
                f"likeliest has a chance of {chance:.1g}): it was written for another model"
            )
        elif marker.startswith("<"):  # [INST] is no token to the models that are trained on it
            look.odd.append(told)


def best_piece(policy: Any, before: str, pieces: list[int]) -> float | None:
    """The highest chance that the model gives to one of a marker's pieces after the first, having
    read what stands before them; None where there is no model to ask."""
    parameters = getattr(getattr(policy, "model", None), "parameters", None)
    if parameters is None:
        return None
    import torch

    ids = [*policy.tokenizer(before, add_special_tokens=False).input_ids, *pieces]
    with torch.no_grad():
        read = torch.tensor([ids], device=next(parameters()).device)
        logits = policy.model(input_ids=read).logits[0, -len(pieces) : -1]
    chances = logits.float().softmax(-1)[range(len(pieces) - 1), pieces[1:]]
    return float(chances.max())


def look_at_opening(policy: Any, messages: list[dict[str, Any]], look: TemplateLook) -> None:
    """Does the prompt end where the template begins an answer, and not after one?

    A template that puts nothing between question and answer but an end token is sound: then the
    end token stands before a written answer, too.
    """
    talk = with_message(policy, messages, "assistant")
    if ANSWER not in talk or talk == with_message(policy, messages, "user"):
        return  # it writes questions alone
    prompt, opening = policy.render(messages), talk.partition(ANSWER)[0]
    missing = opening.removeprefix(prompt).strip()
    plain = policy.tokenizer.apply_chat_template(messages, tokenize=False)
    if prompt == plain and opening.startswith(prompt) and missing:
        look.faults.append(
            f"the template begins an answer with {missing!r}, but the prompt for a new one ends "
            f"without it, in {prompt[-30:]!r}: it ignores add_generation_prompt"
        )
    # Where one goes on after the other (a <think> that is opened, a channel) both are sound.
    markers = [LAST_MARKER.search(text) for text in (prompt, opening)]
    if all(markers) and not (prompt.startswith(opening) or opening.startswith(prompt)):
        told, meant = (found[1] for found in markers)
        if told != meant:
            look.faults.append(
                f"the prompt for a new answer ends with {told!r}, but the template begins an "
                f"answer with {meant!r}"
            )
    ends = end_tokens(policy.model, policy.tokenizer)
    last, before = (last_token(policy.tokenizer, text) for text in (prompt, opening))
    if last in ends and before not in ends:
        look.faults.append(
            f"the prompt ends with {policy.tokenizer.convert_ids_to_tokens(last)}, which ends an "
            f"answer: the model is asked to go on after its turn is over ({prompt[-30:]!r})"
        )


def last_token(tokenizer: Any, text: str) -> int | None:
    """The token that a text ends with, blanks aside."""
    ids = tokenizer(text.rstrip(), add_special_tokens=False).input_ids
    return ids[-1] if ids else None


def with_message(policy: Any, messages: list[dict[str, Any]], role: str) -> str:
    """The talk with ANSWER as its last message; "" where the template refuses to write it (it is
    read for prompts only) or the talk ends with an answer anyway."""
    if messages[-1].get("role") == "assistant":
        return ""
    try:
        return policy.tokenizer.apply_chat_template(
            [*messages, {"role": role, "content": ANSWER}], tokenize=False
        )
    except Exception:  # jinja's own errors
        return ""


def unseen_end(policy: Any, messages: list[dict[str, Any]]) -> str | None:
    """How the template closes an answer, if generation would not stop there."""
    tokenizer = policy.tokenizer
    closing = with_message(policy, messages, "assistant").partition(ANSWER)[2]
    closing_ids = tokenizer(closing, add_special_tokens=False).input_ids
    ends = end_tokens(policy.model, tokenizer)
    if not closing_ids or ends & set(closing_ids):
        return None
    names = ", ".join(str(t) for t in tokenizer.convert_ids_to_tokens(sorted(ends)))
    return f"the template closes an answer with {closing.strip()!r}, generation stops at {names}"
