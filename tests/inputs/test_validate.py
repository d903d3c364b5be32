import numpy as np
import pytest
from sklearn.base import clone

from sktransfer import BackboneSelector, FineTuneClassifier, PretrainedFeatureExtractor
from tests.small_network import small_backbone, text_backbone
from tests.small_tasks import make_texts

SOUND = (8000, np.zeros(16))


@pytest.mark.parametrize("backbone", [small_backbone(), text_backbone()], ids=str)
@pytest.mark.parametrize("X", [[SOUND] * 2, [None, list(SOUND)]], ids=["pairs", "list"])
def test_pairs_of_a_rate_and_an_array_are_sounds(backbone, X):
    kind = backbone.reader.kind
    message = f"pair .rate, array., which is a sound, and the backbone reads {kind}s"
    with pytest.raises(ValueError, match=message):
        PretrainedFeatureExtractor(backbone).transform(X)


def test_only_images_have_a_shape():
    X, y = make_texts()
    backbone, shape = text_backbone(), {"image_shape": (8, 8)}
    for estimator in [
        PretrainedFeatureExtractor(backbone, **shape),
        FineTuneClassifier(backbone, **shape),
        BackboneSelector([backbone], **shape),
    ]:
        with pytest.raises(ValueError, match="image_shape=.8, 8.: .* are texts. Only"):
            clone(estimator).fit(X, y)
