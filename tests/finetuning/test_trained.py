import copy
from collections import OrderedDict

import numpy as np
import pytest
import torch
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback
from torch import nn
from torchvision.models.convnext import LayerNorm2d

from sktransfer import Backbone, FineTuneClassifier, FineTuneRegressor, load_backbone
from sktransfer.finetuning import _base
from sktransfer.finetuning._trained import trained_parameters
from sktransfer.inputs._images import ImageReader
from sktransfer.inputs._sound import WaveReader
from tests.small_network import Block, small_backbone, text_backbone
from tests.small_tasks import make_task, make_texts

PICTURES, LABELS = make_task(16)


def classifier(backbone=None, **options):
    settings = {"lr": 0.01, "max_epochs": 2, "batch_size": 8, "random_state": 0}
    given = small_backbone() if backbone is None else backbone
    return FineTuneClassifier(given, **settings | options)


def chosen(module, train_only):
    """The names of the parameters of a module that are trained."""
    found = {id(p) for p in trained_parameters(module, train_only)}
    return {name for name, p in module.named_parameters() if id(p) in found}


def changed(model):
    """The names of the tensors that differ from the source."""
    before, after = (b.stages.state_dict() for b in (model.source_, model.backbone_))
    assert before.keys() == after.keys()
    return {name for name in after if not torch.equal(before[name], after[name])}


class NormalisedLinear(nn.Linear):
    """Named like a norm, with a weight that is a matrix."""


class OwnScaleNorm(nn.Module):
    """A norm that has no base class in common with others."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3))


def from_library(module, name, *arguments):
    return lambda: getattr(pytest.importorskip(module), name)(*arguments)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: nn.BatchNorm2d(3), {"weight", "bias"}),
        (lambda: nn.InstanceNorm2d(3, affine=True), {"weight", "bias"}),
        (lambda: nn.LayerNorm((3, 4)), {"weight", "bias"}),
        (lambda: nn.GroupNorm(1, 3), {"weight", "bias"}),
        (lambda: nn.RMSNorm(3), {"weight"}),
        (lambda: LayerNorm2d(3), {"weight", "bias"}),
        (OwnScaleNorm, {"gain"}),
        (from_library("timm.layers", "LayerNorm2d", 3), {"weight", "bias"}),
        (from_library("timm.layers", "BatchNormAct2d", 3), {"weight", "bias"}),
        (from_library("timm.layers", "GroupNorm1", 3), {"weight", "bias"}),
        (from_library("timm.layers", "RmsNorm", 3), {"weight"}),
        (
            from_library(
                "timm.layers.filter_response_norm", "FilterResponseNormTlu2d", 3
            ),
            {"weight", "bias", "tau"},
        ),
        (
            from_library("transformers.models.t5.modeling_t5", "T5LayerNorm", 3),
            {"weight"},
        ),
        (
            from_library(
                "transformers.models.mobilebert.modeling_mobilebert", "NoNorm", 3
            ),
            {"weight", "bias"},
        ),
        (lambda: nn.Linear(3, 3), set()),
        (lambda: NormalisedLinear(3, 3), set()),
        (lambda: nn.Conv2d(3, 3, 1), set()),
        (lambda: nn.Embedding(3, 3), set()),
        (
            lambda: nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)),
            {"1.weight", "1.bias"},
        ),
    ],
)
def test_norms_of_every_library_are_known(make, names):
    assert chosen(make(), "norms") == names


def test_biases_are_the_vectors_of_that_name():
    class Attention(nn.MultiheadAttention):
        def __init__(self):
            super().__init__(4, 2)
            self.q_bias = nn.Parameter(torch.zeros(4))
            self.relative_position_bias_table = nn.Parameter(torch.zeros(9, 2))
            self.unbiased = nn.Parameter(torch.zeros(4))

    names = {"in_proj_bias", "out_proj.bias", "q_bias"}
    assert chosen(Attention(), "biases") == names
    assert chosen(nn.Sequential(nn.LayerNorm(2), nn.GRU(2, 2)), "biases") == {
        "0.bias",
        "1.bias_ih_l0",
        "1.bias_hh_l0",
    }


def test_what_is_shared_counts_once():
    linear = nn.Linear(3, 3)
    assert len(trained_parameters(nn.ModuleList([linear, linear]), "biases")) == 1
    other = nn.Linear(3, 3)
    other.bias = linear.bias
    assert len(trained_parameters(nn.ModuleList([linear, other]), "biases")) == 1


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vit_b_16", "swin_t"])
def test_networks_of_torchvision_have_norms_and_biases(name):
    stages = load_backbone(name, weights=None).stages
    norms, biases = chosen(stages, "norms"), chosen(stages, "biases")
    parameters = dict(stages.named_parameters())
    assert {n for n, p in parameters.items() if p.ndim == 1} >= norms | biases
    assert {n for n in parameters if n.endswith("bias")} == biases
    assert norms
    assert biases
    assert not any("table" in name for name in norms | biases)


WAYS = [
    {},
    {"freeze": 1},
    {"freeze": 2, "layer_decay": 0.5},
    {"l2_sp": 0.1},
    {"unfreeze_every": 1, "max_epochs": 3},
    {"optimizer": "sgd", "lr": 0.001},
    {"optimizer": torch.optim.RMSprop, "lr": 0.001},
    {"augment": "mild"},
    {"early_stopping": True, "validation_fraction": 0.25},
    {"head_epochs": 0, "hidden_layer_sizes": (5,), "dropout": 0.1},
    {"weight_decay": 0.1, "lr_schedule": "one-cycle"},
]


@pytest.mark.parametrize("train_only", ["norms", "biases"])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_only_what_is_chosen_changes(train_only, way):
    model = classifier(train_only=train_only, **way).fit(PICTURES, LABELS)
    trained = model.source_.stages[model.freeze_depth_ :]
    assert changed(model) == chosen(trained, train_only)


def test_only_what_is_chosen_changes_in_bfloat16(monkeypatch):
    # Which is refused on CPUs without instructions for it.
    monkeypatch.setattr(_base, "resolve_precision", lambda precision, device: precision)
    model = classifier(train_only="norms", precision="bfloat16", freeze=1)
    model.fit(PICTURES, LABELS)
    assert changed(model) == chosen(model.source_.stages[1:], "norms")


def test_what_is_trained_is_chosen_for_texts_too():
    model = classifier(text_backbone(), train_only="biases", freeze="stem")
    model.fit(*make_texts())
    assert changed(model) == chosen(model.source_.stages[1:], "biases") != set()


class Loudness(nn.Module):
    def forward(self, x):
        return torch.stack([x.abs().nanmean(1), x.diff(dim=1).abs().nanmean(1)], dim=1)


def test_what_is_trained_is_chosen_for_sounds_too():
    mixing = nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4))
    reader = WaveReader(shortest=400)
    backbone = Backbone(nn.Sequential(Loudness(), mixing), reader)
    hz = 200 + 900 * (LABELS == "light")
    waves = np.sin(np.outer(hz, np.arange(800)) / 8000 * 2 * np.pi)
    model = classifier(backbone, train_only="norms")
    model.fit([(8000, wave) for wave in waves], LABELS)
    assert changed(model) == {"1.1.weight", "1.1.bias"}


def test_numbers_are_learnt_too():
    model = FineTuneRegressor(
        small_backbone(), train_only="norms", max_epochs=1, random_state=0
    )
    model.fit(PICTURES, np.arange(16.0))
    assert changed(model) == chosen(model.source_.stages, "norms")


def test_a_teacher_is_learnt_from():
    teacher = classifier(freeze="all").fit(PICTURES, LABELS)
    model = classifier(train_only="norms", teacher=teacher).fit(PICTURES, LABELS)
    assert changed(model) == chosen(model.source_.stages, "norms")


@pytest.mark.parametrize("warm", [False, True])
def test_further_fits_train_the_same_or_something_else(warm):
    def go_on(model):
        if warm:
            return model.fit(PICTURES, LABELS)
        return model.partial_fit(PICTURES, LABELS, classes=["dark", "light"])

    model = go_on(classifier(train_only="biases", warm_start=True, max_epochs=1))
    stages = model.source_.stages
    first = model.backbone_
    go_on(model)
    assert changed(model) == chosen(stages, "biases")
    assert model.backbone_.digest != first.digest
    # The optimizer's state belongs to other tensors now, and is made anew.
    go_on(model.set_params(train_only="norms"))
    assert changed(model) == chosen(stages, "norms") | chosen(stages, "biases")
    head = sum(p.numel() for p in model.head_.parameters())
    norms = sum(p.numel() for p in trained_parameters(stages, "norms"))
    assert model.n_trained_parameters_ == norms + head
    # It tells what was trained and not what would be.
    model.set_params(train_only="all")
    assert model.n_trained_parameters_ == norms + head


def test_the_state_of_the_optimizer_goes_on():
    steps = []

    class Steps(Callback):
        def on_epoch_end(self, net, **kwargs):
            steps.append({float(s["step"]) for s in net.optimizer_.state.values()})

    callbacks = {"callbacks": [Steps()]}
    model = classifier(train_only="norms", head_epochs=0, net_params=callbacks)
    for _ in range(2):
        model.partial_fit(PICTURES, LABELS, classes=["dark", "light"])
    assert steps == [{2.0}, {4.0}]


def test_the_optimizer_holds_only_what_is_trained():
    model = classifier(train_only="norms").fit(PICTURES, LABELS)
    held = [p for g in model.net_.optimizer_.param_groups for p in g["params"]]
    assert sum(p.numel() for p in held) == model.n_trained_parameters_


@pytest.mark.parametrize("train_only", ["all", "norms", "biases"])
def test_trained_parameters_are_counted(train_only):
    model = classifier(train_only=train_only, freeze=1).fit(PICTURES, LABELS)
    parameters = dict(model.backbone_.stages[1:].named_parameters())
    trained = sum(parameters[name].numel() for name in changed(model))
    assert model.n_trained_parameters_ == trained + 2 * 16 + 2
    said = "trained" if train_only == "all" else f"{train_only} trained"
    states = [row["state"] for row in model._summary().stages()]
    assert states == ["frozen", said, said, said]


def test_the_rate_is_that_of_what_is_trained():
    def proba(**options):
        return classifier(**options).fit(PICTURES, LABELS).predict_proba(PICTURES)

    for train_only, ratio in {"all": 0.1, "norms": 3.0, "biases": 3.0}.items():
        found = proba(train_only=train_only)
        same = proba(train_only=train_only, backbone_lr_mult=ratio)
        np.testing.assert_array_equal(found, same)
        assert not np.array_equal(found, proba(train_only=train_only, freeze=1))


class Watch(Callback):
    """Remembers the learning rates, and which stages are trained in each epoch."""

    def __init__(self):
        self.rates, self.awake = set(), []

    def on_batch_begin(self, net, training=False, **kwargs):
        if training:
            self.rates |= {group["lr"] for group in net.optimizer_.param_groups}

    def on_epoch_begin(self, net, **kwargs):
        stages = net.module_.suffix
        self.awake.append(
            [any(p.requires_grad for p in s.parameters()) for s in stages]
        )


def mixed_backbone():
    """Norms in the first and the third stage, and none in the second."""
    stages = OrderedDict(
        a=Block("a", 3, 8),
        b=Block("b", 8, 12, norm=False),
        c=Block("c", 12, 16),
        pool=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )
    torch.manual_seed(0)
    return Backbone(nn.Sequential(stages), ImageReader(resize=18, crop=16))


def test_stages_without_anything_to_train_are_no_step():
    watch, settings = Watch(), {"train_only": "norms", "head_epochs": 0}
    callbacks = {"net_params": {"callbacks": [watch]}, "lr_schedule": "constant"}
    rates = {"layer_decay": 0.5, "backbone_lr_mult": 1.0, "unfreeze_every": 1}
    model = classifier(mixed_backbone(), **settings, **callbacks, **rates, max_epochs=3)
    model.fit(PICTURES, LABELS)
    # Of the third stage and the head, and of the first.
    assert watch.rates == {0.01, 0.005}
    last = [False, False, True, False]
    assert watch.awake == [last, [True, False, True, False], [True, False, True, False]]


def test_nothing_of_that_kind_is_an_error():
    model = classifier(small_backbone(norm=False), train_only="norms", freeze=1)
    with pytest.raises(
        ValueError, match=r"'norms'.*'small'.*\('1', '2', '3'\) have no"
    ):
        model.fit(PICTURES, LABELS)
    assert not hasattr(model, "backbone_")
    # With all stages frozen, there is nothing to choose from.
    plain = classifier(freeze="all").fit(PICTURES, LABELS)
    model.set_params(freeze="all").fit(PICTURES, LABELS)
    np.testing.assert_array_equal(
        model.predict_proba(PICTURES),
        classifier(small_backbone(False), freeze="all")
        .fit(PICTURES, LABELS)
        .predict_proba(PICTURES),
    )
    assert plain.n_trained_parameters_ == model.n_trained_parameters_
    with pytest.raises(
        ValueError, match="'train_only' parameter of FineTuneClassifier"
    ):
        classifier(train_only="layers").fit(PICTURES, LABELS)


def test_from_random_weights_norms_alone_can_be_trained():
    model = classifier("tiny", weights=None, train_only="norms", image_size=32)
    model.fit(PICTURES, LABELS)
    parameters = dict(model.backbone_.stages.named_parameters())
    assert changed(model) & parameters.keys() == chosen(model.source_.stages, "norms")
    statistics = changed(model) - parameters.keys()
    assert statistics
    assert all("running" in s or "batches" in s for s in statistics)


def test_it_is_searched():
    grid = {"train_only": ["all", "norms", "biases"], "freeze": [0, "all"]}
    search = GridSearchCV(classifier(max_epochs=1), grid, cv=2, error_score="raise")
    search.fit(PICTURES, LABELS)
    assert len(search.cv_results_["params"]) == 6


def test_the_given_network_stays_as_it_was():
    backbone = small_backbone()
    before = copy.deepcopy(backbone.stages.state_dict())
    classifier(backbone, train_only="norms").fit(PICTURES, LABELS)
    for name, tensor in backbone.stages.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert not any(p.requires_grad for p in backbone.stages.parameters())
