"""The contract of `split_stages`, for every classifier that torchvision builds."""

import copy
import functools
import math
import os
import pickle
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torchvision import models

from sktransfer.backbones._blocks import Stage
from sktransfer.backbones._stages import split_stages

# What, in place of the classifier, makes the original model itself give its features.
# The parameters that go with it are those that a split leaves out.
IDENTITY, AVERAGE = nn.Identity(), nn.AdaptiveAvgPool2d(1)
BEHEADING = {
    models.ResNet: {"fc": IDENTITY},
    models.RegNet: {"fc": IDENTITY},
    models.VGG: {"avgpool": AVERAGE, "classifier": IDENTITY},
    models.AlexNet: {"avgpool": AVERAGE, "classifier": IDENTITY},
    models.SqueezeNet: {"classifier": AVERAGE},
    models.DenseNet: {"classifier": IDENTITY},
    models.GoogLeNet: {"fc": IDENTITY, "aux1": None, "aux2": None},
    models.Inception3: {"fc": IDENTITY, "AuxLogits": None},
    models.MobileNetV2: {"classifier": IDENTITY},
    models.MobileNetV3: {"classifier": IDENTITY},
    models.MNASNet: {"classifier": IDENTITY},
    models.ShuffleNetV2: {"fc": IDENTITY},
    models.EfficientNet: {"classifier": IDENTITY},
    models.ConvNeXt: {"classifier.2": IDENTITY},
    models.SwinTransformer: {"head": IDENTITY},
    models.VisionTransformer: {"heads": IDENTITY},
    models.MaxVit: {f"classifier.{i}": IDENTITY for i in (3, 4, 5)},
}

# The stages of one small network per family, and the length of its embedding.
SMALL = {
    "resnet18": ("stem layer1 layer2 layer3 layer4 pool", 512),
    "regnet_y_400mf": ("stem block1 block2 block3 block4 pool", 440),
    "vgg11": ("block1 block2 block3 block4 block5 pool", 512),
    "alexnet": ("block1 block2 block3 pool", 256),
    "squeezenet1_1": ("block1 block2 block3 block4 pool", 512),
    "densenet121": (
        "stem denseblock1 denseblock2 denseblock3 denseblock4 pool",
        1024,
    ),
    "googlenet": ("stem inception3 inception4 inception5 pool", 1024),
    "inception_v3": ("stem mixed5 mixed6 mixed7 pool", 2048),
    "mobilenet_v2": (
        "stem block1 block2 block3 block4 block5 block6 block7 last_conv pool",
        1280,
    ),
    "mobilenet_v3_small": (
        "stem block1 block2 block3 block4 block5 last_conv pool",
        576,
    ),
    "mnasnet0_5": (
        "stem block1 block2 block3 block4 block5 block6 last_conv pool",
        1280,
    ),
    "shufflenet_v2_x0_5": ("stem stage2 stage3 stage4 last_conv pool", 1024),
    "efficientnet_b0": (
        "stem block1 block2 block3 block4 block5 block6 block7 last_conv pool",
        1280,
    ),
    "convnext_tiny": ("stem stage1 stage2 stage3 stage4 pool", 768),
    "swin_t": ("stem stage1 stage2 stage3 stage4 pool", 768),
    "swin_v2_t": ("stem stage1 stage2 stage3 stage4 pool", 768),
    "vit_b_32": (f"stem {' '.join(f'block{i}' for i in range(1, 13))} pool", 768),
    "maxvit_t": ("stem block1 block2 block3 block4 pool", 512),
}

# The blocks of its stages that can be cut after them, in order. Each block of a vision
# transformer is a stage already.
BLOCKS = {
    "resnet18": [2, 2, 2, 2],
    "regnet_y_400mf": [3, 6, 6],
    "squeezenet1_1": [2, 2, 4],
    "googlenet": [3, 2, 5, 2],
    "inception_v3": [5, 3, 5, 3],
    "mobilenet_v2": [2, 3, 4, 3, 3],
    "mobilenet_v3_small": [2, 3, 2, 3],
    "mnasnet0_5": [3, 3, 3, 2, 4],
    "shufflenet_v2_x0_5": [4, 8, 4],
    "efficientnet_b0": [2, 2, 3, 3, 4],
    "convnext_tiny": [3, 3, 9, 3],
}

# Inputs are as small as leaves, at least in one network of each family, more than one
# position to the pool.
SIDES = {"alexnet": 96, "inception_v3": 112, "maxvit_t": 224, "vit_h_14": 28}
NOISE = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0))


@functools.cache
def noise(std, size):
    return NOISE.repeat(1 + size // len(NOISE)).mul_(std)


def window(number, shape):
    """A parameter: part of a noise that all share, as 4 billion numbers take long."""
    # Where the window begins tells parameters of the same shape from each other.
    start, size = 1009 * number % 65_537, math.prod(shape)
    std = 4.0 ** -round(math.log(size / shape[0], 4) / 2)
    shared = noise(std, 65_537 + (1 << max(20, size.bit_length())))
    return nn.Parameter(shared[start : start + size].view(shape))


def build(name, **options):
    """A model whose parameters are noise, except those of the classifier (on meta)."""
    if name.startswith("vit"):
        options["image_size"] = side(name)
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    # Initialisers do nothing on meta. Buffers, some of which are computed, are real.
    with register_module_parameter_registration_hook(on_meta):
        model = models.get_model(name, weights=None, **options)
    for number, (path, parameter) in enumerate([*model.named_parameters()]):
        if not path.startswith(tuple(BEHEADING[type(model)])):
            replace(model, path, window(number, parameter.shape))
    return model.eval()


def on_meta(module, name, parameter):
    return nn.Parameter(parameter.to("meta"))


def replace(model, path, new):
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, new)


def behead(model):
    for path, replacement in BEHEADING[type(model)].items():
        replace(model, path, replacement)
    return model


def side(name):
    return SIDES.get(name, 64 if name in SMALL else 32)


def pictures(name):
    shape = (2, 3, side(name), side(name))
    return NOISE[: math.prod(shape)].view(shape).clone()


def run(stages, x):
    """Outputs of all stages, and contiguous copies made as soon as each was there."""
    outputs, copies = [], []
    for stage in stages:
        x = stage(x)
        outputs.append(x)
        copies.append(x.detach().clone(memory_format=torch.contiguous_format))
    return outputs, copies


def params_of(name):
    """A builder; the giants among them take long, and run where they are asked for."""
    size = models.get_model_weights(name).DEFAULT.meta["num_params"]
    giant = size > 35e6 and not os.environ.get("SKTRANSFER_TEST_GIANTS")
    reason = "a giant, and SKTRANSFER_TEST_GIANTS is not set"
    return pytest.param(name, marks=pytest.mark.skipif(giant, reason=reason))


@pytest.fixture(
    scope="module", params=map(params_of, models.list_models(module=models))
)
def case(request):
    transformed = request.param in ("googlenet", "inception_v3")
    options = {"transform_input": True} if transformed else {}
    model, x = build(request.param, **options), pictures(request.param)
    stages = split_stages(model)
    with torch.no_grad():
        outputs, copies = run(stages, x)
    return SimpleNamespace(
        model=behead(model), stages=stages, x=x, outputs=outputs, copies=copies
    )


@pytest.fixture(scope="module", params=SMALL)
def small(request):
    # A copy has parameters of its own, which can be trained and pickled.
    stages = copy.deepcopy(split_stages(build(request.param)))
    return SimpleNamespace(name=request.param, stages=stages, x=pictures(request.param))


def test_stages_in_a_row_are_the_original_features(case):
    with torch.no_grad():
        expected = case.model(case.x)
    assert torch.isfinite(expected).all()
    assert not torch.equal(expected[0], expected[1])
    if isinstance(case.model, models.MaxVit):
        # Versions of torch differ in the layout that its pool is given, hence in the
        # order of the sums; the stage fixes one.
        torch.testing.assert_close(case.outputs[-1], expected, rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(case.outputs[-1], expected)


def test_stages_depend_on_values_alone_and_leave_their_inputs(case):
    # A stage that gives, from a copy of what the one before it gave, what it gave in
    # the row, can be started anew at its cut. By induction from the last stage, so
    # can the suffix at every cut: suffix(prefix(x)) are the features. The copies are
    # contiguous, as out of a cache, whatever the layout in the row was.
    inputs = [case.x, *case.copies]
    with torch.no_grad():
        for stage, given, expected in zip(
            case.stages, inputs, case.copies, strict=False
        ):
            before = given.clone()
            assert torch.equal(stage(given), expected)
            assert torch.equal(given, before)
    for output, made in zip(case.outputs, case.copies, strict=True):
        assert torch.equal(output, made)


def as_cached(x):
    """A copy, in the layout in which the engine goes on from what was cached."""
    last = x.dim() == 4
    layout = torch.channels_last if last else torch.contiguous_format
    return x.detach().clone(memory_format=layout)


def divided(case):
    """Stages that can be cut after their blocks, and their inputs."""
    stages, inputs = map(Stage, case.stages), [case.x, *case.copies]
    pairs = zip(stages, inputs, strict=False)
    return [(stage, x) for stage, x in pairs if len(stage.blocks) > 1]


def test_blocks_in_a_row_are_the_stage(case):
    for stage, x in divided(case):
        states = [block.module.state_dict() for block in stage.blocks]
        assert sum(map(len, states)) == len(stage.module.state_dict())
        with torch.no_grad():
            outputs, copies = run([block.module for block in stage.blocks], x)
            assert torch.equal(outputs[-1], stage.module(x))
        for output, made in zip(outputs, copies, strict=True):
            assert torch.equal(output, made)
            assert output.shape[2] == output.shape[3]


def test_blocks_go_on_from_what_was_cached(case):
    # As for stages: a block that gives, from a copy, what it gave in the row can be
    # started anew at its cut. All as the engine runs them, in whose layout convolutions
    # have the same bits in any row.
    for stage, x in divided(case):
        x = as_cached(x)
        with torch.inference_mode():
            expected = stage.fused("cpu")(x)
            for block in stage.blocks:
                given = as_cached(x)
                x = block.fused("cpu")(x)
                assert torch.equal(block.fused("cpu")(given), x)
            assert torch.equal(x, expected)


def test_every_kept_tensor_is_in_one_stage(case):
    for tensors in (nn.Module.parameters, nn.Module.buffers):
        kept = [id(tensor) for stage in case.stages for tensor in tensors(stage)]
        assert len(kept) == len(set(kept))
        assert set(kept) == {id(tensor) for tensor in tensors(case.model)}


def test_layouts(case):
    *outputs, features = case.outputs
    assert features.dim() == 2
    for output in outputs:
        assert len(output) == 2
        if output.dim() == 4:
            assert output.shape[2] == output.shape[3]
        else:
            assert output.dim() == 3
            assert output.shape[2] == features.shape[1]


def test_each_family_has_a_small_network():
    builders = [models.get_model_builder(name) for name in SMALL]
    assert {b.__annotations__["return"] for b in builders} == set(BEHEADING)


def test_names_and_features(small):
    names, n_features = SMALL[small.name]
    with torch.no_grad():
        features = small.stages(small.x)
    assert [name for name, _ in small.stages.named_children()] == names.split()
    assert features.shape == (2, n_features)


def test_numbers_of_blocks(small):
    counts = [len(Stage(module).blocks) for module in small.stages]
    assert [count for count in counts if count > 1] == BLOCKS.get(small.name, [])


def test_every_cut(small):
    x = small.x[:1]
    with torch.no_grad():
        expected = small.stages(x)
        for k in range(len(small.stages) + 1):
            crossing = small.stages[:k](x)
            before = crossing.clone()
            assert torch.equal(small.stages[k:](crossing), expected)
            assert torch.equal(crossing, before)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_copies_compute_the_same(small, copied):
    twin = copied(small.stages)
    with torch.no_grad():
        assert torch.equal(twin(small.x[:1]), small.stages(small.x[:1]))
    assert {id(p) for p in twin.parameters()}.isdisjoint(
        id(p) for p in small.stages.parameters()
    )


def test_training_leaves_what_crosses_the_cuts(small):
    stages = copy.deepcopy(small.stages).train()
    outputs, copies = run(stages, small.x[:1])
    outputs[-1].sum().backward()
    for output, made in zip(outputs, copies, strict=True):
        assert torch.equal(output, made)
    assert all(parameter.grad is not None for parameter in stages.parameters())


def test_modules_are_shared_and_left_in_their_mode():
    model = models.alexnet(weights=None).train()
    model.features[0].eval()
    stages = split_stages(model)
    assert stages.block1[0] is model.features[0]
    assert not model.features[0].training
    assert model.features[3].training


def test_transform_of_the_input_stays_only_where_it_is_on():
    plain = split_stages(build("googlenet"))
    transforming = split_stages(build("googlenet", transform_input=True))
    assert "transform" not in dict(plain.stem.named_children())
    assert "transform" in dict(transforming.stem.named_children())
    assert plain.state_dict().keys() == transforming.state_dict().keys()


def test_vision_transformer_refuses_other_sizes():
    stages = split_stages(build("vit_b_32"))
    with pytest.raises(ValueError, match=r"\(64, 64\), got \(32, 128\)"):
        stages(torch.zeros(1, 3, 32, 128))


def test_sequential_is_split_by_its_children():
    relu = nn.ReLU()
    layers = {
        "conv": nn.Conv2d(3, 4, 1),
        "a": relu,
        "norm": nn.BatchNorm2d(4),
        "b": relu,
    }
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    stages = split_stages(model)
    assert [name for name, _ in stages.named_children()] == ["conv", "a", "norm", "b"]
    assert stages.conv is model.conv
    assert torch.equal(stages(torch.ones(2, 3, 1, 1)), model(torch.ones(2, 3, 1, 1)))
    plain = split_stages(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten()))
    assert [name for name, _ in plain.named_children()] == ["0", "1"]


class Doubled(models.AlexNet):
    def forward(self, x):
        return 2 * super().forward(x)


class Renamed(models.AlexNet):
    pass


@pytest.mark.parametrize(
    "model", [nn.Linear(3, 2), Doubled()], ids=["Linear", "Doubled"]
)
def test_a_type_that_is_not_known_is_one_stage(model):
    name = type(model).__name__
    with pytest.warns(
        UserWarning, match=f"How to split a {name} is not known"
    ) as caught:
        stages = split_stages(model)
    assert "only freeze=0 and freeze='all' make sense" in str(caught[0].message)
    assert f"@split_stages.register({name})" in str(caught[0].message)
    assert dict(stages.named_children()) == {"all": model}


class Body(nn.Module):
    def __init__(self, **layers):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        for name, layer in layers.items():
            self.add_module(name, layer)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Doubled(), r"'classifier\.6', is an nn\.Linear of 1000 outputs: .*\.6 = nn\."),
        (Body(fc=nn.Linear(4, 9), drop=nn.Dropout()), "'fc', is an nn.Linear of 9 out"),
        (Body(), "It computes all that the model does, a classifier included"),
        (nn.Linear(3, 2), "It computes all that the model does"),
    ],
    ids=["Doubled", "fc", "none", "Linear"],
)
def test_logits_are_not_taken_for_embeddings_without_a_word(model, message):
    with pytest.warns(UserWarning, match=message):
        split_stages(model)


def test_a_model_that_can_drop_its_classifier_does_so_in_a_copy():
    class Resettable(Body):
        num_classes = 9

        def get_classifier(self):
            return self.head.fc

        def reset_classifier(self, num_classes):
            self.head.fc = nn.Identity()

        def forward(self, x):
            return self.head(self.conv(x).mean((2, 3)))

    head = nn.Sequential()
    head.add_module("fc", nn.Linear(4, 9))
    model = Resettable(head=head)
    with pytest.warns(UserWarning, match="Its classifier is left out"):
        stages = split_stages(model)
    assert isinstance(model.head.fc, nn.Linear)
    assert stages(torch.ones(2, 3, 1, 1)).shape == (2, 4)
    assert [*stages.parameters()] == [*model.conv.parameters()]


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Identity(), Body(fc=nn.Linear(4, 9))),
        nn.Sequential(nn.Identity(), models.resnet18()),
        nn.Sequential(OrderedDict(body=Body(), head=nn.Linear(4, 9))),
    ],
    ids=["own", "resnet", "head"],
)
def test_a_sequence_that_ends_in_a_classifier_says_so(model):
    with pytest.warns(UserWarning, match="nn.Linear of .* by its name a classifier"):
        stages = split_stages(model)
    assert [*stages] == [*model]


def test_a_sequence_may_end_in_a_projection():
    for last in (nn.Linear(4, 9), nn.Sequential(nn.Flatten(), nn.Linear(4, 9))):
        assert len(split_stages(nn.Sequential(Body(), last))) == 2


def test_a_forward_of_its_own_is_noticed_on_an_instance():
    model = Renamed()
    assert len(split_stages(model)) == 4
    model.forward = torch.nn.functional.relu
    with pytest.warns(UserWarning, match="How to split a Renamed"):
        assert len(split_stages(model)) == 1


def test_register():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(3, 2), nn.Linear(2, 1)

    @split_stages.register(Own)
    def split_own(model):
        return nn.Sequential(model.body)

    model = Own()
    assert [*split_stages(model)] == [model.body]


def test_not_a_module():
    with pytest.raises(TypeError, match=r"takes a torch.nn.Module, got 'resnet18'"):
        split_stages("resnet18")
