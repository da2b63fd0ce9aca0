"""Code of a response is tested where it can do no harm, and cannot say of itself that it has passed."""

import os
import socket
import time
from pathlib import Path

import pytest

from rlhfkit.config.rewards import UnitTestsRewardConfig
from rlhfkit.errors import ConfigError, RewardError
from rlhfkit.records import Prompt
from rlhfkit.rewards import ScoredText, UnitTestsReward, sandbox
from rlhfkit.rewards.sandbox import FIRST_USER, Limits, examine, why_none_here
from rlhfkit.rewards.unit_tests import code_of

WHY = why_none_here()
confines = pytest.mark.skipif(WHY is not None, reason=str(WHY))

ADD = "def add(a, b):\n    return a + b\n"
TESTS = ["assert add(1, 2) == 3", "assert add('a', 'b') == 'ab'"]


def passed(source: str, *tests: str, seconds: float = 10.0, **limits: int) -> list[bool]:
    return examine(source, tests or TESTS, Limits(seconds=seconds, **limits))


def says(source: str, *, seconds: float = 10.0, **limits: int) -> bool:
    """Whether `found()` of the code is true, or "out" where it could get out."""
    return passed(source, "assert found() == True", seconds=seconds, **limits) == [True]


# ── what passes ──────────────────────────────────────────────────────────────────────────────────────────────────────


@confines
def test_each_test_is_told_apart():
    assert passed(ADD, *TESTS, "assert add(1, 1) == 3", "assert add(1) == 1", "assert sub(1, 1) == 0") == [
        True,
        True,
        False,
        False,
        False,
    ]


@confines
def test_plain_data_comes_and_goes_as_it_is():
    source = "def same(x):\n    return x\nLIMIT = 5\n"
    values = (
        "None", "True", "10**50", "-1.5", "'\\ud800 \\u00e9'", "b'\\x00'", "[1, (2, 'a')]", "{1, (2,)}",
        "frozenset([1])", "{(1, 2): [3], 'list': {}}", "float('inf')",
    )  # fmt: skip
    tests = [f"x = {value}\nassert same(x) == x and type(same(x)) is type(x)" for value in values]
    assert passed(source, *tests, "assert LIMIT == 5", "assert same(x=3) == 3") == [True] * (len(values) + 2)


@confines
def test_classes_exceptions_generators_and_helpers_of_the_tests_work():
    source = """
class Stack:
    def __init__(self): self.items = []
    def push(self, item):
        self.items.append(item)
        return self
    def __len__(self): raise IndexError
def pop(stack): return stack.items.pop()
def fail(): raise ValueError("no")
def count(n): yield from range(n)
"""
    tests = (
        "s = Stack()\ns.push(1).push(2)\nassert s.items == [1, 2] and pop(s) == 2",
        "try:\n    fail()\nexcept ValueError:\n    pass\nelse:\n    assert False",
        "assert list(count(3)) == [0, 1, 2]",
        "import math\ndef check(candidate):\n    assert math.isclose(sum(candidate(4)), 6.0)\ncheck(count)",
    )
    assert passed(source, *tests) == [True] * 4


@confines
def test_all_or_a_share_is_paid_and_rows_bring_their_own_tests():
    episodes = [
        ScoredText(Prompt("", columns={"tests": tests}), "", response)
        for tests, response in (
            (TESTS, f"Here:\n```python\n{ADD}```\nDone."),
            ([*TESTS, "assert add(1, 1) == 3", "assert add(2, 2) == 5"], ADD),
            ("assert add(2, 2) == 4", "I would rather not."),
            ("assert add(2, 2) == 4", ""),
        )
    ]
    scores, details = UnitTestsReward(UnitTestsRewardConfig()).score_in_detail(episodes)
    assert scores.tolist() == [1.0, 0.0, 0.0, 0.0]
    assert details["tests_passed"].tolist() == [1.0, 0.5, 0.0, 0.0]
    share = UnitTestsReward(UnitTestsRewardConfig(partial=True)).score(episodes)
    assert share.tolist() == [1.0, 0.5, 0.0, 0.0]


@pytest.mark.parametrize(
    ("response", "code"),
    [
        ("x = 1", "x = 1"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```py\r\nx = 1\r\n```", "x = 1\n"),
        ("```python\nx = 1\n```\nor\n```python\nx = 2\n```", "x = 2\n"),
        ("```python\nx = 1", "x = 1"),
        ("```sh\nls\n```", "```sh\nls\n```"),
    ],
)
def test_the_code_of_a_response_is_its_last_block(response, code):
    assert code_of(response) == code


# ── what must not pass ───────────────────────────────────────────────────────────────────────────────────────────────


@confines
@pytest.mark.parametrize(
    "source",
    [
        "print('passed')",
        "import os\nos._exit(0)",
        "import sys\nsys.exit(0)",
        "def add(a, b):\n    import os\n    os._exit(0)",
        "raise SystemExit",
        "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'{\"passed\": [true, true]}\\n')\n"
        "    except OSError: pass",
        "print('{\"passed\": [true, true]}', flush=True)",
        "class Any:\n    def __eq__(self, other): return True\n    def __bool__(self): return True\n"
        "def add(a, b): return Any()",
        "import builtins\nbuiltins.AssertionError = int\nAssertionError = int\ndef add(a, b): return 0",
        "import sys\nsys.settrace(lambda *a: None)\ndef add(a, b): raise AssertionError",
        "def add(a, b): raise GeneratorExit",
        "def add(a, b): raise KeyboardInterrupt",
        "def add(a, b): return " + "[" * 50 + "]" * 50,
        "def add(a, b):\n    x = []\n    x.append(x)\n    return x",
        "def add(a, b): return 'a' * 10_000_000",
        "def add(a, b): return input()",
        "import sys\ndef add(a, b): return sys.stdin.read()",
        "x = bytearray(10_000_000_000)\ndef add(a, b): return a + b",
        "add = lambda a, b: (_ for _ in ()).throw(StopIteration)",
        "this is no code",
    ],
    ids=range(20),
)
def test_tricks_do_not_pass(source):
    assert passed(source) == [False, False]


@confines
def test_what_writes_into_the_channel_by_itself_only_gives_wrong_answers():
    forged = (
        '{"value": 3}',
        '{"passed": [true]}',
        "[]",
        '{"value": {"object": 0}}',
        '{"value": {"list": 5}}',
        "{",
        "[" * 9000,
    )
    for answer in forged[1:]:
        source = (
            f"import os\nfor fd in range(3, 64):\n    try: os.write(fd, {answer!r}.encode() + b'\\n')\n"
            "    except OSError: pass\n"
        )
        assert passed(source, "assert add(1, 2) == 3", "assert add(2, 2) == 4") == [False, False]


@pytest.mark.thorough
@confines
@pytest.mark.parametrize(
    "source",
    [
        "while True: pass",
        "import time\ntime.sleep(100)",
        "def add(a, b):\n    while True: print('a' * 1000)",
        "import signal, time\nfor number in range(1, 32):\n    try: signal.signal(number, signal.SIG_IGN)\n"
        "    except OSError: pass\ntime.sleep(99)",
        "import os\nos.setsid()\nif os.fork():\n    os._exit(0)\nwhile True: pass",
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        "import threading\nwhile True:\n    try: threading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()\n"
        "    except RuntimeError: pass",
        "import ctypes, time\nctypes.CDLL(None).prctl(1, 0, 0, 0, 0)\ntime.sleep(99)",
    ],
    ids=["loop", "sleep", "output", "signals", "session", "fork bomb", "threads", "death signal"],
)
def test_what_does_not_end_is_ended_with_all_that_it_started(source):
    begin = time.monotonic()
    assert passed(source, seconds=0.3) == [False, False]
    assert time.monotonic() - begin < 5
    assert users_of_sandboxes() == set()


def users_of_sandboxes() -> set[int]:
    """Processes that are left; of a sandbox that root made each has a user of its own."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if path.stat().st_uid >= FIRST_USER or b"confined.py" in (path / "cmdline").read_bytes():
                found.add(int(path.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


# ── what cannot be reached ───────────────────────────────────────────────────────────────────────────────────────────


@confines
def test_there_is_no_network_not_even_to_this_machine():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        source = f"""
import socket
def found():
    for address in (("127.0.0.1", {port}), ("8.8.8.8", 53)):
        try:
            socket.create_connection(address, timeout=2)
            return address[0]
        except OSError:
            pass
    return True
"""
        assert says(source)
        here: dict = {}
        exec(source, here)
        assert here["found"]() == "127.0.0.1"  # which this process can reach


@confines
def test_files_outside_are_not_there_and_nothing_stays(tmp_path, monkeypatch):
    secret = tmp_path / "secret.txt"
    secret.write_text("s3cret")
    home = os.path.expanduser("~")
    source = f"""
import os
def found():
    out = []
    for path in ({str(secret)!r}, {str(Path(__file__))!r}, "/etc/passwd", "/proc/self/environ", "/dev/mem", "/sys"):
        if os.path.exists(path): out.append(path)
    places = ({str(tmp_path / "new")!r}, "/new", "/usr/lib/new", "/lib/new", "/dev/new", os.__file__, {home!r} + "/new")
    for path in places:
        try:
            open(path, "a").close()
            out.append(path)
        except OSError:
            pass
    if os.listdir() or os.environ or os.getcwd() != "/work": out.append("work")
    open("mine", "w").write("a")
    open("/tmp/too", "w").write("a")
    return out or True
"""
    monkeypatch.setenv("API_TOKEN", "s3cret")
    for _ in range(2):  # what the first has written is not there for the second
        assert passed(source, "assert found() == True") == [True]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret.txt"]


@confines
def test_other_processes_rights_and_limits_cannot_be_had():
    source = f"""
import ctypes, os, resource
def found():
    out = []
    for pid in (os.getppid(), {os.getpid()}):
        try:
            os.kill(pid or 2, 0)
            out.append(pid)
        except OSError:
            pass
    libc = ctypes.CDLL(None, use_errno=True)
    for name, call in (
        ("namespace", lambda: libc.unshare(0x10000000)),
        ("mount", lambda: libc.mount(b"none", b"/work", b"tmpfs", 0, None)),
        ("chroot", lambda: libc.chroot(b"/work")),
        ("root", lambda: libc.setuid(0)),
    ):
        if call() == 0: out.append(name)
    for limit in (resource.RLIMIT_AS, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE):
        try:
            resource.setrlimit(limit, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            out.append(limit)
        except (OSError, ValueError):
            pass
    if os.getuid() == 0 or os.getpid() != 1: out.append("user")
    return out or True
"""
    assert passed(source, "assert found() == True") == [True]


@confines
def test_memory_files_and_processes_are_bounded():
    source = """
import os
def memory():
    try: bytearray(300 << 20)
    except MemoryError: return True
def files():
    try:
        for name in "abc":
            with open(name, "wb") as file: file.write(bytes(1 << 20))
    except OSError: return True
def many():
    try:
        for number in range(2000): open(str(number), "w").close()
    except OSError: return True
"""
    tests = [f"assert {name}() is True" for name in ("memory", "files", "many")]
    assert passed(source, *tests, memory_mib=256, file_mib=2) == [True] * 3
    fork = """
import os, signal
def processes():
    count = 0
    try:
        for _ in range(10):
            if os.fork() == 0: signal.pause()
            count += 1
    except OSError:
        pass
    return count
"""
    assert passed(fork, "assert processes() == 2", processes=3) == [True]


# ── faults that are not the response's ───────────────────────────────────────────────────────────────────────────────


def score(tests: object) -> None:
    reward = UnitTestsReward(UnitTestsRewardConfig(timeout_seconds=0.2))
    reward.score([ScoredText(Prompt("", columns={"tests": tests}, origin="rows.jsonl:3"), "", ADD)])


@confines
@pytest.mark.parametrize(
    ("tests", "words"),
    [
        (None, r"reads the column 'tests', which in the row rows\.jsonl:3 is None"),
        ("assert (", r"a test of the row rows\.jsonl:3 is none \('\(' was never closed"),
        (["assert add(1, 2) == 3", " "], "it names nothing of the response"),
        ("assert add(lambda: 1, 2)", r"rows\.jsonl:3: the tests cannot be run apart .*they hand a function"),
    ],
)
def test_tests_that_are_at_fault_stop_the_run(tests, words):
    with pytest.raises(RewardError, match=words):
        score(tests)


@confines
def test_tests_that_do_not_end_are_no_verdict(monkeypatch):
    monkeypatch.setattr(
        "rlhfkit.rewards.confined.START_SECONDS", 0.0
    )  # of this process; that of the sandbox is its own
    begin = time.monotonic()
    with pytest.raises(RewardError, match="the tests gave no verdict"):
        examine(ADD, ["import os\nos._exit(0)"], Limits(seconds=0.2))
    assert time.monotonic() - begin < 5


def test_where_code_cannot_be_confined_nothing_is_run(monkeypatch, tmp_path):
    broken = tmp_path / "confined.py"
    broken.write_text('print(\'{"unconfined": "unshare: Operation not permitted"}\')\n')
    monkeypatch.setattr(sandbox, "PROGRAM", broken)
    with pytest.raises(ConfigError, match=r"refuses a place to confine code in \(unshare: Operation not permitted\); "):
        UnitTestsReward(UnitTestsRewardConfig())


def test_on_another_system_nothing_is_run(monkeypatch):
    monkeypatch.setattr(sandbox.sys, "platform", "darwin")
    with pytest.raises(ConfigError, match="it takes namespaces of Linux, and this is darwin"):
        UnitTestsReward(UnitTestsRewardConfig())
