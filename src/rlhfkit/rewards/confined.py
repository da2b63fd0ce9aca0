"""A program of its own: runs code of others where it can reach nothing, and tests of it in another such place.

    python -P -s -S -B confined.py response|tests CHANNEL

It imports nothing but the standard library, since nothing else is there. `sandbox.py` starts two of these. One runs the
response. The other runs the tests and says what came of them. A name that the tests do not define is asked of the first
over CHANNEL, a socket, as data: no object of the response, and so no `__eq__` of its, comes where the verdict is made.

Standard input has the task, one line of JSON, and is held open: where it ends, everything ends. Standard output has
one line of JSON: of the response that it is confined, of the tests the verdict, of either what failed.

Each is the first process of a namespace of processes, with namespaces of its own for the network (which has not even a
loopback), mounts, messages and names. Its root is a file system in memory that holds Python and shared libraries to
read, an empty directory and nothing else. It has no capability, and a user of its own where root starts it. Where one
of these cannot be had, nothing is run.
"""

import builtins
import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["Names", "Remote", "check", "confine", "main", "respond", "watch"]

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
APART = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE = 442, -100, 0x8000  # of Linux 5.12; the same number on all machines
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV = 1, 2, 4
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
CAPABILITIES_VERSION_3 = 0x20080522
LIBRARIES = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64")
DEVICES = ("/dev/null", "/dev/urandom")
HOME = "/work"

LONGEST_MESSAGE = 1_000_000
"""Bytes of a call, or of what it returns."""
START_SECONDS = 60.0
"""For the other side to be there, on a machine that is busy."""


# ── the place ────────────────────────────────────────────────────────────────────────────────────────────────────────


def main(role: str, channel: int) -> None:
    """Read the task, go where nothing can be reached, and play the part; who gave the task may end it at any time."""
    os.environ.clear()
    task = json.loads(_first_line(0))
    try:
        user, group = os.getuid(), os.getgid()
        _call("unshare", APART if user == 0 else APART | CLONE_NEWUSER)
        if user != 0:
            _map_user(user, group)
        child = os.fork()
    except OSError as error:
        _say(1, {"unconfined": str(error)})
        return
    if child == 0:
        _play(role, task, channel)
        os._exit(0)
    os.close(1)
    os.close(channel)
    watch(child, seconds=task["seconds"] + START_SECONDS)


def _play(role: str, task: dict[str, Any], channel: int) -> None:
    try:
        confine(task, is_root=os.getuid() == 0)
    except OSError as error:
        _say(1, {"unconfined": str(error)})
        return
    report = os.dup(1)
    nothing = os.open("/dev/null", os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    if role == "tests":
        _say(report, check(task["tests"], Channel(channel), seconds=task["seconds"]))
        return
    _say(report, {"confined": True})
    os.close(report)
    respond(task["source"], Channel(channel))


def watch(child: int, *, seconds: float) -> None:
    """Wait until `child` ends, time is over, or standard input ends; then end it, and all that it has started.

    It is the first process of its namespace: when it goes the kernel ends the others, whatever they have done to stay.
    """
    poll = select.poll()
    poll.register(os.pidfd_open(child), select.POLLIN)
    poll.register(0, select.POLLIN | select.POLLHUP)
    poll.poll(seconds * 1000)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def confine(task: dict[str, Any], *, is_root: bool) -> None:
    """Leave everything behind but the libraries. Raises: OSError where something of it cannot be had."""
    root = task["root"]
    _mount("none", "/", None, MS_REC | MS_PRIVATE)
    _mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, f"size={task['file_bytes']},nr_inodes=1000,mode=755")
    places = [place for place in (*LIBRARIES, sys.base_prefix, sys.base_exec_prefix) if os.path.isdir(place)]
    for place in sorted(set(places), key=len):
        if not os.path.lexists(root + place):
            _show(place, root + place)
    os.makedirs(f"{root}/dev")
    for device in DEVICES:
        os.close(os.open(root + device, os.O_CREAT | os.O_WRONLY))
        _mount(device, root + device, None, MS_BIND)
    os.mkdir(root + HOME, 0o700)
    if is_root:
        os.chown(root + HOME, task["user"], task["user"])
    os.symlink(HOME, f"{root}/tmp")
    os.chroot(root)
    os.chdir(HOME)
    _limit(task, own_processes=0 if is_root else 1)  # of a user, the one that waits outside counts too
    _drop(task["user"] if is_root else None)


def _show(place: str, target: str) -> None:
    """A directory, with what is mounted below it, to be read only; a link stays one."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(place):
        os.symlink(os.readlink(place), target)
        return
    os.mkdir(target)
    _mount(place, target, None, MS_BIND | MS_REC)
    attributes = (ctypes.c_uint64 * 4)(ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV, 0, 0, 0)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    path = target.encode()
    _call("syscall", ctypes.c_long(SYS_MOUNT_SETATTR), AT_FDCWD, path, AT_RECURSIVE, ctypes.byref(attributes), size)


def _limit(task: dict[str, Any], *, own_processes: int) -> None:
    seconds = int(task["seconds"] + START_SECONDS)
    limits = {
        resource.RLIMIT_AS: task["memory_bytes"],
        resource.RLIMIT_FSIZE: task["file_bytes"],
        resource.RLIMIT_NPROC: task["processes"] + own_processes,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for name, most in limits.items():
        resource.setrlimit(name, (most, most))


def _drop(user: int | None) -> None:
    """Become `user`, where this is root (whom limits do not bind), and give up every capability for good."""
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    header = (ctypes.c_uint32 * 2)(CAPABILITIES_VERSION_3, 0)
    _call("capset", ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)()))
    _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)
    _call("prctl", PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def _map_user(user: int, group: int) -> None:
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def _mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    given = [None if text is None else text.encode() for text in (source, target, kind, options)]
    _call("mount", given[0], given[1], given[2], ctypes.c_ulong(flags), given[3])


def _call(name: str, *arguments: Any) -> None:
    """A function of the C library. Raises: OSError, with its name."""
    if getattr(LIBC, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


LIBC = ctypes.CDLL(None, use_errno=True)


# ── what is said ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Gone(BaseException):
    """The other side does not answer, or not in time; no `except Exception` of a test may take it for an answer."""


class Unusable(BaseException):
    """The tests cannot be run apart from the response, whatever that is."""


class Channel:
    """Lines of JSON to and from the other side."""

    def __init__(self, descriptor: int) -> None:
        """Speak over this socket."""
        self._socket = socket.socket(fileno=descriptor)
        self._buffer = bytearray()
        self.deadline: float | None = None
        self.is_gone = False

    def send(self, message: object) -> None:
        """Say something. Raises: Gone."""
        try:
            self._wait()
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            self.is_gone = True
            raise Gone from error

    def receive(self) -> Any:
        """What the other side says next. Raises: Gone where there is no whole message in time, or it is too long."""
        try:
            while b"\n" not in self._buffer:
                self._wait()
                block = self._socket.recv(1 << 16)
                if not block or len(self._buffer) > LONGEST_MESSAGE:
                    raise ConnectionError
                self._buffer += block
            line, _, self._buffer = self._buffer.partition(b"\n")
            return json.loads(line)
        except (OSError, ValueError, RecursionError) as error:
            self.is_gone = True
            raise Gone from error

    def _wait(self) -> None:
        if self.deadline is not None:
            left = self.deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)


LISTED = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


def encode(value: Any, reference: Callable[[Any], int]) -> Any:
    """A value as JSON: plain data by its exact type, anything else as what `reference` makes of it."""
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind.__name__ in LISTED and kind is LISTED[kind.__name__]:
        return {kind.__name__: [encode(inner, reference) for inner in value]}
    if kind is dict:
        return {"dict": [[encode(key, reference), encode(inner, reference)] for key, inner in value.items()]}
    if kind in (bytes, bytearray):
        return {"bytes": value.hex()}
    return {"object": reference(value)}


def decode(value: Any, dereference: Callable[[int], Any]) -> Any:
    """The value that JSON of `encode` stands for. Raises: ValueError, TypeError, KeyError where it is none."""
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "dict":
        return {decode(key, dereference): decode(item, dereference) for key, item in inner}
    if kind == "bytes":
        return bytes.fromhex(inner)
    if kind == "object":
        return dereference(inner)
    return LISTED[kind](decode(item, dereference) for item in inner)


# ── the response ─────────────────────────────────────────────────────────────────────────────────────────────────────


def respond(source: str, channel: Channel) -> None:
    """Run the response, and do with it what the tests ask for, until they have no more questions."""
    channel.send({"ready": True})
    names: dict[str, Any] = {"__name__": "response"}
    objects: list[Any] = []
    failed: str | None = None
    try:
        exec(compile(source, "response.py", "exec"), names)
    except BaseException as error:
        failed = type(error).__name__

    def keep(value: Any) -> int:
        objects.append(value)
        return len(objects) - 1

    with contextlib.suppress(Gone):
        while True:
            question = channel.receive()
            try:
                if failed is not None:
                    raise ImportError(failed)
                channel.send({"value": encode(_answer(question, names, objects), keep)})
            except Gone:
                raise
            except BaseException as error:
                channel.send({"raised": type(error).__name__})


def _answer(question: dict[str, Any], names: dict[str, Any], objects: list[Any]) -> Any:
    if "name" in question:
        if question["name"] not in names:
            raise NameError(question["name"])
        return names[question["name"]]
    found = objects[question["of"]]
    if "attribute" in question:
        return getattr(found, question["attribute"])
    if "items" in question:
        return list(found)
    arguments = decode(question["arguments"], objects.__getitem__)
    named = decode(question["named"], objects.__getitem__)
    return found(*arguments, **named)


# ── the tests ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Remote:
    """Something of the response's that is no plain data: to be called, asked for attributes, and gone through.

    It is equal to itself alone: what the response says about equality does not count.
    """

    def __init__(self, number: int, channel: Channel) -> None:
        """Number `number` of what the other side has kept."""
        object.__setattr__(self, "_own", (number, channel))

    def __getattr__(self, name: str) -> Any:
        """The attribute, as the response has it. Raises: as `ask`."""
        number, channel = object.__getattribute__(self, "_own")
        return ask(channel, {"of": number, "attribute": name})

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """What it returns. Raises: as `ask`; Unusable where an argument is no plain data."""
        number, channel = object.__getattribute__(self, "_own")
        given = {"arguments": encode(arguments, _number), "named": encode(named, _number)}
        return ask(channel, {"of": number, **given})

    def __iter__(self) -> Iterator[Any]:
        """All that it goes through, which the response lists first. Raises: as `ask`."""
        number, channel = object.__getattribute__(self, "_own")
        return iter(ask(channel, {"of": number, "items": True}))


def _number(value: Any) -> int:
    if type(value) is not Remote:
        raise Unusable(f"they hand a {type(value).__name__} to the response; expected plain data")
    return int(object.__getattribute__(value, "_own")[0])


def ask(channel: Channel, question: dict[str, Any]) -> Any:
    """What the response's side answers. Raises: what it raised, by name where Python has it; Gone."""
    channel.send(question)
    answer = channel.receive()
    try:
        raised = answer.get("raised")
        if raised is None:
            return decode(answer["value"], lambda number: Remote(number, channel))
        kind = getattr(builtins, str(raised), None)
    except (AttributeError, ValueError, TypeError, KeyError, RecursionError) as error:
        channel.is_gone = True  # the response has written into the channel by itself
        raise Gone from error
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            known = kind("raised by the response")
        except TypeError:  # it wants other arguments, as UnicodeDecodeError does
            known = RuntimeError(raised)
        raise known
    raise RuntimeError(raised)


class Names(dict[str, Any]):
    """The names of the tests; those that they do not define, and Python does not have, are the response's."""

    def __init__(self, channel: Channel) -> None:
        """Ask for missing names over `channel`."""
        super().__init__(__name__="tests")
        self._channel = channel

    def __missing__(self, name: str) -> Any:

        if hasattr(builtins, name):
            return getattr(builtins, name)
        if name.startswith("__"):
            raise KeyError(name)
        return ask(self._channel, {"name": name})


def check(tests: list[str], channel: Channel, *, seconds: float) -> dict[str, Any]:
    """{"passed": whether each test has}; {"unusable": why} where they are at fault themselves."""
    channel.deadline = time.monotonic() + START_SECONDS
    try:
        channel.receive()
    except Gone:
        return {"passed": [False] * len(tests)}
    channel.deadline = time.monotonic() + seconds
    names, passed = Names(channel), []
    for test in tests:
        try:
            exec(compile(test, "tests.py", "exec"), names)
        except Unusable as error:
            return {"unusable": str(error)}
        except BaseException:
            passed.append(False)
        else:
            passed.append(not channel.is_gone)
    return {"passed": passed}


def _first_line(descriptor: int) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        block = os.read(descriptor, 1 << 16)
        if not block:
            sys.exit(1)
        line += block
    return line


def _say(descriptor: int, message: object) -> None:
    with open(descriptor, "wb", closefd=False) as file:
        file.write(json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
