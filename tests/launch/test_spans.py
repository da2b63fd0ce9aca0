"""Spans of work and of waiting, as a pool keeps them."""

import threading
import time

from rlhfkit.launch.pool import Job
from rlhfkit.launch.spans import MOST_SPANS, Spans


def test_spans_are_bounded_and_say_since_when_they_are_whole():
    spans = Spans()
    spans.worked("sampler-0", 0, 1.0, 2.0)
    assert spans.as_dict() == {"whole_since": None, "work": [["sampler-0", 0, 1.0, 2.0, False]], "waits": []}
    for second in range(MOST_SPANS + 10):
        spans.worked("sampler-0", second, second, second + 0.5, is_lost=second == 0)
    kept = spans.as_dict()
    assert len(kept["work"]) == MOST_SPANS
    assert kept["whole_since"] == kept["work"][0][2] == 10.0


def test_waiting_for_a_job_is_a_span():
    spans, moments = Spans(), iter([3.0, 4.25])
    job = Job(1, ["a"], 7, lambda result: None, None, clock=lambda: next(moments), spans=spans)
    threading.Thread(target=lambda: (time.sleep(0.01), job.take(0, "A"))).start()
    assert job.wait() == ["A"]
    assert spans.as_dict()["waits"] == [["trainer", 7, 3.0, 4.25, False]]
