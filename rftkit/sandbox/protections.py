"""What Linux gives to lock a process in, through ctypes: no package, and no privilege needed.

Each function takes rights away from THIS process and all that it forks, for good. Sources: the
kernel's documentation of Landlock and seccomp, and man 7 user_namespaces, capabilities.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable

from rftkit.sandbox import syscalls

# System calls have the same number on all processors since these came.
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_PR_SET_PDEATHSIG, _PR_SET_KEEPCAPS, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 8, 22, 38
_PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER = 4, 36
_SECCOMP_MODE_FILTER = 2

# Landlock's rights over files, by bit (linux/landlock.h).
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REGULAR = 1 << 4, 1 << 5, 1 << 7, 1 << 8
_REFER, _TRUNCATE, _IOCTL_DEVICE = 1 << 13, 1 << 14, 1 << 15
_ALL_OF_ABI_1 = (1 << 13) - 1
_ONLY_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEVICE
# In the scratch folder: no links, devices, pipes or sockets, nothing to execute.
_SCRATCH = (
    _WRITE_FILE | _READ_FILE | _READ_DIR | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REGULAR
) | (_REFER | _TRUNCATE)
_BIND_AND_CONNECT, _ABSTRACT_SOCKETS_AND_SIGNALS = 3, 3

_NEW_USER, _NEW_PROCESSES, _NEW_NETWORK, _NEW_IPC = 0x10000000, 0x20000000, 0x40000000, 0x08000000
_NEW_MOUNTS = 0x00020000
_CAP_DAC_READ_SEARCH = 2
_NOSUID_NODEV_NOEXEC, _RECURSIVE_PRIVATE, _DETACH = 2 | 4 | 8, 0x4000 | 1 << 18, 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def landlock_version() -> int:
    """The kernel's Landlock ABI: 0 where there is none."""
    try:
        return max(0, _call(_libc.syscall, _LANDLOCK_CREATE, None, 0, 1))
    except OSError:
        return 0


def restrict_files(trees: Iterable[str], lists: Iterable[str], scratch: str) -> int:
    """Landlock: read what lies under `trees`, see the names under `lists`, work in `scratch`.

    Returns the ABI that was used; OSError where the kernel has no Landlock. From ABI 4 on no TCP
    either, from ABI 6 on no signals to processes outside and no abstract sockets.
    """
    version = landlock_version()
    if not version:
        raise OSError(errno.ENOSYS, "Landlock is not there")
    files = _ALL_OF_ABI_1
    for abi, right in ((2, _REFER), (3, _TRUNCATE), (5, _IOCTL_DEVICE)):
        files |= right if version >= abi else 0
    network = _BIND_AND_CONNECT if version >= 4 else 0
    scope = _ABSTRACT_SOCKETS_AND_SIGNALS if version >= 6 else 0
    attributes = struct.pack("<QQQ", files, network, scope)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = _call(_libc.syscall, _LANDLOCK_CREATE, attributes, size, 0)
    try:
        for path in trees:
            _allow(rules, path, _READ_FILE | _READ_DIR)
        for path in lists:
            _allow(rules, path, _READ_DIR)
        _allow(rules, os.devnull, (_READ_FILE | _WRITE_FILE) & files)
        _allow(rules, scratch, _SCRATCH & files)
        _call(_libc.syscall, _LANDLOCK_RESTRICT, rules, 0)
    finally:
        os.close(rules)
    return version


def forbid_new_privileges() -> None:
    """No set-user-id program gives anything back; Landlock and seccomp ask for this."""
    _call(_libc.prctl, _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def die_with_parent() -> None:
    """Be killed when the process that forked this one ends (prctl, PR_SET_PDEATHSIG)."""
    _call(_libc.prctl, _PR_SET_PDEATHSIG, 9, 0, 0, 0)


def adopt_orphans() -> None:
    """Become the parent of each descendant whose own parent ends (PR_SET_CHILD_SUBREAPER)."""
    _call(_libc.prctl, _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Filter:
    """A seccomp filter, ready to be loaded: `syscalls.parent_filter()` or `child_filter()`."""

    def __init__(self, program: bytes):
        self._program = ctypes.create_string_buffer(program, len(program))
        count, address = len(program) // 8, ctypes.addressof(self._program)
        self._header = ctypes.create_string_buffer(struct.pack("@HP", count, address))
        numbers = (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(self._header), 0, 0)
        self._arguments = tuple(ctypes.c_long(number) for number in numbers)

    def load(self) -> None:
        """From now on, in this process and all that it forks."""
        if _libc.prctl(*self._arguments) == -1:
            raise OSError(ctypes.get_errno(), "seccomp: the filter was not accepted")


def restrict_system_calls() -> Filter:
    """Load the parent's filter; returns the child's, to be loaded in each child.

    OSError where the kernel has no seccomp, or the processor no table."""
    if syscalls.numbers() is None:
        raise OSError(errno.ENOSYS, "no table of system calls for this processor")
    Filter(syscalls.parent_filter()).load()
    return Filter(syscalls.child_filter())


def enter_namespaces() -> list[str]:
    """New namespaces, as many as this machine allows: user, network, process, ipc.

    Without privilege a user namespace of one's own comes first and gives the right to the rest.
    The process namespace begins with the next fork. Returns the names of those entered.
    """
    entered = []
    has_network = _unshare(_NEW_NETWORK)  # what only root may do at once
    if not has_network:
        if not _enter_user_namespace(os.geteuid(), os.getegid()):
            return []
        entered.append("user")
        has_network = _unshare(_NEW_NETWORK)
    entered += ["network"] if has_network else []
    entered += ["process"] if _unshare(_NEW_PROCESSES) else []
    entered += ["ipc"] if _unshare(_NEW_IPC) else []
    return entered


def mount_in_memory(folder: str, size: int, files: int) -> bool:
    """Put an empty file system of our own over `folder`: a tmpfs of at most `size` bytes and
    `files` files and folders, seen by this process and those it forks, gone with them.

    The kernel counts its blocks, so whatever a program does (files that it unlinked and holds
    open, blocks beyond a file's end), more than `size` is never taken: ENOSPC. It lies in the
    machine's memory, which takes no more than what is written to it. False where this process
    may not mount.
    """
    options = f"size={size},nr_inodes={files + 1},mode=0700".encode()  # itself is one of them
    try:
        _call(_libc.unshare, _NEW_MOUNTS)
        # First of all nothing that is mounted here may be seen by the rest of the machine.
        _call(_libc.mount, None, b"/", None, _RECURSIVE_PRIVATE, None)
        target = os.fsencode(folder)
        _call(_libc.mount, b"tmpfs", target, b"tmpfs", _NOSUID_NODEV_NOEXEC, options)
    except OSError:
        return False
    return True


def unmount(folder: str) -> None:
    """Take that file system away again; its memory is free once its last user has ended."""
    _call(_libc.umount2, os.fsencode(folder), _DETACH)


def _enter_user_namespace(user: int, group: int) -> bool:
    """A namespace in which this user is itself, and nobody else is anybody."""
    if not _unshare(_NEW_USER):
        return False
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    return True


def private_user(paths: Iterable[str]) -> tuple[int, bool] | None:
    """For a process of root: (a number of a user that nobody else is, must it be let through).

    A user of one's own can be counted (RLIMIT_NPROC is void for root) and may signal nobody
    else's processes. Where a path is closed to others (a Python below /root), the process must
    keep the right to pass closed folders, which Landlock then bounds. None: stay as you are.
    """
    if os.geteuid() != 0:
        return None
    closed = not all(_open_to_others(path) for path in paths)
    if closed and not _has_capability(_CAP_DAC_READ_SEARCH):
        return None
    return 2_000_000_000 + int.from_bytes(os.urandom(3), "little"), closed


def become(user: int, pass_closed_folders: bool) -> bool:
    """Become that user and nobody's group; False where this container has no such number."""
    try:
        os.setgroups([])
        os.setresgid(user, user, user)
        _call(_libc.prctl, _PR_SET_KEEPCAPS, int(pass_closed_folders), 0, 0, 0)
        os.setresuid(user, user, user)
    except OSError:
        return False
    drop_capabilities(1 << _CAP_DAC_READ_SEARCH if pass_closed_folders else 0)
    # A change of user closes /proc/PID to that user; the warm parent sees its child's files there.
    _call(_libc.prctl, _PR_SET_DUMPABLE, 1, 0, 0, 0)
    return True


def drop_capabilities(keep: int = 0) -> None:
    """Give up root's single rights, all but those in the bit mask `keep`."""
    header = struct.pack("<Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    _call(_libc.capset, header, struct.pack("<6I", keep, keep, 0, 0, 0, 0))


def _has_capability(number: int) -> bool:
    header, data = struct.pack("<Ii", 0x20080522, 0), ctypes.create_string_buffer(24)
    _call(_libc.capget, header, data)
    return bool(struct.unpack("<6I", data.raw)[1] >> number & 1)  # the permitted ones


def _open_to_others(path: str) -> bool:
    """May anybody read this path, and pass every folder above it?"""
    path = os.path.realpath(path)
    while path != os.path.dirname(path):
        mode = os.stat(path).st_mode
        if not mode & 0o001 and os.path.isdir(path) or not mode & 0o005:
            return False
        path = os.path.dirname(path)
    return True


def _allow(rules: int, path: str, rights: int) -> None:
    """Add a rule to a Landlock set; a path that is not there needs none."""
    try:
        file = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not os.path.isdir(path):
            rights &= _ONLY_FILES
        rule = struct.pack("<Qi", rights, file)
        _call(_libc.syscall, _LANDLOCK_ADD, rules, 1, rule, 0)
    finally:
        os.close(file)


def _unshare(kind: int) -> bool:
    try:
        _call(_libc.unshare, kind)
    except OSError:
        return False
    return True


def _call(function: ctypes._CFuncPtr, *arguments: object) -> int:
    """A C function that answers -1 and sets errno, as one that raises OSError."""
    result = function(*(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
