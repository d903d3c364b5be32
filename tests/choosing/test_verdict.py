import pytest

from sktransfer.choosing._verdict import folds_told


@pytest.mark.parametrize(
    ("sizes", "kind", "told"),
    [([4, 4], "text", "4 texts"), ([3, 2], "sound", "2 to 3 sounds")],
)
def test_folds_are_of_samples_of_the_kind_of_the_backbone(sizes, kind, told):
    assert folds_told([(None, range(n)) for n in sizes], kind) == told
