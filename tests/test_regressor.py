import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from sktransfer import FineTuneRegressor

# Of tables whose rows are no squares, as those of most checks are.
ONE_ROW = "ignore:Rows of .* values are no square:UserWarning"


@pytest.mark.slow
@pytest.mark.filterwarnings(ONE_ROW)
@parametrize_with_checks([FineTuneRegressor()])
def test_scikit_learns_estimator_checks(estimator, check):
    check(estimator)
