import os

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from sktransfer import FineTuneClassifier
from tests.small_network import small_backbone

# The rows of most tables in the checks hardly look like images.
ONE_ROW = "ignore:Rows of .* values? are:UserWarning"
ESTIMATORS = [FineTuneClassifier(small_backbone(), lr=0.01)]
if os.environ.get("SKTRANSFER_TEST_GIANTS"):
    ESTIMATORS.append(FineTuneClassifier())


@pytest.mark.slow
@pytest.mark.filterwarnings(ONE_ROW)
@parametrize_with_checks(ESTIMATORS)
def test_scikit_learns_estimator_checks(estimator, check):
    check(estimator)
