"""Answers of chapter 18: leaks between splits, labels from a table, cases for an interval of some width."""

import math
from collections.abc import Callable, Sequence
from itertools import count

import numpy as np

from mammomil.check.answers import Case, Verdict, judge

Answer = tuple[float | int, float | int]  # benign and malignant


def leaks(answer: Callable[[list[str], list[str], list[str]], np.ndarray]) -> Verdict:
    """Judge (patients, exams, splits), n texts each -> (n,): is the image's woman in several splits?

    Ids are compared without case and blanks around them; an image without one counts as a leak.
    """
    tables = (
        (
            "a woman with two exams",
            [
                ("W1", "A1", "train"),
                ("W1", "A2", "test"),
                ("W2", "A3", "train"),
                ("W2", "A4", "train"),
                ("W3", "A5", "val"),
            ],
        ),
        (
            "ids in capitals and not",
            [("w7", "A1", "train"), ("W7", "A2", "test"), ("W8", "A3", "val"), ("w8", "A4", "val")],
        ),
        (
            "blanks around ids",
            [("W5 ", "A1", "val"), (" W5", "A2", "test"), ("W6", "A3", "train"), ("W55", "A4", "train")],
        ),
        (
            "training and validation share her",
            [("W1", "A1", "train"), ("W1", "A2", "val"), ("W2", "A3", "test"), ("W1", "A1", "train")],
        ),
        (
            "images without an id on two sides",
            [("", "A1", "train"), (" ", "A2", "test"), ("W1", "A3", "test"), ("W1", "A4", "test")],
        ),
        (
            "images without an id on one side",
            [("", "A1", "train"), ("", "A2", "train"), ("W1", "A3", "test"), ("W2", "A4", "train")],
        ),
    )
    cases = []
    for note, rows in tables:
        patients, exams, splits = (list(column) for column in zip(*rows, strict=True))
        women = [patient.strip().upper() for patient in patients]
        want = _shared(women, splits) | _blank(women)
        held_out = [split.replace("val", "train") for split in splits]
        first = [women[:k].count(woman) == 0 for k, woman in enumerate(women)]
        mistakes = {
            "Capitals count for you: `w7` and `W7` are one woman.": _shared(
                [patient.strip() for patient in patients], splits
            )
            | _blank(women),
            "Blanks count for you: `W5` with a blank behind it is the same woman. Strip the ids.": _shared(
                [patient.upper() for patient in patients], splits
            )
            | _blank(women),
            "You look at the test alone. Training and validation must not share her either: the validation "
            "chooses what is kept.": _shared(women, held_out) | _blank(women),
            "Images without an id are taken for one woman. Nobody knows whose they are: each is a leak.": (
                _shared(women, splits)
            ),
            "Images without an id pass. Nobody knows whose they are, so they count as leaks.": (
                _shared(women, splits) & ~_blank(women)
            ),
            "The answers are the wrong way round: true is a leak.": ~want,
            "Only her later images are marked. All of them are part of the leak.": want & ~np.array(first),
            "Only her first image is marked. All of them are part of the leak.": want & np.array(first),
            "You compare exams. One woman may have several, and her breasts are the same in all of them: "
            "compare patients.": _shared(exams, splits),
        }
        cases.append(Case((patients, exams, splits), want, mistakes, note))
    return judge(answer, cases, "The unit of a split is the woman, however her number is written.")


def _shared(names: Sequence[str], splits: Sequence[str]) -> np.ndarray:
    """Say of each image whether its name is in several splits."""
    sides: dict[str, set[str]] = {}
    for name, split in zip(names, splits, strict=True):
        sides.setdefault(name, set()).add(split)
    return np.array([len(sides[name]) > 1 for name in names])


def _blank(names: Sequence[str]) -> np.ndarray:
    return np.array([not name.strip() for name in names])


_ROWS = (
    ("1", ""), ("2", ""), ("3", ""), ("4a", "benign"), ("5", "malignant"), ("0", ""), ("", ""), ("6", ""),
    ("4b", "pending"), ("5", ""), ("4c", "no malignancy seen"), ("4a", "benign_without_callback"),
    ("2", "malignant"), ("1", "benign"), (" 1 ", " "), ("5", " Malignant, ductal"), ("", "BENIGN"),
)  # fmt: skip


def labels(answer: Callable[[list[tuple[str, str]]], np.ndarray]) -> Verdict:
    """Judge [(birads, pathology)] -> (n, 2) of benign and malignant, NaN where unknown.

    Pathology goes first: malignant (NaN, 1), benign (1, 0), no malignancy (NaN, 0); else BI-RADS 1 (0, 0),
    2 (1, 0), 6 (NaN, 1), and all others are unknown.
    """
    groups = (
        ("the categories without pathology", [0, 1, 2, 5, 6, 7, 9, 8]),
        ("pathology", [3, 4, 10, 11, 8, 0]),
        ("pathology against BI-RADS", [12, 13, 1, 4]),
        ("capitals and blanks", [14, 15, 16, 1]),
    )
    cases = []
    for note, numbers in groups:
        rows = [_ROWS[number] for number in numbers]
        want = _labels(rows)
        mistakes = {
            "Unknown labels are 0. An empty cell is no answer: write NaN.": np.nan_to_num(want),
            "Where nothing is written at all you say no finding. That nobody wrote something down is no "
            "answer: NaN.": _labels(rows, empty=(0, 0)),
            "BI-RADS 0 is not negative: the examination is incomplete and she was called back. Unknown.": (
                _labels(rows, categories={"0": (0, 0)})
            ),
            "BI-RADS 3 is probably benign, which is watched, not known. Unknown.": _labels(
                rows, categories={"3": (1, 0)}
            ),
            "BI-RADS 3 is not negative: something was seen, and it is watched. Unknown.": _labels(
                rows, categories={"3": (0, 0)}
            ),
            "BI-RADS 4 and 5 are suspicions. Without a result they are unknown, not malignant.": _labels(
                rows, categories=dict.fromkeys(("4a", "4b", "4c", "5"), (math.nan, 1))
            ),
            "BI-RADS 6 is a cancer that a biopsy has proved: malignant is 1.": _labels(
                rows, categories={"6": (math.nan, math.nan)}
            ),
            "BI-RADS 2 is a benign finding: benign is 1.": _labels(rows, categories={"2": (0, 0)}),
            "A malignant biopsy says nothing of a benign finding beside it: benign is NaN, not 0.": _labels(
                rows, texts={"malignant": (0, 1)}, categories={"6": (0, 1)}
            ),
            "After a benign biopsy malignant is known: 0.": _labels(rows, texts={"benign": (1, math.nan)}),
            "`no malignancy` is found by a search for `malignan`. Ask what the text begins with.": _labels(
                [(b, "malignant" if "malignan" in p.lower() else p) for b, p in rows]
            ),
            "`no malignancy` answers one question alone: malignant 0, benign NaN.": _labels(
                rows, texts={"no malignancy": (0, 0)}
            ),
            "`no malignancy` is an answer about malignant: 0.": _labels(
                rows, texts={"no malignancy": (math.nan, math.nan)}
            ),
            "`benign_without_callback` begins with benign too. Do not compare whole texts.": _labels(
                [(b, "" if p == "benign_without_callback" else p) for b, p in rows]
            ),
            "BI-RADS goes before pathology in yours. The pathologist has seen the tissue: the text goes "
            "first.": _labels([(b, "" if b.strip() in ("1", "2") else p) for b, p in rows]),
            "Capitals in pathology count for you. `BENIGN` is benign.": _labels(
                [(b, p if p == p.lower() else "") for b, p in rows]
            ),
            "Blanks around texts count for you. Strip them.": _labels(
                [
                    (b if b == b.strip() else "", p if p == p.strip() else "" if p.strip() else "?")
                    for b, p in rows
                ]
            ),
            "The columns are exchanged: benign comes first.": want[:, ::-1],
        }
        cases.append(Case((rows,), want, mistakes, note))
    return judge(answer, cases, "A rule that is written down, and NaN wherever it gives no answer.")


def _labels(
    rows: Sequence[tuple[str, str]],
    texts: dict[str, Answer] | None = None,
    categories: dict[str, Answer] | None = None,
    empty: Answer = (math.nan, math.nan),
) -> np.ndarray:
    """Map a table by the rule, or by one with changes."""
    nan = math.nan
    by_text = {"malignant": (nan, 1), "benign": (1, 0), "no malignancy": (nan, 0)} | (texts or {})
    by_category = {"1": (0, 0), "2": (1, 0), "6": (nan, 1)} | (categories or {})
    found: list[Answer] = []
    for birads, pathology in rows:
        text, category = pathology.strip().lower(), birads.strip()
        known = [label for start, label in by_text.items() if text.startswith(start)]
        nothing = empty if not text and not category else (nan, nan)
        found.append(known[0] if known else by_category.get(category, nothing))
    return np.array(found, dtype=float)


def positives_needed(answer: Callable[[float, float, int], int]) -> Verdict:
    """Judge (auc, width, negatives per positive) -> smallest m >= 2 with a 95 % interval at most so wide.

    The interval is AUC +- 1.96 standard errors (Hanley and McNeil 1982), with ratio * m negative cases.
    """
    cases = []
    for auc, width, ratio in ((0.8, 0.2, 1), (0.8, 0.1, 1), (0.9, 0.1, 4), (0.7, 0.15, 199), (0.95, 0.6, 1)):
        want = _smallest(auc, width, ratio)
        mistakes = {
            "The width is from end to end: 2 times 1.96 standard errors. You let half the interval be so "
            "wide.": _smallest(auc, 2 * width, ratio),
            "One standard error to each side covers 68 %. Take 1.96.": _smallest(auc, 1.96 * width, ratio),
            "1.645 makes an interval of 90 %. Take 1.96.": _smallest(auc, width * 1.96 / 1.645, ratio),
            "The formula gives the variance. The interval needs its square root.": _smallest(
                auc, width, ratio, root=False
            ),
            "This counts all cases. Asked is the number of positive ones.": want * (1 + ratio),
            "This counts the negative cases. Asked is the number of positive ones.": want * ratio,
            "Q1 and Q2 have changed places: Q1 goes with m - 1, the positives.": _smallest(
                auc, width, ratio, swap=True
            ),
            "A(1 - A) / m is the variance of a share, as if every positive case were one throw of a coin. "
            "An AUC compares pairs: use the whole formula.": _smallest(auc, width, ratio, coin=True),
            "There are as many negative as positive cases in yours. Use `ratio`.": _smallest(auc, width, 1),
            "n is m / ratio in yours; there are `ratio` negatives for each positive.": _smallest(
                auc, width, 1 / ratio
            ),
            "One too few: with this number the interval is still too wide.": want - 1,
            "One too many: one case less is enough.": want + 1,
        }
        cases.append(Case((auc, width, ratio), want, mistakes, f"AUC {auc}, width {width}, ratio {ratio}"))
    return judge(
        answer, cases, "The rarer class sets the width, and half the width takes four times the women."
    )


def _smallest(
    auc: float, width: float, ratio: float | int, root: bool = True, swap: bool = False, coin: bool = False
) -> int:
    """Count up to the first number of positive cases that is enough, by the formula or with a flaw."""
    q = [auc / (2 - auc) - auc**2, 2 * auc**2 / (1 + auc) - auc**2]
    first, second = reversed(q) if swap else q
    for m in count(2):
        n = ratio * m
        variance = (auc * (1 - auc) + (m - 1) * first + (n - 1) * second) / (m * n)
        variance = auc * (1 - auc) / m if coin else variance
        if 2 * 1.96 * (math.sqrt(max(variance, 0.0)) if root else variance) <= width:
            return m
    raise AssertionError("counting does not end")
