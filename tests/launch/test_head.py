"""A head node that is gone: a warning, then an end with a remedy, before Ray's own limit."""

import socket

import pytest

from rlhfkit.launch.head import HeadWatch, knock


class Head:
    """One that is there when a test says so, and what was said of it."""

    def __init__(self):
        self.is_up, self.warnings, self.ends = True, [], []
        self.watch = HeadWatch(
            "10.0.0.1:6379",
            warn=self.warnings.append,
            give_up=self.ends.append,
            is_there=lambda: self.is_up,
            limit_seconds=60.0,
        )

    def look(self, *times):
        for now in times:
            self.watch.look(float(now))


def test_a_short_absence_is_nothing():
    head = Head()
    head.look(0, 2)
    head.is_up = False
    head.look(4, 6)
    head.is_up = True
    head.look(8)
    assert (head.warnings, head.ends) == ([], [])


def test_an_absence_is_told_once_and_ends_the_run_before_rays_limit():
    head = Head()
    head.look(0)
    head.is_up = False
    head.look(2, 4, 6, 8, 44)
    assert head.warnings == [
        "the head node at 10.0.0.1:6379 has not answered for 6 s; the run ends where it stays away for 45 s"
    ]
    assert head.ends == []
    head.look(46, 48)
    (words,) = head.ends
    assert words.startswith("the head node at 10.0.0.1:6379 has been gone for 46 s; Ray's limit is 60 s")
    assert "run the same command: it goes on from the last checkpoint" in words


def test_a_head_that_came_back_may_go_again():
    head = Head()
    head.look(0)
    for begin in (10, 40):
        head.is_up = False
        head.look(begin, begin + 10)
        head.is_up = True
        head.look(begin + 20)
    assert len(head.warnings) == 2 and not head.ends


def test_knocking_finds_who_listens():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        knock(address)
    with pytest.raises(OSError):
        knock(address)
