import os
from pathlib import Path

import pytest

from tests.small_tasks import make_picture


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
