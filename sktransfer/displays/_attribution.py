"""Display of where in an image the evidence for a class lies."""

import copy
import functools
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

import numpy as np
import torch
from sklearn.base import is_regressor
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from sktransfer.backbones._backbone import Backbone
from sktransfer.displays._drawing import grid
from sktransfer.displays._pictures import find_images, image_array
from sktransfer.embedding._reading import read_samples
from sktransfer.finetuning._base import BaseFineTune
from sktransfer.finetuning._parts import ends_of

# The weights of red, green and blue in perceived brightness, after ITU-R BT.601.
_LUMA = np.array([0.299, 0.587, 0.114])


class AttributionDisplay:
    """Where in an image the evidence for a class lies, by Grad-CAM.

    The channels of a stage's output are summed, each weighted by the mean gradient of
    the class score with respect to it, and negative values are set to zero [1]_. For a
    stage of a transformer, the tokens of the patches are arranged in their grid.

    Each image is drawn as it is and, beside it, in grey with its map in colour. The
    colours are more opaque where there is more evidence, relative to the strongest in
    the same image. The title of the pair is the class with its probability.

    Parameters
    ----------
    pictures : list of ndarray of shape (crop, crop, 3), uint8
        The images as the network sees them.
    maps : ndarray of shape (n_pictures, height, width)
        The map of each image. Its values range from 0, which is no evidence, to 1,
        which is the strongest evidence in the image.
    titles : list of str
        The title of each image.

    Attributes
    ----------
    ax_ : ndarray of matplotlib Axes
        The axes of the pairs.
    figure_ : matplotlib Figure
        The figure that contains the axes.

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
        """Compute the maps of a few images and plot them.

        Parameters
        ----------
        estimator : fitted FineTuneClassifier, FineTuneRegressor or search
            The estimator to explain. The best estimator of a search must be one of the
            other two.
        X : sequence of images, or array-like of shape (n_samples, n_pixels)
            The images to explain, all of which are drawn.
        stage : int or str, optional
            The stage whose output is explained. If None, it is the last stage with a
            spatial output.
        target : label, or int for a regressor, optional
            The class, or the index of the output, whose evidence is shown. If None, it
            is the predicted class, or the first output.

        Returns
        -------
        AttributionDisplay
            The display, already plotted.

        Raises
        ------
        ValueError
            If the output of the stage is not spatial, or the target is unknown.
        TypeError
            If the estimator is of another kind.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from sktransfer import AttributionDisplay, FineTuneClassifier
        >>> X, y = load_digits(n_class=3, return_X_y=True)
        >>> model = FineTuneClassifier(freeze="all", random_state=0)
        >>> model = model.fit(X[:60], y[:60])
        >>> display = AttributionDisplay.from_estimator(model, X[60:64], stage="layer3")
        >>> display.maps.shape
        (4, 4, 4)
        """
        check_is_fitted(estimator)
        estimator = _tuned(estimator)
        backbone = estimator.backbone_.cut(stage)
        images, outputs = find_images(estimator, X), _outputs_of(estimator, target)
        depth = _depth(backbone, stage)
        inputs = read_samples(images, range(len(images)), backbone.reader.read)
        # As in predict, dropout is off. The head of the estimator stays as it is.
        head = copy.deepcopy(estimator.head_).eval()
        found = [
            _attribution(backbone, head, depth, one[None], outputs) for one in inputs
        ]
        maps = np.stack([places for places, _ in found])
        pictures = [image_array(one) for one in inputs]
        return cls(pictures, maps, [title for _, title in found]).plot()

    def plot(self, ax=None, *, cmap="viridis", alpha=0.7, colorbar=True):
        """Draw each image and, beside it, a grey version with its map on top.

        Parameters
        ----------
        ax : sequence of matplotlib Axes, optional
            The axes to draw on, one for each image. If None, a new figure is created.
        cmap : str or matplotlib Colormap, default="viridis"
            The colormap of the maps.
        alpha : float, default=0.7
            The opacity of the maps where the evidence is strongest. Where there is no
            evidence, they are transparent.
        colorbar : bool, default=True
            Whether to draw a colorbar.

        Returns
        -------
        AttributionDisplay
            The display itself.
        """
        below = 0.6 if colorbar else 0.0
        self.figure_, self.ax_ = grid(
            self, ax, self.titles, width=3.3, height=1.6, below=below
        )
        colours = _fading(cmap, alpha)
        drawn = zip(self.ax_, self.pictures, self.maps, strict=True)
        overlays = [_pair(*each, colours) for each in drawn]
        if colorbar:
            _explain(self.figure_, overlays[-1], self.ax_)
        return self


def _pair(axes, image, places, colours):
    """Draw an image and, beside it, a grey version with its map on top."""
    height, width = image.shape[:2]
    # Both are drawn in the same axes, with a narrow gap between them.
    right = 1.03 * width
    beside = {"extent": (right, right + width, height, 0)}
    axes.imshow(image, extent=(0, width, height, 0))
    axes.imshow(image @ _LUMA, cmap="gray", vmin=0, vmax=255, **beside)
    overlay = axes.imshow(
        places, cmap=colours, vmin=0, vmax=1, interpolation="bilinear", **beside
    )
    # The gap to the next pair is wider than that within a pair.
    axes.set(xlim=(0, 1.1 * width + right), ylim=(height, 0))
    return overlay


def _explain(figure, overlay, axes) -> None:
    """Draw the colorbar below the maps, on grey since the maps are on grey images."""
    place = {"location": "bottom", "shrink": 0.6, "aspect": 30, "pad": 0.02}
    bar = figure.colorbar(overlay, ax=list(axes), ticks=[0, 1], **place)
    bar.ax.set_facecolor("grey")
    bar.ax.set_xticklabels(["none", "strongest"], fontsize="small")
    bar.set_label("evidence", fontsize="small", labelpad=-8)


def _fading(cmap, alpha):
    """Make a colormap whose colours are more opaque the higher they are."""
    from matplotlib import colormaps
    from matplotlib.colors import Colormap, ListedColormap

    strength = np.linspace(0, 1, 256)
    colours = (cmap if isinstance(cmap, Colormap) else colormaps[cmap])(strength)
    colours[:, 3] = alpha * strength
    return ListedColormap(colours)


def _tuned(estimator) -> BaseFineTune:
    """Return the fine-tuned network that an estimator is, or has found."""
    *around, last = ends_of(estimator)
    pipelines = [end for end in around if isinstance(end, Pipeline)]
    if isinstance(last, BaseFineTune) and not pipelines:
        return last
    # Steps before the network may change the images, so that the maps would not fit the
    # images that were passed.
    what, advice = type(last).__name__, ""
    if pipelines:
        what, advice = _of_pipeline(pipelines[0], last)
    raise TypeError(
        "Expected a fitted FineTuneClassifier, FineTuneRegressor or search over one, "
        f"got a {what}. Nothing was drawn.{advice}"
    )


def _of_pipeline(pipeline, last) -> tuple[str, str]:
    """Return how an error names a pipeline, and its advice how to get maps."""
    if isinstance(last, BaseFineTune):
        return "Pipeline", (
            " Pass the last step of the pipeline, pipeline[-1], and the images as the "
            "steps before it give them, pipeline[:-1].transform(X)."
        )
    ours = "FineTuneRegressor" if is_regressor(pipeline) else "FineTuneClassifier"
    return f"Pipeline that ends in a {type(last).__name__}", (
        f' {ours}(freeze="all"), a linear probe too, has maps. Fit it with the same '
        "backbone and weights, and pass it instead."
    )


def _depth(backbone: Backbone, stage) -> int:
    last = _last_with_places(backbone)
    try:
        return last if stage is None else backbone.depth(stage)
    except ValueError as error:
        names = list(backbone.stage_names[:last])
        raise ValueError(f"{error} Of these, {names} have spatial outputs.") from error


def _last_with_places(backbone: Backbone) -> int:
    """Return the number of stages up to the last one with a spatial output."""
    depths = [i + 1 for i, shape in enumerate(backbone.shapes) if _grid_side(shape)]
    return depths[-1] if depths else len(backbone.stages)


def _grid_side(shape) -> tuple[int, int] | None:
    """Return the height and width of a stage's output, or None if it is not spatial."""
    if len(shape) == 3:
        return shape[1:] if shape[1] * shape[2] > 1 else None
    # The square grid of patches of a transformer. The root is rounded down, since there
    # may be class tokens beside the patches.
    side = int(shape[0] ** 0.5) if len(shape) == 2 else 0
    return (side, side) if side > 1 else None


@dataclass
class _Outputs:
    """Which output of a network is explained, or None for the highest, and its name."""

    number: int | None
    names: np.ndarray | None = None
    to_probabilities: Callable | None = None

    def title(self, scores, number) -> str:
        if self.names is None:
            return ""
        probability = self.to_probabilities(scores)[number].item()
        return f"{self.names[number]} ({probability:.2f})"


def _outputs_of(estimator, target) -> _Outputs:
    classes = getattr(estimator, "classes_", None)
    if classes is None:
        count = estimator.head_[-1].out_features
        number = 0 if target is None else _place_of(target, range(count), "first one")
        return _Outputs(number)
    usual = "predicted class"
    number = None if target is None else _place_of(target, classes.tolist(), usual)
    softmax = functools.partial(torch.softmax, dim=0)
    return _Outputs(
        number, classes, torch.sigmoid if estimator.multilabel_ else softmax
    )


def _place_of(target, accepted, usual) -> int:
    """Return the index of the output that `target` stands for."""
    accepted = list(accepted)
    # Comparing an array to each label would give an array, which is neither true nor
    # false.
    single = isinstance(target, str | Real | np.generic)
    if single and target in accepted:
        return accepted.index(target)
    got = "not known" if single else f"of type {type(target).__name__}"
    raise ValueError(
        f"Invalid target={reprlib.repr(target)}, which is {got}: expected one of "
        f"{reprlib.repr(accepted)}, or None for the {usual}. Nothing was drawn. Pass "
        f"{'one' if single else 'a single one'} of them."
    )


def _attribution(backbone: Backbone, head, depth: int, draft, outputs: _Outputs):
    """Return the map of one image, (height, width) between 0 and 1, and its title."""
    sides = _grid_side(backbone.shapes[depth - 1]) if depth else None
    if sides is None:
        shape = backbone.shapes[depth - 1] if depth else "none"
        raise ValueError(
            f"The output of stage {depth} of backbone {backbone.name!r} is not spatial "
            f"(its shape is {shape}). Choose one of the earlier stages: "
            f"{list(backbone.stage_names[: _last_with_places(backbone)])}."
        )
    with torch.no_grad():
        x = backbone.stages[:depth](backbone.reader.normalise(draft))
    # The first clone is never an inference tensor, which could not require gradients.
    # The second one is for stages that work in place: x itself is needed below.
    x = x.clone().requires_grad_(True)
    with torch.enable_grad():
        scores = head(backbone.stages[depth:](x.clone()))[0]
        number = int(scores.argmax()) if outputs.number is None else outputs.number
        (gradient,) = torch.autograd.grad(scores[number], x)
    places = _weighted(x.detach()[0], gradient[0], sides)
    title = outputs.title(scores.detach(), number)
    # Without it, a map that is zero everywhere would look like a missing one.
    if not places.any():
        title += "\nno evidence for it at any place"
    # The lower bound avoids 0 / 0 in such a map.
    return (places / places.max().clamp(min=1e-12)).numpy(), title.strip()


def _weighted(x, gradient, sides) -> torch.Tensor:
    """Return the positive part of the sum of the channels, weighted by gradients."""
    if x.dim() == 2:
        # The class and register tokens of a transformer precede those of the patches.
        count = sides[0] * sides[1]
        x, gradient = (t[-count:].T.reshape(-1, *sides) for t in (x, gradient))
    weights = gradient.mean(dim=(1, 2), keepdim=True)
    return (weights * x).sum(dim=0).clamp(min=0)
