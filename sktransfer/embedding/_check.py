"""check_images: which images cannot be read, and why."""

from tqdm.auto import tqdm

from sktransfer._tables import Table
from sktransfer.embedding._reading import Refusals
from sktransfer.embedding._threads import run_lanes
from sktransfer.inputs._decoding import decode
from sktransfer.inputs._images import ImageReader
from sktransfer.inputs._reader import Samples


def check_images(X, *, verbose=0):
    """Decode all images and return a table of those that cannot be read.

    This finds out before a long computation which files are broken. Images are decoded
    in threads and not kept.

    Parameters
    ----------
    X : sequence of images
        The images, in any form that estimators accept except a table of numbers.
    verbose : int, default=0
        Controls the verbosity: 1 shows a progress bar on standard error.

    Returns
    -------
    list of dict
        A list of rows that is printed as a table, and that ``pandas.DataFrame``
        converts to a data frame. Each row stands for one image that cannot be read,
        with its number as ``row``, its path as ``file`` (None if it has none) and the
        ``reason``. If all images can be read, the list is empty.

    See Also
    --------
    list_images : Lists the images in a folder.

    Examples
    --------
    >>> import numpy as np
    >>> from sktransfer.datasets import check_images
    >>> X = [np.zeros((8, 8), np.uint8), "gone.png", b"", np.ones((8, 8), np.uint8)]
    >>> bad = check_images(X)
    >>> [(row["row"], row["file"], row["reason"][:25]) for row in bad]
    [(1, 'gone.png', 'No such file or directory'), (2, None, 'it is empty (0 bytes)')]

    Without those images:

    >>> bad_rows = [row["row"] for row in bad]
    >>> len(np.delete(np.array(X, dtype=object), bad_rows, axis=0))
    2
    """
    reader = ImageReader()
    given = reader.samples(X)
    if given is None:
        raise ValueError(
            "Invalid X: expected a list of images, but it is a table of numbers, of "
            "which nothing has to be decoded. Nothing was read."
        )
    samples = Samples(given, reader)
    refusals = Refusals(samples, strict=False)
    with tqdm(
        total=len(samples), desc="check_images", unit="image", disable=not verbose
    ) as progress:

        def work(row):
            refusals.read(row, decode)
            yield (1,)

        run_lanes(range(len(samples)), work, progress.update)
        progress.set_postfix(unreadable=len(refusals.rows))
    return Table(
        {"row": row, "file": samples.file(row), "reason": refusals.rows[row]}
        for row in sorted(refusals.rows)
    )
