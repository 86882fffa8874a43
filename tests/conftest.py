"""Fixtures every test may use: one thread, a fixed seed, and the folder of real mammograms if it is there."""

import os
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile(
    "mammomil", deadline=None, max_examples=50, derandomize=bool(os.environ.get("CI")), database=None
)
hypothesis.settings.load_profile("mammomil")

REAL_DATA = Path(os.environ.get("MAMMOMIL_REAL_DATA", Path(__file__).parents[2] / "shared" / "data" / "real"))


@pytest.fixture(autouse=True)
def reproducible():
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The private folder of real mammograms; tests that need it skip where it is not."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"no real mammograms at {REAL_DATA}; set MAMMOMIL_REAL_DATA to their folder")
    return REAL_DATA


@pytest.fixture(scope="session")
def twelve_phantoms():
    """Twelve shipped phantom images, half of them with malignant lesions."""
    from mammomil.index import read_index, select
    from mammomil.weights import SHIPPED

    index = read_index(SHIPPED)
    sick = index.images["malignant"] == 1
    return select(index, (sick & (sick.cumsum() <= 6)) | (~sick & ((~sick).cumsum() <= 6)))
