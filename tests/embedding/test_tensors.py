"""Tensors in, tensors out: array API dispatch and ``set_output(transform="torch")``."""

import numpy as np
import pandas as pd
import PIL.Image
import pytest
import torch
from sklearn import config_context
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import StandardScaler

from sktransfer import BackboneSelector, EmbeddingCache, PretrainedFeatureExtractor
from sktransfer.embedding import _embed
from sktransfer.embedding._outputs import Output
from sktransfer.embedding._prefix import Prefix
from tests.small_network import small_backbone
from tests.small_tasks import make_task

try:
    with config_context(array_api_dispatch=True):
        pass
except ImportError as error:
    pytest.skip(str(error), allow_module_level=True)

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
_TO_THE_HOST = ("cpu", "numpy", "tolist", "item", "__array__", "__dlpack__")


class OnDevice(torch.Tensor):
    """Stands for a tensor of a GPU: an error where it would be copied to the host."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        assert func.__name__ not in _TO_THE_HOST, f"{func.__name__} copies to the host"
        assert func.__name__ != "to" or "cpu" not in args, "to copies to the host"
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.fixture
def nothing_to_the_host(monkeypatch):
    """All outputs that are kept on the device are such tensors."""
    run, gathered = Prefix._run, Output.gathered

    def guarded_run(self, batch, start, wanted, kept):
        found = run(self, batch, start, wanted, kept)
        guarded = {one: found[one].as_subclass(OnDevice) for one in kept & found.keys()}
        return found | guarded

    def guarded_gathered(self):
        rows = gathered(self)
        return rows.as_subclass(OnDevice) if isinstance(rows, torch.Tensor) else rows

    monkeypatch.setattr(Prefix, "_run", guarded_run)
    monkeypatch.setattr(Output, "gathered", guarded_gathered)


@pytest.fixture
def dispatch():
    with config_context(array_api_dispatch=True):
        yield


def stack(pictures):
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def extractor(**params):
    return PretrainedFeatureExtractor(small_backbone(), device="cpu", **params)


def equal(rows, expected):
    assert isinstance(rows, torch.Tensor)
    assert rows.dtype == torch.float32
    np.testing.assert_array_equal(rows.numpy(), expected)


def test_a_tensor_gives_a_tensor_with_the_same_bits(pictures, dispatch):
    expected = extractor(cache=None).transform(pictures)
    X, cache = stack([*pictures, pictures[1]]), EmbeddingCache()
    extractor(cache=cache).transform(X[2:4])  # so that a part of the rows is known
    for one in [None, cache, cache]:
        rows = extractor(cache=one).fit_transform(X)
        equal(rows, expected[[*range(len(pictures)), 1]])
        rows -= rows.mean(0)  # which an inference tensor would refuse


def test_tables_of_numbers_may_be_tensors(dispatch):
    X = np.random.default_rng(0).random((5, 64))
    rows = extractor().fit_transform(torch.from_numpy(X))
    equal(rows, extractor().transform(X))


def test_without_dispatch_or_with_anything_else_it_gives_arrays(pictures):
    X = stack(pictures)
    expected = extractor(cache=None).transform(pictures)
    assert isinstance(extractor().transform(X), np.ndarray)
    with config_context(array_api_dispatch=True):
        for given in [pictures, np.stack(pictures), list(X)]:
            rows = extractor().transform(given)
            assert isinstance(rows, np.ndarray)
            np.testing.assert_array_equal(rows, expected)
        frame = extractor().set_output(transform="pandas").fit(X).transform(X)
    assert isinstance(frame, pd.DataFrame)


def test_the_embeddings_never_reach_the_host(
    pictures, dispatch, nothing_to_the_host, monkeypatch
):
    copied, cpu = [], torch.Tensor.cpu
    # Of a tensor that is on a CPU, a copy to it is the tensor itself.
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "cpu", lambda x: copied.append(x.shape) or cpu(x))
        rows = extractor(cache=None).transform(stack(pictures))
    assert isinstance(rows, OnDevice)
    assert rows.shape not in copied
    with pytest.raises(AssertionError, match="copies to the host"):
        rows.cpu()
    # A cache gets copies, and what is computed stays where it is.
    cache = EmbeddingCache()
    with pytest.raises(AssertionError, match="copies to the host"):
        extractor(cache=cache).transform(stack(pictures))


def test_files_give_tensors_if_the_output_is_set(tmp_path, pictures):
    files = [str(tmp_path / f"{row}.png") for row in range(len(pictures))]
    for file, picture in zip(files, pictures, strict=True):
        PIL.Image.fromarray(picture).save(file)
    expected = extractor().transform(files)
    for one in [extractor(), extractor(cache=None)]:
        set_to = one.set_output(transform="torch")
        equal(set_to.transform(files), expected)
        equal(clone(set_to).fit_transform(files), expected)
    with config_context(transform_output="torch"):
        equal(extractor().transform(files), expected)


def test_rows_that_cannot_be_read_are_nan(pictures):
    given = [pictures[0], b"nothing", pictures[1], b"nothing"]
    one = extractor(on_error="nan").set_output(transform="torch")
    with pytest.warns(UserWarning, match=r"rows \[1, 3\]"):
        rows = one.transform(given)
    equal(rows[[0, 2]], extractor().transform(pictures[:2]))
    assert rows[[1, 3]].isnan().all()


def test_windows_and_workers_fill_the_same_tensor(pictures, monkeypatch):
    monkeypatch.setattr(_embed, "_WINDOW", 4)
    given = [*pictures, *pictures[::-1]]
    expected = extractor(cache=None, batch_size=2).transform(given)
    for params in [{}, {"cache": None}, {"n_jobs": 2}]:
        one = extractor(batch_size=2, **params).set_output(transform="torch")
        equal(one.transform(given), expected)


@pytest.mark.parametrize(
    "last", [Ridge(solver="svd"), LogisticRegression(tol=1e-6)], ids=["ridge", "logreg"]
)
def test_a_pipeline_gets_tensors_from_the_first_step_to_the_last(last):
    X, _ = make_task()
    X, y = stack(X), np.arange(24) % 2
    expected = make_pipeline(extractor(), StandardScaler(), clone(last)).fit(X, y)
    with config_context(array_api_dispatch=True):
        model = make_pipeline(extractor(), StandardScaler(), last).fit(X, y)
        rows = model[:-1].transform(X)
        found = model.predict(X)
    assert isinstance(rows, torch.Tensor)
    assert isinstance(model[-1].coef_, torch.Tensor)
    assert isinstance(found, torch.Tensor)
    np.testing.assert_allclose(found.numpy(), expected.predict(X), atol=1e-2)


def test_all_steps_of_a_pipeline_can_be_set_to_tensors(pictures):
    for with_dispatch in [False, True]:
        with config_context(array_api_dispatch=with_dispatch):
            model = make_pipeline(extractor(), StandardScaler())
            rows = model.set_output(transform="torch").fit_transform(pictures)
        assert isinstance(rows, torch.Tensor)
        assert rows.shape == extractor().transform(pictures).shape


def test_a_union_joins_tensors(pictures, dispatch):
    rows = make_union(extractor(), extractor(pooling="max")).fit_transform(
        stack(pictures)
    )
    assert isinstance(rows, torch.Tensor)


def test_a_selector_gives_tensors_as_its_extractor_does():
    X, y = make_task()
    selector = BackboneSelector([small_backbone()]).fit(X, y)
    expected = selector.transform(X)
    equal(selector.set_output(transform="torch").transform(X), expected)
    with config_context(array_api_dispatch=True):
        equal(BackboneSelector([small_backbone()]).fit_transform(stack(X), y), expected)


@gpu
def test_on_a_gpu_everything_stays_there():
    X, _ = make_task()
    y = np.arange(24) % 2
    for given in [stack(X), stack(X).cuda()]:
        with config_context(array_api_dispatch=True):
            steps = PretrainedFeatureExtractor(small_backbone()), StandardScaler()
            for last in [Ridge(solver="svd"), LogisticRegression()]:
                model = make_pipeline(*map(clone, steps), last).fit(given, y)
                assert model[:-1].transform(given).device.type == "cuda"
                assert model.predict(given).device.type == "cuda"
    rows = PretrainedFeatureExtractor(small_backbone()).set_output(transform="torch")
    assert rows.transform(list(X)).device.type == "cuda"
