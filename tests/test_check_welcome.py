import numpy as np
import pytest
from answers import common_answers

from mammomil.check import welcome as check

# Answers as learners write them, in plain Python: another way than the checks compute.


def malignant(prediction):
    return prediction.prob[1]


def of_views(predictions, side, join=None, wanted=True):
    rows = [p.prob.tolist() for p in predictions if (p.laterality == side) == wanted]
    join = join or (lambda values: sum(values) / len(values))
    return [join(column) for column in zip(*rows, strict=True)]


def of_exam(predictions, side):
    return np.mean([p.prob for p in predictions], axis=0)


def one_view(predictions, side):
    return next(p.prob for p in predictions if p.laterality == side)


def over_findings(predictions, side):
    return [sum(p.prob) / 2 for p in predictions if p.laterality == side]


def suspicious(views, size, best=max, swap=False, move=True, order=True, grow=True, only=None, patch=None):
    found = [(s, n, k) for n, view in enumerate(views) for k, s in enumerate(view[1].tolist())]
    if only is not None:
        found = [f for f in found if f[1] == only]
    if best is min:  # of the right view
        found = [f for f in found if f[1] == max(found)[1]]
    _, n, k = best(found)
    corners, _, affine = views[n]
    row, column = (corners[k] if patch is None else corners[patch]).tolist()
    x, y = (row, column) if swap else (column, row)
    if not move:
        return n, [x, y, x + size, y + size]
    (a, _, c), (_, e, f) = affine.tolist()
    x0, y0 = a * x + c, e * y + f
    x1, y1 = (a * (x + size) + c, e * (y + size) + f) if grow else (x0 + size, y0 + size)
    return n, [min(x0, x1), y0, max(x0, x1), y1] if order else [x0, y0, x1, y1]


RIGHT = (
    (check.malignant_probability, malignant),
    (check.breast_probability, of_views),
    (check.most_suspicious, suspicious),
)
WRONG = (
    (check.malignant_probability, lambda p: p.prob[0], "the benign finding"),
    (check.malignant_probability, lambda p: p.prob, "Both findings"),
    (
        check.malignant_probability,
        lambda p: 1 - (1 - p.prob[0]) * (1 - p.prob[1]),
        "probability of any finding",
    ),
    (check.malignant_probability, lambda p: 1 - p.prob[0], "1 - p(benign)"),
    (check.malignant_probability, lambda p: p.prob[1] / (p.prob[0] + p.prob[1]), "add up to 1"),
    (check.malignant_probability, lambda p: p.parts["loc"][1], "y_loc"),
    (check.malignant_probability, lambda p: max(p.prob), "larger of the two"),
    (check.breast_probability, of_exam, "mean over the exam"),
    (check.breast_probability, lambda *a: of_views(*a, wanted=False), "other breast"),
    (check.breast_probability, lambda *a: of_views(*a, join=max), "largest of the views"),
    (check.breast_probability, lambda *a: of_views(*a, join=sum), "summed"),
    (check.breast_probability, lambda *a: of_views(*a, join=lambda v: sum(v) / 2), "divided by 2"),
    (check.breast_probability, over_findings, "mean over findings"),
    (check.breast_probability, lambda *a: of_views(*a)[1], "malignant finding alone"),
    (check.breast_probability, one_view, "one view"),
    (check.most_suspicious, lambda *a: suspicious(*a, move=False), "still on the canvas"),
    (check.most_suspicious, lambda *a: suspicious(*a, swap=True), "changed places"),
    (check.most_suspicious, lambda *a: suspicious(*a, best=min), "smallest score"),
    (check.most_suspicious, lambda *a: suspicious(*a, grow=False), "the side was not"),
    (check.most_suspicious, lambda *a: suspicious(*a, only=0), "Compare the views"),
    (check.most_suspicious, lambda *a: suspicious(*a, patch=0), "first patch"),
    (check.most_suspicious, lambda *a: suspicious(*a, order=False), "Sort the two x"),
)


@pytest.mark.parametrize(("judge", "answer", "words"), WRONG)
def test_mistakes_are_named(judge, answer, words):
    verdict = judge(answer)
    assert not verdict.right
    assert words in verdict.words


test_common_answers = common_answers(RIGHT, {check.most_suspicious: "expected was"})
