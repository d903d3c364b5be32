import inspect
import re

import pytest

from sktransfer import FineTuneClassifier, FineTuneRegressor

BOTH = [FineTuneClassifier, FineTuneRegressor]


@pytest.mark.parametrize("kind", BOTH)
def test_the_signature_names_each_parameter_with_its_default(kind):
    backbone, *others = inspect.signature(kind).parameters.values()
    assert backbone.kind is backbone.POSITIONAL_OR_KEYWORD
    assert {p.kind for p in others} == {inspect.Parameter.KEYWORD_ONLY}
    defaults = {p.name: p.default for p in (backbone, *others)}
    assert vars(kind()) == kind().get_params() == defaults
    assert kind._parameter_constraints.keys() == defaults.keys()


@pytest.mark.parametrize("kind", BOTH)
def test_each_parameter_of_the_signature_is_set_and_no_other(kind):
    given = {name: object() for name in inspect.signature(kind).parameters}
    assert vars(kind(**given)) == given
    with pytest.raises(TypeError, match="unexpected keyword argument 'shared'"):
        kind(shared=1)
    with pytest.raises(TypeError, match="positional argument"):
        kind("tiny", "default")


def test_the_estimators_differ_in_what_is_their_own_alone():
    classifier, regressor = (inspect.signature(kind).parameters for kind in BOTH)
    own = {"class_weight", "teacher", "temperature", "distill_weight", "C"}
    assert classifier.keys() - regressor.keys() == own
    assert regressor.keys() - classifier.keys() == {"alpha"}


@pytest.mark.parametrize("kind", BOTH)
def test_the_docstring_has_the_parameters_in_the_order_of_the_signature(kind):
    section = inspect.getdoc(kind).split("\nParameters\n")[1].split("\nAttributes\n")[0]
    lines = [line for line in section.splitlines() if line[:1].isalpha()]
    documented = [line.split(" : ")[0] for line in lines if " : " in line]
    assert documented == [*inspect.signature(kind).parameters]


@pytest.mark.parametrize("kind", BOTH)
def test_the_docstring_names_groups_that_make_up_the_signature(kind):
    summary, _ = inspect.getdoc(kind).split("\nParameters\n")
    ends = re.findall(r"from `(\w+)` to\s+`(\w+)`[;.]", summary)
    names, first = [*inspect.signature(kind).parameters], 0
    for begin, end in ends:
        assert names[first] == begin
        first = names.index(end) + 1
    assert (len(ends), first) == (6, len(names))


@pytest.mark.parametrize("estimator", [FineTuneClassifier, FineTuneRegressor])
def test_an_unknown_parameter_is_an_error_of_the_estimator(estimator):
    message = rf"^{estimator.__name__}.__init__\(\) got an unexpected .*'epochs'$"
    with pytest.raises(TypeError, match=message):
        estimator(epochs=3)
