"""The contract of one row: what `messages` and `tools` must look like.

Source: OpenAI's reinforcement fine-tuning guide and API specification (2026). `messages`
(required) and `tools` (optional) are the reserved keys; every other key is an answer field, which
a grader reads as `{{item.KEY}}` and the model never sees. The last message has the role `user`.
Where the documents are silent the choice is ours, and it is the stricter one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from rftkit.data.faults import Fault, Place, type_name, value_text

RESERVED_KEYS = ("messages", "tools")
ID_KEYS = ("case_id", "row_id")
ROLES = ("system", "developer", "user", "assistant", "tool")
MESSAGE_KEYS = {"role", "content", "name", "tool_calls", "tool_call_id", "refusal"}

ROLE_OF = {"human": "user", "person": "user", "gpt": "assistant", "bot": "assistant"}
ROLE_OF |= {"model": "assistant", "ai": "assistant", "function": "tool"}
OTHER_FORMATS = {
    ("prompt", "completion"): "a prompt/completion row",
    ("prompt", "chosen"): "a preference (DPO) row",
    ("chosen", "rejected"): "a preference (DPO) row",
    ("conversations",): "a ShareGPT row",
    ("instruction", "output"): "an Alpaca row",
    ("custom_id", "body"): "a line of a batch request",
}
EXAMPLE = '{"messages": [{"role": "user", "content": "..."}], "reference_answer": "..."}'


def row_faults(row: dict[str, Any], here: Place) -> Iterator[Fault]:
    """Yield every fault (and note) of a row that shows without looking at other rows."""
    if "messages" in row:
        yield from messages_faults(row["messages"], here)
    else:
        yield no_messages(row, here)
    if "tools" in row:
        yield from tools_faults(row["tools"], here)


def has_readable_messages(row: dict[str, Any]) -> bool:
    """True where `messages` is a list of objects: enough to read a prompt from it."""
    messages = row.get("messages")
    return isinstance(messages, list) and all(isinstance(m, dict) for m in messages)


def no_messages(row: dict[str, Any], here: Place) -> Fault:
    found, step = 'the row has no "messages"', f"write {EXAMPLE}"
    close = [key for key in row if key.strip().lower() in ("messages", "message", "chat")]
    formats = [name for keys, name in OTHER_FORMATS.items() if all(key in row for key in keys)]
    if close:
        found += f", but {value_text(close[0])}"
        step = f'rename {value_text(close[0])} to "messages"'
    elif formats:
        found += f": it looks like {formats[0]}"
        step = f"the question becomes the user's message, the answer a key of its own: {EXAMPLE}"
    return here.fault("messages missing", found, "a list of messages", step, key="messages")


def messages_faults(messages: Any, here: Place) -> Iterator[Fault]:
    where = {"key": "messages", "value": messages}
    if not isinstance(messages, list):
        found = f'"messages" is of type {type_name(messages)}: {value_text(messages)}'
        step = 'write [{"role": "user", "content": "..."}]'
        if isinstance(messages, dict):
            step = "put the one message into a list: [ ... ]"
        elif isinstance(messages, str) and messages.lstrip().startswith("["):
            step = "the list was encoded twice: json.loads the text first"
        yield here.fault("messages not a list", found, "a list of messages", step, **where)
        return
    if not messages:
        step = 'write [{"role": "user", "content": "..."}]'
        yield here.fault("messages empty", '"messages" is empty', "a user's message", step, **where)
        return
    for index, message in enumerate(messages):
        yield from message_faults(message, f"messages[{index}]", here)
    last = messages[-1]
    role = last.get("role") if isinstance(last, dict) else None
    if role in ROLES and role != "user":
        found = f'"messages" ends with role {value_text(role)}'
        step = "end with the question that the model shall answer"
        if role == "assistant":
            step = "move the answer into a key of its own"
        yield here.fault("last message", found, '"user"', step, key="messages", value=role)


def message_faults(message: Any, path: str, here: Place) -> Iterator[Fault]:
    if not isinstance(message, dict):
        found = f'"{path}" is of type {type_name(message)}: {value_text(message)}'
        step = 'write {"role": "user", "content": "..."}'
        expected = "an object with role and content"
        yield here.fault("message not an object", found, expected, step, key=path, value=message)
        return
    if "from" in message and "value" in message and "role" not in message:
        found = f'"{path}" has "from" and "value" (ShareGPT)'
        step = 'rename "from" to "role" and "value" to "content"; "human" becomes "user"'
        yield here.fault("role", found, '"role" and "content"', step, key=path, value=message)
        return
    yield from role_faults(message, f"{path}.role", here)
    yield from content_faults(message, f"{path}.content", here)
    for key in sorted(message.keys() - MESSAGE_KEYS):
        found = f'"{path}" has a key {value_text(key)}'
        step = 'remove it; an answer field belongs beside "messages", where {{item.KEY}} finds it'
        expected = "role and content"
        yield here.note("message key", found, expected, step, key=f"{path}.{key}")


def role_faults(message: dict[str, Any], path: str, here: Place) -> Iterator[Fault]:
    role, expected = message.get("role"), "one of " + ", ".join(ROLES)
    if isinstance(role, str) and role in ROLES:
        return
    found = f'"{path}" is {value_text(role)}' if "role" in message else f'"{path}" is missing'
    step = 'write "user" for what the model is asked'
    if isinstance(role, str):
        known = ROLE_OF.get(role.strip().lower(), role.strip().lower())
        step = f'write "{known}"' if known in ROLES else step
    yield here.fault("role", found, expected, step, key=path, value=role)


def content_faults(message: dict[str, Any], path: str, here: Place) -> Iterator[Fault]:
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return  # an assistant that calls a tool may say nothing
    where = {"key": path, "value": content}
    if "content" not in message:
        step = "write the message's text as a string"
        yield here.fault("content", f'"{path}" is missing', "a string", step, **where)
    elif isinstance(content, list):
        found = f'"{path}" is a list of parts: {value_text(content)}'
        step = "join the text parts into one string; rftkit trains on text, not on images"
        yield here.fault("content", found, "a string", step, **where)
    elif not isinstance(content, str):
        found = f'"{path}" is of type {type_name(content)}: {value_text(content)}'
        step = "write the text that the model shall read"
        yield here.fault("content", found, "a string", step, **where)
    elif not content.strip():
        found = f'"{path}" is empty'
        step = "the field that fills it was probably missing: fill it, or remove the row"
        yield here.fault("empty content", found, "some text", step, **where)
    else:
        yield from text_faults(content, path, here)
        yield from template_faults(content, path, here)


def template_faults(content: str, path: str, here: Place) -> Iterator[Fault]:
    """A prompt that still holds the template's own words: a fill-in that never ran."""
    left = re.search(r"\{\{\s{0,9}(?:item|sample)\.[^}]{0,80}\}\}", content)
    if left:
        found = f'"{path}" holds {value_text(left.group())}, which nobody fills in'
        step = "templates belong into the grader: write the row's own text here"
        yield here.fault("template in a prompt", found, "plain text", step, key=path, value=content)


def text_faults(text: str, path: str, here: Place) -> Iterator[Fault]:
    """Text that lost characters on its way, read once in a wrong encoding."""
    damage = None
    if "\ufffd" in text:
        damage = text.index("\ufffd")
        found = f'"{path}" holds a replacement character (U+FFFD)'
    elif "Ã" in text or "â€" in text:
        twice = re.search("Ã[\u0080-\u00bf\u0152-\u0178\u2018-\u2122]|â€", text)
        if twice:
            damage = twice.start()
            found = f'"{path}" holds UTF-8 that was read as latin-1'
    if damage is not None:
        around = text[max(0, damage - 15) : damage + 15]
        found = f"{found}: {value_text(around)}"
        step = 'read the source anew with its own encoding: open(path, encoding="utf-8")'
        yield here.fault("damaged text", found, "whole characters", step, key=path, value=around)


def tools_faults(tools: Any, here: Place) -> Iterator[Fault]:
    step = 'write [{"type": "function", "function": {"name": ..., "parameters": {...}}}]'
    expected = "a list of function tools"
    if not isinstance(tools, list):
        found = f'"tools" is of type {type_name(tools)}: {value_text(tools)}'
        step += '; "tools" is a reserved key: rename an answer field of that name'
        yield here.fault("tools", found, expected, step, key="tools", value=tools)
        return
    for index, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            path = f"tools[{index}]"
            found = f'"{path}" names no function: {value_text(tool)}'
            yield here.fault("tools", found, expected, step, key=path, value=tool)
