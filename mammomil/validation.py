"""Judging a model on images while it is trained and after: on one process or several, each image once."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from mammomil.metrics import any_finding, auc_score, group_scores
from mammomil.types import FINDINGS, Batch

Objective = Callable[[Any, Batch], dict[str, Tensor]]


class Evaluation(NamedTuple):
    """A model's answers on a set: figures, and per image its row, labels and probabilities."""

    figures: dict[str, float]
    row: np.ndarray
    label: np.ndarray
    prob: np.ndarray | None


def own_share(
    data: Dataset,
    batch_size: int,
    collate: Callable[[list], Batch],
    accelerator: Any,
    workers: int = 0,
) -> Any:
    """Load this process's share of the images to be judged; together the processes load each image once."""
    from accelerate.data_loader import prepare_data_loader

    rows = range(accelerator.process_index, len(data), accelerator.num_processes)
    loader = DataLoader(Subset(data, rows), batch_size, collate_fn=collate, num_workers=workers)
    device = accelerator.device
    return prepare_data_loader(loader, device, num_processes=1, process_index=0, put_on_device=True)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    objective: Objective,
    loader: Any,
    accelerator: Any,
    breast: np.ndarray | None = None,
    views: Literal["mean", "max"] = "mean",
) -> Evaluation:
    """Judge a model on all images of a loader.

    Args:
        model: leaves in evaluation mode.
        objective: its terms become `loss_<term>`, averaged over images, and `loss`.
        loader: of `Batch`, see `own_share`.
        accelerator: gathers the answers of all processes.
        breast: breast of each row, to bring its views together; -1 where unknown.
        views: score of a breast, the mean of its views (GMIC, checklist G12) or the largest (dual branch,
            D26).

    Returns:
        Figures: loss, and where the output has them the AUC of `y`, `y_loc`, `y_mil` per finding and image,
        of the largest `y` for any finding, and of `y` per breast. None where a class is missing: an AUC needs
        both.
    """
    from accelerate.utils import broadcast, gather_object

    model = accelerator.unwrap_model(model).eval()  # shares differ in length: no forward pass may wait
    for buffer in model.buffers():
        broadcast(buffer)  # statistics of batches are each process's own; the main process's are saved
    sums: dict[str, Any] = {}
    answers: dict[str, list[Tensor]] = {}
    for batch in loader:
        output = model(*batch.inputs)
        for name, term in objective(output, batch).items():
            sums[name] = sums.get(name, 0) + term * len(batch.row)
        told = {"row": batch.row, "label": batch.label}
        for name in ("y", "y_loc", "y_mil"):
            if (value := getattr(output, name, None)) is not None:
                told[name] = value.float()
        for name, value in told.items():
            answers.setdefault(name, []).append(value)
    own = ({k: float(v) for k, v in sums.items()}, {k: torch.cat(v).cpu() for k, v in answers.items()})
    shares = [share for share in gather_object([own]) if share[1]]  # a process may have no image
    prob = {name: torch.cat([told[name] for _, told in shares]) for name in shares[0][1]}
    order = prob["row"].argsort(stable=True)
    prob = {name: values[order].numpy() for name, values in prob.items()}
    row, label = prob.pop("row"), prob.pop("label")
    means = {name: sum(terms[name] for terms, _ in shares) / len(row) for name in sorted(shares[0][0])}
    figures: dict[str, Any] = {"loss": sum(means.values()), **{f"loss_{k}": v for k, v in means.items()}}
    for name, values in prob.items():
        for c, finding in enumerate(FINDINGS):
            figures["auc" + name[1:] + f"_{finding}"] = auc_score(label[:, c], values[:, c])
    if "y" in prob:
        figures["auc_any"] = auc_score(any_finding(label), prob["y"].max(1))  # checklist D25
    if "y" in prob and breast is not None and (breast[row] >= 0).all():
        for c, finding in enumerate(FINDINGS):
            truth, score, _ = group_scores(label[:, c], prob["y"][:, c], breast[row], views)
            figures[f"auc_breast_{finding}"] = auc_score(truth, score)
    return Evaluation(figures, row, label, prob.get("y"))
