import ast
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from answers import common_answers
from sklearn.metrics import roc_auc_score

from mammomil.check import weak as check

ROOT = Path(__file__).resolve().parents[1]

# The right answers, written as in the chapter.


def loss(log_prob, label):
    chosen = torch.where(label == 1, log_prob[..., 1], log_prob[..., 0])
    known = ~label.isnan()
    nll = torch.where(known, -chosen, 0.0)
    return (nll.sum(0) / known.sum(0).clamp(min=1)).sum()


def epoch(prob, label, validation):
    """By scikit-learn, where the chapter takes the library's AUC."""
    rows = np.flatnonzero(validation & ~np.isnan(label[:, 1]))
    figures = [roc_auc_score(label[rows, 1], p[rows, 1]) for p in prob]
    return figures.index(max(figures))


def push(p_cls, p_det, label):
    """By hand: the chain rule region by region and class by class."""
    gradient = torch.zeros_like(p_cls)
    for c in (0, 1):
        p_yes = sum(p_det[i, c] * p_cls[i, c + 1] for i in range(len(p_cls)))
        for i, p in enumerate(p_cls):
            for d in range(3):
                slope = p[c + 1] * (float(d == c + 1) - p[d])  # of p_cls(c) by the logit of class d
                gradient[i, d] += p_det[i, c] * slope * (-1 / p_yes if label[c] else 1 / (1 - p_yes))
    return gradient


ANSWERS = [(check.weak_loss, loss), (check.choose_epoch, epoch), (check.class_gradient, push)]


test_common_answers = common_answers(ANSWERS)


def formula(log_prob, label):
    return -(label * log_prob[..., 1] + (1 - label) * log_prob[..., 0])


def kept(log_prob, label):
    return torch.where(label.isnan(), 0.0, formula(log_prob, label))


def known(label):
    return (~label.isnan()).sum(0)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda p, y: formula(p, y).mean(0).sum(), "result is NaN"),
        (lambda p, y: (formula(p, y) * ~y.isnan()).mean(0).sum(), "result is NaN"),
        (lambda p, y: formula(p, y.nan_to_num()).mean(0).sum(), "counts as 0"),
        (lambda p, y: kept(p, y).sum() / len(y), "all images of the batch"),
        (lambda p, y: kept(p, y).sum() / (~y.isnan()).sum(), "share one average"),
        (lambda p, y: loss(p, y) / 2, "average over the findings"),
        (lambda p, y: kept(p, y).sum(), "sum over the images"),
        (lambda p, y: loss(p[~y.isnan().any(1)], y[~y.isnan().any(1)]), "Every image with an unknown label"),
        (lambda p, y: loss(p.flip(-1), y), "changed places"),
        (lambda p, y: -loss(p, y), "The sign"),
        (lambda p, y: kept(p, y).sum(0) / known(y).clamp(min=1), "still apart"),
        (lambda p, y: (kept(p, y).sum(0) / known(y)).sum(), "0 / 0"),
        (lambda p, y: sum(formula(p, y)[k, c].mean() for c, k in enumerate(~y.T.isnan())), "0 / 0"),
        (lambda p, y: (kept(p, y).sum(0) / known(y).clamp(min=1)).sum(), "its gradient is NaN"),
        (lambda p, y: loss(p, y).detach(), "no gradient"),
        (lambda p, y: loss(p, y).item(), "no gradient"),
    ],
)  # fmt: skip
def test_mistakes_of_the_loss_are_named(answer, words):
    assert words in check.weak_loss(answer).words


def best(label, score, rows):
    """Epoch of the largest AUC; `score` is (e, n)."""
    rows = rows & ~np.isnan(label)
    return int(np.argmax([roc_auc_score(label[rows], s[rows]) for s in score]))


def shown(prob, label, validation):
    rows = validation & ~np.isnan(label[:, 1])
    return [roc_auc_score(label[rows, 1], p[rows, 1]) for p in prob]


def least_loss(prob, label, validation):
    rows = validation & ~np.isnan(label[:, 1])
    p = np.where(label[rows, 1] == 1, prob[:, rows, 1], 1 - prob[:, rows, 1])
    return int(np.log(p).sum(1).argmax())


def finding(label):
    return np.where((label == 1).any(1), 1.0, label.sum(1))  # NaN + 0 is NaN


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda p, y, v: max(shown(p, y, v)), "return the AUC"),
        (lambda p, y, v: epoch(p, y, v) + 1, "count from 0"),
        (lambda p, y, v: len(p) - 1, "last epoch"),
        (lambda p, y, v: max(range(len(p)), key=lambda e: (shown(p, y, v)[e], e)), "take the first"),
        (lambda p, y, v: best(y[:, 1], p[:, :, 1], ~v), "outside validation"),
        (lambda p, y, v: best(y[:, 1], p[:, :, 1], v | ~v), "over all images"),
        (lambda p, y, v: best(y[:, 0], p[:, :, 0], v), "benign findings"),
        (lambda p, y, v: best(finding(y), p.max(2), v), "any finding"),
        (lambda p, y, v: least_loss(p, y, v), "smallest loss"),
        (lambda p, y, v: best(np.nan_to_num(y[:, 1]), p[:, :, 1], v), "counts as 0"),
        (lambda p, y, v: best(y[:, 1], p[:, :, 1], v & ~np.isnan(y[:, 0])), "whose benign label"),
    ],
)
def test_mistakes_of_the_epoch_are_named(answer, words):
    assert words in check.choose_epoch(answer).words


def parts(p_cls, p_det, label, weigh, target=None):
    """Sum over findings of share of a region times its p minus a target, both given as functions."""
    total = torch.zeros_like(p_cls)
    for c in (0, 1):
        without = p_cls.clone()
        without[:, c + 1] = 0
        without /= without.sum(1, keepdim=True)
        one = torch.zeros(3, dtype=p_cls.dtype)
        one[c + 1] = 1
        wanted = one if label[c] else (without if target is None else target)
        said = p_cls[:, c + 1] if label[c] else 1 - p_cls[:, c + 1]
        total += weigh(p_det[:, c], said)[:, None] * (p_cls - wanted)
    return total


def posterior(p_det, said):
    return p_det * said / (p_det * said).sum()


def only(c):
    def answer(p_cls, p_det, label):
        other = p_det.clone()
        other[:, 1 - c] = 0
        return parts(p_cls, other, label, lambda d, s: posterior(d, s).nan_to_num())

    return answer


def own_columns(p_cls, p_det, label):
    """Without what the softmax does to the other classes."""
    gradient = torch.zeros_like(p_cls)
    for c in (0, 1):
        gradient[:, c + 1] = only(c)(p_cls, p_det, label)[:, c + 1]
    return gradient


def divides_by_yes(p_cls, p_det, label):
    gradient = torch.zeros_like(p_cls)
    for c in (0, 1):
        yes = (p_det[:, c] * p_cls[:, c + 1]).sum()
        gradient += only(c)(p_cls, p_det, label) * (1 if label[c] else (1 - yes) / yes)
    return gradient


def stacked(p_cls, p_det, label):
    return torch.stack([only(c)(p_cls, p_det, label) for c in (0, 1)], -1)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda *a: -push(*a), "The sign"),
        (lambda *a: parts(*a, lambda d, s: d), "rank alone"),
        (lambda *a: parts(*a, lambda d, s: torch.ones_like(d)), "full weight"),
        (own_columns, "all three columns"),
        (lambda *a: parts(*a, lambda d, s: d * s), "gradient of minus p"),
        (only(1), "benign finding is missing"),
        (only(0), "malignant finding is missing"),
        (lambda *a: push(*a) / 2, "average the two"),
        (stacked, "stacked"),
        (lambda *a: parts(*a, posterior, torch.tensor([1.0, 0, 0], dtype=torch.float64)), "towards normal"),
        (divides_by_yes, "divide by p(y=1|x)"),
    ],
)
def test_mistakes_of_the_gradient_are_named(answer, words):
    assert words in check.class_gradient(answer).words


def test_a_push_is_a_soft_label():
    """The other way to the right answer: as if each region had the image's label, by its share."""
    assert check.class_gradient(lambda *a: parts(*a, posterior)).right


# The chapter shows recorded numbers, which it types so that it runs without the repository.


def typed(name):
    cells = json.loads((ROOT / "book/chapters/11_weak.ipynb").read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and f"\n{name} = " in f"\n{source}":
            for statement in ast.parse(source).body:
                if isinstance(statement, ast.Assign) and statement.targets[0].id == name:
                    return ast.literal_eval(statement.value)
    raise AssertionError(f"{name} is not in the chapter")


def pages():
    for exams, folder in ((200, "dual-branch-weak"), (400, "dual-branch-weak-400")):
        page = ROOT / "benchmarks/experiments" / folder / "dual-branch-weak.md"
        yield exams, page.read_text(encoding="utf-8")


def test_recorded_figures_are_those_of_the_pages():
    recorded = typed("RECORDED")
    for exams, page in pages():
        for task in ("M vs BN", "MB vs N"):
            table = re.split(r"\n## |!\[", page.split(f"## {task}\n")[1])[0]
            rows = [
                [c.strip() for c in line.split("|")[1:-1]] for line in table.splitlines() if " ± " in line
            ]
            assert len(rows) == 4
            for name, auroc, _, _, paucr, _, spec85, _, spec90, _, froc, _ in rows:
                figures = [*auroc.split(" ± "), *paucr.split(" ± "), spec85, spec90, *froc.split(" ± ")]
                assert recorded[exams][task, name] == tuple(map(float, figures))
        assert len(recorded[exams]) == 8


def test_recorded_differences_are_those_of_the_pages():
    differences = typed("DIFFERENCES")
    line = re.compile(
        r"- (M vs BN|MB vs N), (AUROC|Sens@1FPPI): Cls-Det-RS above ([\w-]+)(?: \(.*?\))?: .*"
        r"\(([+-][\d.]+), 95 % ([+-][\d.]+) to ([+-][\d.]+)\)"
    )
    for exams, page in pages():
        found = {(task, figure, name): tuple(map(float, n)) for task, figure, name, *n in line.findall(page)}
        assert len(found) == 12
        assert differences[exams] == found
