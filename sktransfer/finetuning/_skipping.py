"""Samples that cannot be read, and are left out of a fit."""

import numpy as np

from sktransfer.embedding._prefix import Prefix
from sktransfer.embedding._reading import Refusals, sample_digests
from sktransfer.embedding._threads import run_lanes
from sktransfer.inputs._reader import Samples

# The number of samples that are looked up in the cache at the same time.
_WINDOW = 1024


def unreadable(samples: Samples, given, prefix: Prefix, cache) -> Refusals:
    """Find those samples at the given rows that cannot be read, before a fit.

    Each is decoded, except those whose outputs are in the cache: these were read once.
    """
    refusals = Refusals(samples, strict=False)
    finest = prefix.backbone.finest()
    known = [one.within(finest) for one in (prefix.whole(), prefix)]
    for first in range(0, len(given), _WINDOW):
        chunk = samples.take(given[first : first + _WINDOW])
        found = Refusals(chunk, strict=False)
        digests = sample_digests(chunk, found)
        rows = [row for row in range(len(chunk)) if row not in found.rows]
        for one in known if cache is not None else ():
            keys = dict(zip(rows, one.keys(digests[row] for row in rows), strict=True))
            stored = cache.get_many(keys.values())
            rows = [row for row in rows if keys[row] not in stored]
        run_lanes(rows, _reading(found), lambda *nothing: None)
        refusals.include(found.found(), given[first : first + _WINDOW])
    return refusals


def _reading(refusals: Refusals):
    def read(row):
        refusals.read(row, refusals.samples.reader.read)
        return ()

    return read


def left_out(refusals: Refusals, weights, targets, encoded, partial) -> np.ndarray:
    """Return the weights of the samples, with 0 for those that cannot be read.

    Parameters
    ----------
    refusals : Refusals
        The samples that cannot be read.
    weights : ndarray of shape (n_samples,)
        The weights of the samples.
    targets : Targets
        The targets of the fit.
    encoded : ndarray of shape (n_samples, n_columns)
        The encoded targets of the samples.
    partial : bool
        Whether other calls may contain the classes that these samples are not of.
    """
    if not refusals.rows:
        return weights
    kind, before = refusals.samples.reader.kind, weights > 0
    # A weight of 0 is equivalent to leaving a sample out, for targets and groups too.
    weights = weights.copy()
    weights[list(refusals.rows)] = 0
    if not weights.any():
        raise ValueError(
            f"None of the {int(before.sum())} {kind}s can be read, which leaves no "
            f"example to learn from: {refusals.listed()}"
        )
    lost = [] if partial else _lost(targets, encoded[before], encoded[weights > 0])
    if lost:
        raise ValueError(
            f"No {kind} of the classes {lost[:10]} can be read, which leaves none to "
            f"learn them from: {refusals.listed()} Repair these {kind}s, or leave the "
            "classes out of X and y."
        )
    refusals.warn_of_refused("they were left out of the fit with their targets")
    return weights


def _lost(targets, before, after) -> list:
    """Return the classes that are in the targets before, but not after."""
    counts = [targets.counts(encoded) for encoded in (before, after)]
    # Numbers have no classes.
    if not counts[0]:
        return []
    had, has = (count["class_count_"] for count in counts)
    return targets.classes[(had > 0) & (has == 0)].tolist()
