"""For nbval: when a cell of a notebook fails, the cells below it are skipped, not failed in its wake."""

from collections.abc import Iterator

import pytest

FAILED = pytest.StashKey[str]()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    """Remember on the notebook which of its cells failed first."""
    result = yield
    report = result.get_result()
    if report.failed and FAILED not in item.parent.stash:
        item.parent.stash[FAILED] = item.name


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a cell below one that failed."""
    first = item.parent.stash.get(FAILED, None)
    if first is not None:
        pytest.skip(f"{first} of this notebook failed before")
