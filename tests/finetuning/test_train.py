import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator
from skorch.callbacks import Callback
from torch import nn

from sktransfer import FineTuneClassifier, FineTuneRegressor
from sktransfer.finetuning._network import Network
from sktransfer.finetuning._train import (
    Plan,
    PullToSource,
    Rows,
    WeightedLoss,
    _optimizer_settings,
)
from sktransfer.inputs._augment import resolve_augment
from tests.small_network import small_backbone

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
LABELS = np.arange(12) % 3


def model(**parameters):
    defaults = {"max_epochs": 1, "batch_size": 4, "lr": 0.01, "random_state": 0}
    return FineTuneClassifier(small_backbone(), **{**defaults, **parameters})


def mean_loss(weights, batch_size, training=False):
    """Mean over all rows, as an epoch sees it."""
    outputs = torch.randn(len(weights), 3, generator=torch.manual_seed(0))
    targets = np.arange(len(weights))[:, None] % 3
    rows = Rows(outputs.__getitem__, targets, np.array(weights), training)
    total = 0.0
    for first in range(0, len(rows), batch_size):
        batch = range(first, min(first + batch_size, len(rows)))
        output, target = rows.__getitems__(batch)
        total += len(batch) * float(WeightedLoss("classes")(output, target))
    losses = nn.functional.cross_entropy(
        outputs.double(), torch.from_numpy(targets[:, 0]), reduction="none"
    )
    return total / len(rows), float(np.average(losses, weights=weights))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
@pytest.mark.parametrize(
    "weights",
    [[1] * 7, [1, 2, 3, 4, 5, 6, 7], [1e-50] * 7, [1e39] * 7, [1e-60, *[1] * 6]],
)
def test_a_row_weighs_the_same_in_any_batch(weights, batch_size, training):
    found, expected = mean_loss(weights, batch_size, training)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["values", "labels"])
def test_a_criterion_is_weighed_by_row(kind):
    output, target = torch.randn(5, 2), torch.rand(5, 2)
    weight = torch.arange(5.0)
    loss = WeightedLoss(kind, criterion=nn.L1Loss)
    found = loss(output, torch.cat([target, weight[:, None]], dim=1))
    rows = (output - target).abs().mean(dim=1)
    torch.testing.assert_close(found, (rows * weight).sum() / 4)


def test_a_criterion_of_the_user_trains():
    y = np.random.default_rng(0).normal(size=12)
    options = {"max_epochs": 1, "random_state": 0}
    fitted = FineTuneRegressor(
        small_backbone(), net_params={"criterion": nn.HuberLoss}, **options
    ).fit(IMAGES, y)
    assert isinstance(fitted.net_.criterion_.loss, nn.HuberLoss)
    given = {"criterion": nn.L1Loss()}
    with pytest.raises(ValueError, match="Pass its class, L1Loss"):
        FineTuneRegressor(small_backbone(), net_params=given).fit(IMAGES, y)


def test_a_fit_that_diverges_is_an_error():
    diverging = model(optimizer="sgd", lr=1e12, max_epochs=20, weight_decay=0)
    with pytest.raises(ValueError, match="Training diverged.*Use a lower lr"):
        diverging.fit(IMAGES, LABELS)
    assert not hasattr(diverging, "backbone_")


# Of torch's compiler itself.
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_a_compiled_network_has_the_same_rates():
    compiled = {"compile": True, "compile__backend": "eager"}
    for net_params in [{}, compiled]:
        fitted = model(
            backbone_lr_mult=0, weight_decay=0, freeze=0, net_params=net_params
        ).fit(IMAGES, LABELS)
        source = small_backbone().stages.parameters()
        for one, other in zip(
            fitted.backbone_.stages.parameters(), source, strict=True
        ):
            assert torch.equal(one, other)


@pytest.mark.parametrize("optimizer", [torch.optim.Rprop, torch.optim.Adagrad])
@pytest.mark.parametrize("schedule", ["cosine", "one-cycle", "constant"])
def test_any_optimizer_of_torch_trains(optimizer, schedule):
    parameters = {"optimizer": optimizer, "lr_schedule": schedule}
    model(**parameters, weight_decay=0).fit(IMAGES, LABELS)
    if optimizer is torch.optim.Rprop:
        with pytest.raises(ValueError, match="Rprop has no weight decay"):
            model(**parameters, weight_decay=0.1).fit(IMAGES, LABELS)


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


@pytest.mark.parametrize("parameters", [{"freeze": "1"}, {"freeze": 0}])
def test_rows_can_be_sent_to_workers(parameters, monkeypatch):
    sent = []
    monkeypatch.setattr(
        "sktransfer.finetuning._base.train",
        lambda network, rows, *rest: sent.append(rows) or 1 / 0,
    )
    with pytest.raises(ZeroDivisionError):
        model(head_epochs=0, **parameters).fit(IMAGES, LABELS)
    copies = pickle.loads(pickle.dumps(sent[0]))
    for one, other in zip(copies[0], sent[0][0], strict=True):
        assert torch.equal(one, other)


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


def test_distillation_has_the_scale_of_its_temperature():
    output, teacher = torch.randn(2, 4, 3, generator=torch.manual_seed(0))
    target = torch.column_stack([torch.tensor([0, 1, 2, 0]), teacher, torch.ones(4)])
    heat, share = 3.0, 0.25
    soft, softer = (x / heat for x in (teacher, output))
    gap = nn.functional.kl_div(
        softer.log_softmax(1), soft.softmax(1), reduction="batchmean"
    )
    hard = nn.functional.cross_entropy(output, target[:, 0].long())
    expected = share * heat**2 * gap + (1 - share) * hard
    loss = WeightedLoss("classes", temperature=heat, distill_weight=share)
    torch.testing.assert_close(loss(output, target), expected)


@pytest.mark.parametrize(
    "name", ["lr", "max_epochs", "optimizer", "device", "module", "train_split"]
)
def test_what_the_estimator_sets_is_no_part_of_net_params(name):
    with pytest.raises(ValueError, match=f"net_params has '{name}', .* own parameter"):
        model(net_params={name: 1}).fit(IMAGES, LABELS)


@pytest.mark.parametrize(
    ("name", "taker", "accepted"),
    [
        ("foo", r"skorch\.NeuralNet takes no 'foo'", "'compile', 'criterion'"),
        ("optimizer__nope", "AdamW takes no 'nope'", "'betas', 'capturable'"),
        ("optimizer__params", "AdamW takes no 'params'", "'betas', 'capturable'"),
        ("iterator_train__nope", "DataLoader takes no 'nope'", "'batch_size', "),
        ("criterion__nope", "CrossEntropyLoss takes no 'nope'", "'ignore_index', 'lab"),
    ],
)
def test_what_no_part_of_a_net_takes_is_refused(name, taker, accepted):
    message = f"net_params has '{name}', and {taker} here. Accepted are .*{accepted}"
    with pytest.raises(ValueError, match=message):
        model(net_params={name: 1}).fit(IMAGES, LABELS)


@pytest.mark.parametrize(
    ("device", "fused"), [("cpu", True), ("cuda", True), ("mps", False), ("xla", False)]
)
def test_optimizers_are_fused_where_torch_has_them_so(device, fused):
    network = Network(nn.Sequential(), nn.Linear(2, 2))
    settings = _optimizer_settings(
        network, Plan("classes", "adamw", 0.1, device=device)
    )
    assert settings.get("optimizer__fused", False) == fused


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


def test_copies_are_taught_the_same_by_a_teacher_that_depends_on_the_batch():
    class Teacher(BaseEstimator):
        classes_ = np.arange(3)

        def fit(self, X, y):
            return self

        def __sklearn_is_fitted__(self):
            return True

        def predict_proba(self, X):
            noise = 1e-15 * np.arange(3 * len(X)).reshape(-1, 3)
            return np.full((len(X), 3), 1 / 3) + noise

    weights = np.array([2, *[1] * 10, 2])
    rows = np.array([11, *range(12), 0])
    X, y = list(IMAGES), LABELS
    one = model(teacher=Teacher()).fit(X, y, sample_weight=weights)
    other = model(teacher=Teacher()).fit([X[row] for row in rows], y[rows])
    np.testing.assert_array_equal(one.predict_proba(X), other.predict_proba(X))


@pytest.mark.parametrize(
    ("returned", "what"),
    [
        (None, "NoneType"),
        (np.ones((3, 8, 8)), "ndarray and shape"),
        (torch.ones(1, 8, 8), "Tensor and shape"),
    ],
)
def test_an_augment_has_to_return_a_picture(returned, what):
    with pytest.raises(
        ValueError, match=f"=<lambda> returned .* {what}.* has to return it, too"
    ):
        model(augment=lambda x: returned).fit(IMAGES, LABELS)


@pytest.mark.parametrize("augment", [lambda: 1, lambda x, y: x])
def test_an_augment_has_to_take_a_picture(augment):
    with pytest.raises(ValueError, match=r"augment=<lambda> takes the arguments \("):
        model(augment=augment).fit(IMAGES, LABELS)


@pytest.mark.parametrize("augment", ["mild", "light"])
def test_augments_crop_and_only_light_flips(augment):
    ramp = torch.linspace(0, 1, 40).expand(3, 40, 40)
    change = resolve_augment(augment, 32)
    torch.manual_seed(0)
    changed = [change(ramp) for _ in range(30)]
    assert {x.shape for x in changed} == {(3, 32, 32)}
    rising = [bool(x[0, 0, -1] > x[0, 0, 0]) for x in changed]
    assert all(rising) == (augment == "mild")
    spans = [float((x[0, 0, -1] - x[0, 0, 0]).abs()) for x in changed]
    assert min(spans) < 0.95
    # Of the area, at least 0.7 stays, and at least 0.5.
    assert min(spans) > (0.7 if augment == "mild" else 0.5)
