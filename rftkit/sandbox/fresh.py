"""A new interpreter for each grade: the way of machines without a warm parent (macOS, Windows).

Weak isolation: a process and an empty folder of its own, nothing of our environment, a time limit,
and the kernel's limits where it has them; neither files nor network are out of reach.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from typing import IO

from rftkit.sandbox import child, frames
from rftkit.sandbox.limits import Limits, limit_process
from rftkit.sandbox.process import ENVIRONMENT, Answer, Lost, TooLong, command, settings
from rftkit.sandbox.scratch import bytes_in, remove, whole_blocks


def ask(source: str, request: bytes, limits: Limits) -> Answer:
    """Run one request in a new interpreter. TooLong and Lost as from a warm parent."""
    scratch = tempfile.mkdtemp(prefix="rftkit-sandbox-")
    try:
        return _ask_in(scratch, source, request, limits)
    finally:
        remove(scratch)


def _ask_in(scratch: str, source: str, request: bytes, limits: Limits) -> Answer:
    try:
        process = subprocess.Popen(
            command("fresh"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=scratch,
            env=ENVIRONMENT | _needed_by_windows() | {"HOME": scratch, "TMPDIR": scratch},
            start_new_session=os.name == "posix",
        )
    except OSError as error:
        raise Lost(f"no process could be started ({error})") from None
    texts, is_late = _talk(process, [_first_message(source, limits), request], limits)
    if is_late:
        raise TooLong
    too_large = sum(map(len, texts)) > limits.reply + frames.REPLY_OVERHEAD
    if request[:1] == frames.GRADE:
        texts = [texts[0], b"", b""]  # what is on standard error is Python's own complaint
    else:
        texts = [b"", *texts]
    return Answer(
        frames.REPLY_TOO_LARGE if too_large else frames.DONE,
        process.returncode,
        bytes_in(scratch, whole_blocks(limits.disk)),
        texts,
    )


def main() -> None:
    """Entry point of the new interpreter: one source, one request."""
    told = json.loads(frames.read_frame(0))
    request = frames.read_frame(0)
    limits = Limits(*told["limits"])
    sys.path[:] = [path for path in sys.path if path != told["root"]] + told["library_folders"]
    limit_process(limits, count_threads=False)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    if request[:1] == frames.PROGRAM:
        child.main(request, None, [nothing, os.dup(1), os.dup(2)], limits, None)
    reply = os.dup(1)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    module, error = child.load_source(told["source"])
    if error:
        text = error.encode("utf-8", "replace")
        child.reply(reply, request[1 : frames.REPLY_OVERHEAD] + frames.LOAD_ERROR + text)
    child.main(request, module, [reply], limits, None)


def _first_message(source: str, limits: Limits) -> bytes:
    return json.dumps(settings(source, limits)).encode()


def _talk(
    process: subprocess.Popen, messages: list[bytes], limits: Limits
) -> tuple[list[bytes], bool]:
    """(standard output and error, each with a bounded length; was the time over)."""
    late = threading.Event()

    def stop() -> None:
        late.set()
        _kill(process)

    clock = threading.Timer(limits.seconds, stop)
    clock.start()
    texts = [b"", b""]

    def read(place: int, stream: IO[bytes]) -> None:
        while data := stream.read1(65536):
            texts[place] += data
            if len(texts[place]) > limits.reply + frames.REPLY_OVERHEAD:
                _kill(process)
                break

    streams = (process.stdout, process.stderr)
    readers = [threading.Thread(target=read, args=pair) for pair in enumerate(streams)]
    for reader in readers:
        reader.start()
    try:
        for message in messages:
            process.stdin.write(frames.LENGTH.pack(len(message)) + message)
        process.stdin.close()
    except OSError:
        pass  # it ended early; its exit code says how
    process.wait()
    _kill(process)  # what it left behind in its group
    clock.cancel()
    for reader in readers:
        reader.join(5)
    for stream in streams:
        stream.close()
    return texts, late.is_set()


def _kill(process: subprocess.Popen) -> None:
    try:
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    except (ProcessLookupError, PermissionError):
        pass


def _needed_by_windows() -> dict[str, str]:
    return {name: os.environ[name] for name in ("SYSTEMROOT",) if name in os.environ}
