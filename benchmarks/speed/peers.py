"""How others embed files with resnet18: each a function, files -> embeddings.

Their weights are random, so that nothing is downloaded. A peer that is not installed
is left out.
"""

import contextlib
import functools
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.models import ResNet18_Weights, get_model, get_model_weights, resnet18


class Files(Dataset):
    """Pictures of files, transformed."""

    def __init__(self, files, transform):
        self.files, self.transform = files, transform

    def __len__(self):
        return len(self.files)

    def __getitem__(self, row):
        return self.transform(Image.open(self.files[row]).convert("RGB"))


def tutorial(name="resnet18", n_workers=0, batch_size=32):
    """Return the loop of the tutorials: the preset, a DataLoader, no gradient."""
    network = get_model(name, weights=None).eval()
    preset = get_model_weights(name).DEFAULT.transforms()
    network.fc = network.classifier = torch.nn.Identity()
    return functools.partial(_loop, network, preset, n_workers, batch_size)


def _loop(network, preset, n_workers, batch_size, files):
    loader = DataLoader(Files(files, preset), batch_size, num_workers=n_workers)
    with torch.no_grad():
        return np.concatenate([network(batch).numpy() for batch in loader])


def with_timm():
    """Return timm's own model and transform, with a DataLoader."""
    import timm
    from timm.data import create_transform, resolve_data_config

    network = timm.create_model("resnet18", pretrained=False, num_classes=0).eval()
    transform = create_transform(**resolve_data_config({}, model=network))

    def embed(files):
        with torch.no_grad():
            batches = DataLoader(Files(files, transform), 32)
            return np.concatenate([network(batch).numpy() for batch in batches])

    return embed


def with_embetter():
    """Return embetter's loader and encoder, as its documentation has them."""
    import timm
    from embetter.vision import ImageLoader, TimmEncoder

    untrained = functools.partial(_untrained, timm.create_model)
    with mock.patch.object(timm, "create_model", untrained):
        encoder = TimmEncoder("resnet18")
    loader = ImageLoader(convert="RGB")
    return lambda files: encoder.transform(loader.transform(files))


def _untrained(create, name, pretrained=True, **options):
    return create(name, pretrained=False, **options)


def with_img2vec():
    """Return img2vec, given lists of 32 pictures."""
    from img2vec_pytorch import Img2Vec

    state = resnet18(weights=None).state_dict()
    with mock.patch.object(ResNet18_Weights, "get_state_dict", return_value=state):
        network = Img2Vec(model="resnet18")

    def embed(files):
        batches = [files[i : i + 32] for i in range(0, len(files), 32)]
        pictures = [[Image.open(f).convert("RGB") for f in batch] for batch in batches]
        return np.concatenate([network.get_vec(batch) for batch in pictures])

    return embed


def with_fastai():
    """Return a fastai learner's predictions by the body and pooling of its network."""
    from fastai.vision.all import (
        DataBlock,
        ImageBlock,
        Learner,
        Normalize,
        Resize,
        create_body,
        imagenet_stats,
        noop,
    )

    body = create_body(resnet18(weights=None), pretrained=False)
    pool = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    network = torch.nn.Sequential(body, pool)

    def embed(files):
        block = DataBlock(
            ImageBlock,
            get_items=noop,
            item_tfms=Resize(224),
            batch_tfms=Normalize.from_stats(*imagenet_stats),
        )
        loaders = block.dataloaders(list(files), bs=32, num_workers=0)
        learner = Learner(loaders, network, loss_func=noop)
        test = loaders.test_dl(list(files))
        with learner.no_bar():
            return learner.get_preds(dl=test, with_targs=False)[0].numpy()

    return embed


def installed():
    """Return all peers that are here, by name."""
    found = {
        "tutorial loop": tutorial(),
        "tutorial loop, 2 workers": tutorial(n_workers=2),
    }
    others = {
        "timm": with_timm,
        "embetter": with_embetter,
        "img2vec": with_img2vec,
        "fastai": with_fastai,
    }
    for name, make in others.items():
        with contextlib.suppress(ImportError):
            found[name] = make()
    return found
