"""The one function that runs images through a backbone, each of them once."""

import functools
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from joblib import Parallel, delayed, effective_n_jobs
from joblib.parallel import BACKENDS, get_active_backend
from tqdm.auto import tqdm

from sktransfer.embedding._cache import EmbeddingCache
from sktransfer.embedding._prefix import Pass
from sktransfer.embedding._threads import readers, run_lanes
from sktransfer.inputs._images import ACCEPTED, Images, digest

# Of joblib's backends, those whose workers are on this machine.
_BACKENDS_HERE = ("loky", "multiprocessing", "threading")
# Images that are looked up before the first of them is computed: of so many, the
# system still has the files in memory when they are read again, to be decoded.
_WINDOW = 2**14
# Images that a thread reads and hashes at a time.
_DIGESTS = 16


def embed(
    images: Images,
    way: Pass,
    *,
    cache: EmbeddingCache | None = None,
    digests: list[bytes] | None = None,
    taps: bool = False,
    n_jobs: int | None = None,
    on_error: str = "raise",
    verbose: int = 0,
) -> np.ndarray:
    """Run images through the leading stages of a backbone, each image once.

    Parameters
    ----------
    images : Images of length n
    way : Pass
    cache : EmbeddingCache or None
        Looked up before anything is decoded; gets what was not in it. A pass starts
        from the deepest stage that it knows of an image.
    digests : list of bytes, optional
        Of the images, where they are known already.
    taps : bool, default=False
        Also cache the outputs of all stages on the way, as far as they fit.
    n_jobs : int or None
        Number of joblib workers over which chunks of the images are spread; None
        stays in this process, whose threads decode and compute on all its cores.
    on_error : {"raise", "nan"}
        Whether an image that cannot be read is an error, or a row of NaN and one
        warning that lists the rows.
    verbose : int
        1 shows a progress bar on standard error.

    Returns
    -------
    ndarray of shape (n, *way.shape), float32
    """
    refusals = Refusals(images, strict=on_error == "raise")
    out = np.empty((len(images), *way.shape), dtype=np.float32)
    job = _Job(way, cache, digests or [], [], _tapped(way, cache, len(images), taps))
    firsts = {}
    with tqdm(
        total=len(images), desc=way.backbone.name, unit="image", disable=not verbose
    ) as progress:
        for start in range(0, len(images), _WINDOW):
            rows = range(start, min(start + _WINDOW, len(images)))
            job.identify(images, rows, refusals)
            todo = _fill_known(out, rows, job.keys, cache, firsts, refusals)
            progress.update(len(rows) - sum(map(len, todo.values())))

            def accept(done, values, exact, todo=todo):
                for row, value in zip(done, values, strict=True):
                    out[todo[row]] = value
                progress.update(sum(len(todo[row]) for row in done))

            job.run(images, list(todo), refusals, n_jobs, accept)
            refusals.spread(todo)
    refusals.report(out)
    return out


def _fill_known(out, rows, keys, cache, firsts, refusals) -> dict[int, list[int]]:
    """Fill the rows that are known; group the others by equal image.

    `firsts` knows the row of each image of the windows before, and gets these.
    """
    rows = [row for row in rows if row not in refusals.rows]
    if cache is None:
        return {row: [row] for row in rows}
    found = cache.get_many([keys[row] for row in rows])
    todo = {}
    for row in rows:
        known = found.get(keys[row])
        first = firsts.setdefault(keys[row], row)
        if known is not None and known.shape == out.shape[1:]:
            out[row] = known
        elif first < rows[0]:
            refusals.spread({first: [row]})
            out[row] = out[first]
        else:
            todo.setdefault(first, []).append(row)
    return todo


def _tapped(way: Pass, cache, n_images: int, taps: bool) -> list[int]:
    """Depths before the last whose outputs are kept: all of them, if they fit."""
    depths = list(range(1, way.depth))
    numbers = sum(np.prod(shape) for shape in way.backbone.shapes[: way.depth])
    fit = cache is not None and 4 * n_images * numbers <= cache.max_bytes / 2
    return depths if taps and fit else []


@dataclass
class _Job:
    """The computation of what the cache does not have."""

    way: Pass
    cache: EmbeddingCache | None
    digests: list[bytes]
    keys: list[bytes]
    taps: list[int]

    def identify(self, images, rows: range, refusals) -> None:
        """Find digests and keys of the next rows, for the cache."""
        if self.cache is not None:
            if len(self.digests) < rows.stop:
                self.digests += image_digests(images, refusals, rows)
            self.keys += self.way.keys(self.digests[rows.start : rows.stop])

    def run(self, images, rows, refusals, n_jobs, accept) -> None:
        size = self.way.size
        batches = [rows[i : i + size] for i in range(0, len(rows), size)]
        writer = Writer(self.cache)

        def store(batch, found, exact):
            for depth, depth_values in found.items() if writer.keeps(exact) else ():
                writer.add(self._keys(batch, depth), depth_values)
            accept(batch, found[self.way.depth].numpy(), exact)

        try:
            if spreads(n_jobs, self.way.device) and len(batches) > 1:
                _spread(batches, images, self.way, n_jobs, refusals, store)
            else:
                with readers(self.way.device) as each:
                    work = functools.partial(self._batch, images, refusals, each)
                    run_lanes(batches, work, store, self.way.device)
        finally:
            writer.flush()

    def _keys(self, rows, depth) -> list[bytes]:
        if depth == self.way.depth:
            return [self.keys[row] for row in rows]
        return self.way.at(depth).keys(self.digests[row] for row in rows)

    def _batch(self, images, refusals, each, rows):
        """Rows and results of a batch, each image from where it is known."""
        for start, group, inputs in self._starts(images, refusals, each, rows):
            keep = dict.fromkeys((d for d in self.taps if d > start), "none")
            way, found = self.way.run_fitting(inputs, start, keep)
            yield group, found, way is self.way

    def _starts(self, images, refusals, each, rows):
        """Group a batch by the deepest stage that the cache has of an image."""
        for depth in range(self.way.depth - 1, 0, -1) if self.cache else ():
            keys = dict(zip(rows, self._keys(rows, depth), strict=True))
            found = self.cache.get_many(list(keys.values()))
            group = [row for row in rows if keys[row] in found]
            if group:
                stacked = np.stack([found[keys[row]] for row in group])
                yield depth, group, torch.from_numpy(stacked)
                rows = [row for row in rows if keys[row] not in found]
        read = each(lambda row: refusals.read(row, self.way.read), rows)
        squares = {row: x for row, x in zip(rows, read, strict=True) if x is not None}
        if squares:
            yield 0, list(squares), stack_squares(squares.values())


def read_images(images: Images, rows, read) -> list:
    """Read the images at some rows, source -> result, in threads."""
    refusals, found = Refusals(images, strict=True), {}
    run_lanes(
        list(rows),
        lambda row: [(row, refusals.read(row, read))],
        found.__setitem__,
    )
    return [found[row] for row in rows]


def stack_squares(squares) -> torch.Tensor:
    """Stack squares of pixels; scaled to float32 if any of them is float."""
    squares = list(squares)
    if any(square.dtype != torch.uint8 for square in squares):
        squares = [
            square.float().div_(255) if square.dtype == torch.uint8 else square
            for square in squares
        ]
    return torch.stack(squares)


def run_on(
    rows: torch.Tensor,
    way: Pass,
    start: int = 0,
    *,
    cache: EmbeddingCache | None = None,
    digests: list[bytes] | None = None,
) -> torch.Tensor:
    """Run rows that are outputs of the stage before `start` (0: squares of pixels).

    With the digests of their images, a cache is looked up first, and gets the others.
    """
    keys = None if cache is None else way.keys(digests)
    known = cache.get_many(keys) if keys else {}
    out = np.empty((len(rows), *way.shape), dtype=np.float32)
    todo = []
    for row in range(len(rows)):
        if keys and keys[row] in known:
            out[row] = known[keys[row]]
        else:
            todo.append(row)
    writer = Writer(cache)

    def work(batch):
        used, found = way.run_fitting(rows[batch], start)
        yield batch, found[way.depth], used is way

    def accept(batch, values, exact):
        out[batch] = values.numpy()
        if writer.keeps(exact):
            writer.add([keys[row] for row in batch], values)

    batches = [todo[i : i + way.size] for i in range(0, len(todo), way.size)]
    run_lanes(batches, work, accept, way.device)
    writer.flush()
    return torch.from_numpy(out)


class UnreadableImageError(ValueError):
    """An image cannot be read: the message names row and file."""


class Refusals:
    """The images that could not be read, and what that means to the caller."""

    def __init__(self, images: Images, strict: bool):
        self.images = images
        self.strict = strict
        # Row -> why.
        self.rows: dict[int, str] = {}

    def read(self, row: int, step):
        """Do a step with an image's source; None if the image is refused."""
        if row in self.rows:
            return None
        try:
            return step(self.images[row])
        except Exception as error:
            reason = str(error) or type(error).__name__
            if not self.strict:
                self.rows[row] = reason
                return None
            raise UnreadableImageError(
                f"Cannot read the image in {self.images.describe(row)}: {reason}. "
                f"{ACCEPTED} Nothing was returned. Repair that image or leave it out; "
                "PretrainedFeatureExtractor(on_error='nan') gives a row of NaN for it."
            ) from error

    def spread(self, equal: dict[int, list[int]]) -> None:
        """Refuse the rows whose image is that of a refused one."""
        for row, others in equal.items():
            if row in self.rows:
                self.rows.update(dict.fromkeys(others, self.rows[row]))

    def report(self, out: np.ndarray) -> None:
        if not self.rows:
            return
        rows = sorted(self.rows)
        out[rows] = np.nan
        listed = "; ".join(
            f"{self.images.describe(row)}: {self.rows[row]}" for row in rows[:5]
        )
        more = f"; and {len(rows) - 5} more" if len(rows) > 5 else ""
        warnings.warn(
            f"{len(rows)} of {len(out)} images cannot be read, and their rows are NaN: "
            f"rows {rows[:20]}{'...' if len(rows) > 20 else ''}. {listed}{more}.",
            UserWarning,
            stacklevel=2,
        )


def image_digests(
    images: Images, refusals: Refusals | None = None, rows: range | None = None
) -> list[bytes]:
    """Digest of each image, in threads (reading and hashing release the GIL)."""
    refusals = refusals or Refusals(images, strict=True)
    rows = rows or range(len(images))

    def some(first):
        chunk = rows[first : first + _DIGESTS]
        return [refusals.read(row, digest) or b"" for row in chunk]

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return sum(pool.map(some, range(0, len(rows), _DIGESTS)), [])


def spreads(n_jobs: int | None, device: str) -> bool:
    """Whether joblib's workers compute, and not the threads of this process.

    The processes of one machine would take turns on its GPU, each with a network and a
    context of its own there, while one process keeps it busy.
    """
    if effective_n_jobs(n_jobs) == 1:
        return False
    engine, _ = get_active_backend()
    here = type(engine) in [BACKENDS.get(name) for name in _BACKENDS_HERE]
    return torch.device(device).type == "cpu" or not here


def _spread(batches, images, way, n_jobs, refusals, accept) -> None:
    """Run chunks of whole batches on joblib's workers."""
    workers = effective_n_jobs(n_jobs)
    size = max(1, -(-len(batches) // (4 * workers)))
    chunks = [sum(batches[i : i + size], []) for i in range(0, len(batches), size)]
    engine, _ = get_active_backend()
    one_by_one = getattr(engine, "supports_return_generator", False)
    results = Parallel(n_jobs=n_jobs, return_as="generator" if one_by_one else "list")(
        delayed(_chunk)(images.take(chunk), way, refusals.strict) for chunk in chunks
    )
    for chunk, (done, values, exact, refused) in zip(chunks, results, strict=True):
        refusals.rows.update({chunk[row]: text for row, text in refused.items()})
        accept([chunk[row] for row in done], {way.depth: values}, exact)


def _chunk(images, way, strict):
    """Compute a chunk in a worker, where its rows are numbered from 0."""
    refusals, done, values, exact = Refusals(images, strict), [], [], []

    def accept(rows, rows_values, rows_exact):
        done.extend(rows)
        values.extend(rows_values)
        exact.append(rows_exact)

    job = _Job(way, None, [], [], [])
    job.run(images, list(range(len(images))), refusals, None, accept)
    return done, torch.from_numpy(np.array(values)), all(exact), refusals.rows


class Writer:
    """Gathers rows, so that a store on disk gets few files rather than many."""

    _BYTES = 2**23

    def __init__(self, cache: EmbeddingCache | None):
        self._cache = cache
        self._rows: dict[bytes, np.ndarray] = {}
        self._bytes = 0

    def keeps(self, exact: bool) -> bool:
        """Whether rows are kept: not those of smaller batches than their keys tell."""
        # They may differ in the last bit.
        return exact and self._cache is not None

    def add(self, keys: Iterable[bytes], values: torch.Tensor) -> None:
        for key, value in zip(keys, values.numpy(), strict=True):
            self._rows[key] = value
            self._bytes += value.nbytes
        if self._bytes >= self._BYTES:
            self.flush()

    def flush(self) -> None:
        if self._rows:
            self._cache.put_many(self._rows)
            self._rows, self._bytes = {}, 0
