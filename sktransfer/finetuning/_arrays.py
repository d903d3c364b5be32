"""Functions of scores that are arrays or, for predictions on a device, tensors."""

import numpy as np
import torch
from scipy import special


def softmax(scores):
    """Return the softmax of each row."""
    if isinstance(scores, torch.Tensor):
        return scores.softmax(1)
    return special.softmax(scores, axis=1)


def expit(scores):
    """Return the logistic function of each score."""
    if isinstance(scores, torch.Tensor):
        return scores.sigmoid()
    return special.expit(scores)


def log_softmax(scores):
    """Return the logarithm of the softmax of each row, also where that is 0."""
    if isinstance(scores, torch.Tensor):
        return scores.log_softmax(1)
    return special.log_softmax(scores, axis=1)


def log_expit(scores):
    """Return the logarithm of the logistic function, also where that is 0."""
    if isinstance(scores, torch.Tensor):
        return torch.nn.functional.logsigmoid(scores)
    return -np.logaddexp(0, -scores)


def positive(scores):
    """Return 1 where a score is positive, and 0 elsewhere."""
    if isinstance(scores, torch.Tensor):
        return (scores > 0).long()
    return (scores > 0).astype(np.int64)


def matching(values: np.ndarray, scores):
    """Return values as numbers of the kind of the scores: dtype, device and all."""
    if isinstance(scores, torch.Tensor):
        return torch.as_tensor(values, dtype=scores.dtype, device=scores.device)
    return values


def taken(values: np.ndarray, codes):
    """Return the values at some indices; strings are an array in any case."""
    if not isinstance(codes, torch.Tensor):
        return values[codes]
    if values.dtype.kind in "biuf":
        return torch.as_tensor(values, device=codes.device)[codes]
    return values[codes.cpu().numpy()]
