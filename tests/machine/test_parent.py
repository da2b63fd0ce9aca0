import os
import signal
import subprocess
import sys
import time

import pytest

PARENT = """
import multiprocessing, os, time
from rlhfkit.machine.parent import end_with_parent

def child(sender):
    end_with_parent()
    sender.send(os.getpid())
    time.sleep(60)

if __name__ == "__main__":
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    spawn.Process(target=child, args=(sender,), daemon=True).start()
    print(receiver.recv(), flush=True)
    time.sleep(60)
"""


def is_gone(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.thorough
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_ends_with_a_parent_that_is_killed(tmp_path, number):
    path = tmp_path / "parent.py"
    path.write_text(PARENT)
    parent = subprocess.Popen([sys.executable, path], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    parent.send_signal(number)
    parent.wait()
    deadline = time.monotonic() + 20
    while not is_gone(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    gone = is_gone(child)
    if not gone:
        os.kill(child, signal.SIGKILL)
    assert gone
