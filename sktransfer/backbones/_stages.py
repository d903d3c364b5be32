"""From a model to an ``nn.Sequential`` of named stages, without the classifier."""

import copy
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import singledispatch

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.ops import Permute

# How the networks of a library are split, by the package that they come from.
LIBRARY_SPLITS: dict[str, Callable] = {}
# What the last layer is called in torchvision, timm and transformers.
_CLASSIFIERS = {"fc", "classifier", "head", "heads", "logits"}


@singledispatch
def split_stages(model: nn.Module) -> nn.Sequential:
    """Split a network into named stages, between which it can be frozen.

    The classifier is left out. Modules and parameters are shared with the model, not
    copied, and every parameter that is kept belongs to one stage.

    Parameters
    ----------
    model : torch.nn.Module
        A network of one of torchvision's 17 families of classifiers, a network of timm
        or an encoder of transformers, or a `torch.nn.Sequential`, whose children are
        taken as the stages. None of them should begin with an operation in place
        (``nn.ReLU(inplace=True)``), which would change the output of the stage before
        it.

    Returns
    -------
    torch.nn.Sequential
        The stages in the order in which they run. What passes from one to the next has
        shape (n, channels, height, width), (n, tokens, channels) or (n, n_features).
        The last stage of networks of torchvision and timm, "pool", gives
        (n, n_features).

    Warns
    -----
    UserWarning
        If the type of the model is unknown, or is a subclass with a ``forward`` of its
        own: the result is one stage called "all". It computes what the model does, its
        classifier included; only a model of timm loses its classifier. A model of timm
        is one stage if the parts that hand on a tensor in a row, when an example runs
        through it, are not all that it does; the warning says why. Also if an
        `nn.Sequential` ends in a linear layer that is a classifier by its name.

    Notes
    -----
    To support another type of network, register a function that splits it::

        @split_stages.register(MyNet)
        def split_my_net(model):
            return nn.Sequential(OrderedDict(stem=model.stem, ..., pool=model.pool))

    The worker processes of ``n_jobs`` know what is registered in modules that they
    import. The function for a network that is the ``backbone`` of an estimator is sent
    to them with the estimator.

    VGG and AlexNet leave out all fully connected layers and end in a global average.

    Examples
    --------
    >>> from sktransfer import split_stages
    >>> from torchvision.models import resnet18
    >>> stages = split_stages(resnet18(weights=None))
    >>> [name for name, _ in stages.named_children()]
    ['stem', 'layer1', 'layer2', 'layer3', 'layer4', 'pool']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"split_stages takes a torch.nn.Module, got {model!r}.")
    for package in LIBRARY_SPLITS.keys() & packages_of(model):
        return LIBRARY_SPLITS[package](model)
    name = type(model).__name__
    body = without_classifier(model)
    warnings.warn(
        f"How to split a {name} is not known, so it is one stage, 'all': only freeze=0 "
        f"and freeze='all' make sense. {_about_classifier(model, body)} To cut it at "
        "more places, register a function "
        "that takes the model and returns an nn.Sequential of named stages, the last "
        f"of which gives (n, n_features): @split_stages.register({name})",
        UserWarning,
        stacklevel=3,
    )
    return _stages(all=body)


def packages_of(model: nn.Module) -> set[str]:
    """Return the names of the packages that the classes of a model come from."""
    return {kind.__module__.partition(".")[0] for kind in type(model).__mro__}


def registered_split(kind: type) -> Callable | None:
    """Return the function that a user registered for a type of network, or None."""
    if not issubclass(kind, nn.Module):
        return None
    split = split_stages.dispatch(kind)
    return None if getattr(split, "__module__", "") == __name__ else split


def without_classifier(model: nn.Module) -> nn.Module:
    """Leave out the classifier of a model of timm; others are as they are."""
    ways = [getattr(model, f"{verb}_classifier", None) for verb in ("get", "reset")]
    if not all(map(callable, ways)) or not getattr(model, "num_classes", 0):
        return model
    # Other modules, as the classifier may be deep in them, with the same tensors.
    shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
    body = copy.deepcopy(model, shared)
    body.reset_classifier(0)
    return body


def _about_classifier(model: nn.Module, body: nn.Module) -> str:
    """Say what happens to the classifier of a model that could not be split."""
    if body is not model:
        return "Its classifier is left out."
    path, layer = _last_layer(model)
    if not (path and isinstance(layer, nn.Linear)):
        return "It computes all that the model does, a classifier included."
    return (
        f"Its last layer, {path!r}, is an nn.Linear of {layer.out_features} outputs: "
        "if that is its classifier, they are class scores and no embedding, and are "
        f"left out by model.{path} = nn.Identity()."
    )


def _last_layer(model: nn.Module) -> tuple[str, nn.Module]:
    """Return the path of the last layer with parameters, and the layer."""
    layers = [("", model)]
    for path, layer in model.named_modules():
        if layer._parameters and not layer._modules:
            layers.append((path, layer))
    return layers[-1]


def _register(family: type[nn.Module]) -> Callable:
    """Register a split for a family, but not for subclasses that compute otherwise."""
    steps = {"forward", "_forward_impl", "_forward"} & set(dir(family))

    def decorate(split):
        def split_unless_changed(model):
            for step in steps:
                own = getattr(getattr(model, step), "__func__", None)
                if own is not getattr(family, step):
                    return split_stages.dispatch(nn.Module)(model)
            return split(model)

        split_stages.register(family, split_unless_changed)
        return split

    return decorate


@_register(nn.Sequential)
def _split_sequential(model):
    path, layer = _last_layer(model)
    if isinstance(layer, nn.Linear) and not _CLASSIFIERS.isdisjoint(path.split(".")):
        warnings.warn(
            f"The last layer of this nn.Sequential, {path!r}, is an nn.Linear of "
            f"{layer.out_features} outputs, and by its name a classifier: what it "
            "gives is kept, and is class scores and no embedding. Leave it out, in "
            "nn.Sequential(..., *split_stages(network)) or by nn.Identity() in its "
            "place; or give a layer that makes embeddings another name.",
            UserWarning,
            stacklevel=4,
        )
    stages = OrderedDict()
    for name, child in model._modules.items():
        # `named_children` lists a module that is used twice only once, so that its
        # second use becomes an object of its own.
        seen = any(child is stage for stage in stages.values())
        stages[name] = nn.Sequential(child) if seen else child
    return nn.Sequential(stages)


@_register(models.ResNet)
def _split_resnet(model):
    return _stages(
        stem=_part(model, "conv1", "bn1", "relu", "maxpool"),
        layer1=model.layer1,
        layer2=model.layer2,
        layer3=model.layer3,
        layer4=model.layer4,
        pool=_pool(model.avgpool),
    )


@_register(models.RegNet)
def _split_regnet(model):
    blocks = model.trunk_output._modules
    return _stages(stem=model.stem, **blocks, pool=_pool(model.avgpool))


@_register(models.VGG)
@_register(models.AlexNet)
@_register(models.SqueezeNet)
def _split_plain(model):
    groups = [[]]
    for layer in model.features:
        groups[-1].append(layer)
        if isinstance(layer, nn.MaxPool2d):
            groups.append([])
    return _stages(**_numbered("block", filter(None, groups)), pool=_pool())


@_register(models.DenseNet)
def _split_densenet(model):
    *names, _ = model.features._modules
    stage, groups = "stem", {}
    for name in names:
        stage = name if name.startswith("denseblock") else stage
        groups.setdefault(stage, []).append(name)
    stages = {stage: _part(model.features, *group) for stage, group in groups.items()}
    # There must be no cut between the norm and the ReLU, which works in place.
    relu = nn.ReLU(inplace=True)
    pool = _pool(model.features[-1], relu, nn.AdaptiveAvgPool2d(1))
    return _stages(**stages, pool=pool)


@_register(models.GoogLeNet)
def _split_googlenet(model):
    stem = _part(model, "conv1", "maxpool1", "conv2", "conv3", "maxpool2")
    four = [f"inception4{letter}" for letter in "abcde"]
    return _stages(
        stem=_with_transform(model, stem),
        inception3=_part(model, "inception3a", "inception3b", "maxpool3"),
        inception4=_part(model, *four, "maxpool4"),
        inception5=_part(model, "inception5a", "inception5b"),
        pool=_pool(model.avgpool),
    )


@_register(models.Inception3)
def _split_inception(model):
    first = ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1"]
    stem = _part(model, *first, "Conv2d_3b_1x1", "Conv2d_4a_3x3", "maxpool2")
    return _stages(
        stem=_with_transform(model, stem),
        mixed5=_part(model, *[f"Mixed_5{letter}" for letter in "bcd"]),
        mixed6=_part(model, *[f"Mixed_6{letter}" for letter in "abcde"]),
        mixed7=_part(model, *[f"Mixed_7{letter}" for letter in "abc"]),
        pool=_pool(model.avgpool),
    )


@_register(models.MobileNetV2)
@_register(models.MobileNetV3)
def _split_mobilenet(model):
    stem, *layers, last = model.features
    groups = []
    for block in layers:
        # A block that changes the width or the resolution has no residual connection.
        if not groups or not getattr(block, "use_res_connect", False):
            groups.append([])
        groups[-1].append(block)
    blocks = _numbered("block", groups)
    return _stages(stem=stem, **blocks, last_conv=last, pool=_pool())


@_register(models.MNASNet)
def _split_mnasnet(model):
    layers = list(model.layers)
    first, *_, last = (i for i, m in enumerate(layers) if isinstance(m, nn.Sequential))
    return _stages(
        stem=nn.Sequential(*layers[:first]),
        **_numbered("block", layers[first : last + 1]),
        last_conv=nn.Sequential(*layers[last + 1 :]),
        pool=_pool(),
    )


@_register(models.ShuffleNetV2)
def _split_shufflenet(model):
    return _stages(
        stem=_part(model, "conv1", "maxpool"),
        stage2=model.stage2,
        stage3=model.stage3,
        stage4=model.stage4,
        last_conv=model.conv5,
        pool=_pool(),
    )


@_register(models.EfficientNet)
def _split_efficientnet(model):
    stem, *blocks, last = model.features
    blocks = _numbered("block", blocks)
    return _stages(stem=stem, **blocks, last_conv=last, pool=_pool(model.avgpool))


@_register(models.ConvNeXt)
def _split_convnext(model):
    stem, *groups = _merge_downsampling(model.features)
    stages = _numbered("stage", ([_ChannelsLast(), *group] for group in groups))
    norm = model.classifier[0]
    return _stages(
        stem=nn.Sequential(*stem),
        **stages,
        pool=_pool(_ChannelsLast(), model.avgpool, norm),
    )


@_register(models.SwinTransformer)
def _split_swin(model):
    def inner(*layers):
        return [_ChannelsLast(), Permute([0, 2, 3, 1]), *layers, Permute([0, 3, 1, 2])]

    stem, *groups = _merge_downsampling(model.features)
    return _stages(
        stem=nn.Sequential(*stem, Permute([0, 3, 1, 2])),
        **_numbered("stage", (inner(*group) for group in groups)),
        pool=_pool(*inner(model.norm), model.avgpool),
    )


@_register(models.VisionTransformer)
def _split_vit(model):
    encoder = model.encoder
    pool = nn.Sequential(OrderedDict(norm=encoder.ln, token=_ClassToken()))
    return _stages(stem=_Tokens(model), **_numbered("block", encoder.layers), pool=pool)


@_register(models.MaxVit)
def _split_maxvit(model):
    pool = list(model.classifier)[:3]
    return _stages(
        stem=model.stem,
        **_numbered("block", model.blocks),
        pool=nn.Sequential(_ChannelsLast(), *pool),
    )


class _Tokens(nn.Module):
    """From images to the tokens of the class and the patches, with positions."""

    def __init__(self, model: models.VisionTransformer):
        super().__init__()
        self.size = (model.image_size, model.image_size)
        self.patches = model.conv_proj
        self.class_token = model.class_token
        self.positions = model.encoder.pos_embedding
        self.dropout = model.encoder.dropout

    def forward(self, x: Tensor) -> Tensor:
        # Another shape may have the same number of patches, and would give nonsense.
        if tuple(x.shape[2:]) != self.size:
            raise ValueError(
                f"this vision transformer takes inputs of size {self.size}, got "
                f"{tuple(x.shape[2:])}"
            )
        patches = self.patches(x).flatten(2).transpose(1, 2)
        token = self.class_token.expand(len(x), -1, -1)
        return self.dropout(torch.cat([token, patches], dim=1) + self.positions)


class _ClassToken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


class _ChannelsLast(nn.Module):
    """Bring a tensor into the layout that it has in the network itself.

    Sums run in the order of memory, so that the output of the stage before, read back
    from a cache in another layout, would lead to other last bits. It costs nothing if
    the layout is right.
    """

    def forward(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last)


class _InceptionInput(nn.Module):
    """From ImageNet's mean and standard deviation to the range -1 to 1."""

    def forward(self, x: Tensor) -> Tensor:
        means, deviations = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        channels = [
            x[:, i : i + 1] * (deviations[i] / 0.5) + (means[i] - 0.5) / 0.5
            for i in range(3)
        ]
        return torch.cat(channels, dim=1)


def _stages(**stages: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(stages))


def _part(model: nn.Module, *names: str) -> nn.Sequential:
    return nn.Sequential(OrderedDict((name, getattr(model, name)) for name in names))


def _numbered(word: str, groups: Iterable) -> dict[str, nn.Module]:
    """Name stages word1, word2, ...; each is a module, or a list of them in a row."""
    stages = (nn.Sequential(*g) if isinstance(g, list) else g for g in groups)
    return {f"{word}{number}": stage for number, stage in enumerate(stages, start=1)}


def _pool(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*(layers or [nn.AdaptiveAvgPool2d(1)]), nn.Flatten(1))


def _with_transform(model: nn.Module, stem: nn.Sequential) -> nn.Sequential:
    if not model.transform_input:
        return stem
    return nn.Sequential(OrderedDict(transform=_InceptionInput(), **stem._modules))


def _merge_downsampling(features: nn.Sequential) -> list[list[nn.Module]]:
    """Stem, blocks, downsampling, blocks, ... with each downsampling before blocks."""
    stem, blocks, *rest = features
    return [[stem], [blocks], *map(list, zip(rest[::2], rest[1::2], strict=True))]
