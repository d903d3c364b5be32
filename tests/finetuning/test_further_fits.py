import copy
import pickle

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback

from sktransfer import FineTuneClassifier, FineTuneRegressor
from sktransfer.finetuning import _train
from tests.small_network import small_backbone

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (48, 16, 16, 3), dtype=np.uint8)
LABELS = np.arange(48) % 3
LEVELS = X.reshape(48, -1).mean(axis=1) + 30 * LABELS
X[:, :8] = X[:, :8] * 0.3 + 60 * LABELS[:, None, None, None]


def classifier(**parameters):
    defaults = {"lr": 0.01, "batch_size": 8, "random_state": 0, "max_epochs": 2}
    return FineTuneClassifier(small_backbone(), **{**defaults, **parameters})


def regressor(**parameters):
    defaults = {"lr": 0.01, "random_state": 0}
    return FineTuneRegressor(small_backbone(), **{**defaults, **parameters})


class Watch(Callback):
    """Remembers the batches, learning rates and steps of the optimizer."""

    def __init__(self):
        self.seen, self.rates, self.steps = [], [], []

    def on_batch_end(self, net, batch, training=False, **kwargs):
        if training:
            self.seen.append(batch[0].double().sum().item())
            self.rates.append(net.optimizer_.param_groups[0]["lr"])

    def on_epoch_end(self, net, **kwargs):
        states = net.optimizer_.state.values()
        self.steps.append(max(float(state["step"]) for state in states))


def test_each_call_has_an_order_of_its_own_and_the_same_seed_the_same_orders():
    def orders(further):
        watch = Watch()
        model = classifier(net_params={"callbacks": [watch]}, head_epochs=0)
        further(model)
        return np.reshape(watch.seen, (-1, 6)).tolist()

    def calls(model):
        for _ in range(3):
            model.partial_fit(X, LABELS, classes=[0, 1, 2])

    def warm(model):
        model.set_params(warm_start=True, max_epochs=1)
        for _ in range(3):
            model.fit(X, LABELS)

    for further in (calls, warm):
        found = orders(further)
        assert len({tuple(order) for order in found}) == 3
        assert orders(further) == found


def test_calls_go_on_at_a_constant_rate_with_the_optimizer_of_the_last():
    watch = Watch()
    model = classifier(net_params={"callbacks": [watch]}, head_epochs=0)
    model.partial_fit(X, LABELS, classes=[0, 1, 2])
    model = pickle.loads(pickle.dumps(model)).set_params(
        net_params={"callbacks": [watch]}
    )
    model.partial_fit(X, LABELS)
    assert watch.steps == [6, 12]
    assert len(set(watch.rates)) == 1
    # Of other tensors there is nothing to go on with; a fit begins anew.
    model.set_params(freeze=1).partial_fit(X, LABELS)
    model.set_params(max_epochs=1).fit(X, LABELS)
    assert watch.steps == [6, 12, 6, 6]


class Interrupt(Callback):
    def on_epoch_end(self, net, **kwargs):
        raise KeyboardInterrupt


def test_a_call_that_is_interrupted_leaves_the_optimizer_as_it_was():
    one, other = classifier(), classifier()
    for model in (one, other):
        model.partial_fit(X, LABELS, classes=[0, 1, 2])
    one.set_params(net_params={"callbacks": [Interrupt()]})
    with pytest.raises(KeyboardInterrupt):
        one.partial_fit(X, LABELS)
    one.set_params(net_params=None)
    for model in (one, other):
        model.partial_fit(X, LABELS)
    np.testing.assert_array_equal(one.predict_proba(X), other.predict_proba(X))


def test_calls_go_on_if_the_net_was_moved_to_the_host_in_between(monkeypatch):
    expected = classifier().partial_fit(X, LABELS, classes=[0, 1, 2])
    expected.partial_fit(X, LABELS)
    # As for devices whose pickles skorch cannot open, where a move makes other
    # parameters.
    monkeypatch.setattr(_train, "_OPENED", ())
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        model = classifier().partial_fit(X, LABELS, classes=[0, 1, 2])
        net = model.net_
        ours = {id(parameter) for parameter in net.module_.parameters()}
        held = sum((group["params"] for group in net.optimizer_.param_groups), [])
        assert {id(parameter) for parameter in held} <= ours
        assert net.device == "cpu"
        assert net.optimizer_.state
        model = pickle.loads(pickle.dumps(model)).partial_fit(X, LABELS)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
    np.testing.assert_array_equal(model.predict_proba(X), expected.predict_proba(X))


def test_classes_of_further_calls_are_those_of_the_first():
    model = classifier().partial_fit(X, LABELS, classes=[2, 1, 0])
    model.partial_fit(X, LABELS, classes=[0, 1, 2])
    with pytest.raises(ValueError, match=r"classes=\[0, 1\]: expected the classes"):
        model.partial_fit(X[LABELS < 2], LABELS[LABELS < 2], classes=[0, 1])


def test_a_call_of_one_class_has_the_weight_of_the_class():
    def moved(weight):
        model = classifier(
            optimizer="sgd",
            weight_decay=0,
            freeze=2,
            class_weight={0: 1, 1: 1, 2: weight},
        )
        model.partial_fit(X[LABELS < 2], LABELS[LABELS < 2], classes=[0, 1, 2])
        before = model.head_[-1].weight.detach().clone()
        model.partial_fit(X[LABELS == 2], LABELS[LABELS == 2])
        return float((model.head_[-1].weight.detach() - before).abs().sum())

    assert moved(10) > 1.5 * moved(1)


@pytest.mark.parametrize("freeze", [0, 2, "all"])
def test_a_first_call_with_one_row_does_not_set_the_scale(freeze):
    one, all_along = regressor(freeze=freeze), regressor(freeze=freeze)
    one.partial_fit(X[:1], LEVELS[:1])
    for _ in range(30):
        one.partial_fit(X, LEVELS)
        all_along.partial_fit(X, LEVELS)
    assert one.score(X, LEVELS) > 0.85 * all_along.score(X, LEVELS) > 0.6
    mean = (LEVELS[0] + 30 * LEVELS.sum()) / (30 * 48 + 1)
    assert one.target_mean_ == pytest.approx([mean])
    everything = np.concatenate([LEVELS[:1], np.tile(LEVELS, 30)])
    assert one.target_scale_ == pytest.approx([everything.std()])


@pytest.mark.parametrize("freeze", [0, "all"])
def test_targets_may_come_in_another_unit(freeze):
    warm = regressor(freeze=freeze, warm_start=True, max_epochs=15)
    first = warm.fit(X, LEVELS).score(X, LEVELS)
    second = warm.fit(X, 1e4 * LEVELS).score(X, 1e4 * LEVELS)
    assert second > 0.9 * first > 0.4


@pytest.mark.parametrize("value", [0.1, 1e8 / 3, 1e15 / 3])
def test_equal_targets_are_predicted(value):
    rounded = 0.0
    for freeze in (2, "all"):
        for _ in range(4):
            weights = RNG.random(48)
            fitted = regressor(freeze=freeze)
            fitted.fit(X, np.full(48, value), weights)
            assert fitted.target_scale_.tolist() == [1.0]
            np.testing.assert_allclose(fitted.predict(X), value, rtol=1e-5)
            rounded = max(rounded, float(fitted.target_variance_[0]))
    # Else there is nothing that the scale could be mistaken for.
    assert rounded > 0 or value == 0.1


def test_embeddings_are_standardised_by_all_calls():
    one = regressor(freeze="all").partial_fit(X[:1], LEVELS[:1])
    before = copy.deepcopy(one.head_)
    one.partial_fit(X[1:], LEVELS[1:])
    whole = regressor(freeze="all", solve_head=False, max_epochs=1).fit(X, LEVELS)
    torch.testing.assert_close(one.head_[0].mean, whole.head_[0].mean)
    assert not torch.allclose(before[0].mean, one.head_[0].mean)


def test_a_new_standardisation_changes_nothing_by_itself():
    model = classifier(freeze="all", hidden_layer_sizes=(4,), lr=0.1)
    for _ in range(5):
        model.partial_fit(X[:5], LABELS[:5], classes=[0, 1, 2])
    before, mean = model.decision_function(X), model.head_[0].mean.clone()
    assert before.std(axis=0).min() > 0.1
    model.set_params(lr=1e-12).partial_fit(X, LABELS)
    assert not torch.allclose(model.head_[0].mean, mean, rtol=0.01)
    np.testing.assert_allclose(model.decision_function(X), before, atol=1e-3)


def test_nothing_to_train_is_refused():
    message = "max_epochs=0: expected at least 1, .* pass freeze='all'"
    for parameters in ({"head_epochs": 0}, {"weights": None}):
        with pytest.raises(ValueError, match=message):
            classifier(max_epochs=0, **parameters).fit(X, LABELS)
    assert classifier(max_epochs=0).fit(X, LABELS).n_iter_ == 0
