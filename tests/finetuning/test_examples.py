import pytest

from sktransfer import EmbeddingCache
from sktransfer.embedding._prefix import Prefix
from sktransfer.finetuning._examples import taps_of
from tests.small_network import small_backbone


def test_all_depths_before_are_kept_for_other_fits_if_they_fit():
    prefix = Prefix(small_backbone(), 3)
    shapes = prefix.backbone.shapes[:3]
    size = 4 * 10 * sum(a * b * c for a, b, c in shapes)
    kept = taps_of(prefix, 10, EmbeddingCache(max_bytes=2 * size))
    assert [tap.depth for tap in kept] == [1, 2]
    assert all(tap.pooling == "none" for tap in kept)
    assert taps_of(prefix, 10, EmbeddingCache(max_bytes=2 * size - 1)) == []


@pytest.mark.parametrize("depth", [0, 1, 4])
def test_without_a_cache_or_a_way_nothing_is_kept(depth):
    prefix = Prefix(small_backbone(), depth)
    assert taps_of(prefix, 10, None) == []
    assert len(taps_of(prefix, 10, EmbeddingCache())) == max(depth - 1, 0)
