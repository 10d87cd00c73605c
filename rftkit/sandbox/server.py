"""The sandbox's own processes: a launcher, a server, and a child for each grade.

    launcher   enters the namespaces, starts the server, removes the folder after it
    server     imports libraries and nothing else, then forks a child for each request; it runs no
               foreign text and never looks into what a child says
    child      puts on the lock, compiles the grader's text, runs it, replies and ends

A request is NONCE_BYTES random bytes, and JSON. A reply is LOADED once the text has been run, then
the random bytes, then NUMBER and eight bytes, or ERROR and a text: nothing in it is ever parsed.
The server's answer is a HEADER and the reply.
"""

import gc
import importlib
import json
import linecache
import os
import select
import signal
import struct
import sys
import time
import traceback
import types
from contextlib import suppress
from typing import IO

from rftkit.sandbox import isolation
from rftkit.sandbox.isolation import Limits

LENGTH = struct.Struct("<I")  # of a message, before it
NONCE_BYTES = 16
LOADED, NUMBER, ERROR = b"+", b"F", b"E"
OVERHEAD = len(LOADED) + NONCE_BYTES + 1  # bytes of a reply beside its text
# Cause, exit status (negative: the signal that ended the child), has the server finished.
HEADER = struct.Struct("<ci?")
DONE, TOO_LONG, TOO_LARGE = b"D", b"T", b"R"
BROKEN = 70  # exit status of a child that could not be locked in
_MOST_ERROR_TEXT, _FILE = 20_000, "grader.py"

# Taken before any foreign text runs, which may replace what stands in `builtins` and in modules.
_issubclass, _type, _float, _int, _pack = issubclass, type, float, int, struct.pack
_write, _exit, _format = os.write, os._exit, traceback.format_exception
_decode = json.JSONDecoder().raw_decode  # touches less memory than json.loads


def write_message(file: IO[bytes], data: bytes) -> None:
    file.write(LENGTH.pack(len(data)) + data)
    file.flush()


def read_message(file: IO[bytes]) -> bytes | None:
    """The next message; None at the end of the pipe."""
    head = file.read(LENGTH.size)
    return file.read(*LENGTH.unpack(head)) if len(head) == LENGTH.size else None


def main() -> None:
    """Entry point of the launcher."""
    folder, limits, libraries, requests, replies = start()
    is_apart = limits.namespaces and isolation.enter_namespaces()
    if os.fork() == 0:
        try:
            serve(folder, limits, libraries, is_apart, requests, replies)
        finally:
            os._exit(0)
    requests.close()
    replies.close()
    os.wait()  # all that the server started ends with it
    is_emptied(folder)
    os.rmdir(folder)


def main_alone() -> None:
    """Entry point where there is no server (macOS, Windows): one request in this interpreter."""
    _, limits, _, requests, replies = start()
    if os.name == "posix":
        isolation.set_limits(limits, count_threads=False)
    answer(requests.read(), replies.fileno())


def start() -> tuple[str, Limits, list[str], IO[bytes], IO[bytes]]:
    """(folder, limits, libraries) from the command line, and two pipes: /dev/null takes them."""
    requests, replies = open(os.dup(0), "rb"), open(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    os.close(nothing)
    folder, limits, libraries, library_folders = json.loads(sys.argv.pop())
    sys.path[-1:] = library_folders  # in the place of the folder that holds rftkit
    return folder, Limits(*limits), libraries, requests, replies


def serve(
    folder: str, limits: Limits, libraries: list[str], is_apart: bool, requests: IO, replies: IO
) -> None:
    """Serve requests until our side closes the pipe, each in a child of its own."""
    try:
        with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # short of memory, the machine ends this and not the training
        given, child_filter = isolation.shut_in(limits, folder, is_apart)
        for name in libraries:
            with suppress(BaseException):  # the child says why, where the text still asks for it
                importlib.import_module(name)
    except Exception:
        return write_message(replies, traceback.format_exc().encode())
    gc.collect()
    gc.freeze()  # what is here stays: a child's collector need not touch (and so copy) it
    write_message(replies, json.dumps(given).encode())
    finished = False
    while not finished and (request := read_message(requests)) is not None:
        pipe, pipe_end = os.pipe()
        deadline, server, child = time.monotonic() + limits.seconds, os.getpid(), os.fork()
        if child == 0:
            try:
                isolation.die_with_parent()
                if child_filter:
                    isolation.load_filter(child_filter)
                if os.getppid() == server:
                    os.dup2(pipe_end, 3)
                    os.closerange(4, 256)
                    answer(request, 3)
            finally:
                os._exit(BROKEN)
        os.close(pipe_end)
        cause, reply = collect(pipe, requests, deadline, limits.reply + OVERHEAD)
        os.close(pipe)
        os.kill(child, signal.SIGKILL)  # whatever it said, it does not go on
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        # Without seccomp a process may be left. What cannot be removed needs a new server.
        finished = not child_filter or not is_emptied(folder)
        write_message(replies, HEADER.pack(cause, status, finished) + reply)


def collect(pipe: int, requests: IO, deadline: float, most: int) -> tuple[bytes, bytes]:
    """(cause, reply): read a pipe to its end, or stop where the child takes too long or says more
    than `most` bytes, or our side is gone."""
    poll, reply = select.poll(), b""
    poll.register(requests, 0)  # asks for nothing: only the end of the pipe is reported
    poll.register(pipe, select.POLLIN)
    while len(reply) <= most:
        left = deadline - time.monotonic()
        ready = poll.poll(left * 1000) if left > 0 else []
        if not ready:
            return TOO_LONG, reply
        data = os.read(pipe, 65536) if all(file == pipe for file, _ in ready) else b""
        if not data:
            return DONE, reply
        reply += data
    return TOO_LARGE, reply[:1]


def is_emptied(folder: str) -> bool:
    """Remove what a grade left, as far as that goes."""
    with suppress(OSError, RecursionError):
        for place, folders, files in os.walk(folder, topdown=False):
            for name in files:
                os.unlink(os.path.join(place, name))
            for name in folders:
                os.rmdir(os.path.join(place, name))
    return not os.listdir(folder)


def answer(request: bytes, pipe: int) -> None:
    """One request, from the first byte to the end of this process. Never returns."""
    nonce = request[:NONCE_BYTES]
    try:
        content = _decode(request[NONCE_BYTES:].decode())[0]
    except Exception as error:  # too deep, or too large for the memory it may use
        say(pipe, nonce + ERROR + f"the row cannot be read: {error!r}".encode())
    module, source = types.ModuleType("grader"), content["source"]
    module.__file__ = _FILE
    sys.modules[module.__name__] = module
    linecache.cache[_FILE] = (len(source), None, source.splitlines(True), _FILE)
    try:
        exec(compile(source, _FILE, "exec", dont_inherit=True), module.__dict__)
    except BaseException as error:
        say(pipe, nonce + _describe(error))
    _write(pipe, LOADED)
    if "item" not in content:  # only its loading was asked for
        say(pipe, nonce + encode(0))
    try:
        result = encode(module.grade(content["sample"], content["item"]))
    except BaseException as error:  # SystemExit and KeyboardInterrupt are no way out either
        result = _describe(error)
    say(pipe, nonce + result)


def encode(value: object) -> bytes:
    """A returned value as reply. The number is read from the object itself: what a subclass of
    float says about itself (`__float__`, `__repr__`, `__class__`) is not asked."""
    kind = _type(value)
    if _issubclass(kind, _float):
        return NUMBER + _pack("<d", value)
    if _issubclass(kind, _int):  # bool as well
        with suppress(OverflowError):
            return NUMBER + _pack("<d", _float(_int.__add__(value, 0)))
    name = _type.__dict__["__name__"].__get__(kind)
    return ERROR + f"grade returned a {name}, expected a finite number".encode()


def _describe(error: BaseException) -> bytes:
    """ERROR, the traceback within the text, and what the sandbox has to do with it."""
    kind = _type(error)
    try:
        frame = error.__traceback__
        while frame is not None and frame.tb_frame.f_code.co_filename != _FILE:
            frame = frame.tb_next
        text = "".join(_format(kind, error, frame)).strip()[-_MOST_ERROR_TEXT:]
        if _issubclass(kind, PermissionError):
            text += "\n(the sandbox gives no network, no process, no file but a scratch folder)"
    except BaseException as second:  # its __str__ raises, or the memory is gone
        text = f"{kind.__name__} (and {_type(second).__name__} while its text was made)"
    return ERROR + text.encode("utf-8", "replace")


def say(pipe: int, data: bytes) -> None:
    """Reply and be gone: no destructor, no exit handler, no thread gets another turn."""
    _write(pipe, data)
    _exit(0)
