import os
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from threadpoolctl import threadpool_limits

# Before scikit-learn is imported: else it skips its check of array API input.
os.environ["SCIPY_ARRAY_API"] = "1"
os.environ["MPLBACKEND"] = "agg"


def make_picture(seed=0, height=48, width=64):
    """A smooth, asymmetric colour picture, (height, width, 3) uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, size=(4, 5, 3), dtype=np.uint8)
    return np.asarray(PIL.Image.fromarray(coarse).resize((width, height)))


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
