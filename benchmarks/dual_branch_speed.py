"""Speed of the dual branch: one step of training, coding regions, five folds on codes that are kept.

    python benchmarks/dual_branch_speed.py    # prints, and writes dual_branch_speed.md and .json

Machines are noisy: variants run in turn (A B A B ...), and the median of the pairwise ratios is what counts.
Inputs are random numbers; encoders have random weights, which are as fast as trained ones.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.data import Dataset

from mammomil.dataset import ShuffledSampler
from mammomil.dual_branch import DualBranchConfig, build_dual_branch
from mammomil.encoders import EncoderConfig
from mammomil.files import provenance, write_json
from mammomil.losses import DualBranchObjective
from mammomil.region_data import RegionSample, collate_regions
from mammomil.region_model import CHUNK, RegionModelConfig, build_region_model
from mammomil.regions import WindowConfig, sliding_windows
from mammomil.train import TrainConfig, fit
from mammomil.types import RegionBatch

HERE = Path(__file__).parent
IMAGES, REGIONS, CODE = 256, 200, 128  # checklist D20, D1, D2


def in_turn(variants: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Run the variants A B C A B C ..., two rounds to warm up."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for round_ in range(rounds + 2):
        for name, function in variants.items():
            start = time.perf_counter()
            function()
            if round_ > 1:
                times[name].append(time.perf_counter() - start)
    return times


def ratio(times: dict[str, list[float]], one: str, other: str) -> float:
    return statistics.median(a / b for a, b in zip(times[one], times[other], strict=True))


def random_batch() -> RegionBatch:
    """256 images with 200 regions each, a tenth of them annotated."""
    annotated = torch.arange(IMAGES) < IMAGES // 10
    region_label = torch.randint(-1, 2, (IMAGES, REGIONS)).where(annotated[:, None], -1)
    return RegionBatch(
        valid=torch.ones(IMAGES, REGIONS, dtype=torch.bool),
        label=torch.randint(0, 2, (IMAGES, 2)).float(),
        region_label=region_label,
        annotated=annotated,
        row=torch.arange(IMAGES),
        codes=torch.rand(IMAGES, REGIONS, CODE),
    )


def step(rounds: int) -> dict[str, float]:
    batch, objective = random_batch(), DualBranchObjective()
    model = build_dual_branch(DualBranchConfig(), CODE)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4, weight_decay=1e-4)

    def learn() -> None:
        optimizer.zero_grad()
        sum(objective(model(*batch.inputs), batch).values()).backward()
        optimizer.step()

    x, w3 = batch.codes.flatten(0, 1), torch.randn(CODE, CODE)
    w4, w5 = torch.randn(CODE, 3), torch.randn(CODE, 2)
    both = torch.cat([w4, w5], 1)

    def products_of_three_layers() -> None:
        """Forward, and backward to every weight and to phi: what Fig. 2's three layers multiply."""
        phi = x @ w3
        cls, det = phi @ w4, phi @ w5
        _ = phi.T @ cls, phi.T @ det
        _ = x.T @ (cls @ w4.T + det @ w5.T)

    def products_as_computed() -> None:
        """The same with FC4 and FC5 as one matrix, which is what `DualBranch` does."""
        phi = x @ w3
        logits = phi @ both
        _ = phi.T @ logits, x.T @ (logits @ both.T)

    times = in_turn({"step": learn, "three": products_of_three_layers, "one": products_as_computed}, rounds)
    return {
        f"ms of one step on {IMAGES} images x {REGIONS} regions x {CODE}": 1e3
        * statistics.median(times["step"]),
        "step / matrix products of the three layers (target 1.3)": ratio(times, "step", "three"),
        "step / matrix products as computed": ratio(times, "step", "one"),
    }


def coding(rounds: int) -> dict[str, float]:
    found: dict[str, float] = {}
    shapes = {"small": (368, 240, 28), "resnet18": (2944, 1920, 224)}
    shapes |= dict.fromkeys(("resnet50", "cnn-m-128"), shapes["resnet18"])
    for kind, (height, width, side) in shapes.items():
        encoder = EncoderConfig(kind, weights="none")
        model = build_region_model(RegionModelConfig(encoder, WindowConfig((side,)))).eval()
        image = torch.randn(1, 1, height, width)
        boxes = sliding_windows(height, width, side, side // 2)
        boxes = boxes[: REGIONS if kind == "small" else CHUNK // 2]
        places = torch.arange(len(boxes))
        # What cutting and resampling all windows at once takes, against one after the other.
        from torchvision.ops import roi_align

        rois = torch.cat([torch.zeros(len(boxes), 1), boxes], 1)

        def at_once(rois=rois, image=image, model=model) -> None:
            for part in rois.split(CHUNK):
                roi_align(image, part, model.encoder.side, aligned=True)

        with torch.inference_mode():
            times = in_turn(
                {
                    "code": lambda model=model, image=image, boxes=boxes, places=places: model.encode(
                        image, boxes[None], places
                    ),
                    "cut": at_once,
                },
                rounds if kind == "small" else 2,
            )
        found[f"{kind}: regions coded a second, {side} pixel windows"] = len(boxes) / statistics.median(
            times["code"]
        )
        found[f"{kind}: share of it that cuts windows"] = ratio(times, "cut", "code")
    return found


class Codes(Dataset):
    """3,000 images of about 200 codes whose malignant ones hold a region that gives them away."""

    def __init__(self, images: int = 3000, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.counts = torch.randint(150, 251, (images,), generator=generator).tolist()
        self.codes = [torch.rand(n, CODE, generator=generator) for n in self.counts]
        self.label = torch.randint(0, 2, (images, 2), generator=generator).float()
        for codes, label in zip(self.codes, self.label, strict=True):
            codes[7, :5] += label[1]
            codes[9, 5:10] += label[0]

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, item: int | tuple[int, int]) -> RegionSample:
        row = item[0] if isinstance(item, tuple) else item
        none = torch.full((self.counts[row],), -1)
        return RegionSample(
            self.label[row], none, torch.tensor(False), torch.tensor(row), codes=self.codes[row]
        )


class Fold(Dataset):
    """Some of the images, numbered anew."""

    def __init__(self, data: Codes, rows: list[int]):
        self.data, self.rows = data, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: int | tuple[int, int]) -> RegionSample:
        place = item[0] if isinstance(item, tuple) else item
        return self.data[self.rows[place]]._replace(row=torch.tensor(place))


def five_folds(epochs: int) -> dict[str, float]:
    data, config = (
        Codes(),
        TrainConfig(epochs=epochs, batch_size=IMAGES, learning_rate=1e-3, weight_decay=1e-4),
    )
    start, aucs = time.perf_counter(), []
    for fold in range(5):
        held = [n for n in range(len(data)) if n % 5 == fold]
        rest = [n for n in range(len(data)) if n % 5 != fold]
        with tempfile.TemporaryDirectory() as out:
            result = fit(
                build_dual_branch(DualBranchConfig(), CODE, fold), DualBranchObjective(),
                (Fold(data, rest), ShuffledSampler(len(rest), fold)), Fold(data, held), config, out,
                collate=collate_regions, progress=False,
            )  # fmt: skip
        aucs.append(result.history[-1]["val"]["auc_malignant"])
    minutes = (time.perf_counter() - start) / 60
    return {
        f"minutes of 5 folds of 3,000 images, {epochs} epochs each, validated every epoch": minutes,
        "seconds an epoch of 2,400 images, validation of 600 included": 60 * minutes / 5 / epochs,
        "smallest AUC of the five on made-up codes (that something was learned)": min(aucs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15, help="counted rounds of each variant")
    parser.add_argument("--epochs", type=int, default=20, help="epochs of each fold")
    args = parser.parse_args()
    torch.set_num_threads(2)
    found = {**step(args.rounds), **coding(args.rounds), **five_folds(args.epochs)}
    if any(not math.isfinite(value) for value in found.values()):
        raise SystemExit("a figure is not finite")
    facts = provenance(rounds=args.rounds, epochs=args.epochs)
    write_json(HERE / "dual_branch_speed.json", {"figures": found, "provenance": facts})
    rows = "\n".join(f"| {name} | {value:.3g} |" for name, value in found.items())
    text = (
        "# The dual branch: speed\n\n"
        "Made by `python benchmarks/dual_branch_speed.py`; medians of rounds in turn. Random inputs, random\n"
        "weights. Windows are coded by one process with two threads here; `mammomil train` uses two\n"
        "processes of one thread. The products as computed have FC4 and FC5 in one matrix, which makes\n"
        "them faster than those of three layers; what a step adds to them is mostly dropout.\n\n"
    )
    cells = f"| figure | value |\n|---|---|\n{rows}\n\nNo GPU part: no CUDA device was at hand.\n\n"
    source = f"Commit {facts['commit']}, {facts['date']}, {facts['device']}, 2 CPU threads, "
    source += f"torch {facts['versions']['torch']}.\n"
    (HERE / "dual_branch_speed.md").write_text(text + cells + source)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
