"""Predictions, also those for samples that cannot be read."""

import copy
from typing import NamedTuple

import numpy as np
import torch
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import check_is_fitted

from sktransfer.embedding._prefix import resolve_cache
from sktransfer.embedding._reading import Refusals, advising
from sktransfer.embedding._tensors import dispatches
from sktransfer.finetuning._examples import embed_tuned
from sktransfer.finetuning._targets import fitted_targets
from sktransfer.inputs._validate import as_samples, check_samples, on_host

# Float64 holds all integers below this.
_EXACT = 2**53


class _Use(NamedTuple):
    """What predictions are made for, and what that means for unreadable samples."""

    refusing: tuple  # the values of on_error for which they are an error
    advice: str
    outcome: str


# Also an error for "skip": estimators that calibrate, or choose a threshold, by the
# predictions for a fold would get NaN for all samples from a single NaN, unnoticed.
_RETURNED = _Use(
    ("raise", "skip"),
    "After fit, set_params(on_error='nan') predicts a missing value for it.",
    "their predictions are missing",
)
_SCORED = _Use(
    ("raise", "nan"),
    "on_error='skip' leaves it out of the score.",
    "they were left out of the score with their targets",
)


class Predictions:
    """What a fitted estimator predicts, and how good that is."""

    def _predictions(self, X, use=_RETURNED) -> tuple:
        """Return a prediction for every row, and the rows that cannot be read."""
        scores, unread = self._outputs(X, use)
        return fitted_targets(self).predictions(scores), unread

    def _score(self, metric, X, y, sample_weight) -> float:
        y, sample_weight = on_host(y), on_host(sample_weight)
        predictions, unread = self._predictions(on_host(X), _SCORED)
        if unread:
            there = np.setdiff1d(np.arange(len(predictions)), unread)
            if not len(there):
                raise ValueError(
                    f"None of the {len(unread)} samples can be read, which leaves "
                    "nothing to score. Repair them or pass others."
                )
            y, predictions = _safe_indexing(y, there), predictions[there]
            if sample_weight is not None:
                sample_weight = _safe_indexing(sample_weight, there)
        return metric(y, predictions, sample_weight=sample_weight)

    def _outputs(self, X, use=_RETURNED) -> tuple:
        """Return the outputs of the head, and the rows that cannot be read, all NaN.

        The outputs are float64 of shape (n_samples, n_outputs): an array or, with array
        API dispatch and a tensor `X`, a tensor on the device that computed them.
        """
        check_is_fitted(self)
        reader = self.backbone_.reader
        checked = check_samples(self, X, reader=reader, reset=False)
        samples = as_samples(reader, checked, self.image_shape, self.value_range_)
        whole = self._prefix(self.backbone_, len(self.backbone_.stages), "avg")
        cache = resolve_cache(self.cache)
        refusals = Refusals(samples, strict=self.on_error in use.refusing)
        on_device = dispatches(X)
        with advising(use.advice):
            embeddings = embed_tuned(
                refusals, whole, self.freeze_depth_, cache, on_device
            )
        refusals.warn_of_cut()
        refusals.warn_of_refused(use.outcome)
        # In float64, since float32 could round probabilities to a tie where the logits
        # differ, and let a row depend on the size of its batch.
        kind = torch.float32 if embeddings.device.type == "mps" else torch.float64
        head = copy.deepcopy(self.head_).to(embeddings.device, kind).eval()
        # Not in inference mode, whose tensors nobody could change in place.
        with torch.no_grad():
            outputs = head(embeddings.to(kind))
        return outputs if on_device else outputs.numpy(), sorted(refusals.rows)


def marked(predictions, rows: list[int]):
    """Return predictions with a missing value at these rows: NaN, or None.

    No class is a prediction that was not made, and metrics refuse both.
    """
    if not rows:
        return predictions
    if isinstance(predictions, torch.Tensor):
        if not predictions.is_floating_point():
            predictions = predictions.double()
        predictions[rows] = torch.nan
        return predictions
    kind, missing = predictions.dtype.kind, np.nan
    if kind in "iu" and np.abs(predictions.astype(np.float64)).max() < _EXACT:
        predictions = predictions.astype(np.float64)
    elif kind != "f":
        predictions, missing = predictions.astype(object), None
    predictions[rows] = missing
    return predictions
