import numpy as np
import pytest
from sklearn import config_context
from sklearn.model_selection import GroupKFold, cross_validate
from skorch.callbacks import Callback

from sktransfer import FineTuneClassifier, FineTuneRegressor
from tests.small_network import small_backbone

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (60, 16, 16, 3), dtype=np.uint8)
LABELS = np.arange(60) % 3
X[:, :8] = X[:, :8] * 0.3 + 60 * LABELS[:, None, None, None]


def model(**parameters):
    defaults = {
        "early_stopping": True,
        "validation_fraction": 0.3,
        "random_state": 0,
        "lr": 0.01,
    }
    return FineTuneClassifier(small_backbone(), **{**defaults, **parameters})


def tuned(fitted):
    return [row for row in fitted.history_ if row["phase"] == "tune"]


def test_any_fall_of_the_loss_counts_and_others_hear_of_the_last_epoch():
    heard = []

    class Hear(Callback):
        def on_epoch_end(self, net, **kwargs):
            heard.append(net.history[-1, "epoch"])

    # So slow that each epoch is better by less than a ten-thousandth.
    fitted = model(
        lr=1e-7,
        lr_schedule="constant",
        n_iter_no_change=2,
        max_epochs=6,
        net_params={"callbacks": [Hear()]},
    ).fit(X, LABELS)
    losses = [row["valid_loss"] for row in tuned(fitted)]
    assert len(losses) == 6
    assert 0 < losses[0] - losses[-1] < 1e-4 * losses[0]
    fitted.set_params(lr=0.5, max_epochs=60)
    heard.clear()
    rows = tuned(fitted.fit(X, LABELS))
    assert len(rows) < 60
    # One for the epoch of the head, and one for each of tuning.
    assert heard == [1, *range(1, len(rows) + 1)]


def test_the_validation_score_is_weighted_as_its_loss():
    weights = np.where(LABELS == 0, 1e4, 1.0)
    settings = {"max_epochs": 1, "lr": 0.03, "freeze": 2}
    fitted = model(**settings).fit(X, LABELS, sample_weight=weights)
    # Of what is held out, all but the heavy class may be wrong.
    assert tuned(fitted)[-1]["valid_score"] > 0.99
    plain = model(**settings, class_weight={0: 1e4, 1: 1, 2: 1}).fit(X, LABELS)
    assert plain.score(X, LABELS) < 0.9


def test_targets_are_standardised_by_what_is_trained_on(monkeypatch):
    y, rows = RNG.normal(size=60), []
    split = FineTuneRegressor._split

    def recorded(self, examples, *args):
        chosen, held_out = split(self, examples, *args)
        rows.append(examples.targets[chosen])
        return chosen, held_out

    monkeypatch.setattr(FineTuneRegressor, "_split", recorded)
    fitted = FineTuneRegressor(
        small_backbone(), early_stopping=True, validation_fraction=0.5, max_epochs=1
    ).fit(X, y)
    assert len(rows[0]) == 30
    assert fitted.target_mean_ == pytest.approx(rows[0].mean(axis=0))
    assert fitted.target_scale_ == pytest.approx(rows[0].std(axis=0))


def test_groups_are_held_out_whole(monkeypatch):
    groups, found = np.repeat(np.arange(12), 5), []
    split = FineTuneClassifier._split

    def recorded(self, examples, *args):
        rows, held_out = split(self, examples, *args)
        found.append((examples.groups[rows], examples.groups[held_out]))
        return rows, held_out

    monkeypatch.setattr(FineTuneClassifier, "_split", recorded)
    fitted = model(max_epochs=1).fit(X, LABELS, groups=groups)
    assert len(tuned(fitted)) == 1
    with config_context(enable_metadata_routing=True):
        routed = model(max_epochs=1).set_fit_request(groups=True)
        params = {"groups": groups}
        cross_validate(routed, X, LABELS, cv=GroupKFold(2), params=params)
    assert len(found) == 3
    for train, test in found:
        assert len(train)
        assert not set(train) & set(test)


def test_what_cannot_be_set_aside_names_the_fraction():
    few = model(validation_fraction=0.1)
    with pytest.raises(ValueError, match="a larger validation_fraction, or early_stop"):
        few.fit(X[:9], LABELS[:9])


def test_a_solved_head_holds_nothing_back():
    fitted = model(freeze="all").fit(X, LABELS)
    plain = model(freeze="all", early_stopping=False).fit(X, LABELS)
    np.testing.assert_array_equal(fitted.predict_proba(X), plain.predict_proba(X))
