"""The head of a cluster, or the driver of a run, is killed: what is said, and that the same command goes on."""

import pytest

from tests.launch.machines import HEAD, finished, machines, said, table, until
from tests.launch.test_two_machines import bits, plain, pytestmark

pytest.importorskip("ray")
__all__ = ["plain", "pytestmark"]

SOONER = {"RAY_gcs_rpc_server_reconnect_timeout_s": "30"}


@pytest.fixture
def head(tmp_path):
    with machines(tmp_path) as both:
        both.environment |= SOONER
        both.start_head(cpus=3)
        yield both


def at_work(driver, run):
    until(lambda: table(run).get("iteration", 0) >= 2, driver, run)


def test_a_head_that_is_gone_ends_the_driver_with_a_remedy_and_the_same_command_goes_on(plain, head, tmp_path):
    recipe, wanted = plain
    run = tmp_path / "run"
    driver = head.run(recipe, run)
    at_work(driver, run)
    head.kill(HEAD, "gcs_server")
    assert driver.wait(timeout=120) == 1
    words = said(run)
    assert "Traceback" not in words
    assert "warning: the head node at 10.231.77.1:6379 has not answered for " in words
    assert words.splitlines()[-1].startswith("error: the head node at 10.231.77.1:6379 has been gone for "), words
    head.stop(HEAD)
    head.start_head(cpus=3)
    finished(head.run(recipe, run), run)
    assert bits(run) == wanted


def test_a_driver_that_is_killed_and_started_again_at_once_goes_on(plain, head, tmp_path):
    recipe, wanted = plain
    run = tmp_path / "run"
    driver = head.run(recipe, run)
    at_work(driver, run)
    head.kill(HEAD, "\0rlhfkit\0run\0")
    driver.wait(timeout=30)
    finished(head.run(recipe, run), run)
    assert bits(run) == wanted
