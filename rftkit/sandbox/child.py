"""In the child: one grade, or one program, and the way its result goes back (see frames.py).

A reply begins with the random bytes of its request: what a program writes into the pipe by itself
is noticed. (Not a secret from code that searches this process's memory: see __init__.py.)
"""

from __future__ import annotations

import atexit
import errno
import io
import json
import linecache
import os
import struct
import sys
import traceback
import types

from rftkit.sandbox.frames import ERROR, NONCE_BYTES, NUMBER, PROGRAM
from rftkit.sandbox.limits import Limits

BROKEN = 70  # exit code where this file itself failed
_MOST_ERROR_TEXT = 20_000
_FILE = "grader.py"

# Taken before any other code runs, which may replace what stands in `builtins`.
_issubclass, _type, _float, _int, _pack = issubclass, type, float, int, struct.pack
_read_json = json.JSONDecoder().raw_decode  # touches half the memory that json.loads does
_errno_of = OSError.__dict__["errno"].__get__
_write, _exit, _format = os.write, os._exit, traceback.format_exception


def load_source(source: str) -> tuple[types.ModuleType, str]:
    """Run a grader's text as a module: (module, its traceback or "")."""
    module = types.ModuleType("grader")
    module.__file__ = _FILE
    sys.modules["grader"] = module
    linecache.cache[_FILE] = (len(source), None, source.splitlines(True), _FILE)
    try:
        exec(compile(source, _FILE, "exec", dont_inherit=True), module.__dict__)
    except BaseException as error:
        return module, _describe(error)
    return module, ""


def main(
    request: bytes,
    module: types.ModuleType,
    pipes: list[int],
    limits: Limits,
    child_filter: object,
) -> None:
    """One request, from the first byte to the end of this process. Never returns.

    pipes  the ends to write to: of the reply alone, or reply, standard output, standard error
    """
    pipes = _keep_only(pipes, limits)
    if child_filter is not None:
        child_filter.load()
    nonce = request[1 : 1 + NONCE_BYTES]
    try:
        content = _read_json(request[1 + NONCE_BYTES :].decode())[0]
    except Exception as error:  # too deep, or too large for the memory it may use
        reply(pipes[0], nonce + ERROR + f"the row cannot be read: {error!r}".encode())
    if request[:1] == PROGRAM:
        _run_program(content, pipes)
    reply(pipes[0], nonce + grade(module, content["sample"], content["item"]))


def grade(module: types.ModuleType, sample: dict, item: dict) -> bytes:
    """Call grade(sample, item); the reply without its nonce."""
    try:
        value = module.grade(sample, item)
        return encode(value)
    except BaseException as error:  # SystemExit and KeyboardInterrupt are no way out either
        return ERROR + _describe(error).encode("utf-8", "replace")


def encode(value: object) -> bytes:
    """A returned value as reply. The number is read from the object itself: what a subclass of
    float says about itself (`__float__`, `__repr__`, `__class__`) is not asked."""
    kind = _type(value)
    if _issubclass(kind, _float):
        return NUMBER + _pack("<d", value)
    if _issubclass(kind, _int):  # bool as well
        try:
            return NUMBER + _pack("<d", _float(_int.__add__(value, 0)))
        except OverflowError:
            bits = _int.bit_length(value)
            what = f"a whole number of {bits:,} bits ({kind.__name__})"
    elif kind in (str, bytes, type(None), complex):
        shown = repr(value[:60] if kind in (str, bytes) else value)
        what = f"{shown} ({kind.__name__})"
    else:
        what = f"a {_type.__dict__['__name__'].__get__(kind)}"
    return ERROR + f"grade returned {what}, expected a finite number".encode("utf-8", "replace")


def _describe(error: BaseException) -> str:
    """The traceback within the grader's own text, and what the sandbox has to do with it."""
    try:
        frame = error.__traceback__
        while frame is not None and frame.tb_frame.f_code.co_filename != _FILE:
            frame = frame.tb_next
        text = "".join(_format(_type(error), error, frame)).strip()
        text = text[-_MOST_ERROR_TEXT:]
    except BaseException as second:  # its __str__ raises, or the memory is gone
        text = f"{_type(error).__name__} (and {_type(second).__name__} while its text was made)"
    if _issubclass(_type(error), PermissionError):
        text += "\n(the sandbox gives no network, no other process, and no file but the libraries "
        text += "and its scratch folder)"
    elif _issubclass(_type(error), MemoryError):
        text += "\n(the sandbox limits the memory of a grade)"
    elif _issubclass(_type(error), OSError) and _errno_of(error) == errno.ENOSPC:
        text += "\n(the sandbox limits the bytes and the files that a grade may have on disk)"
    return text


def reply(pipe: int, data: bytes) -> None:
    """Say it and be gone: no destructor, no exit handler, no thread gets another turn."""
    view = memoryview(data)
    while view:
        view = view[_write(pipe, view) :]
    _exit(0)


def _keep_only(pipes: list[int], limits: Limits) -> list[int]:
    """Close all files but the pipes: those of the parent, and what the grader's text opened (two
    grades would share the position in such a file). Standard output and error become pipes."""
    for place, pipe in zip((1, 2), pipes[1:]):
        os.dup2(pipe, place)
    kept = pipes[0]
    os.closerange(3, kept)
    os.closerange(kept + 1, max(limits.open_files, 256))
    return [kept]


def _run_program(content: dict, pipes: list[int]) -> None:
    """Run a text as a program would run: __main__, arguments, standard input and output."""
    os.close(pipes[0])
    with open("standard-input", "w+", encoding="utf-8", errors="surrogatepass") as file:
        file.write(content["stdin"])
    os.dup2(os.open("standard-input", os.O_RDONLY), 0)
    os.unlink("standard-input")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        raw = open(number, "rb" if number == 0 else "wb", closefd=False)
        setattr(sys, name, io.TextIOWrapper(raw, "utf-8", "backslashreplace"))
    source = content["source"]
    sys.argv = ["program.py", *content["arguments"]]
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    linecache.cache["program.py"] = (len(source), None, source.splitlines(True), "program.py")
    code = 0
    try:
        exec(compile(source, "program.py", "exec", dont_inherit=True), module.__dict__)
        if "threading" in sys.modules:
            sys.modules["threading"]._shutdown()  # a program ends when its threads have
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if code and not isinstance(stop.code, int):
            print(stop.code, file=sys.stderr)
    except BaseException as error:
        code = 1
        frame = error.__traceback__.tb_next if error.__traceback__ else None
        print("".join(_format(type(error), error, frame)), end="", file=sys.stderr)
    try:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        code = code or 1
    _exit(code & 0xFF)
