"""Displays of pictures: those a classifier gets most wrong, and where it looks."""

import copy

import numpy as np
import torch
from sklearn.utils import check_consistent_length
from sklearn.utils._optional_dependencies import check_matplotlib_support
from sklearn.utils.validation import check_is_fitted

from sktransfer._backbones import Backbone, Recipe
from sktransfer._embeddings import read_images
from sktransfer._extractor import PretrainedFeatureExtractor
from sktransfer._finetune import BaseFineTune
from sktransfer._images import Images, check_images, checked_images

_THUMBNAIL = Recipe(resize=160, crop=160)


class TopLossesDisplay:
    """The pictures that a classifier gets most wrong.

    Parameters
    ----------
    pictures : list of ndarray of shape (H, W, 3), uint8
    rows : ndarray of shape (n_pictures,)
        Where in the data they are.
    labels, predictions : ndarray of shape (n_pictures,)
    label_probabilities, predicted_probabilities : ndarray of shape (n_pictures,)
        What the classifier gave the label, and the class it predicts.

    Attributes
    ----------
    losses : ndarray of shape (n_pictures,)
        Cross-entropy, ``-log`` of the label's probability.
    ax_ : ndarray of matplotlib Axes
    figure_ : matplotlib Figure

    See Also
    --------
    AttributionDisplay : Where on a picture the evidence lies.
    """

    def __init__(
        self,
        pictures,
        rows,
        labels,
        predictions,
        label_probabilities,
        predicted_probabilities,
    ):
        self.pictures = pictures
        self.rows = rows
        self.labels = labels
        self.predictions = predictions
        self.label_probabilities = label_probabilities
        self.predicted_probabilities = predicted_probabilities

    @property
    def losses(self):
        tiny = np.finfo(float).tiny
        return -np.log(np.maximum(self.label_probabilities, tiny))

    @classmethod
    def from_estimator(cls, estimator, X, y, *, n_pictures=9):
        """Find the pictures of the highest losses, and plot them.

        Parameters
        ----------
        estimator : fitted classifier
            With ``predict_proba`` and ``classes_``: a `FineTuneClassifier`, or a
            pipeline or search from images to labels.
        X : sequence of images, or array-like of shape (n_samples, n_pixels)
        y : array-like of shape (n_samples,)
            Their labels.
        n_pictures : int, default=9

        Returns
        -------
        TopLossesDisplay

        Raises
        ------
        ValueError
            If a label is none of the classifier's classes.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from sktransfer import FineTuneClassifier, TopLossesDisplay
        >>> X, y = load_digits(n_class=3, return_X_y=True)
        >>> model = FineTuneClassifier(freeze="all", max_epochs=1, random_state=0)
        >>> model = model.fit(X[:60], y[:60])
        >>> display = TopLossesDisplay.from_estimator(model, X[60:90], y[60:90])
        >>> len(display.pictures)
        9
        """
        y = np.asarray(y)
        check_consistent_length(X, y)
        if y.ndim != 1:
            raise ValueError(
                f"y has shape {y.shape}, and losses are shown of one label for each "
                "image. Pass one column of labels."
            )
        classes = np.asarray(estimator.classes_)
        unknown = np.setdiff1d(y, classes)
        if len(unknown):
            raise ValueError(
                f"y has labels {unknown[:5].tolist()} that are not among the classes "
                f"{classes[:10].tolist()} of the classifier, which cannot predict "
                "them. Leave those images out."
            )
        proba = estimator.predict_proba(X)
        own = proba[np.arange(len(y)), np.searchsorted(classes, y)]
        rows = np.argsort(own, kind="stable")[:n_pictures]
        squares = read_images(_find_images(estimator, X), rows, _THUMBNAIL.read)
        return cls(
            [_picture(square) for square in squares],
            rows,
            y[rows],
            classes[proba[rows].argmax(axis=1)],
            own[rows],
            proba[rows].max(axis=1),
        ).plot()

    def plot(self, ax=None):
        """Draw the pictures, each with its label and what was predicted.

        Parameters
        ----------
        ax : sequence of matplotlib Axes, optional
            One for each picture.

        Returns
        -------
        TopLossesDisplay
        """
        self.figure_, self.ax_ = _grid(self, ax, len(self.pictures))
        for axes, picture, *texts in zip(
            self.ax_,
            self.pictures,
            self.labels,
            self.label_probabilities,
            self.predictions,
            self.predicted_probabilities,
            strict=True,
        ):
            axes.imshow(picture)
            label, own, predicted, best = texts
            title = f"{label} ({own:.2f})\nas {predicted} ({best:.2f})"
            axes.set_title(title, fontsize="small")
        return self


class AttributionDisplay:
    """Where on a picture the evidence for a class lies, by Grad-CAM.

    The output of a stage is summed over its channels, each weighted by the mean
    gradient of the class score with respect to it, and what is negative is cut [1]_.
    Of a transformer's stage, the tokens of the patches are arranged in their grid.

    Parameters
    ----------
    pictures : list of ndarray of shape (crop, crop, 3), uint8
        As the network sees them.
    maps : ndarray of shape (n_pictures, height, width)
        Between 0 and 1, the latter the place of the strongest evidence.
    titles : list of str

    Attributes
    ----------
    ax_ : ndarray of matplotlib Axes
    figure_ : matplotlib Figure

    References
    ----------
    .. [1] Selvaraju, Cogswell, Das, Vedantam, Parikh and Batra, "Grad-CAM: visual
       explanations from deep networks via gradient-based localization", ICCV 2017.
    """

    def __init__(self, pictures, maps, titles):
        self.pictures = pictures
        self.maps = maps
        self.titles = titles

    @classmethod
    def from_estimator(cls, estimator, X, *, stage=None, target=None):
        """Compute the maps of some images, and plot them.

        Parameters
        ----------
        estimator : fitted FineTuneClassifier, FineTuneRegressor or search
            Of a search, the best estimator has to be one of these.
        X : sequence of images, or array-like of shape (n_samples, n_pixels)
            A few: all are drawn.
        stage : int or str, optional
            The stage whose output is looked at; None is the last that has places.
        target : label, or int for a regressor, optional
            The class, or number of the output, whose evidence is shown; None is the
            predicted class, or the first output.

        Returns
        -------
        AttributionDisplay

        Raises
        ------
        ValueError
            If the output of the stage has no places, or the target is not known.
        TypeError
            If the estimator is of another kind.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from sktransfer import AttributionDisplay, FineTuneClassifier
        >>> X, y = load_digits(n_class=3, return_X_y=True)
        >>> model = FineTuneClassifier(freeze="all", max_epochs=1, random_state=0)
        >>> model = model.fit(X[:60], y[:60])
        >>> display = AttributionDisplay.from_estimator(model, X[60:64], stage="layer3")
        >>> display.maps.shape
        (4, 4, 4)
        """
        check_is_fitted(estimator)
        estimator = _tuned(estimator)
        backbone = estimator.backbone_
        depth = _last_with_places(backbone) if stage is None else backbone.depth(stage)
        images, outputs = _find_images(estimator, X), _outputs_of(estimator, target)
        squares = read_images(images, range(len(images)), backbone.recipe.read)
        # Evaluated without dropout, as in predict.
        head = copy.deepcopy(estimator.head_).eval()
        found = [
            _attribution(backbone, head, depth, square[None], outputs)
            for square in squares
        ]
        maps = np.stack([places for places, _ in found])
        pictures = [_picture(square) for square in squares]
        return cls(pictures, maps, [title for _, title in found]).plot()

    def plot(self, ax=None, *, cmap="magma", alpha=0.5):
        """Draw the pictures with their maps over them.

        Parameters
        ----------
        ax : sequence of matplotlib Axes, optional
            One for each picture.
        cmap : str or matplotlib Colormap, default="magma"
        alpha : float, default=0.5
            Opacity of the maps.

        Returns
        -------
        AttributionDisplay
        """
        self.figure_, self.ax_ = _grid(self, ax, len(self.pictures))
        drawn = zip(self.ax_, self.pictures, self.maps, self.titles, strict=True)
        for axes, picture, places, title in drawn:
            axes.imshow(picture)
            height, width = picture.shape[:2]
            axes.imshow(
                places,
                extent=(-0.5, width - 0.5, height - 0.5, -0.5),
                interpolation="bilinear",
                cmap=cmap,
                alpha=alpha,
                vmin=0,
                vmax=1,
            )
            axes.set_title(title, fontsize="small")
        return self


def _find_images(estimator, X) -> Images:
    """Read `X` as the estimator does; of a pipeline, as its first own step does."""
    for part in _parts(estimator):
        if hasattr(part, "image_shape"):
            value_range = getattr(part, "value_range_", None)
            samples = check_images(part, X, reset=False)
            return checked_images(samples, part.image_shape, value_range)
    return checked_images(check_images(PretrainedFeatureExtractor(), X, reset=True))


def _parts(estimator):
    """Give an estimator and its steps; of searches, the best estimators."""
    estimator = _best(estimator)
    yield estimator
    for _, step in getattr(estimator, "steps", []):
        yield from _parts(step)


def _best(estimator):
    """Give what a search has found best, or the estimator itself if it is none."""
    found = getattr(estimator, "best_estimator_", None)
    return estimator if found is None else _best(found)


def _tuned(estimator) -> BaseFineTune:
    best = _best(estimator)
    if isinstance(best, BaseFineTune):
        return best
    advice = "Accepted are FineTuneClassifier, FineTuneRegressor, and searches of one."
    if hasattr(best, "steps"):
        advice += (
            " Pass the last step of the pipeline, pipeline[-1], and the images as the "
            "steps before it give them, pipeline[:-1].transform(X)."
        )
    raise TypeError(f"The places are not known for a {type(best).__name__}. {advice}")


def _picture(square: torch.Tensor) -> np.ndarray:
    """Turn a square of pixels into a picture to draw."""
    if square.dtype != torch.uint8:
        square = (square.clamp(0, 1) * 255).round().to(torch.uint8)
    return square.permute(1, 2, 0).numpy()


def _last_with_places(backbone: Backbone) -> int:
    depths = [i + 1 for i, shape in enumerate(backbone.shapes) if _grid_side(shape)]
    return depths[-1] if depths else len(backbone.stages)


def _grid_side(shape) -> tuple[int, int] | None:
    """Height and width of the places of a stage's output, if it has any."""
    if len(shape) == 3:
        return shape[1:] if shape[1] * shape[2] > 1 else None
    side = int(shape[0] ** 0.5) if len(shape) == 2 else 0
    return (side, side) if side > 1 else None


def _outputs_of(estimator, target):
    """Number of the output to explain, or None for the strongest; and its names."""
    classes = getattr(estimator, "classes_", None)
    if target is None:
        return (None if classes is not None else 0), classes
    if classes is None:
        n_outputs = estimator.head_[-1].out_features
        if target not in range(n_outputs):
            raise ValueError(
                f"target={target!r} is none of the {n_outputs} outputs. Pass a number "
                "from 0, or None for the first."
            )
        return int(target), None
    (found,) = np.nonzero(np.asarray(classes) == target)
    if not len(found):
        raise ValueError(
            f"target={target!r} is none of the classes {classes[:10].tolist()}. Pass "
            "one of them, or None for the predicted class."
        )
    return int(found[0]), classes


def _attribution(backbone: Backbone, head, depth: int, square, outputs):
    """Map of one picture, (height, width) between 0 and 1, and its title."""
    target, names = outputs
    grid = _grid_side(backbone.shapes[depth - 1]) if depth else None
    if grid is None:
        shape = backbone.shapes[depth - 1] if depth else "none"
        raise ValueError(
            f"The output of stage {depth} of backbone {backbone.name!r} has no places "
            f"(its shape is {shape}). Choose one of the stages before: "
            f"{list(backbone.stage_names[: _last_with_places(backbone)])}."
        )
    with torch.no_grad():
        x = backbone.stages[:depth](backbone.recipe.normalise(square))
    # The clone is no inference tensor, and what an in-place stage may change.
    x = x.clone().requires_grad_(True)
    with torch.enable_grad():
        scores = head(backbone.stages[depth:](x.clone()))[0]
        target = int(scores.argmax()) if target is None else target
        (gradient,) = torch.autograd.grad(scores[target], x)
    places = _weighted(x.detach()[0], gradient[0], grid)
    title = "" if names is None else f"{names[target]}"
    return (places / places.max().clamp(min=1e-12)).numpy(), title


def _weighted(x, gradient, grid) -> torch.Tensor:
    if x.dim() == 2:
        # Tokens: those of the patches are the last ones.
        count = grid[0] * grid[1]
        x, gradient = (t[-count:].T.reshape(-1, *grid) for t in (x, gradient))
    weights = gradient.mean(dim=(1, 2), keepdim=True)
    return (weights * x).sum(dim=0).clamp(min=0)


def _grid(display, ax, count):
    """The figure and an ax for each picture: given ones, or new ones in a grid."""
    check_matplotlib_support(f"{type(display).__name__}.plot")
    import matplotlib.pyplot as plt

    if ax is not None:
        axes = np.ravel(ax)
        figure = axes[0].figure
    else:
        columns = count if count <= 4 else max(3, int(np.ceil(count**0.5)))
        n_rows = -(-count // columns)
        figure, axes = plt.subplots(
            n_rows,
            columns,
            squeeze=False,
            layout="constrained",
            figsize=(1.9 * columns, 2.2 * n_rows),
        )
        axes = axes.ravel()
    for axes_ in axes:
        axes_.set_axis_off()
    return figure, axes[:count]
