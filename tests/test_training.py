import pickle

import numpy as np
import pytest
import torch
from small_network import small_backbone
from torch import nn

from sktransfer import FineTuneClassifier, FineTuneRegressor
from sktransfer._training import Rows, WeightedLoss

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


@pytest.mark.parametrize("parameters", [{"freeze": "1"}, {"freeze": 0}])
def test_rows_can_be_sent_to_workers(parameters, monkeypatch):
    sent = []
    monkeypatch.setattr(
        "sktransfer._finetune.train",
        lambda network, rows, *rest: sent.append(rows) or 1 / 0,
    )
    with pytest.raises(ZeroDivisionError):
        model(head_epochs=0, **parameters).fit(IMAGES, LABELS)
    copies = pickle.loads(pickle.dumps(sent[0]))
    for one, other in zip(copies[0], sent[0][0], strict=True):
        assert torch.equal(one, other)
