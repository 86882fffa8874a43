import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "book" / "_tools"))

from plans import plan_table

TIMES = {"00": {"run_s": 50, "notebook": "00_a.ipynb"}, "04": {"run_s": 130, "notebook": "04_b.ipynb"}}


def test_the_clock_runs_and_a_chapter_counts_once():
    rows = plan_table(["30 | hello | 00", "45|both|00 04", "10 | coffee |"], TIMES).splitlines()
    assert rows[2] == "| 0:00 | 30 | hello (chapter [0](../chapters/00_a.ipynb)) | 50 s |"
    links = "[0](../chapters/00_a.ipynb), [4](../chapters/04_b.ipynb)"
    assert rows[3] == f"| 0:30 | 45 | both (chapters {links}) | 2.2 min |"
    assert rows[4] == "| 1:15 | 10 | coffee |  |"
    assert rows[5] == "| 1:25 | **85** | end | **3.0 min** |"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("hello", "minutes"),
        ("ten | a | 00", "minutes"),
        ("5 | a | 99", "99 was never run"),
        ("5 |  | 00", "minutes"),
    ],
)
def test_a_line_that_means_nothing_is_refused(line, words):
    with pytest.raises(ValueError, match=words):
        plan_table([line], TIMES)
