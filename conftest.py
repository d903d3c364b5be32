"""What holds for all tests: those in tests/, the docstrings, and the pages."""

import os
import sys

import pytest

from tests.pages import leave_out

# Before scikit-learn is imported: else it skips its check of array API input.
os.environ["SCIPY_ARRAY_API"] = "1"
os.environ["MPLBACKEND"] = "agg"


def pytest_itemcollected(item):
    """Leave out the blocks of a page whose optional libraries are not installed."""
    if item.path.suffix in {".md", ".rst"}:
        leave_out(item.path, item.dtest.examples)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """For problems so small that threads would spend their time on waiting."""
    import torch
    from threadpoolctl import threadpool_limits

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


@pytest.fixture(autouse=True)
def folder_of_its_own(request):
    """Run the code of a page or docstring in an empty folder, where it may write."""
    if hasattr(request.node, "dtest"):
        folder = request.getfixturevalue("tmp_path")
        request.getfixturevalue("monkeypatch").chdir(folder)
