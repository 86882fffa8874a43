"""Speed of the phantom at every scale.

    python benchmarks/phantom_speed.py    # prints, and writes phantom_speed.md and .json beside this file

Images are drawn, not written to disk. On a CPU the quick scale uses one process per core, as
`mammomil phantom --workers 0` does; the larger scales use torch's threads. On a machine with CUDA the GPU
part runs too; the table says when it did not.
"""

import argparse
import json
import multiprocessing
import os
import time
from pathlib import Path

import torch

from mammomil.files import provenance, write_json
from mammomil.phantom import SCALES, render_exam

HERE = Path(__file__).parent


def one_thread() -> None:
    torch.set_num_threads(1)
    render_exam(0)


def seconds_per_image(scale: str, exams: int, device: str = "cpu") -> float:
    render_exam(0, scale, device=device)
    start = time.perf_counter()
    for seed in range(1, exams + 1):
        render_exam(seed, scale, device=device)
    return (time.perf_counter() - start) / (4 * exams)


def parallel_rate(exams: int) -> float:
    """Quick images per second with a process per core."""
    cores = os.cpu_count() or 1
    with multiprocessing.get_context("spawn").Pool(cores, one_thread) as pool:
        pool.map(render_exam, range(2 * cores), chunksize=1)  # all processes are up
        start = time.perf_counter()
        for _ in pool.imap_unordered(draw, range(100, 100 + exams), chunksize=2):
            pass
        return 4 * exams / (time.perf_counter() - start)


def draw(seed: int) -> None:
    render_exam(seed)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--exams", type=int, default=40, help="quick exams that are timed")
    exams = parser.parse_args().exams
    found = {
        f"quick images/s, {os.cpu_count()} processes": parallel_rate(exams),
        "quick images/s, one process": 1 / seconds_per_image("quick", max(exams // 4, 1)),
        "seconds per half image": seconds_per_image("half", 2),
        "seconds per full image": seconds_per_image("full", 2),
    }
    if torch.cuda.is_available():
        found |= {f"GPU: {scale} images/s": 1 / seconds_per_image(scale, 10, "cuda") for scale in SCALES}
    facts = provenance(exams=exams)
    write_json(HERE / "phantom_speed.json", {"figures": found, "provenance": facts})
    rows = "\n".join(f"| {name} | {value:.3g} |" for name, value in found.items())
    not_run = "" if torch.cuda.is_available() else "\nThe GPU part did not run: no CUDA device at hand.\n"
    (HERE / "phantom_speed.md").write_text(
        "# Speed of the phantom\n\nMade by `python benchmarks/phantom_speed.py`.\n\n| figure | value |\n"
        f"|---|---|\n{rows}\n{not_run}\nCommit {facts['commit']}, {facts['date']}, {facts['device']}, "
        f"{torch.get_num_threads()} CPU threads, torch {facts['versions']['torch']}.\n"
    )
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
