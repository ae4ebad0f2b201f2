"""Runs one program, confined as far as this kernel allows, and sees to it that nothing of it outlives it.

`python -I -S keeper.py SETTINGS` in the program's folder; the settings are JSON: the limits, and `namespaces` and
`landlock`, whether to use them. On standard output comes the program's exit code, or null when its time was up. It is a
script of the standard library alone: a function run between fork and exec of a process with threads could deadlock.
"""

import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any

PROGRAM, GIVEN, PRINTED = "program.py", "stdin", "stdout"
"""Files of the program's folder."""
NOBODY = 65534
READ_ANY_FILE = 2
"""The capability CAP_DAC_READ_SEARCH."""
LIBC = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """See the module."""
    settings = json.loads(sys.argv[1])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # whoever asks was interrupted
    if sys.platform == "linux":
        LIBC.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans come to this process
        if settings["namespaces"]:
            enter_namespaces()
    if os.geteuid() == 0:
        hand_over_folder()
    program = os.fork()
    if program == 0:
        try:
            become_program(settings)
        finally:
            os._exit(127)
    try:
        code = wait(program, settings["seconds"])
    finally:
        end_all(program)
    os.write(1, f"{json.dumps(code)}\n".encode())


def wait(program: int, seconds: float) -> int | None:
    """The exit code, negative that of a signal; None: it goes on after so many seconds."""
    end, pause = monotonic() + seconds, 0.001
    while monotonic() < end:
        ended, status = os.waitpid(program, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        sleep(pause)
        pause = min(2 * pause, 0.02)
    return None


def end_all(program: int) -> None:
    """End the program and every process that it started, whatever sessions and groups they made for themselves."""
    while True:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(program, signal.SIGKILL)
        try:
            if os.waitpid(-1, os.WNOHANG)[0]:
                continue
        except ChildProcessError:
            return
        for child in children():
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        sleep(0.001)


def children() -> Iterator[int]:
    """Of this process, the orphans that came to it among them."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            status = (folder / "stat").read_text(encoding="utf-8", errors="replace")
            if int(status.rpartition(")")[2].split()[1]) == os.getpid():
                yield int(folder.name)


def enter_namespaces() -> None:
    """Take away the network and the sight of other processes; where the kernel lets us, the first alone, or neither."""
    network, processes, user = 0x40000000, 0x28000000, 0x10000000  # CLONE_NEWNET, _NEWPID | _NEWIPC, _NEWUSER
    uid, gid = os.geteuid(), os.getegid()
    ours = 0 if uid == 0 else user
    if any(LIBC.unshare(flags | ours) == 0 for flags in (network | processes, network)) and ours:
        for name, line in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            Path("/proc/self", name).write_text(line, encoding="utf-8")


def hand_over_folder() -> None:
    """Root's programs run as nobody, whose the folder is to be."""
    with suppress(OSError):  # root of a container without that right or that user: it stays root, see become_nobody
        for path in (".", *os.listdir()):
            os.chown(path, NOBODY, NOBODY)


def become_program(settings: dict[str, Any]) -> None:
    """Lay down every right and become the program."""
    os.setsid()
    for name, descriptor, flags in ((GIVEN, 0, os.O_RDONLY), (PRINTED, 1, os.O_WRONLY)):
        os.dup2(os.open(name, flags), descriptor)
    seconds, memory, output = int(settings["seconds"]) + 1, settings["memory"], settings["output"]
    for name, value in (("CPU", seconds), ("AS", memory), ("FSIZE", output), ("NOFILE", 64), ("CORE", 0)):
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    if sys.platform == "linux":
        LIBC.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
        if settings["landlock"]:
            keep_to_folder()
        if os.geteuid() == 0:
            become_nobody()
        LIBC.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG; forgotten when the user changes, so after that
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))  # after the change of user, which would count its processes
    environment = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    os.execve(sys.executable, [sys.executable, "-I", "-S", PROGRAM], environment)


def become_nobody() -> None:
    """Root is exempt from the limit on processes, and may signal any of them: so it becomes another user for good.

    The interpreter may lie in root's own folder: then, and only then, the right to read any file stays.
    """
    LIBC.prctl(8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS
    for capability in range(64):
        if capability != READ_ANY_FILE:
            LIBC.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
    if os.stat(".").st_uid == NOBODY:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    readable = all(os.access(path, os.R_OK) for path in (sys.executable, os.__file__, json.__file__))
    rights = 0 if readable else 1 << READ_ANY_FILE
    # capset(header: version 3, this process; data: effective, permitted, inheritable, each of 64 bits in two halves)
    LIBC.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(rights, rights, rights, 0, 0, 0))
    if rights:
        LIBC.prctl(47, 2, READ_ANY_FILE, 0, 0)  # PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE


def keep_to_folder() -> None:
    """Landlock: only the interpreter and the system's libraries can be read, only the folder written.

    With them go /proc, and with that the environment of other processes; from Linux 6.7 TCP, from 6.12 signals to
    processes outside. Where the kernel has no Landlock nothing happens.
    """
    version = LIBC.syscall(444, None, 0, 1)  # landlock_create_ruleset: what of it there is
    if version < 1:
        return
    every = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    read, write = 0b1101, 0b10  # execute, read files and folders; write files
    handled = (ctypes.c_uint64 * 3)(every, 0b11 if version >= 4 else 0, 0b11 if version >= 6 else 0)
    size = 8 * (3 if version >= 6 else 2 if version >= 4 else 1)
    rules = LIBC.syscall(444, handled, ctypes.c_size_t(size), 0)
    python = Path(sys.executable)
    readable = {sys.base_prefix, sys.base_exec_prefix, os.path.dirname(os.__file__), str(python.parent.resolve())}
    readable |= {"/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/share/zoneinfo"}
    readable |= {str(python.resolve().parent), str(python.parent.parent / "pyvenv.cfg")}
    readable |= {"/etc/ld.so.cache", "/etc/localtime", "/dev/urandom"}
    allowed = {**dict.fromkeys(readable, read), "/dev/null": 0b100 | write, ".": every}
    for path, rights in allowed.items():
        with suppress(OSError):  # a system without that folder
            descriptor = os.open(path, os.O_PATH)
            of_files = 0b111 | every & (0b11 << 14)  # what can be allowed of a file that is no folder
            rights &= every if os.path.isdir(path) else of_files
            rule = rights.to_bytes(8, sys.byteorder) + descriptor.to_bytes(4, sys.byteorder)
            LIBC.syscall(445, rules, 1, rule, 0)  # landlock_add_rule, LANDLOCK_RULE_PATH_BENEATH
    LIBC.syscall(446, rules, 0)  # landlock_restrict_self


if __name__ == "__main__":
    main()
