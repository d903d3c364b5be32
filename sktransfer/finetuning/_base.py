"""The fit that FineTuneClassifier and FineTuneRegressor share."""

import copy
import time
from dataclasses import dataclass, field, replace
from functools import partial
from numbers import Integral

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, _fit_context
from sklearn.model_selection import GroupShuffleSplit
from sklearn.utils import check_random_state
from sklearn.utils.validation import (
    _check_sample_weight,
    check_is_fitted,
    column_or_1d,
)

from sktransfer.backbones._backbone import Backbone
from sktransfer.backbones._seeding import seeded
from sktransfer.embedding._mixin import SourceMixin, StagesReprMixin, Summary
from sktransfer.embedding._prefix import (
    Prefix,
    resolve_cache,
    resolve_device,
    resolve_precision,
)
from sktransfer.embedding._reading import Refusals, advising
from sktransfer.embedding._tasks import CallbackSupportMixin, Task
from sktransfer.finetuning._examples import Examples, Inputs
from sktransfer.finetuning._head import solve_head
from sktransfer.finetuning._loss import distils, teacher_scores
from sktransfer.finetuning._network import (
    Network,
    Standardise,
    fitted_so_far,
    make_head,
    restandardise,
)
from sktransfer.finetuning._parameters import SharedParameters
from sktransfer.finetuning._predictions import Predictions
from sktransfer.finetuning._skipping import left_out, unreadable
from sktransfer.finetuning._targets import fitted_targets
from sktransfer.finetuning._train import Plan, epochs_table, train
from sktransfer.finetuning._trained import check_some_trained, trained_parameters
from sktransfer.inputs._image_tables import table_range
from sktransfer.inputs._validate import as_samples, check_samples, on_host

# The fitted attributes that `fit` with a warm start keeps, so that scikit-learn checks
# the columns of the new table against those of the first.
_COLUMNS = ("n_features_in_", "feature_names_in_")
# All that a fit of either estimator sets, and no attribute of a subclass.
_FITTED = (
    *("backbone_", "head_", "net_", "source_", "freeze_depth_", "train_only_"),
    *("history_", "n_iter_", "n_images_", "seen_", "value_range_", "C_", "alpha_"),
    *("classes_", "class_count_", "multilabel_", "multi_output_"),
    *("target_mean_", "target_scale_", "target_variance_", *_COLUMNS),
)
_SKIP = "on_error='skip' leaves it out of the fit."


@dataclass
class _Job:
    """What distinguishes one call of `fit` or `partial_fit` from another."""

    epochs: int
    task: Task
    classes: object = None
    groups: object = None
    partial: bool = False
    # The fitted attributes that are known before the training.
    found: dict = field(default_factory=dict)


class BaseFineTune(
    CallbackSupportMixin,
    SharedParameters,
    Predictions,
    StagesReprMixin,
    SourceMixin,
    BaseEstimator,
):
    """Base class of the fine-tuned estimators, which differ in their targets alone."""

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y, sample_weight=None, groups=None):
        """Fine-tune the network on samples and their targets.

        Parameters
        ----------
        X : sequence of samples, or array-like of shape (n_samples, n_pixels)
            The training samples.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            The targets of the samples.
        sample_weight : array-like of shape (n_samples,), optional
            The weights of the samples. A weight of k is equivalent to k copies of the
            sample, and a weight of 0 to leaving it out. If None, all samples have a
            weight of one.
        groups : array-like of shape (n_samples,), optional
            The group of each sample, such as its patient. Samples of the same group are
            never split between the training data and the data that is held out for
            early stopping or for choosing the penalty.

        Returns
        -------
        self
            The fitted estimator. A fit that fails or is interrupted leaves it
            unfitted; a parameter that is refused leaves it unchanged.
        """
        start = copy.copy(self) if self.warm_start and self._is_fitted() else None
        kept = _COLUMNS if start is not None else ()
        # Attributes that this fit does not set, such as `C_` of a head that was solved
        # before, must not remain, and a fit that fails must leave no model at all.
        for name in set(_FITTED) - set(kept):
            vars(self).pop(name, None)
        with advising(_SKIP), self._task("fit", X, y, sample_weight) as task:
            job = _Job(self.max_epochs, task, groups=groups)
            vars(self).update(self._fitted(X, y, sample_weight, start, job))
        return self

    def _task(self, name, X, y, sample_weight) -> Task:
        """Return the task of a fit, with subtasks to embed, and to train twice."""
        weights = {} if sample_weight is None else {"sample_weight": sample_weight}
        return Task.of(self, name, 3, X=X, y=y, metadata=weights)

    def _partial_fit(self, X, y, sample_weight, classes=None):
        start = self if self._is_fitted() else None
        # Everything is computed first and set at the end: a call that fails or is
        # interrupted must leave the estimator as it was.
        with advising(_SKIP), self._task("partial-fit", X, y, sample_weight) as task:
            job = _Job(1, task, classes=classes, partial=True)
            fitted = self._fitted(X, y, sample_weight, start, job)
            if start is not None:
                for name in ("history_", "n_images_", "class_count_"):
                    if name in fitted:
                        fitted[name] = getattr(self, name) + fitted[name]
                # The penalty was chosen for the solved head, which training changed.
                vars(self).pop(f"{self._penalty}_", None)
            vars(self).update(fitted)
        return self

    def _fitted(self, X, y, sample_weight, start, job):
        """Fit and return the fitted attributes."""
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        backbone = self._load(seed) if start is None else start.backbone_
        reader, reset = backbone.reader, start is None
        checked, y = check_samples(
            self, X, y, reader=reader, reset=reset, multi_output=True
        )
        y = _column(y)
        weights = _check_sample_weight(
            on_host(sample_weight), y, dtype=np.float64, ensure_non_negative=True
        )
        _check_some_weigh(weights, "sample")
        value_range = _value_range(checked, weights, start)
        samples = as_samples(reader, checked, self.image_shape, value_range)
        before = start and fitted_targets(start)
        targets = self._targets(y, weights, job.classes, before)
        encoded = targets.encode(y, weights)
        if self.on_error == "skip":
            refusals = self._unreadable(samples, weights, backbone)
            weights = left_out(refusals, weights, targets, encoded, job.partial)
        # A class weight of 0 may leave out what was left by the sample weights.
        weights = targets.weighted(encoded, weights)
        _check_some_weigh(weights, "class")
        positive = weights > 0
        counts = {"n_images_": int(positive.sum()), **targets.counts(encoded[positive])}
        examples = Examples(samples, encoded, weights, _codes(job.groups, y))
        # A warm start sees all its data again: its weights are relative to each other.
        if start is not None and job.partial:
            examples.go_on_from(*start.seen_)
        if distils(self):
            # From the raw `X`: a teacher may read images differently.
            scores = teacher_scores(self, targets, X, examples.samples.rows)
            examples.targets = np.column_stack([examples.targets, scores])
        inputs = self._inputs(backbone, examples, job.task)
        job.found = {**counts, "value_range_": value_range}
        return job.found | self._tune(inputs, targets, seed, start, job)

    def _tune(self, inputs, targets, seed, start, job) -> dict:
        """Train on the examples and return the fitted attributes."""
        examples, prefix = inputs.examples, inputs.prefix
        # L2-SP pulls further fits to the source of the first, not to what it tuned.
        source, done = prefix.backbone, 0
        if start is not None:
            source, done = start.source_.cut(self.freeze), start.n_iter_
        solves = self._solves_head(inputs.all_frozen) and not job.partial
        self._refuse_no_training(inputs, start, job.epochs or solves)
        parts = self._split(examples, targets, seed, solves)
        # A fit has all its data, even with a warm start. A call of `partial_fit` may
        # have a part of it, and standardises by the calls before, too.
        before = start if job.partial else None
        targets, examples.targets = targets.standardised(
            examples, parts[0], before.seen_[0] if before else 0.0
        )
        plan = Plan(
            self,
            targets,
            "call" if job.partial else "tune",
            prefix.device,
            epochs=0 if solves else job.epochs,
            epochs_done=done,
            source=source.stages[prefix.depth :],
            task=job.task,
            fitted=partial(fitted_so_far, job.found | targets.attributes, prefix),
            # A loaded estimator has no net, since `save` leaves it out.
            optimizer_before=getattr(getattr(before, "net_", None), "optimizer_", None),
        )
        # Each call that continues has an order, augmentation and dropout of its own.
        with seeded(_mixed(seed, done), prefix.device):
            head, found = self._head(inputs, parts, plan, start, solves)
            network, net = self._train(inputs, parts, plan, head)
        history = found.pop("history_", []) + epochs_table(net, "tune")
        n_iter = done + len(net.history)
        training = {"net_": net, "history_": history, "n_iter_": n_iter}
        further = {"source_": source, "seen_": examples.seen}
        known = targets.attributes | found | training | further
        return fitted_so_far(known, prefix, network)

    def _load(self, seed: int) -> Backbone:
        return self._load_backbone(seed)

    def _unreadable(self, samples, weights, backbone) -> Refusals:
        prefix, rows = self._frozen(backbone), np.flatnonzero(weights > 0)
        return unreadable(samples, rows.tolist(), prefix, resolve_cache(self.cache))

    def _frozen(self, backbone) -> Prefix:
        backbone = backbone.cut(self.freeze)
        depth = backbone.freeze_depth(self.freeze)
        check_some_trained(backbone, depth, self.train_only)
        return self._prefix(backbone, depth)

    def _inputs(self, backbone, examples, task) -> Inputs:
        prefix = self._frozen(backbone)
        augment = backbone.reader.augmentation(self.augment)
        return Inputs(prefix, resolve_cache(self.cache), examples, augment, task)

    def _head(self, inputs, parts, plan, start, solves):
        """Return the head that the training starts with, and its fitted attributes."""
        if solves:
            return self._solved_head(inputs, plan.targets)
        if start is None:
            return self._first_head(inputs, parts, plan)
        # A copy, so that an interrupted call leaves the fitted head unchanged.
        head = copy.deepcopy(start.head_)
        # The embeddings of tuned stages change with each call: no mean of them holds.
        if plan.phase == "call" and inputs.all_frozen:
            restandardise(head, inputs.embeddings(), start.seen_[1])
        return head, {}

    def _train(self, inputs, parts, plan, head):
        """Train the stages that are not frozen, and the head."""
        # From scratch, the statistics of batch norms have yet to be learnt.
        network = inputs.network(
            head,
            self.precision,
            fixed_norms=self.weights is not None,
            train_only=self.train_only,
        )
        rows, held_out = parts
        valid = None if held_out is None else inputs.rows(held_out)
        return network, train(network, inputs.rows(rows, training=True), valid, plan)

    def _solves_head(self, all_frozen: bool) -> bool:
        """Whether the whole fit is a convex problem, which `fit` then solves."""
        plain = not (self.net_params or self.dropout or len(self.hidden_layer_sizes))
        # These only make sense for gradient descent, so they ask for it.
        own = callable(self.optimizer) or distils(self)
        usual = plain and not own and self.augment is None
        return bool(self.solve_head and all_frozen and usual)

    def _refuse_no_training(self, inputs, start, anything) -> None:
        scratch = self.weights is None
        by_head = start is None and not scratch and not inputs.all_frozen
        if not anything and not (by_head and self.head_epochs):
            raise ValueError(
                f"Invalid max_epochs={self.max_epochs}: expected at least 1, since "
                "there is nothing else to train. Increase max_epochs, or pass "
                "freeze='all', which trains the head alone."
            )

    def _solved_head(self, inputs, targets):
        """Return the head of a linear probe, solved to its optimum."""
        begin, name = time.perf_counter(), self._penalty
        embeddings, examples = inputs.embeddings(), inputs.examples
        zeros = np.zeros(targets.n_outputs)
        head = make_head(Standardise.of(embeddings), (), 0.0, zeros)
        with inputs.task.subtask("solve"):
            penalty, loss = solve_head(
                targets, head, embeddings, examples, getattr(self, name)
            )
        seconds = time.perf_counter() - begin
        row = {"phase": "solve", "epoch": 1, "train_loss": loss, "seconds": seconds}
        return head, {"history_": [row], f"{name}_": penalty}

    def _first_head(self, inputs, parts, plan):
        """Make the head and train it alone, on the embeddings of the source network.

        Gradients through a random head would distort the pretrained features (Kumar et
        al., "Fine-tuning can distort pretrained features and underperform
        out-of-distribution", ICLR 2022).
        """
        sizes, examples = self.hidden_layer_sizes, inputs.examples
        if not all(isinstance(size, Integral) and size > 0 for size in sizes):
            raise ValueError(
                f"Invalid hidden_layer_sizes={sizes!r}: expected positive integers, "
                "one for each hidden layer, as in (64, 32)."
            )
        rows, held_out = parts
        encoded, weights = examples.targets[rows], examples.weights[rows]
        layers = sizes, self.dropout, plan.targets.prior_scores(encoded, weights)
        if self.weights is None and not inputs.all_frozen:
            # Random features are not worth preserving, and their scale will change.
            neutral = Standardise.nothing(inputs.prefix.backbone.n_features)
            return make_head(neutral, *layers), {}
        embeddings = inputs.embeddings()
        head = make_head(Standardise.of(embeddings[rows]), *layers)
        # With all stages frozen, the main training is that of the head alone.
        if not self.head_epochs or inputs.all_frozen:
            return head, {}
        # A bound method and not a lambda: spawned workers get a pickle of it.
        read = torch.from_numpy(embeddings).__getitem__
        net = train(
            Network(torch.nn.Sequential(), head),
            examples.rows(read, rows),
            None if held_out is None else examples.rows(read, held_out),
            replace(
                plan,
                phase="head",
                epochs=self.head_epochs,
                fitted=partial(plan.fitted, whole=True),
            ),
        )
        return head.cpu(), {"history_": epochs_table(net, "head")}

    def _split(self, examples, targets, seed, solves):
        """Return the indices of the examples to train and, if any, to validate on."""
        everything, groups = np.arange(len(examples)), examples.groups
        if not self.early_stopping or solves:
            return everything, None
        try:
            # Only classes, which are in the first column, are stratified.
            kind = targets.splitter if groups is None else GroupShuffleSplit
            splitter = kind(1, test_size=self.validation_fraction, random_state=seed)
            return next(splitter.split(everything, examples.targets[:, 0], groups))
        except ValueError as error:
            raise ValueError(
                f"early_stopping=True cannot set aside validation_fraction="
                f"{self.validation_fraction} of {len(examples)} distinct examples: "
                f"{error} Pass more examples, a larger validation_fraction, or "
                "early_stopping=False."
            ) from error

    def _prefix(self, backbone, depth, pooling="none") -> Prefix:
        device = resolve_device(self.device)
        precision = resolve_precision(self.precision, device)
        return Prefix(backbone, depth, pooling, device=device, precision=precision)

    def _is_fitted(self):
        return hasattr(self, "backbone_")

    __sklearn_is_fitted__ = _is_fitted

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    @property
    def frozen_stages_(self):
        """The names of the leading stages that were frozen."""
        check_is_fitted(self)
        return self.backbone_.stage_names[: self.freeze_depth_]

    @property
    def n_trained_parameters_(self):
        """The number of trained parameters of the network and the head."""
        check_is_fitted(self)
        stages = self.backbone_.stages[self.freeze_depth_ :]
        trained = trained_parameters(stages, self._trained_kind())
        return sum(p.numel() for p in (*trained, *self.head_.parameters()))

    def _trained_kind(self) -> str:
        """Return ``train_only`` as it was in the last fit."""
        # In files of format 1, there was no choice.
        return getattr(self, "train_only_", "all")

    def _summary(self):
        if not self._is_fitted():
            return None
        kind = self._trained_kind()
        trained = {} if kind == "all" else {"trained": f"{kind} trained"}
        counts = self.freeze_depth_, self.n_trained_parameters_
        return Summary(self.backbone_, *counts, **trained)


def _value_range(checked, weights, start) -> tuple[float, float] | None:
    """Return the values that are black and white in a table, or None for samples."""
    if not isinstance(checked, np.ndarray):
        return None
    # A table does not say which value is white. What the first fit saw applies to later
    # fits and predictions too, or equal rows would be read differently.
    return (start and start.value_range_) or table_range(checked[weights > 0])


def _check_some_weigh(weights, kind: str) -> None:
    if not (weights > 0).any():
        raise ValueError(
            f"All {kind} weights are zero, which leaves no example to learn from. "
            f"Pass at least one positive {kind} weight."
        )


def _mixed(seed: int, done: int) -> int:
    """Return the seed of a fit that continues after `done` epochs."""
    if not done:
        return seed
    return int(np.random.SeedSequence((seed, done)).generate_state(1)[0])


def _codes(groups, y) -> np.ndarray | None:
    """Return the groups as integers, or None if there are none."""
    if groups is None:
        return None
    groups = column_or_1d(on_host(groups))
    # NaN is the value that differs from itself.
    missing = np.flatnonzero([g is None or g != g for g in groups.tolist()])
    if len(groups) != len(y) or len(missing):
        what = f"{len(groups)} values" if len(groups) != len(y) else "missing values"
        where = f" in rows {missing[:5].tolist()}" if len(missing) else ""
        raise ValueError(
            f"Invalid groups: expected one group for each of the {len(y)} targets in "
            f"y, got {what}{where}. Pass one group for each image, such as the number "
            "of its patient."
        )
    return np.unique(groups, return_inverse=True)[1]


def _column(y):
    # scikit-learn allows sparse indicator matrices, but torch trains on dense ones.
    y = y.toarray() if issparse(y) else y
    return column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y
