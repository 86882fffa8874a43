"""Timetables of workshops, with the measured times of the chapters they use."""

import re
from collections.abc import Sequence
from typing import Any


def plan_table(lines: Sequence[str], times: dict[str, Any]) -> str:
    """Return a timetable as a Markdown table.

    Args:
        lines: `minutes | what happens | chapters`, the chapters by number and separated by spaces, or none.
        times: the chapters of chapter_times.json.

    Returns:
        A table with the clock, the minutes, what happens, and how long all cells of the named chapters ran
        where they were measured; a chapter is counted once.

    Raises:
        ValueError: a line is not of that form, or names a chapter that was never measured.
    """
    rows = ["| begins | minutes | what | cells run in |", "|---|---|---|---|"]
    clock, ran = 0, set()
    for line in lines:
        match = re.fullmatch(r"\s*(\d+)\s*\|\s*([^|]*[^|\s])\s*\|\s*([\d ]*)", line)
        if match is None:
            raise ValueError(f"{line!r}: write minutes | what happens | chapters.")
        minutes, what, chapters = int(match[1]), match[2], match[3].split()
        if unknown := [c for c in chapters if c not in times]:
            raise ValueError(f"{line!r}: chapter {unknown[0]} was never run. Run `make notebooks` first.")
        new = [c for c in chapters if c not in ran]
        ran |= set(new)
        seconds = sum(times[c]["run_s"] for c in new)
        links = ", ".join(f"[{int(c)}](../chapters/{times[c]['notebook']})" for c in chapters)
        what += f" (chapter{'s' if len(chapters) > 1 else ''} {links})" if chapters else ""
        rows.append(
            f"| {clock // 60}:{clock % 60:02d} | {minutes} | {what} | {_span(seconds) if new else ''} |"
        )
        clock += minutes
    total = sum(times[c]["run_s"] for c in ran)
    rows.append(f"| {clock // 60}:{clock % 60:02d} | **{clock}** | end | **{_span(total)}** |")
    return "\n".join(rows)


def _span(seconds: int) -> str:
    return f"{seconds} s" if seconds < 100 else f"{seconds / 60:.1f} min"
