import pickle

import numpy as np
import pytest
import torch
from torch import nn

from sktransfer import FineTuneClassifier
from sktransfer.finetuning._network import Network
from sktransfer.finetuning._train import _optimizer_arguments
from sktransfer.inputs._augment import resolve_augment
from tests.small_network import small_backbone

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
LABELS = np.arange(12) % 3


def model(**parameters):
    defaults = {"max_epochs": 1, "batch_size": 4, "lr": 0.01, "random_state": 0}
    return FineTuneClassifier(small_backbone(), **{**defaults, **parameters})


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


@pytest.mark.parametrize(
    "name", ["lr", "max_epochs", "optimizer", "device", "module", "train_split"]
)
def test_what_the_estimator_sets_is_no_part_of_net_params(name):
    with pytest.raises(ValueError, match=f"net_params: '{name}' is set by .* and use "):
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
    message = f"'{name}' was passed, but {taker} here. Accepted are .*{accepted}"
    with pytest.raises(ValueError, match=message):
        model(net_params={name: 1}).fit(IMAGES, LABELS)


@pytest.mark.parametrize(
    ("device", "fused"), [("cpu", True), ("cuda", True), ("mps", False), ("xla", False)]
)
def test_optimizers_are_fused_where_torch_has_them_so(device, fused):
    network = Network(nn.Sequential(), nn.Linear(2, 2))
    arguments = _optimizer_arguments(network, model(), device)
    assert arguments.get("optimizer__fused", False) == fused


@pytest.mark.parametrize(
    ("returned", "what"),
    [
        (None, "NoneType"),
        (np.ones((3, 8, 8)), "ndarray and shape"),
        (torch.ones(1, 8, 8), "Tensor and shape"),
    ],
)
def test_an_augment_has_to_return_an_image(returned, what):
    with pytest.raises(
        ValueError, match=f"=<lambda>.* it returned .* {what}.* must return it, too"
    ):
        model(augment=lambda x: returned).fit(IMAGES, LABELS)


@pytest.mark.parametrize("augment", [lambda: 1, lambda x, y: x])
def test_an_augment_has_to_take_an_image(augment):
    with pytest.raises(ValueError, match=r"augment=<lambda>.*its arguments are \("):
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
