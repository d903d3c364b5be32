from types import SimpleNamespace

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback
from torch import nn

from sktransfer import FineTuneClassifier
from sktransfer.finetuning._callbacks import PullToSource
from sktransfer.finetuning._network import Network
from tests.small_network import small_backbone

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
LABELS = np.arange(12) % 3


def model(**parameters):
    defaults = {"max_epochs": 1, "batch_size": 4, "lr": 0.01, "random_state": 0}
    return FineTuneClassifier(small_backbone(), **{**defaults, **parameters})


def test_a_fit_that_diverges_is_an_error():
    diverging = model(optimizer="sgd", lr=1e12, max_epochs=20, weight_decay=0)
    with pytest.raises(ValueError, match="Training diverged.*Use a lower lr"):
        diverging.fit(IMAGES, LABELS)
    assert not hasattr(diverging, "backbone_")


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle"])
def test_a_schedule_counts_the_batches_that_there_are(schedule):
    options = {"iterator_train__batch_size": 2}
    model(lr_schedule=schedule, net_params=options).fit(IMAGES, LABELS)


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle", "constant"])
def test_the_rate_follows_its_schedule_step_by_step_after_the_first_head(schedule):
    rates = []

    class Rates(Callback):
        def on_batch_begin(self, net, training=False, **kwargs):
            rates.append(max(group["lr"] for group in net.optimizer_.param_groups))

    watched = {"net_params": {"callbacks": [Rates()]}}
    model(lr_schedule=schedule, max_epochs=2, **watched).fit(IMAGES, LABELS)
    head, tuned = rates[:3], np.divide(rates[3:], 0.01)
    assert head == [0.01] * 3
    steps = np.arange(6)
    if schedule == "cosine":
        np.testing.assert_allclose(tuned, 0.5 + 0.5 * np.cos(np.pi * steps / 6))
    elif schedule == "one-cycle":
        # Of torch: from a twenty-fifth up to all of it and down again.
        assert tuned[0] == pytest.approx(1 / 25)
        assert tuned.max() > 0.9
        assert 0 < tuned[-1] < 0.2
        assert len(set(tuned)) == 6
    else:
        assert set(tuned) == {1.0}


class Momenta(Callback):
    """Remembers what the optimizer's first group was set to in each step."""

    def __init__(self):
        self.found, self.decays = [], []

    def on_batch_end(self, net, training=False, **kwargs):
        group = net.optimizer_.param_groups[0]
        self.found.append(group.get("momentum", group.get("betas")))
        self.decays.append(max(g["weight_decay"] for g in net.optimizer_.param_groups))


@pytest.mark.parametrize(
    ("optimizer", "own"),
    [
        ("sgd", {"optimizer__momentum": 0.5}),
        ("adamw", {"optimizer__betas": (0.5, 0.9)}),
    ],
)
def test_one_cycle_leaves_a_momentum_of_the_user_alone(optimizer, own):
    for given in (own, {}):
        momenta = Momenta()
        model(
            optimizer=optimizer,
            lr_schedule="one-cycle",
            max_epochs=3,
            head_epochs=0,
            net_params={"callbacks": [momenta], **given},
        ).fit(IMAGES, LABELS)
        assert (len(set(momenta.found)) == 1) == bool(given)
        if given:
            assert momenta.found[0] == next(iter(given.values()))


def test_l2_sp_stands_in_place_of_weight_decay_from_the_head_on():
    for l2_sp, decay in ((0.0, 0.3), (0.1, 0.0)):
        momenta = Momenta()
        model(l2_sp=l2_sp, weight_decay=0.3, net_params={"callbacks": [momenta]}).fit(
            IMAGES, LABELS
        )
        assert set(momenta.decays) == {decay}


def test_the_head_is_pulled_to_zero_at_a_tenth_of_the_strength():
    suffix, head = nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2)
    source = nn.Sequential(nn.Linear(2, 2))
    net = SimpleNamespace(module_=Network(suffix, head))
    for parameter in net.module_.parameters():
        parameter.grad = torch.zeros_like(parameter)
    pull = PullToSource(3.0, source)
    pull.on_train_begin(net)
    pull.on_grad_computed(net, None)
    torch.testing.assert_close(head.weight.grad, 0.3 * head.weight.detach())
    away = suffix[0].weight.detach() - source[0].weight.detach()
    torch.testing.assert_close(suffix[0].weight.grad, 3.0 * away)


def test_rows_that_fill_up_a_batch_do_not_count_in_the_history():
    losses = []

    class Losses(Callback):
        def on_batch_end(self, net, batch, training=False, loss=None, **kwargs):
            if training:
                losses.append((loss.item(), int((batch[1][:, -1] > 0).sum())))

    fitted = model(head_epochs=0, net_params={"callbacks": [Losses()]})
    fitted.fit(IMAGES[:9], LABELS[:9])
    assert [count for _, count in losses] == [4, 4, 1]
    mean = sum(loss * count for loss, count in losses) / 9
    assert fitted.history_[-1]["train_loss"] == pytest.approx(mean)
