"""The phantoms that the dual-branch chapters learn from: drawn and coded once, and shared by them."""

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from tqdm.auto import tqdm

from mammomil.downloads import cache_folder
from mammomil.dual_branch import DualBranch, DualBranchConfig, build_dual_branch
from mammomil.experiments.common import exam_index
from mammomil.experiments.region_runs import RegionExperiment, Regions, answer, load_regions
from mammomil.losses import DualBranchObjective
from mammomil.region_data import ALPHA, RegionSample, choose_annotated, collate_regions
from mammomil.regions import region_labels
from mammomil.types import RegionBatch

SEED = 8  # the recorded experiments have 0, so that other phantoms are drawn here
SHARES = {"train": 0.5, "val": 0.15, "test": 0.35}


class Practice(NamedTuple):
    """Phantom exams split by patient, and every image as the dual branch sees it.

    Attributes:
        folder: the index, with images and masks: for what needs pixels.
        codes: the cache of codes, for `DualBranchRun.codes`.
        regions: labels, codes, and IoM of every region with every lesion, of all images.
    """

    folder: Path
    codes: Path
    regions: Regions

    def rows(self, split: str) -> Int[np.ndarray, "n"]:
        """Return the rows of a split: train, val or test."""
        return np.flatnonzero((self.regions.index.images["split"] == split).to_numpy())

    def annotated(self, fraction: float, seed: int = 0) -> frozenset[str]:
        """Choose the training images whose lesions are learned from, see `choose_annotated`."""
        images = self.regions.index.images
        train = images[images["split"] == "train"]
        findings = self.regions.index.findings
        mine = findings[findings["image_id"].isin(train["image_id"])]
        return choose_annotated(self.regions.index._replace(images=train, findings=mine), fraction, seed)

    def batch(
        self, rows: str | Int[np.ndarray, "n"], annotated: Collection[str] = (), alpha: float = ALPHA
    ) -> RegionBatch:
        """Return images as one batch of codes.

        Args:
            rows: their numbers, or the name of a split.
            annotated: ids of images whose regions are labelled by Eq. 7; regions of the others have -1.
            alpha: IoM from which on a region is malignant.
        """
        rows = self.rows(rows) if isinstance(rows, str) else rows
        names = self.regions.index.images["image_id"].to_numpy()
        samples = []
        for row in rows:
            codes = self.regions.codes[row]
            label = torch.full((len(codes),), -1)
            if names[row] in annotated:
                label = region_labels(torch.from_numpy(self.regions.malignant[row]), alpha)
            samples.append(
                RegionSample(
                    torch.from_numpy(self.regions.label[row]).float(),
                    label,
                    (label == 1).any(),
                    torch.tensor(int(row)),
                    codes=codes,
                )
            )
        return collate_regions(samples)


class Trained(NamedTuple):
    """A head that has learned, and what it said on the way.

    Attributes:
        head: after the last epoch, in evaluation mode.
        loss: mean loss of each epoch.
        prob: p of each finding after each epoch, of all images of the practice set.
    """

    head: DualBranch
    loss: list[float]
    prob: Float[np.ndarray, "e n c"]


def train_head(
    data: Practice,
    config: DualBranchConfig | None = None,
    objective: DualBranchObjective | None = None,
    annotated: float = 0.0,
    *,
    epochs: int = 30,
    learning_rate: float = 2e-3,
    seed: int = 0,
    progress: bool = True,
) -> Trained:
    """Train the layers on top of the codes, in memory and without files; some seconds on two cores.

    For chapters that train several. `jobs.run_training` trains the same with validation, checkpoints and
    resume, and leaves a model folder.

    Args:
        data: from `practice`; the split train is learned from.
        config: the layers; the paper's by default.
        objective: the loss; Eq. 5 or Eq. 12 by default.
        annotated: share of the malignant images whose lesions are learned from (checklist D29).
        epochs: passes over the images, in batches of 64.
        learning_rate: of Adam, with the paper's l2 of 1e-4.
        seed: decides weights, order, dropout and which images are annotated.
        progress: show a bar.
    """
    head = build_dual_branch(config or DualBranchConfig(), data.regions.codes[0].shape[1], seed)
    objective = objective or DualBranchObjective()
    batch = data.batch("train", data.annotated(annotated, seed))
    optimizer = torch.optim.Adam(head.parameters(), learning_rate, weight_decay=1e-4)
    order = torch.Generator().manual_seed(seed)
    loss, prob = [], []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # dropout
        for _ in tqdm(range(epochs), "Training", unit="epoch", disable=not progress):
            head.train()
            total = 0.0
            for at in torch.randperm(len(batch.label), generator=order).split(64):
                part = RegionBatch(*(None if value is None else value[at] for value in batch))
                value = sum(objective(head(part.codes, part.valid), part).values())
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                total += value.item() * len(at)
            loss.append(total / len(batch.label))
            prob.append(answer(head, data.regions.codes)[0])
    return Trained(head.eval(), loss, np.stack(prob))


def practice(exams: int = 120) -> Practice:
    """Return the phantoms of the dual-branch chapters, drawn and coded if that was not done before.

    The first call takes about a minute on two cores, later ones seconds. What is made is kept in
    `downloads.cache_folder`, by version of the library; it may be deleted at any time. Several processes may
    call this at once: one works, the others wait.

    Args:
        exams: number of exams, four images each. Splits hold whole patients: a half to learn, .15 to
            validate, .35 to test.
    """
    from filelock import FileLock

    from mammomil import __version__

    work = cache_folder() / f"practice-{__version__}"
    work.mkdir(parents=True, exist_ok=True)
    config = RegionExperiment(out=work, work=work, exams=exams, seed=SEED)
    with FileLock(work / "lock"):
        folder = exam_index(config, SHARES)
        return Practice(folder, work / "codes", load_regions(config, folder))
