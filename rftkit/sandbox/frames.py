"""Messages on a pipe: four bytes of length, then that many bytes. And what the messages hold."""

from __future__ import annotations

import os
import struct

LENGTH = struct.Struct("<I")

# A request is GRADE or PROGRAM, NONCE_BYTES random bytes, and JSON. An answer is a HEADER and up
# to three texts: the child's reply and, of a program, its standard output and error. The header:
# cause, exit code (negative: the signal that ended it), bytes left on disk, is the warm parent
# finished, length of each text.
GRADE, PROGRAM = b"G", b"P"
NONCE_BYTES = 16
HEADER = struct.Struct("<ciQ?III")
DONE, REPLY_TOO_LARGE, DISK_FULL = b"D", b"R", b"F"

# A reply is the request's random bytes, then NUMBER and eight bytes, or a text: ERROR from the
# grade, LOAD_ERROR from the source. So nothing that a program made up is ever parsed.
NUMBER, ERROR, LOAD_ERROR = b"F", b"E", b"L"
REPLY_OVERHEAD = NONCE_BYTES + 1


def write_frame(file: int, data: bytes) -> None:
    view = memoryview(LENGTH.pack(len(data)) + data)
    while view:
        view = view[os.write(file, view) :]


def read_frame(file: int) -> bytes | None:
    """The next message; None at the end of the pipe."""
    head = _read_exactly(file, LENGTH.size)
    return None if head is None else _read_exactly(file, LENGTH.unpack(head)[0])


def _read_exactly(file: int, count: int) -> bytes | None:
    data = os.read(file, count)
    if len(data) == count:
        return data
    parts, missing = [data], count - len(data)
    while missing:
        data = os.read(file, min(missing, 1 << 20))
        if not data:
            return None
        parts.append(data)
        missing -= len(data)
    return b"".join(parts)
