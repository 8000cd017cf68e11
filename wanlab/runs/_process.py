"""Which process this is, and whether another one still lives: its number is given to a new one after its end."""

from __future__ import annotations

import functools
import math
import os
import socket
from datetime import UTC, datetime

STALE_SECONDS = 60.0
"""A process that cannot be looked up is taken for dead when it has shown no sign of life for so long."""
_DEAD = ("Z", "X")  # states of a process that ended and that nobody has asked about


def now() -> str:
    """The time in UTC, ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def age(time: str) -> float:
    """Seconds since a time of `now`; infinite for anything else, such as a time without its zone."""
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return math.inf


def host() -> str:
    """The name of this machine."""
    return socket.gethostname()


def this_process() -> str:
    """What tells this process from every other one, its number aside: boot, namespace of numbers, time of its start.

    Empty where the system does not say (no /proc).
    """
    return _identity(os.getpid())


@functools.cache
def _identity(pid: int) -> str:
    started = _started(pid)
    return f"{_scope()}/{started}" if _scope() and started else ""


@functools.cache
def _scope() -> str:
    """The boot of this machine and the namespace in which its process numbers count, as containers have their own."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()[:8]}/{os.readlink('/proc/self/ns/pid').strip('pid:[]')}"
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """Clock ticks from the boot to the start of a process; empty for one that ended, None where /proc says nothing."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()  # the name before may hold anything
    except OSError:  # no such process, or another user's
        return None
    return "" if len(fields) < 20 or fields[0].decode() in _DEAD else fields[19].decode()


def lives(on: str, pid: int | None, process: str) -> bool | None:
    """Whether the process `pid` of the host `on` still runs; None where only its signs of life can tell.

    process: what `this_process` was there; empty if unknown, and then a living pid may be another process by now.
    """
    if on != host() or pid is None:
        return None
    scope, _, started = process.rpartition("/")
    if scope and scope != _scope():  # before a restart of the machine, or in another container: pids do not compare
        return None
    found = _started(pid)
    if found is None or not found:
        return False if found == "" or not _exists(pid) else None
    return found == started if scope else None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # alive, another user's; or no number of this system
        return True
    return True
