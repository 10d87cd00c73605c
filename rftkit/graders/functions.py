"""A Python function as a grader: its three signatures, its file, its text for the sandbox.

    grade(sample, item) -> float                                           OpenAI's python grader
    f(completions, **columns) -> [float or None]                           TRL's reward function
    lambda_handler(event, context) -> [{"aggregate_reward_score": float}]  Amazon Bedrock's

A `call_` function gives one answer to a function of its kind. Its text goes into the sandbox with
the function's, so it stands alone.
"""

import builtins
import hashlib
import inspect
import re
import runpy
import symtable
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rftkit.files import UserError, read_text

SIGNATURES = "grade(sample, item), f(completions, **columns) or lambda_handler(event, context)"
FILE = re.compile(r"(.+\.py)(?::(\w+))?")  # file.py or file.py:function


def call_openai(function, sample, item):
    return function(sample, item)


def call_trl(function, sample, item):
    """A batch of one; the row's fields are the columns. The completion is a text, or messages
    if the function names their "content" or fails on a text."""
    import inspect

    def names_content(code):
        inner = filter(inspect.iscode, code.co_consts)
        return "content" in code.co_consts or any(map(names_content, inner))

    messages, answer = item.get("messages", []), sample["choices"][0]["message"]
    question = "\n".join(str(message.get("content")) for message in messages)
    forms = [(question, sample["output_text"]), (messages, [answer])]
    if names_content(inspect.unwrap(function).__code__):
        forms.reverse()
    columns = {key: [value] for key, value in item.items() if key != "messages"}
    known = inspect.signature(function).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    errors = []
    for prompt, completion in forms:
        given = columns | {"prompts": [prompt], "completions": [completion]}
        try:
            (reward,) = function(**{k: v for k, v in given.items() if takes_all or k in known})
            return None if reward is None else float(reward)
        except (TypeError, AttributeError, LookupError) as error:
            errors.append(error)
    raise errors[0]


def call_bedrock(function, sample, item):
    """A batch of one; the row's fields stand under "metadata", and beside it as in SageMaker."""
    fields = {key: value for key, value in item.items() if key != "messages"}
    messages = [*item.get("messages", []), sample["choices"][0]["message"]]
    answer = function([{"id": "1", "metadata": fields, **fields, "messages": messages}], None)
    answer = answer[0] if isinstance(answer, list) else answer
    return float(answer["aggregate_reward_score"])


CALLS = {"openai": call_openai, "trl": call_trl, "bedrock": call_bedrock}


def signature_of(parameters: tuple[str, ...]) -> str | None:
    """The key of CALLS for a function's parameters."""
    if "completions" in parameters:
        return "trl"
    return ("bedrock" if parameters[0] == "event" else "openai") if len(parameters) == 2 else None


def is_function(source: Any) -> bool:
    """Is it a function, or names one: file.py or file.py:function?"""
    is_text = isinstance(source, (str, Path))
    return bool(FILE.fullmatch(str(source))) if is_text else callable(source)


def beside(folder: Path, source: str) -> str:
    """A path, or file.py:function, in that folder where it is there; else as it is."""
    match = FILE.fullmatch(source)
    is_there = (folder / (match[1] if match else source)).exists()
    return str(folder / source) if is_there else source


def describe(source: Callable | str | Path) -> dict[str, Any]:
    """What a run keeps of a function: name, signature, source and the source's hash. Runs nothing.
    UserError if no function of the three signatures is there, or several and none is named."""
    if callable(source):
        place, name, text = "grader", getattr(source, "__name__", "function"), ""
        with suppress(OSError, TypeError):
            text = textwrap.dedent(inspect.getsource(source))
        text = text[max(0, text.find("def ")) :]  # without decorators
        codes = {name: getattr(inspect.unwrap(source), "__code__", None)}
    else:
        place, name = FILE.fullmatch(str(source)).groups()
        text = read_text(place)
        try:
            parts = compile(text, place, "exec", dont_inherit=True).co_consts
        except (SyntaxError, ValueError) as error:
            raise UserError(f"{place}: not Python ({error}): correct it") from None
        codes = {code.co_name: code for code in parts if inspect.iscode(code)}
    parameters = {
        key: code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        for key, code in codes.items()
        if code
    }
    signatures = {key: kind for key in parameters if (kind := signature_of(parameters[key]))}
    # Two parameters of other names may be a helper's.
    sure = [k for k, s in signatures.items() if s != "openai" or parameters[k][0] == "sample"]
    candidates = [name] if name else sure or [*signatures]
    if len(candidates) != 1 or candidates[0] not in signatures:
        shown = {key: f"{key}({', '.join(names)})" for key, names in parameters.items()}
        has = ", ".join(shown.get(key, f"no function {key}") for key in candidates) or "no function"
        raise UserError(f"{place}: {has}, expected one {SIGNATURES}: name it, file.py:function")
    (name,), digest = candidates, hashlib.sha256(text.encode()).hexdigest()
    known = {"type": "function", "name": name, "signature": signatures[name]}
    return known | {"source": text, "sha256": digest}


def load(source: Callable | str | Path, name: str) -> Any:
    """The function of that name itself: its file runs, in this process."""
    if callable(source):
        return source
    path = Path(FILE.fullmatch(str(source))[1])
    with importing(path.parent, str(path)):  # and the modules beside it
        return runpy.run_path(str(path))[name]


@contextmanager
def importing(folder: Path, place: str) -> Iterator[None]:
    """Imports find a user's modules in that folder; UserError for whatever they raise."""
    sys.path.insert(0, str(folder.resolve()))
    try:
        yield
    except Exception as error:
        raise UserError(f"{place}: cannot be loaded ({error!r}): correct it") from None
    finally:
        sys.path.pop(0)


def python_spec(record: dict[str, Any]) -> dict[str, Any]:
    """A function's record as OpenAI's python grader; UserError if its text does not stand alone."""
    name, text, call = record["name"], record["source"], CALLS[record["signature"]]
    if f"def {name}(" not in text:
        raise UserError(f"grader {name}: has no def to take along: write one")
    if outer := ", ".join(outer_names(text)):
        raise UserError(f"grader {name}: uses outer {outer}: put that inside, or name its file.py")
    if name != "grade" or call is not call_openai:
        text += f"\n\n_function = {name}\n\n\n{inspect.getsource(call)}\n\n"
        text += f"def grade(sample, item):\n    return {call.__name__}(_function, sample, item)\n"
    return {"type": "python", "name": name, "source": text}


def outer_names(text: str) -> list[str]:
    """The names that a text uses and neither defines nor imports."""
    module = symtable.symtable(text, "grader", "exec")
    tables, used = [module], set()
    for table in tables:
        tables += table.get_children()
        symbols = table.get_symbols()
        used |= {s.get_name() for s in symbols if s.is_global() and s.is_referenced()}
    defined = {s.get_name() for s in module.get_symbols() if s.is_assigned() or s.is_imported()}
    return sorted(used - defined - {*dir(builtins), "__file__"})
