import numpy as np
import pytest

from sktransfer import EmbeddingCache, PretrainedFeatureExtractor, rank_backbones
from sktransfer.choosing._candidates import _same_values
from tests.small_network import greedy, small_backbone
from tests.small_tasks import make_task


@pytest.mark.filterwarnings("ignore:Batches of")
def test_what_halved_batches_gave_is_not_kept_for_whole_ones():
    X, y = make_task()
    settings = {"scoring": "logme", "cv": None, "device": "cpu"}
    cache = EmbeddingCache()
    for size, kept in [(4, 0), (2, len(X))]:
        candidate = PretrainedFeatureExtractor(greedy(2), batch_size=size, device="cpu")
        ranking = rank_backbones(X, y, [candidate], cache=cache, **settings)
        assert ranking[0]["error"] is None
        assert cache.info().rows == kept
        # What halved batches gave is what it is all the same.
        found = ranking[0]["logme"]
        assert (
            found
            == rank_backbones(X, y, [candidate], cache=None, **settings)[0]["logme"]
        )


def test_a_ranking_writes_one_file_for_each_width(tmp_path):
    X, y = make_task(n=80)

    def files():
        return sum(path.is_file() for path in tmp_path.rglob("*"))

    PretrainedFeatureExtractor(small_backbone(), cache=tmp_path).transform(X)
    assert files() == 1
    # Of 8, 12 and 16 features, in three batches each.
    backbones = [small_backbone(norm=False), small_backbone(norm=False).at_size(20)]
    settings = {"scoring": "logme", "cv": None, "stages": ["0", "1", "2"]}
    rank_backbones(X, y, backbones, cache=tmp_path, **settings)
    assert files() == 1 + 3


def test_an_unreadable_image_leaves_what_was_computed_before_it(tmp_path):
    X, y = make_task(n=80)
    cache = EmbeddingCache()
    bad = [*X[:-1], b"no image"]
    with pytest.raises(ValueError, match="row 79"):
        rank_backbones(bad, y, [small_backbone()], cache=cache, cv=None)
    assert cache.info().rows == 64


def test_embeddings_are_the_same_but_for_rounding():
    one = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    assert _same_values(one, one * np.float32(1 + 2e-7))
    assert not _same_values(one, one * np.float32(1.001))
    assert not _same_values(one, one[:, :4])
