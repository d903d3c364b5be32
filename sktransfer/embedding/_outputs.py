"""Outputs of prefixes: rows on the host or on a device, filled in any order."""

from collections.abc import Iterable

import numpy as np
import torch

from sktransfer.inputs._reader import pad_outputs


class Output:
    """The rows of one output, which batches and a cache fill in any order.

    Parameters
    ----------
    shape : tuple of int
        The shape of a row.
    n_rows : int
        The number of rows.
    varies : bool
        Whether rows that are not flat differ in their first dimension.
    device : str or None
        The device of the rows, which must be flat; None for arrays on the host.
    """

    def __init__(self, shape, n_rows: int, varies: bool, device: str | None = None):
        self.shape = tuple(shape)
        # Filled with NaN, so that a row that is forgotten would be noticed.
        if varies and len(shape) > 1:
            self._rows = [None] * n_rows
        elif device is None:
            self._rows = np.full((n_rows, *shape), np.nan, dtype=np.float32)
        else:
            # Not an inference tensor, which nobody could change in place.
            self._rows = torch.full((n_rows, *shape), torch.nan, device=device)

    def fits(self, value: np.ndarray) -> bool:
        """Whether a row from a cache has the required shape."""
        return isinstance(self._rows, list) or value.shape == self.shape

    def fill(self, places: Iterable[int], numbers: Iterable[int], values) -> None:
        """Fill each place with the value of the number that belongs to it."""
        if not isinstance(self._rows, torch.Tensor):
            for place, number in zip(places, numbers, strict=True):
                self._rows[place] = values[number]
        elif len(values):
            # All values at once, as each copy to a device takes as long as thousands.
            if not isinstance(values, torch.Tensor):
                values = torch.from_numpy(np.stack(values))
            chosen = values.to(self._rows.device)[list(numbers)]
            self._rows[list(places)] = chosen

    def repeat(self, place: int, other: int) -> None:
        """Fill another place with what is in a place."""
        self._rows[other] = self._rows[place]

    def gathered(self) -> np.ndarray | torch.Tensor:
        """Return all rows, padded with NaN where they differ in length."""
        if not isinstance(self._rows, list):
            return self._rows
        # A sample that was refused has no row, and becomes a single position of NaN.
        nothing = np.full((1, *self.shape[1:]), np.nan, dtype=np.float32)
        rows = [nothing if row is None else row for row in self._rows]
        return pad_outputs([torch.from_numpy(np.array(row)) for row in rows]).numpy()
