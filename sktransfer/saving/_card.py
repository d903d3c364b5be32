"""model_card: a description of a fitted model, as Markdown."""

import platform
from importlib.metadata import version

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from sktransfer._tables import Table
from sktransfer._version import __version__
from sktransfer.backbones._backbone import Backbone
from sktransfer.backbones._load import Named, pinned, weights_licence
from sktransfer.backbones._origins import Divided, Tuned
from sktransfer.backbones._weights import weights_path
from sktransfer.embedding._mixin import StagesReprMixin
from sktransfer.finetuning._base import BaseFineTune
from sktransfer.finetuning._parts import parts_of

_PACKAGES = ("scikit-learn", "torch", "torchvision", "skorch", "numpy")
# With more classes, a range stands in place of a table of their counts.
_MOST_CLASSES = 50


def model_card(estimator, scores=None, *, title=None, description=None):
    r"""Describe a fitted model for people who use or evaluate it.

    The card follows Mitchell et al., "Model cards for model reporting", FAT* 2019, as
    far as the model itself has the information: its training data, its network and
    the licence of the pretrained weights, what was frozen, how the training went, and
    the versions of the packages. Add the intended use and its limits with
    `description`.

    Parameters
    ----------
    estimator : fitted estimator
        The model to describe: an estimator of this package, or one of scikit-learn
        that contains fitted estimators of this package.
    scores : dict of str to float, optional
        The scores of the model that you have measured, such as
        ``{"accuracy, 300 test images": 0.93}``.
    title : str, optional
        The title of the card. If None, it is the name of the estimator's class.
    description : str, optional
        Markdown text to put below the title.

    Returns
    -------
    str
        The model card as Markdown.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sktransfer import FineTuneClassifier, model_card
    >>> X, y = load_digits(n_class=2, return_X_y=True)
    >>> model = FineTuneClassifier(freeze="all", random_state=0).fit(X[:40], y[:40])
    >>> card = model_card(model, {"accuracy": model.score(X[40:], y[40:])})
    >>> print(card.split("\n\n")[2])
    40 images, 2 classes.
    """
    if not isinstance(estimator, BaseEstimator):
        raise ValueError(
            f"model_card expects a fitted estimator, got {estimator!r:.80}."
        )
    check_is_fitted(estimator)
    networks = [p for p in parts_of(estimator) if isinstance(p, StagesReprMixin)]
    # A part that was never fitted, such as the estimator of a search, has no summary.
    parts = [part for part in networks if part._summary() is not None]
    if not parts:
        raise ValueError(
            f"{type(estimator).__name__} contains no fitted estimator of sktransfer "
            "for a card to describe. Accepted are a fitted FineTuneClassifier, "
            "FineTuneRegressor, PretrainedFeatureExtractor or BackboneSelector, and "
            "estimators of scikit-learn that contain one of them."
        )
    sections = [f"# {title or type(estimator).__name__}"]
    sections += [description] if description else []
    # A pipeline or search is shown as a whole, before its parts.
    if parts[0] is not estimator:
        sections += ["## Model", f"```\n{estimator!r}\n```"]
    for part in parts:
        sections += _describe(part)
    if scores is not None:
        sections += ["## Scores", _scores_table(scores)]
    packages = {"Python": platform.python_version()}
    packages["sktransfer"] = __version__
    packages |= {name: version(name) for name in _PACKAGES}
    rows = [{"package": name, "version": text} for name, text in packages.items()]
    sections += ["## Versions", Table(rows).to_markdown()]
    return "\n\n".join(sections) + "\n"


def _describe(part) -> list[str]:
    """Return the sections on one estimator of this package."""
    summary = part._summary()
    sections = []
    if isinstance(part, BaseFineTune):
        sections += ["## Data", *_data(part)]
    sections += ["## Network", summary.sentence(), _origin(summary.backbone)]
    sections += [summary.stages().to_markdown()]
    if isinstance(part, BaseFineTune):
        sections += ["## Training", f"```\n{part!r}\n```"]
        sections += _penalty(part)
        if part.history_:
            sections.append(_history(part.history_).to_markdown())
    return sections


def _penalty(part) -> list[str]:
    """Return the penalty with which a head was solved, given or chosen."""
    # The penalty of a classifier is C, that of a regressor alpha. With several outputs
    # it may be an array.
    values = getattr(part, f"{part._penalty}_", None)
    # Heads that were trained by gradient descent have none.
    if values is None:
        return []
    low, high = np.min(values), np.max(values)
    text = f"= {low:.3g}" if low == high else f"between {low:.3g} and {high:.3g}"
    return [f"The head was solved, with {part._penalty} {text}."]


def _data(part) -> list[str]:
    """Return the description of the training data: its samples and targets."""
    samples = f"{part.backbone_.reader.kind}s"
    counts = getattr(part, "class_count_", None)
    if counts is None:
        means, scales = part.target_mean_, part.target_scale_
        rows = [
            {"target": i, "mean": float(mean), "standard deviation": float(scale)}
            for i, (mean, scale) in enumerate(zip(means, scales, strict=True))
        ]
        return [f"{part.n_images_:,} {samples}.", Table(rows).to_markdown()]
    kind = "labels" if part.multilabel_ else "classes"
    text = f"{part.n_images_:,} {samples}, {len(counts)} {kind}."
    if len(counts) > _MOST_CLASSES:
        low, high = int(counts.min()), int(counts.max())
        return [f"{text} Of each, between {low:,} and {high:,} {samples}."]
    rows = [
        {"class": str(name), samples: int(count)}
        for name, count in zip(part.classes_, counts, strict=True)
    ]
    return [text, Table(rows).to_markdown()]


def _origin(backbone: Backbone) -> str:
    """Return where the weights come from, their digest and their licence."""
    origin, source = backbone.origin, backbone
    # A card is about the pretrained weights, which a tuned backbone refers to.
    tuned = isinstance(origin, Tuned)
    while isinstance(origin, Tuned | Divided):
        source = origin.source
        origin = source.origin
    digest = (
        f"The SHA-256 of its tensors{' before tuning' * tuned} begins with "
        f"`{source.digest[:16]}`."
    )
    if not isinstance(origin, Named):
        return f"Source: {source.name}, given by the user; licence not known. {digest}"
    weights = origin.weights
    if weights is None:
        return f"Source: {origin.name}, random weights (seed {origin.seed}). {digest}"
    path = weights_path(weights)
    licence = weights_licence(origin.name, weights)
    said = f"licence: {licence}" if licence else "licence not known"
    pinned_name, read = pinned(origin.name), source.reader.origin()
    # A card is published: it names a commit, but not where a folder is.
    same = pinned_name.startswith(f"{origin.name.partition('@')[0]}@")
    name = pinned_name if same else origin.name
    return f"Source: {name}, weights {path or weights}; {said}. {digest}{read}"


def _history(history) -> Table:
    # Rows of different phases may have different columns.
    names = list(dict.fromkeys(name for row in history for name in row))
    return Table({name: row.get(name) for name in names} for row in history)


def _scores_table(scores) -> str:
    rows = [
        {"score": name, "value": float(np.asarray(value).item())}
        for name, value in scores.items()
    ]
    return Table(rows).to_markdown()
