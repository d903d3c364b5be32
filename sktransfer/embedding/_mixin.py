"""What the estimators share: a backbone as a parameter, and how it is shown."""

import copy
import html
from dataclasses import dataclass

from joblib import wrap_non_picklable_objects
from sklearn.frozen import FrozenEstimator

from sktransfer._tables import Table
from sktransfer.backbones._backbone import Backbone
from sktransfer.backbones._load import kind_of, load_backbone
from sktransfer.backbones._stages import registered_split, split_stages

_SPLITS = "_splits"
# The parameters of estimators that are passed on to `load_backbone`.
LOADING = (
    "backbone",
    "weights",
    "image_size",
    "max_length",
    "sampling_rate",
    "decoding",
)


class SourceMixin:
    """Clone and pickle what is given as ``backbone=``.

    A fitted estimator there is where the weights come from, as a file would be, and not
    a part to fit anew: a clone keeps it fitted. A pickled module takes along the
    function that the user registered for its type, which workers would not know.
    """

    _sources = ("backbone",)

    def _load_backbone(self, random_state) -> Backbone:
        given = {name: getattr(self, name) for name in LOADING}
        return load_backbone(**given, random_state=random_state)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        set_input_tags(tags.input_tags, kind_of(self.backbone))
        return tags

    def __sklearn_clone__(self):
        held = {
            name: source
            for name in self._sources
            if hasattr(source := getattr(self, name), "get_params")
        }
        frozen = copy.copy(self)
        for name, source in held.items():
            setattr(frozen, name, FrozenEstimator(source))
        cloned = super(SourceMixin, frozen).__sklearn_clone__()
        for name, source in held.items():
            setattr(cloned, name, source)
        return cloned

    def __getstate__(self):
        given = [getattr(self, name) for name in self._sources]
        kinds = dict.fromkeys(g if isinstance(g, type) else type(g) for g in given)
        # By value if it is from a script or notebook, which workers cannot import.
        splits = [
            (kind, wrap_non_picklable_objects(split, keep_wrapper=False))
            for kind in kinds
            if (split := registered_split(kind))
        ]
        state = super().__getstate__()
        return {**state, _SPLITS: splits} if splits else state

    def __setstate__(self, state):
        state = dict(state)
        for kind, split in state.pop(_SPLITS, ()):
            if registered_split(kind) is None:
                split_stages.register(kind, split)
        super().__setstate__(state)


def set_input_tags(tags, kind: str) -> None:
    """Declare what `X` may be for an estimator whose samples are of one kind."""
    tags.string = kind == "text"
    tags.three_d_array = kind == "image"
    # The rows of a table are flattened images or sounds of equal length.
    tags.two_d_array = kind != "text"


@dataclass
class Summary:
    """A summary of the network in a fitted estimator.

    Parameters
    ----------
    backbone : Backbone
        The backbone of the network.
    n_frozen : int
        The number of leading stages that were not trained.
    n_trained : int
        The number of trained parameters.
    n_used : int, optional
        The number of leading stages that are run. If None, all stages are run.
    n_features : int, optional
        The number of features of the embedding, if it differs from the backbone's.
    trained : str, default="trained"
        What is said of the stages that were not frozen.
    """

    backbone: Backbone
    n_frozen: int
    n_trained: int
    n_used: int | None = None
    n_features: int | None = None
    trained: str = "trained"

    def stages(self) -> Table:
        """Return the output shape, number of parameters and state of each stage."""
        backbone = self.backbone
        parts = zip(backbone.stage_names, backbone.shapes, backbone.stages, strict=True)
        return Table(
            {
                "stage": name,
                "output": " x ".join(map(str, shape)),
                "parameters": sum(p.numel() for p in stage.parameters()),
                "state": self._state(i),
            }
            for i, (name, shape, stage) in enumerate(parts)
        )

    def _state(self, i: int) -> str:
        if self.n_used is not None and i >= self.n_used:
            return "not used"
        return "frozen" if i < self.n_frozen else self.trained

    def sentence(self) -> str:
        total = self.backbone.n_parameters
        n_features = self.n_features or self.backbone.n_features
        # Where nothing was trained, as in an extractor, there is no head either.
        trained = f"{self.n_trained:,} trained with the head, " * bool(self.n_trained)
        return (
            f"{self.backbone.name}, {self.backbone.reader}: {total:,} parameters of "
            f"the backbone, {trained}embedding of {n_features:,} features."
        )


class StagesReprMixin:
    """Show the stages below scikit-learn's diagram of a fitted estimator.

    The estimator must implement ``_summary()``, which returns a `Summary`, or None if
    it is not fitted.
    """

    # scikit-learn has no public hook to extend its diagram. Jupyter calls
    # `_repr_mimebundle_`, others `_repr_html_`, which calls `_repr_html_inner`.
    def _repr_html_inner(self):
        return super()._repr_html_inner() + self._stages_html()

    def _repr_mimebundle_(self, **kwargs):
        bundle = super()._repr_mimebundle_(**kwargs)
        if "text/html" in bundle:
            bundle["text/html"] += self._stages_html()
        return bundle

    def _stages_html(self) -> str:
        summary = self._summary()
        if summary is None:
            return ""
        return (
            f"<details><summary>{html.escape(summary.sentence())}</summary>"
            f"{summary.stages()._repr_html_()}</details>"
        )
