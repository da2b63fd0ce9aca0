"""What is said of a table's rows: how many are bad, out of all that were read."""

import pytest

from rlhfkit.data.rows import Loaded, SourceFile
from rlhfkit.doctor.data import examine_table
from rlhfkit.records import Prompt


@pytest.mark.parametrize(("num_bad", "verdict"), [(0, "ok"), (5, "ok"), (20, "ok"), (21, "warning")])
def test_bad_rows_are_held_against_the_file_and_not_against_the_share_that_a_table_takes(num_bad, verdict):
    kept = [Prompt(f"Why {number}?") for number in range(3)]  # of 40 rows a table with prompt_share = "90%:" takes 3
    loaded = Loaded(kept, ("x.jsonl:1: bad",) * num_bad, (SourceFile("x.jsonl", "", 40),))
    (finding,) = examine_table("test_prompts", loaded)
    assert finding.verdict == verdict, finding.seen
