import re

from sklearn import config_context

from sktransfer import FineTuneClassifier, PretrainedFeatureExtractor
from tests.small_network import small_backbone
from tests.small_tasks import make_task


def cells(text):
    return re.findall(r"<td>(.*?)</td>", text)


def test_fitted_classifier_shows_its_stages():
    X, y = make_task()
    model = FineTuneClassifier(small_backbone(), freeze=2, max_epochs=1)
    assert "16 features" not in model._repr_html_()
    text = model.fit(X, y)._repr_html_()
    assert "embedding of 16 features" in text
    source = small_backbone()
    assert f"{source.n_parameters:,} parameters" in text
    third = sum(p.numel() for p in source.stages[2].parameters())
    assert model.n_trained_parameters_ == third + 2 * 16 + 2
    assert f"{model.n_trained_parameters_:,} trained" in text
    rows = cells(text)[-16:]
    assert rows[::4] == ["0", "1", "2", "3"]
    assert rows[1::4] == ["8 x 8 x 8", "12 x 4 x 4", "16 x 2 x 2", "16"]
    assert rows[3::4] == ["frozen", "frozen", "trained", "trained"]
    assert model._repr_mimebundle_()["text/html"].endswith("</details>")


def test_fitted_extractor_shows_what_it_uses():
    X, _ = make_task()
    model = PretrainedFeatureExtractor(small_backbone(), stage="1", pooling="avgmax")
    assert "<details><summary>small" not in model._repr_html_()
    text = model.fit(X)._repr_html_()
    assert "0 trained" in text
    assert "embedding of 24 features" in text
    assert cells(text)[-16:][3::4] == ["frozen", "frozen", "not used", "not used"]


def test_a_repr_shows_what_was_fitted_and_loads_nothing():
    X, _ = make_task()
    model = PretrainedFeatureExtractor(small_backbone()).fit(X)
    before = model._stages_html()
    assert model.set_params(backbone="nothing", stage=99)._stages_html() == before


def test_text_stays_text():
    X, y = make_task()
    model = PretrainedFeatureExtractor(small_backbone()).fit(X)
    with config_context(display="text"):
        assert "text/html" not in model._repr_mimebundle_()
        assert not hasattr(model, "_repr_html_")
