"""How an answer is judged: run it, compare it, and if it is wrong name the common mistake behind it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Case:
    """One question put to an answer."""

    arguments: tuple[Any, ...]
    """What the answer is called with."""
    want: Any
    """What it should return: a number, an array, a tensor, a text or a truth value."""
    mistakes: dict[str, Any] = field(default_factory=dict)
    """Explanation of a common mistake -> what that mistake returns."""
    note: str = ""
    """What is special about this case, for the report of a failure: `a constant map`."""


@dataclass(frozen=True)
class Verdict:
    """What is said of an answer; a notebook shows the words."""

    right: bool
    words: str

    def __repr__(self) -> str:
        return ("Right. " if self.right else "Not yet. ") + self.words


def judge(answer: Callable[..., Any], cases: Sequence[Case], praise: str, tolerance: float = 1e-5) -> Verdict:
    """Judge a function a learner wrote.

    Every case is tried in order; the first that fails is reported: an exception, nothing returned, a known
    mistake by its explanation, a wrong shape, or else the first value that differs. An answer that changes
    its arguments is told so.

    Args:
        answer: the learner's function.
        cases: questions with their right answers.
        praise: what a right answer has understood; a full sentence.
        tolerance: values may differ by this much, absolute and relative.
    """
    for case in cases:
        where = f" ({case.note})" if case.note else ""
        given = tuple(_copy(argument) for argument in case.arguments)
        try:
            got = answer(*given)
        except NotImplementedError:
            return Verdict(False, f"{_name(answer)} is not written yet.")
        except Exception as error:  # whatever a learner's code raises belongs into the report
            return Verdict(False, f"{_name(answer)} raised {type(error).__name__}: {error}{where}")
        if got is None or got is ...:
            return Verdict(False, f"{_name(answer)} returns nothing yet. Does it end in `return`?")
        if any(not same(a, b, 0.0) for a, b in zip(given, case.arguments, strict=True)):
            return Verdict(False, f"{_name(answer)} changes its arguments. Work on a copy: `x.clone()`.")
        if same(got, case.want, tolerance):
            continue
        for explanation, value in case.mistakes.items():
            if same(got, value, tolerance):
                return Verdict(False, f"{explanation}{where}")
        return Verdict(False, difference(got, case.want) + where)
    return Verdict(True, praise)


def gradient_of(answer: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Return the gradient of a loss by its first argument, as a function; zeros where the loss has none.

    A loss can be right in value and teach something else.

    Args:
        answer: (tensor, label) to a scalar.
    """
    import torch

    @wraps(answer)
    def gradient(values: Any, label: Any) -> Any:
        leaf = values.clone().requires_grad_()
        loss = answer(leaf, label)
        if not (isinstance(loss, torch.Tensor) and loss.requires_grad):
            return torch.zeros_like(values)
        return torch.autograd.grad(loss, leaf)[0]

    return gradient


def same(got: Any, want: Any, tolerance: float) -> bool:
    """Say whether two results are equal in shape and, within `tolerance`, in value; NaN equals NaN."""
    try:
        a, b = _array(got), _array(want)
    except (TypeError, ValueError):  # texts, sets, rows of unequal length
        if isinstance(want, tuple | list) and isinstance(got, tuple | list) and len(got) == len(want):
            return all(same(g, w, tolerance) for g, w in zip(got, want, strict=True))
        return type(got) is type(want) and bool(got == want)
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True))


def difference(got: Any, want: Any) -> str:
    """Say in one sentence how a result differs from the right one."""
    try:
        a, b = _array(got), _array(want)
    except (TypeError, ValueError):
        return f"It returns {got!r}, expected was {want!r}."
    if a.shape != b.shape:
        return f"The result has shape {a.shape}, expected was {b.shape}."
    if a.ndim == 0:
        return f"It returns {a.item():.6g}, expected was {b.item():.6g}."
    at = np.unravel_index(int(np.argmax(~np.isclose(a, b, equal_nan=True))), a.shape)
    place = ", ".join(map(str, at))
    return f"At [{place}] it returns {a[at].item():.6g}, expected was {b[at].item():.6g}."


def _array(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if isinstance(value, str):
        raise TypeError("a text is not a number")  # numpy would read "1" as 1
    return np.asarray(value, dtype=np.float64)


def _copy(value: Any) -> Any:
    if hasattr(value, "clone"):
        return value.clone()
    return value.copy() if isinstance(value, np.ndarray | list | dict) else value


def _name(answer: Callable[..., Any]) -> str:
    return getattr(answer, "__name__", "The answer")
