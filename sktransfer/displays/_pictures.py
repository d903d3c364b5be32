"""Display of the images with the highest losses of a classifier."""

import numpy as np
import torch
from sklearn.utils import check_consistent_length, get_tags
from sklearn.utils.validation import check_is_fitted

from sktransfer.displays._drawing import grid
from sktransfer.embedding._extractor import PretrainedFeatureExtractor
from sktransfer.embedding._reading import read_samples
from sktransfer.finetuning._parts import parts_of
from sktransfer.inputs._images import ImageReader
from sktransfer.inputs._reader import Samples
from sktransfer.inputs._validate import as_samples, check_samples, on_host

# What is drawn does not depend on the network's own, often smaller, input.
_THUMBNAIL = ImageReader.whole(160)


class TopLossesDisplay:
    """The misclassified images with the highest losses.

    The title of each image gives its row in the data, and its label and predicted class
    with their probabilities.

    Parameters
    ----------
    pictures : list of ndarray of shape (H, W, 3), uint8
        The images to show.
    rows : ndarray of shape (n_pictures,)
        The row of each image in the data.
    labels, predictions : ndarray of shape (n_pictures,)
        The label and the predicted class of each image.
    label_probabilities, predicted_probabilities : ndarray of shape (n_pictures,)
        The predicted probabilities of the label and of the predicted class.

    Attributes
    ----------
    losses : ndarray of shape (n_pictures,)
        The cross-entropy of each image, ``-log`` of the probability of its label.
    ax_ : ndarray of matplotlib Axes
        The axes of the images.
    figure_ : matplotlib Figure
        The figure that contains the axes.

    See Also
    --------
    AttributionDisplay : Where in an image the evidence for a class lies.
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
        # A probability may be zero, and the loss stays finite.
        tiny = np.finfo(float).tiny
        return -np.log(np.maximum(self.label_probabilities, tiny))

    @classmethod
    def from_estimator(cls, estimator, X, y, *, n_pictures=9):
        """Find the misclassified images with the highest losses and plot them.

        An image is misclassified if its most probable class is not its label. If fewer
        than `n_pictures` images are misclassified, only those are shown.

        Parameters
        ----------
        estimator : fitted classifier
            A classifier of images with ``predict_proba`` and ``classes_``, such as a
            `FineTuneClassifier`, or a pipeline or search that contains one.
        X : sequence of images, or array-like of shape (n_samples, n_pixels)
            The images to classify.
        y : array-like of shape (n_samples,)
            The labels of the images.
        n_pictures : int, default=9
            The maximum number of images to show.

        Returns
        -------
        TopLossesDisplay
            The display, already plotted.

        Raises
        ------
        ValueError
            If a label is not one of the classes of the classifier.
        TypeError
            If the estimator does not predict probabilities of classes.

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
                f"Invalid y of shape {y.shape}: expected one label for each image. "
                "Pass a single column of labels."
            )
        classes = np.asarray(estimator.classes_)
        unknown = np.setdiff1d(y, classes)
        if len(unknown):
            raise ValueError(
                f"y has labels {unknown[:5].tolist()} that are not among the classes "
                f"{classes[:10].tolist()} of the classifier, which cannot predict "
                "them. Leave out their images."
            )
        proba = on_host(estimator.predict_proba(X))
        own = proba[np.arange(len(y)), np.searchsorted(classes, y)]
        predictions = classes[proba.argmax(axis=1)]
        # NaN stands for images that cannot be read, and have no loss.
        wrong = np.flatnonzero((predictions != y) & ~np.isnan(own))
        # A stable sort keeps images of equal losses in the order of the data.
        rows = wrong[np.argsort(own[wrong], kind="stable")][:n_pictures]
        drafts = read_samples(find_images(estimator, X), rows, _THUMBNAIL.read)
        return cls(
            [image_array(draft) for draft in drafts],
            rows,
            y[rows],
            predictions[rows],
            own[rows],
            proba[rows].max(axis=1),
        ).plot()

    def plot(self, ax=None):
        """Draw the images with their labels and predicted classes.

        Parameters
        ----------
        ax : sequence of matplotlib Axes, optional
            The axes to draw on, one for each image. If None, a new figure is created.

        Returns
        -------
        TopLossesDisplay
            The display itself.
        """
        titles = self._titles()
        if titles:
            self.figure_, self.ax_ = grid(self, ax, titles)
        else:
            # An empty figure would leave open whether anything went wrong.
            said = ["No image is misclassified."]
            self.figure_, axes = grid(self, ax, said, height=0.1)
            self.ax_ = axes[:0]
        for each, image in zip(self.ax_, self.pictures, strict=True):
            each.imshow(image)
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
        # What has no classes_ may be a classifier that is not fitted yet.
        check_is_fitted(estimator)
        raise TypeError(
            f"{type(estimator).__name__} has no {missing[0]}, and the losses are "
            "computed from the probabilities of the labels. Pass a fitted classifier "
            "with predict_proba. Nothing was drawn. For a regressor, use "
            "sklearn.metrics.PredictionErrorDisplay."
        )


def find_images(estimator, X) -> Samples:
    """Return `X` as images, as the part of the estimator that reads images does."""
    for part in parts_of(estimator):
        if hasattr(part, "image_shape"):
            _refuse_no_images(part)
            value_range = getattr(part, "value_range_", None)
            checked = check_samples(part, X, reader=_THUMBNAIL, reset=False)
            return as_samples(_THUMBNAIL, checked, part.image_shape, value_range)
    # An estimator without such a part does not say how to read images: the defaults do.
    part = PretrainedFeatureExtractor()
    checked = check_samples(part, X, reader=_THUMBNAIL, reset=True)
    return as_samples(_THUMBNAIL, checked)


def _refuse_no_images(part) -> None:
    if not get_tags(part).input_tags.three_d_array:
        raise ValueError(
            f"Invalid estimator with backbone={part.backbone!r}: expected a model of "
            "images, since images are drawn, but its samples are of another kind. "
            "Nothing was drawn."
        )


def image_array(draft: torch.Tensor) -> np.ndarray:
    """Convert the draft of an image into an array to draw, (height, width, 3) uint8."""
    # Drafts of float images are in [0, 1], and resizing may leave that range a little.
    if draft.dtype != torch.uint8:
        draft = (draft.clamp(0, 1) * 255).round().to(torch.uint8)
    return draft.permute(1, 2, 0).numpy()
