"""Display of the pictures that a classifier gets most wrong."""

import numpy as np
import torch
from sklearn.utils import check_consistent_length
from sklearn.utils.validation import check_is_fitted

from sktransfer.displays._drawing import grid
from sktransfer.embedding._extractor import PretrainedFeatureExtractor
from sktransfer.embedding._reading import read_samples
from sktransfer.finetuning._parts import parts_of
from sktransfer.inputs._images import ImageReader
from sktransfer.inputs._reader import Samples
from sktransfer.inputs._validate import as_samples, check_samples

_THUMBNAIL = ImageReader.whole(160)


class TopLossesDisplay:
    """The pictures that a classifier gets most wrong.

    Above each stand its row in the data, its label and what was predicted, with their
    probabilities.

    Parameters
    ----------
    pictures : list of ndarray of shape (H, W, 3), uint8
        The pictures to show.
    rows : ndarray of shape (n_pictures,)
        Where in the data they are.
    labels, predictions : ndarray of shape (n_pictures,)
        The label and the predicted class of each.
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
        """Find the misclassified pictures of the highest losses, and plot them.

        A picture is misclassified if another class than its label is the most probable.
        Where fewer are than asked for, there are fewer pictures.

        Parameters
        ----------
        estimator : fitted classifier
            With ``predict_proba`` and ``classes_``: a `FineTuneClassifier`, or a
            pipeline or search from images to labels.
        X : sequence of images, or array-like of shape (n_samples, n_pixels)
            The images to look among.
        y : array-like of shape (n_samples,)
            Their labels.
        n_pictures : int, default=9
            How many to show at most.

        Returns
        -------
        TopLossesDisplay

        Raises
        ------
        ValueError
            If a label is none of the classifier's classes.
        TypeError
            If the estimator gives no probabilities of classes.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from sktransfer import FineTuneClassifier, TopLossesDisplay
        >>> X, y = load_digits(n_class=3, return_X_y=True)
        >>> model = FineTuneClassifier(freeze="all", random_state=0)
        >>> model = model.fit(X[:6], y[:6])
        >>> display = TopLossesDisplay.from_estimator(model, X[60:], y[60:])
        >>> len(display.pictures)
        9
        """
        _refuse_no_classifier(estimator)
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
        predictions = classes[proba.argmax(axis=1)]
        wrong = np.flatnonzero(predictions != y)
        rows = wrong[np.argsort(own[wrong], kind="stable")][:n_pictures]
        squares = read_samples(find_images(estimator, X), rows, _THUMBNAIL.read)
        return cls(
            [picture_of(square) for square in squares],
            rows,
            y[rows],
            predictions[rows],
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
            This display.
        """
        titles = self._titles()
        if titles:
            self.figure_, self.ax_ = grid(self, ax, titles)
        else:
            said = ["No picture is misclassified."]
            self.figure_, axes = grid(self, ax, said, height=0.1)
            self.ax_ = axes[:0]
        for each, picture in zip(self.ax_, self.pictures, strict=True):
            each.imshow(picture)
        return self

    def _titles(self) -> list[str]:
        rows = zip(
            self.rows,
            self.labels,
            self.label_probabilities,
            self.predictions,
            self.predicted_probabilities,
            strict=True,
        )
        return [
            f"row {row}: {'right' if label == predicted else 'wrong'}\n"
            f"label ({own:.2f}): {label}\n"
            f"predicted ({best:.2f}): {predicted}"
            for row, label, own, predicted, best in rows
        ]


def _refuse_no_classifier(estimator) -> None:
    needed = ("classes_", "predict_proba")
    missing = [name for name in needed if not hasattr(estimator, name)]
    if missing:
        check_is_fitted(estimator)
        raise TypeError(
            f"{type(estimator).__name__} has no {missing[0]}, and the losses are those "
            "of a label's probability. Accepted is a fitted classifier with "
            "predict_proba. Nothing was drawn. For a regressor, use "
            "sklearn.metrics.PredictionErrorDisplay."
        )


def find_images(estimator, X) -> Samples:
    """Read `X` as the first part of the estimator does that reads images."""
    for part in parts_of(estimator):
        if hasattr(part, "image_shape"):
            value_range = getattr(part, "value_range_", None)
            checked = check_samples(part, X, reader=_THUMBNAIL, reset=False)
            return as_samples(_THUMBNAIL, checked, part.image_shape, value_range)
    part = PretrainedFeatureExtractor()
    checked = check_samples(part, X, reader=_THUMBNAIL, reset=True)
    return as_samples(_THUMBNAIL, checked)


def picture_of(square: torch.Tensor) -> np.ndarray:
    """Turn a square of pixels into a picture to draw."""
    if square.dtype != torch.uint8:
        square = (square.clamp(0, 1) * 255).round().to(torch.uint8)
    return square.permute(1, 2, 0).numpy()
