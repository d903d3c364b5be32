import os
import sys
from pathlib import Path

import pytest
import torch
from threadpoolctl import threadpool_limits

from tests.small_tasks import make_picture

# Before scikit-learn is imported: else it skips its check of array API input.
os.environ["SCIPY_ARRAY_API"] = "1"
os.environ["MPLBACKEND"] = "agg"


@pytest.fixture
def picture():
    return make_picture()


@pytest.fixture
def pictures():
    return [make_picture(seed) for seed in range(6)]


@pytest.fixture(scope="session")
def real_data():
    """Folder of real images and weights, for those who have it."""
    folder = os.environ.get("SKTRANSFER_TEST_DATA")
    if not folder:
        pytest.skip("SKTRANSFER_TEST_DATA does not name a folder of real images")
    return Path(folder)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """For problems so small that threads would spend their time on waiting."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
