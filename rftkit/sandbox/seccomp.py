"""The seccomp filter: which system calls a sandboxed process may make (man 2 seccomp).

A list of what is allowed: what a Python interpreter and numerical libraries need on their own
data. All else answers EPERM, which Python raises as PermissionError. Not on the list, among
others: socket, connect, execve, ptrace, chmod, mount, io_uring, shared memory, and fallocate, which
takes blocks that RLIMIT_FSIZE does not see. The server's filter lets it fork, kill and wait, which
the child's, a short one on top of it, takes away.
"""

from __future__ import annotations

import errno
import os
import struct

# name:number on x86_64:number on aarch64 ("-": it has none), from the kernel's own tables.
_TABLE = """
read:0:63 write:1:64 readv:19:65 writev:20:66 pread64:17:67 pwrite64:18:68 lseek:8:62 close:3:57
close_range:436:436 fstat:5:80 stat:4:- lstat:6:- newfstatat:262:79 statx:332:291 fstatfs:138:44
statfs:137:43 access:21:- faccessat:269:48 faccessat2:439:439 open:2:- openat:257:56 readlink:89:-
readlinkat:267:78 getcwd:79:17 chdir:80:49 fchdir:81:50 getdents64:217:61 mkdir:83:-
mkdirat:258:34 rmdir:84:- unlink:87:- unlinkat:263:35 rename:82:- renameat:264:38
renameat2:316:276 ftruncate:77:46 fsync:74:82 fdatasync:75:83 flock:73:32
fadvise64:221:223 fcntl:72:25 ioctl:16:29 dup:32:23 dup2:33:- dup3:292:24 pipe:22:- pipe2:293:59
poll:7:- ppoll:271:73 select:23:- pselect6:270:72 epoll_create1:291:20 epoll_ctl:233:21
epoll_wait:232:- epoll_pwait:281:22 eventfd2:290:19 mmap:9:222 munmap:11:215 mremap:25:216
mprotect:10:226 madvise:28:233 brk:12:214 rt_sigaction:13:134 rt_sigprocmask:14:135
rt_sigreturn:15:139 sigaltstack:131:132 pause:34:- rt_sigsuspend:130:133 setitimer:38:103
getitimer:36:102 alarm:37:- nanosleep:35:101 clock_nanosleep:230:115 clock_gettime:228:113
clock_getres:229:114 gettimeofday:96:169 time:201:- times:100:153 getpid:39:172 gettid:186:178
getppid:110:173 getuid:102:174 geteuid:107:175 getgid:104:176 getegid:108:177 getresuid:118:148
getresgid:120:150 getgroups:115:158 getpgrp:111:- getpgid:121:155 getrusage:98:165
sysinfo:99:179 uname:63:160 getcpu:309:168 sched_yield:24:124 sched_getaffinity:204:123
prlimit64:302:261 futex:202:98 set_robust_list:273:99 set_tid_address:218:96 rseq:334:293
membarrier:324:283 arch_prctl:158:- prctl:157:167 clone:56:220 fork:57:- kill:62:129
wait4:61:260 exit:60:93 exit_group:231:94 restart_syscall:219:128
getrandom:318:278 umask:95:166 socketpair:53:199 sendto:44:206 recvfrom:45:207
"""
_COLUMN = {"x86_64": 1, "aarch64": 2}
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_CLONE3, _NEWEST_KNOWN = 435, 450  # newer calls answer ENOSYS, so that libc takes the older ones

# CLONE_PTRACE, CLONE_PARENT, CLONE_UNTRACED and all CLONE_NEW…: new namespaces give new rights.
_CLONE_NEVER, _CLONE_THREAD = 0x7E82_A080, 0x0001_0000
_ALL = 0xFFFF_FFFF
_NAMES = (15, 16, 0x53564D41)  # PR_SET_NAME, PR_GET_NAME, PR_SET_VMA: of a thread, of a map

# call -> (argument, mask, values): allowed where (argument & mask) is one of the values. All these
# arguments have 32 bits. What is given to fcntl and ioctl must not send signals or reach devices.
Conditions = dict[str, tuple[int, int, tuple[int, ...]]]
_OF_SERVER: Conditions = {
    "clone": (0, _CLONE_NEVER, (0,)),
    "mmap": (3, 0x01, (0,)),  # MAP_SHARED: memory in which one grade leaves something to the next
    # O_TRUNC on a file opened for reading: older Landlock (before ABI 3) does not see it
    "open": (1, 0x203, (0x000, 0x001, 0x002, 0x201, 0x202)),
    "openat": (2, 0x203, (0x000, 0x001, 0x002, 0x201, 0x202)),
    # dup, get and set flags, locks, dup with close-on-exec, size of a pipe
    "fcntl": (1, _ALL, (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032)),
    # TCGETS, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
    "ioctl": (1, _ALL, (0x5401, 0x541B, 0x5421, 0x5450, 0x5451)),
    "prlimit64": (0, _ALL, (0,)),  # one's own limits, nobody else's
    "prctl": (0, _ALL, (1, 22, *_NAMES)),  # PR_SET_PDEATHSIG, PR_SET_SECCOMP
    "socketpair": (0, _ALL, (1,)),  # AF_UNIX, within the process: asyncio wakes itself so
    "sendto": (5, _ALL, (0,)),  # to the other end alone: an address has a length
}
_OF_CHILD: Conditions = {
    "clone": (0, _CLONE_THREAD, (_CLONE_THREAD,)),  # a thread, never a process
    "prctl": (0, _ALL, _NAMES),
    **dict.fromkeys(("fork", "kill", "wait4"), (0, 0, ())),
}
_ALLOW, _KILL = 0x7FFF_0000, 0x8000_0000
_REFUSE, _UNKNOWN = 0x0005_0000 | errno.EPERM, 0x0005_0000 | errno.ENOSYS
_LOAD, _EQUAL, _AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06


def numbers(machine: str | None = None) -> dict[str, int] | None:
    """{system call: number} on this kind of processor; None where there is no table."""
    rows = (entry.split(":") for entry in _TABLE.split())
    column = _COLUMN.get(machine or os.uname().machine)
    return column and {row[0]: int(row[column]) for row in rows if row[column] != "-"}


def program_of_server(machine: str | None = None) -> bytes:
    """The filter that the server and all its children keep, as BPF instructions: the first
    decision that fits counts."""
    machine = machine or os.uname().machine
    steps = [
        _step(_LOAD, 4),  # the kind of processor: a 32-bit call would have other numbers
        _step(_EQUAL, _AUDIT_ARCH[machine], 1, 0),
        _step(_RETURN, _KILL),
        _step(_LOAD, 0),
    ]
    for name, number in numbers(machine).items():
        steps += _decide(number, _OF_SERVER.get(name))
    steps += [_step(_EQUAL, _CLONE3, 0, 1), _step(_RETURN, _UNKNOWN)]
    steps += [_step(_AT_LEAST, _NEWEST_KNOWN + 1, 0, 1), _step(_RETURN, _UNKNOWN)]
    return b"".join([*steps, _step(_RETURN, _REFUSE)])


def program_of_child(machine: str | None = None) -> bytes:
    """What a child loses beyond that; short, for it is loaded for every grade."""
    known = numbers(machine)
    steps = [_step(_LOAD, 0)]
    for name in _OF_CHILD.keys() & known.keys():
        steps += _decide(known[name], _OF_CHILD[name])
    return b"".join([*steps, _step(_RETURN, _ALLOW)])


def _decide(number: int, condition: tuple[int, int, tuple[int, ...]] | None) -> list[bytes]:
    """If it is this call: allow it, or, with a condition, allow or refuse it."""
    if condition is None:
        return [_step(_EQUAL, number, 0, 1), _step(_RETURN, _ALLOW)]
    argument, mask, values = condition
    steps = [_step(_LOAD, 16 + 8 * argument), _step(_AND, mask)]  # all processors: little-endian
    for value in values:
        steps += [_step(_EQUAL, value, 0, 1), _step(_RETURN, _ALLOW)]
    return [_step(_EQUAL, number, 0, len(steps) + 1), *steps, _step(_RETURN, _REFUSE)]


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One BPF instruction (struct sock_filter)."""
    return struct.pack("<HBBI", code, if_true, if_false, value)
