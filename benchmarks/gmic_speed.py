"""Speed and memory of GMIC at the paper's size, as ratios within one run.

    python benchmarks/gmic_speed.py    # prints, and writes gmic_speed.md and .json beside this file

Machines are noisy: variants run in turn (A B A B ...), and the median of the pairwise ratios is what counts.
On a machine with CUDA the GPU part runs too; the table says when it did not.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mammomil.files import provenance, write_json
from mammomil.gmic import GMICConfig, GMICOutput, build_gmic
from mammomil.losses import GMICObjective
from mammomil.regions import cells_to_pixels, crop_rois, retrieve_rois
from mammomil.types import Batch

HERE = Path(__file__).parent
SIZE = (2944, 1920)


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def in_turn(variants: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Run the variants A B C A B C ..., one round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for round_ in range(rounds + 1):
        for name, function in variants.items():
            seconds = timed(function)
            if round_:
                times[name].append(seconds)
    return times


def ratio(times: dict[str, list[float]], one: str, other: str) -> float:
    return statistics.median(a / b for a, b in zip(times[one], times[other], strict=True))


def in_subprocess(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def cpu(rounds: int) -> dict[str, float]:
    torch.set_num_threads(2)
    ours = build_gmic(GMICConfig.full()).eval()
    plain = build_gmic(GMICConfig.full()).eval().to(memory_format=torch.contiguous_format)
    plain.load_state_dict(ours.state_dict())
    one, four = torch.randn(1, 1, *SIZE), torch.randn(4, 1, *SIZE)
    with torch.inference_mode():
        difference = (ours(one).saliency - plain(one).saliency).abs().max().item()
        saliency = ours(one).saliency
        cells = (saliency.shape[2], saliency.shape[3])

        def rois() -> None:
            corners = cells_to_pixels(retrieve_rois(saliency, 6, 4), cells, SIZE, 256)
            crop_rois(one, corners, 256)

        times = in_turn(
            {
                "plain": lambda: plain(one),
                "ours": lambda: ours(one),
                "ours, 4 images": lambda: ours(four),
                "retrieval and crops": rois,
            },
            rounds,
        )
    return {
        "seconds of one forward, plain eager NCHW": statistics.median(times["plain"]),
        "seconds of one forward, ours": statistics.median(times["ours"]),
        "ours / plain": ratio(times, "ours", "plain"),
        "per image in a batch of 4 / one image": ratio(times, "ours, 4 images", "ours") / 4,
        "retrieval and crops / forward": ratio(times, "retrieval and crops", "ours"),
        "largest difference of the saliency, ours and plain": difference,
    }


def memory() -> dict[str, float]:
    """Peak resident memory of a process that predicts one image, and of one that only imports."""
    base = "import torch; torch.set_num_threads(2); from mammomil.gmic import *\n"
    build = "m = build_gmic(GMICConfig.full()).eval(); x = torch.randn(1, 1, 2944, 1920)\n"
    run = "with torch.inference_mode(): m(x)\n"
    # VmHWM is of this process alone, ru_maxrss starts at its parent's.
    report = "print(next(int(l.split()[1]) for l in open('/proc/self/status') if 'VmHWM' in l) / 1024)"
    idle, whole = (float(in_subprocess(code + report)) for code in (base, base + build + run))
    return {
        "MiB of a process that has imported torch and mammomil": idle,
        "MiB peak of a process that predicts one 2944x1920 image": whole,
    }


def imports(rounds: int) -> dict[str, float]:
    code = (
        "import time; a = time.perf_counter(); import torch; b = time.perf_counter(); {};"
        "c = time.perf_counter(); print(b - a, c - b)"
    )
    found = {}
    for name, statement in {
        "mammomil": "import mammomil",
        "mammomil.gmic and mammomil.losses": "import mammomil.gmic, mammomil.losses",
    }.items():
        runs = [[float(v) for v in in_subprocess(code.format(statement)).split()] for _ in range(rounds)]
        found[f"seconds that importing {name} adds to importing torch"] = statistics.median(
            r[1] for r in runs
        )
    return found


def gpu(rounds: int) -> dict[str, float]:
    """Images per second and peak memory of inference and training at full resolution."""
    found: dict[str, float] = {}
    for layout in ("NCHW", "channels_last"):
        for precision in ("fp32", "bf16"):
            for compiled in (False, True):
                found |= gpu_variant(layout, precision, compiled, rounds)
                torch.cuda.empty_cache()
    return found


def gpu_variant(layout: str, precision: str, compiled: bool, rounds: int, n: int = 8) -> dict[str, float]:
    order = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    model = build_gmic(GMICConfig.full()).cuda().to(memory_format=order)
    run = torch.compile(model) if compiled else model
    optimizer = torch.optim.Adam(model.parameters(), 1e-5)
    label = torch.randint(0, 2, (n, 2), device="cuda").float()
    unknown = torch.full((n,), torch.nan, device="cuda")
    rows = torch.arange(n, device="cuda")
    batch = Batch(torch.randn(n, 1, *SIZE, device="cuda"), label, unknown, rows)

    def forward() -> GMICOutput:
        with torch.autocast("cuda", torch.bfloat16, precision == "bf16"):
            return run(batch.image)

    def infer() -> None:
        model.eval()
        with torch.inference_mode():
            forward()
        torch.cuda.synchronize()

    def learn() -> None:
        model.train()
        sum(GMICObjective()(forward(), batch).values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize()

    found = {}
    for what, function in (("inference", infer), ("training", learn)):
        torch.cuda.reset_peak_memory_stats()
        seconds = statistics.median(in_turn({"it": function}, rounds)["it"])
        name = f"GPU {what}, {layout}, {precision}, {'compiled' if compiled else 'eager'}, batch {n}"
        found[f"{name}: images/s"] = n / seconds
        found[f"{name}: peak GiB"] = torch.cuda.max_memory_allocated() / 2**30
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds of each variant")
    rounds = parser.parse_args().rounds
    found = {**cpu(rounds), **memory(), **imports(rounds)}
    if torch.cuda.is_available():
        found |= gpu(rounds)
    facts = provenance(size=list(SIZE), rounds=rounds, config=dataclasses.asdict(GMICConfig.full()))
    write_json(HERE / "gmic_speed.json", {"figures": found, "provenance": facts})
    rows = "\n".join(f"| {name} | {value:.3g} |" for name, value in found.items())
    not_run = "" if torch.cuda.is_available() else "\nThe GPU part did not run: no CUDA device at hand.\n"
    (HERE / "gmic_speed.md").write_text(
        "# GMIC at 2944x1920: speed and memory\n\nMade by `python benchmarks/gmic_speed.py`; medians "
        f"over {rounds} rounds in turn.\n\n| figure | value |\n|---|---|\n{rows}\n{not_run}\n"
        f"Commit {facts['commit']}, {facts['date']}, {facts['device']}, 2 CPU threads, "
        f"torch {facts['versions']['torch']}.\n"
    )
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
