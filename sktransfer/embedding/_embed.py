"""The one function that runs samples through backbones, each of them once."""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from joblib import Parallel, delayed, effective_n_jobs
from joblib.parallel import BACKENDS, get_active_backend
from tqdm.auto import tqdm

from sktransfer.embedding._cache import EmbeddingCache, Writer
from sktransfer.embedding._outputs import Output
from sktransfer.embedding._prefix import Prefix, stacked, values_of
from sktransfer.embedding._reading import Refusals, UnreadableError, sample_digests
from sktransfer.embedding._tasks import Batches, Task
from sktransfer.embedding._threads import readers, run_lanes
from sktransfer.inputs._reader import Samples

# The backends of joblib whose workers run on this machine.
_BACKENDS_HERE = ("loky", "multiprocessing", "threading")
# The number of samples that are looked up before the first of them is computed. Their
# files are read again then, and the operating system still has so many in memory.
_WINDOW = 2**14


@dataclass
class StageOutputs:
    """Rows that have been run through some stages already, in place of samples.

    Parameters
    ----------
    rows : Tensor, or list of Tensor if they differ in size
    depth : int, default=0
        The number of these stages. If 0, the rows are inputs made by `Reader.stack`.
    """

    rows: torch.Tensor | list[torch.Tensor]
    depth: int = 0

    def __len__(self) -> int:
        return len(self.rows)


def embed(
    samples: Samples | StageOutputs,
    prefixes: Sequence[Prefix],
    *,
    cache: EmbeddingCache | None = None,
    digests: list[bytes] | None = None,
    taps: Iterable[Prefix] = (),
    n_jobs: int | None = None,
    on_error: str = "raise",
    refusals: Refusals | None = None,
    failures: dict | None = None,
    on_device: bool = False,
    task: Task | None = None,
    verbose: int = 0,
) -> list[np.ndarray | torch.Tensor]:
    """Run samples through the leading stages of backbones, each sample once.

    Prefixes of the same backbone are computed together, and backbones with the same
    reader share the inputs that it has read.

    Parameters
    ----------
    samples : Samples or StageOutputs of length n
    prefixes : sequence of Prefix
    cache : EmbeddingCache or None
        Searched before a sample is decoded; new outputs are stored in it. A backbone
        starts from the deepest stage whose output for a sample is in the cache.
    digests : list of bytes, optional
        The digests of the content of the samples, if they are already known.
    taps : iterable of Prefix
        Further prefixes on the way to `prefixes`, whose outputs are only stored in the
        cache.
    n_jobs : int or None
        The number of joblib workers that chunks of the samples are distributed over.
        None computes in this process, whose threads use all its cores.
    on_error : {"raise", "nan"}
        Whether a sample that cannot be read raises an error, or results in a row of NaN
        and a single warning that lists all such rows.
    refusals : Refusals, optional
        Reads the samples in place of `on_error`. The caller then has to report on them.
    failures : dict, optional
        If given, a backbone that cannot be run is skipped from then on, and its error
        is stored here under the number of each of its prefixes.
    on_device : bool
        Whether the outputs, which must not differ in size, are returned as tensors on
        the device that computes them. Only the copies for a cache reach the host.
    task : Task, optional
        The task of a fit that this is a part of.
    verbose : int
        Controls the verbosity: 1 shows a progress bar on standard error.

    Returns
    -------
    list of ndarray, or of Tensor, of shape (n, *prefix.shape), float32
        The outputs of each prefix. If the samples differ in size, outputs without
        pooling are padded with NaN.
    """
    reported = refusals or Refusals(samples, strict=on_error == "raise")
    if cache is not None and not isinstance(samples, StageOutputs):
        prefixes, taps = _divided(prefixes, taps)
    runs = _runs(samples, prefixes, taps, cache, on_device)
    names = dict.fromkeys(run.base.backbone.name for run in runs)
    unit = prefixes[0].backbone.reader.kind if prefixes else "sample"
    size = max((run.base.size for run in runs), default=1)
    with (
        tqdm(
            total=len(samples), desc=", ".join(names), unit=unit, disable=not verbose
        ) as bar,
        Batches(task or Task(), bar, len(samples), size) as progress,
    ):
        pass_ = _Pass(samples, runs, cache, digests or [], reported, failures, progress)
        for start in range(0, len(samples), _WINDOW) if runs else ():
            pass_.run(range(start, min(start + _WINDOW, len(samples))), n_jobs)
    out = [None] * len(prefixes)
    for run in runs:
        for one, numbers in run.asked.items():
            for number in numbers:
                out[number] = run.out[one].gathered()
    if refusals is None:
        reported.report(out)
    return out


def _divided(prefixes, taps) -> list[list[Prefix]]:
    """Return prefixes that can start from all that other cuts may have stored."""
    groups = [list(prefixes), list(taps)]
    finest = {one.backbone: one.backbone.finest() for one in sum(groups, [])}
    return [[one.within(finest[one.backbone]) for one in group] for group in groups]


class _Run:
    """One backbone, run to all depths that were asked for."""

    def __init__(self, base, numbered, taps, n_rows, cache, on_device=False):
        self.base = base
        self.asked = {}  # (depth, pooling) -> numbers of the prefixes that ask for it
        for number, prefix in numbered.items():
            self.asked.setdefault((prefix.depth, prefix.pooling), []).append(number)
        # Without a cache, the outputs of taps could not be stored anywhere.
        taps = [] if cache is None else taps
        own = (tap for tap in taps if tap.backbone is base.backbone)
        self.taps = [(tap.depth, tap.pooling) for tap in own]
        # The outputs that are not copied to the host to be returned.
        self.kept = frozenset(self.asked if on_device else ())
        device = base.device if on_device else None
        self.out = {
            one: Output(self.prefix(one).shape, n_rows, base.varies, device)
            for one in self.asked
        }
        self.keys = {one: [] for one in self.asked}
        self.error = None

    def prefix(self, one: tuple[int, str]) -> Prefix:
        return replace(self.base, depth=one[0], pooling=one[1])


def _runs(samples, prefixes, taps, cache, on_device=False) -> list[_Run]:
    """Group prefixes by their backbone and by how it is run."""
    groups = {}
    for number, prefix in enumerate(prefixes):
        base = replace(prefix, depth=0, pooling="none")
        groups.setdefault(base, {})[number] = prefix
    rest = list(taps), len(samples), cache, on_device
    return [_Run(*group, *rest) for group in groups.items()]


@dataclass
class _Pass:
    """One pass of samples through all runs, and what is already known of them."""

    samples: Samples | StageOutputs
    runs: list[_Run]
    cache: EmbeddingCache | None
    digests: list[bytes]
    refusals: Refusals
    failures: dict | None
    progress: tqdm | Batches
    firsts: dict[bytes, int] = field(default_factory=dict)  # digest -> first row

    def run(self, rows: range, n_jobs: int | None) -> None:
        """Look up the next rows and compute those that are not found."""
        self._identify(rows)
        lacking, equal = self._look_up(rows)
        self.progress.update(len(rows) - sum(map(len, equal.values())))
        batches = self._batches(lacking)
        writer = Writer(self.cache)

        def accept(run, batch, found, stored, exact):
            for one in run.out.keys() & found.keys():
                pairs = [(e, i) for i, row in enumerate(batch) for e in equal[row]]
                run.out[one].fill(*zip(*pairs, strict=True), found[one])
            for one, values in stored.items() if writer.keeps(exact) else ():
                writer.add(self._keys(run, one, batch), values)

        def done(batch):
            self.progress.update(sum(len(equal[row]) for row in batch))

        device = self.runs[0].base.device
        try:
            given = isinstance(self.samples, StageOutputs)
            if len(batches) > 1 and not given and spreads(n_jobs, device):
                self._spread(batches, n_jobs, accept, done)
            else:
                self._run_here(batches, lacking, accept, done, device)
        finally:
            # Also after an error or Ctrl-C, so that no finished work is lost.
            writer.flush()
        self.refusals.spread(equal)

    def _identify(self, rows: range) -> None:
        """Compute the digests and the cache keys of the next rows."""
        if self.cache is None:
            return
        if len(self.digests) < rows.stop:
            self.digests += sample_digests(self.samples, self.refusals, rows)
        for run in self.runs:
            for one, keys in run.keys.items():
                keys += run.prefix(one).keys(self.digests[rows.start : rows.stop])

    def _look_up(self, rows: range) -> tuple[dict, dict]:
        """Fill the rows whose outputs are known.

        Returns
        -------
        lacking : dict of int to list of (run, outputs)
            The outputs of each row that are still to be computed. Of several rows with
            equal content, only the first one is contained.
        equal : dict of int to list of int
            For each row in `lacking`, all rows with the same content.
        """
        rows = [row for row in rows if row not in self.refusals.rows]
        if self.cache is None:
            everything = [(run, tuple(run.asked)) for run in self.runs]
            return dict.fromkeys(rows, everything), {row: [row] for row in rows}
        wanted = [(run, one) for run in self.runs for one in run.asked]
        found = self.cache.get_many(
            run.keys[one][row] for run, one in wanted for row in rows
        )
        lacking, equal, window = {}, {}, rows[0] if rows else 0
        cached = {pair: {} for pair in wanted}
        for row in rows:
            first = self.firsts.setdefault(self.digests[row], row)
            lacks = {}
            for run, one in wanted:
                known = found.get(run.keys[one][row])
                if known is not None and run.out[one].fits(known):
                    cached[run, one][row] = known
                elif first < window:
                    # An earlier window computed a row with the same content, but the
                    # cache may not have kept it.
                    run.out[one].repeat(first, row)
                else:
                    lacks.setdefault(run, []).append(one)
            if first < window:
                self.refusals.spread({first: [row]})
            elif lacks:
                lacking.setdefault(first, [(r, tuple(o)) for r, o in lacks.items()])
                equal.setdefault(first, []).append(row)
        for (run, one), known in cached.items():
            run.out[one].fill(known, range(len(known)), list(known.values()))
        return lacking, equal

    def _batches(self, rows) -> list[list[int]]:
        """Divide rows into batches whose inputs are padded to the same size."""
        most, groups = max(run.base.size for run in self.runs), {}
        for row in rows:
            # A batch of a single row has any size.
            place = () if most == 1 else self._place_of(row)
            groups.setdefault(place, []).append(row)
        return [
            group[i : i + most]
            for group in groups.values()
            for i in range(0, len(group), most)
        ]

    def _place_of(self, row) -> tuple:
        """Return the sizes that all runs pad a row to."""
        varied = [run.base for run in self.runs if run.base.varies]
        if varied and isinstance(self.samples, StageOutputs):
            return varied[0].place(tuple(self.samples.rows[row].shape))
        # Of a sample that cannot be read, any size will do.
        sizes = (
            self.refusals.read(row, base.backbone.reader.size_of) for base in varied
        )
        return tuple(b.place(s or ()) for b, s in zip(varied, sizes, strict=True))

    def _run_here(self, batches, lacking, accept, done, device) -> None:
        """Compute batches in the threads of this process."""

        def work(each, batch):
            read_one = functools.cache(
                lambda reader, row: self.refusals.read_input(row, reader)
            )

            def read(reader, rows):
                return each(functools.partial(read_one, reader), rows)

            for run, ones, rows in _parts(batch, lacking):
                yield from self._compute(run, ones, rows, read)
            # Without a run, a result means that all runs are done with the batch.
            yield None, batch, {}, {}, True

        def accept_or_count(run, batch, *result):
            if run is None:
                done(batch)
            else:
                accept(run, batch, *result)

        with readers(device) as each:
            work = functools.partial(work, each)
            run_lanes(batches, work, accept_or_count, device)

    def _compute(self, run, ones, rows, read):
        """Compute a batch, starting each row from the deepest stage that is known."""
        if run.error is not None:
            return
        prefix = run.prefix(max(ones))
        try:
            for start, group, inputs in self._starts(run, ones, rows, read):
                taps = [tap for tap in run.taps if start < tap[0] <= prefix.depth]
                wanted = dict.fromkeys([*ones, *taps])
                used, found = prefix.run_within_memory(inputs, start, wanted, run.kept)
                # What is kept on the device is copied to the host for a cache alone.
                here = wanted if self.cache is not None else wanted.keys() - run.kept
                stored = {one: values_of(found[one].cpu(), prefix) for one in here}
                kept = {one: found[one] for one in run.kept & wanted.keys()}
                yield run, group, stored | kept, stored, used is prefix
        except UnreadableError:
            # The sample is to blame for this error, not the backbone.
            raise
        except Exception as error:
            if self.failures is None:
                raise
            run.error = error
            for numbers in run.asked.values():
                self.failures.update(dict.fromkeys(numbers, error))

    def _starts(self, run, ones, rows, read):
        """Group the rows of a batch by the deepest stage whose output is known."""
        if isinstance(self.samples, StageOutputs):
            given = self.samples.rows
            depth = self.samples.depth
            yield depth, rows, stacked([given[row] for row in rows], run.base, depth)
            return
        # A single run gives all outputs of a group, and must start before the first.
        first = min(depth for depth, _ in ones)
        for depth in range(first - 1, 0, -1) if self.cache else ():
            keys = dict(zip(rows, self._keys(run, (depth, "none"), rows), strict=True))
            found = self.cache.get_many(list(keys.values()))
            group = [row for row in rows if keys[row] in found]
            if group:
                known = [found[keys[row]] for row in group]
                yield depth, group, stacked(known, run.base, depth)
                rows = [row for row in rows if keys[row] not in found]
        reader = run.base.backbone.reader
        inputs = zip(rows, read(reader, rows), strict=True)
        inputs = {row: x for row, x in inputs if x is not None}
        if inputs:
            yield 0, list(inputs), stacked(list(inputs.values()), run.base, 0)

    def _keys(self, run, one, rows) -> list[bytes]:
        if one in run.keys:
            return [run.keys[one][row] for row in rows]
        return run.prefix(one).keys(self.digests[row] for row in rows)

    def _spread(self, batches, n_jobs, accept, done) -> None:
        """Compute chunks of whole batches in the workers of joblib."""
        workers = effective_n_jobs(n_jobs)
        # Four chunks per worker, so that a slow worker leaves work to the others.
        size = max(1, -(-len(batches) // (4 * workers)))
        chunks = [sum(batches[i : i + size], []) for i in range(0, len(batches), size)]
        asked = [run.prefix(one) for run in self.runs for one in run.asked]
        # If the backend allows it, results are stored while others are computed.
        engine, _ = get_active_backend()
        one_by_one = getattr(engine, "supports_return_generator", False)
        how = "generator" if one_by_one else "list"
        results = Parallel(n_jobs=n_jobs, return_as=how)(
            delayed(_chunk)(self.samples.take(chunk), asked, self.refusals.strict)
            for chunk in chunks
        )
        for chunk, (computed, found_out) in zip(chunks, results, strict=True):
            self.refusals.include(found_out, chunk)
            for number, rows, *result in computed:
                accept(self.runs[number], [chunk[row] for row in rows], *result)
            done(chunk)


def _parts(batch, lacking):
    """Yield the parts of a batch that lack the same outputs of the same run."""
    parts = {}
    for row in batch:
        for run, ones in lacking[row]:
            parts.setdefault((run, ones), []).append(row)
    for (run, ones), rows in parts.items():
        size = run.base.size
        for i in range(0, len(rows), size):
            yield run, ones, rows[i : i + size]


def _chunk(samples, prefixes, strict):
    """Compute a chunk in a worker. The rows in its result are numbered from 0."""
    refusals, computed = Refusals(samples, strict), []
    # The parent process looked up all rows before, and it stores the results.
    runs = _runs(samples, prefixes, (), None)
    with tqdm(disable=True) as progress:
        pass_ = _Pass(samples, runs, None, [], refusals, None, progress)
        lacking, _ = pass_._look_up(range(len(samples)))
        pass_._run_here(
            pass_._batches(lacking),
            lacking,
            lambda run, *result: computed.append((runs.index(run), *result)),
            lambda batch: None,
            runs[0].base.device,
        )
    return computed, refusals.found()


def spreads(n_jobs: int | None, device: str) -> bool:
    """Whether samples are computed by joblib's workers rather than by this process.

    Workers on one machine would have to share its GPU, each with its own copy of the
    network and its own context, although a single process keeps the GPU busy.
    """
    if effective_n_jobs(n_jobs) == 1:
        return False
    engine, _ = get_active_backend()
    here = type(engine) in [BACKENDS.get(name) for name in _BACKENDS_HERE]
    return torch.device(device).type == "cpu" or not here
