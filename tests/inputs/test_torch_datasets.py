import pickle

import numpy as np
import PIL.Image
import pytest
import torch
from sklearn.model_selection import cross_val_predict
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
)
from torchvision.datasets import CIFAR10, FakeData, ImageFolder
from torchvision.transforms import v2

from sktransfer import FineTuneClassifier, PretrainedFeatureExtractor
from sktransfer.datasets import load_image_folder, load_torch_dataset
from tests.small_network import small_backbone


class Pairs(Dataset):
    """Pairs in memory that counts which of its items were accessed."""

    def __init__(self, pairs, **attributes):
        self.pairs, self.accessed = pairs, []
        vars(self).update(attributes)

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, row):
        self.accessed.append(row)
        return self.pairs[row]


@pytest.fixture
def folder(tmp_path, pictures):
    for row, picture in enumerate(pictures):
        path = tmp_path / "ab"[row % 2] / f"{row}.png"
        path.parent.mkdir(exist_ok=True)
        PIL.Image.fromarray(picture).save(path)
    return tmp_path


def pairs_of(n):
    grey = [np.full((8, 8), row, np.uint8) for row in range(n)]
    return [(image, row % 2) for row, image in enumerate(grey)]


def embedded(X):
    return PretrainedFeatureExtractor(small_backbone(), device="cpu").transform(X)


def test_a_folder_gives_its_paths_and_opens_none(folder):
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    dataset = ImageFolder(folder)
    X, y = load_torch_dataset(dataset)
    paths, classes = load_image_folder(folder, return_X_y=True)
    np.testing.assert_array_equal(X, paths)
    np.testing.assert_array_equal(y, classes)
    X, y = load_torch_dataset(Subset(Subset(dataset, [5, 0, 3]), [2, 1]))
    np.testing.assert_array_equal(X, paths[[3, 0]])
    np.testing.assert_array_equal(y, classes[[3, 0]])
    X, y = load_torch_dataset(ConcatDataset([dataset, Subset(dataset, [1])]))
    np.testing.assert_array_equal(X, [*paths, paths[1]])
    np.testing.assert_array_equal(y, [*classes, classes[1]])


@pytest.mark.parametrize(
    "options",
    [
        {"transform": v2.Grayscale()},
        {"target_transform": lambda target: target},
        {"loader": lambda path: PIL.Image.open(path).convert("L")},
    ],
)
def test_what_a_dataset_does_to_its_images_is_kept(options, folder):
    dataset = ImageFolder(folder, **options)
    X, y = load_torch_dataset(dataset)
    np.testing.assert_array_equal(embedded(X), embedded([x for x, _ in dataset]))
    assert y.tolist() == dataset.targets


def test_images_in_memory_give_their_embeddings(pictures):
    dataset = CIFAR10.__new__(CIFAR10)
    dataset.data, dataset.targets = np.stack(pictures), [3, 1, 4, 1, 5, 9]
    dataset.transform = dataset.target_transform = None
    X, y = load_torch_dataset(dataset)
    np.testing.assert_array_equal(embedded(X), embedded(pictures))
    assert y.tolist() == dataset.targets
    as_tensors = load_torch_dataset(TensorDataset(torch.rand(3, 3, 8, 8), torch.eye(3)))
    assert embedded(as_tensors[0]).shape == (3, 16)
    np.testing.assert_array_equal(as_tensors[1], np.eye(3))


@pytest.mark.parametrize("name", ["targets", "labels", "_labels"])
def test_targets_are_taken_from_an_attribute_that_agrees(name):
    pairs, known = pairs_of(100), torch.arange(100) % 2
    dataset = Pairs(pairs, **{name: known})
    _, y = load_torch_dataset(dataset)
    assert y.tolist() == known.tolist()
    assert len(set(dataset.accessed)) < 10
    others = [1 - known, known[:50], 3, None, torch.zeros(100), [None] * 100]
    for other in others:
        dataset = Pairs(pairs, **{name: other})
        X, y = load_torch_dataset(Subset(dataset, range(1, 50)))
        assert y.tolist() == known[1:50].tolist()
        assert set(dataset.accessed) == set(range(1, 50))
        dataset.accessed.clear()
        embedded(X[[7]])
        assert set(dataset.accessed) == {8}


@pytest.mark.parametrize("target", ["cat", 0.5, np.float32(2), torch.tensor([1, 0])])
def test_targets_are_labels_or_numbers(target):
    _, y = load_torch_dataset(Pairs([(np.eye(8), target)] * 3))
    np.testing.assert_array_equal(y, [np.asarray(target)] * 3)


def test_items_are_split_and_sent_to_workers():
    X, y = load_torch_dataset(FakeData(12, (3, 16, 16), num_classes=2))
    expected = embedded([image for image, _ in FakeData(12, (3, 16, 16))])
    np.testing.assert_array_equal(embedded(X), expected)
    np.testing.assert_array_equal(
        embedded(pickle.loads(pickle.dumps(X[[3, 1]]))), expected[[3, 1]]
    )
    model = FineTuneClassifier(small_backbone(), freeze="all", device="cpu")
    assert cross_val_predict(model, list(X), np.arange(12) % 2, cv=2).shape == (12,)


class Broken(Pairs):
    def __getitem__(self, row):
        if row == 2:
            raise OSError("it is cut off")
        return super().__getitem__(row)


def test_errors_name_row_and_item():
    dataset = Broken(pairs_of(30), targets=[0, 1] * 15)
    X, _ = load_torch_dataset(dataset)
    with pytest.raises(ValueError, match=r"row 1 \(item 2 of Broken\): it is cut off"):
        embedded(X[[0, 2]])
    with pytest.raises(ValueError, match=r"item 2 of the dataset, a Broken: it is cut"):
        load_torch_dataset(Subset(dataset, [1, 2]))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(pairs_of(3))


normalise = v2.Compose(
    [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.5])]
)


@pytest.mark.parametrize(
    ("dataset", "why"),
    [
        (FakeData(9, transform=normalise), "from -.* outside .*dataset.transform = No"),
        (FakeData(9, transform=v2.RandomCrop(32)), "has changed, by a random transf.*"),
        (Stream(), "of type Stream: expected a dataset with a length"),
        (DataLoader(FakeData(3)), "DataLoader: .*Pass its .dataset"),
        (Subset(FakeData(3), []), "it is empty"),
        (Pairs([{"image": 1, "label": 2}]), r"item 0 has the keys \['image', 'label'"),
        (Pairs([(1, 2, 3)]), "item 0 has 3 parts"),
        (Pairs([7]), "item 0 is of type int"),
        (Pairs([(np.eye(8), {"boxes": 1})]), "target of each item .* first is .*boxes"),
        (Pairs([(np.eye(8), [1]), (np.eye(8), [1, 2])]), "target of each item"),
    ],
)
def test_what_gives_no_images_and_targets_is_refused(dataset, why):
    with pytest.raises(ValueError, match=f"Invalid dataset.*{why}"):
        load_torch_dataset(dataset)


def test_waveforms_are_no_normalised_images():
    X, _ = load_torch_dataset(Pairs([(torch.linspace(-1, 1, 99)[None], 0)] * 2))
    assert repr(X[1]) == "<item 1 of Pairs>"
