"""Samples are read in this thread at first, then in others, with the same outcome."""

import math
import threading

import numpy as np
import pytest

from sktransfer.embedding import _reading
from sktransfer.embedding._reading import Refusals, UnreadableError, sample_digests
from sktransfer.inputs._images import ImageReader
from sktransfer.inputs._reader import Samples, content_digest

READER = ImageReader()
IMAGES = [np.full((4, 4, 3), value, np.uint8) for value in range(50)]


@pytest.mark.parametrize("moment", [0, 1e-4, math.inf])
def test_digests_do_not_depend_on_the_threads(moment, monkeypatch):
    monkeypatch.setattr(_reading, "_MOMENT", moment)
    threads = set()

    def content(image):
        threads.add(threading.current_thread())
        return READER.content(image)

    samples = Samples(IMAGES, READER, content)
    expected = [content_digest(READER.content(image)) for image in IMAGES]
    assert sample_digests(samples) == expected
    assert sample_digests(samples, rows=range(7, 40)) == expected[7:40]
    here = threading.current_thread()
    if moment == 0:
        assert here not in threads
    elif moment == math.inf:
        assert threads == {here}


@pytest.mark.parametrize("moment", [0, math.inf])
def test_refused_samples_have_no_digest(moment, monkeypatch):
    monkeypatch.setattr(_reading, "_MOMENT", moment)
    samples = Samples([*IMAGES[:20], "missing.png", *IMAGES[20:]], READER)
    refusals = Refusals(samples, strict=False)
    found = sample_digests(samples, refusals)
    assert found.count(b"") == 1
    assert found[20] == b""
    assert list(refusals.rows) == [20]
    with pytest.raises(UnreadableError, match=r"row 20 \('missing.png'\)"):
        sample_digests(samples)
