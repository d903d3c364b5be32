"""What FineTuneClassifier and FineTuneRegressor share: all but the meaning of `y`."""

import copy
import time
from dataclasses import dataclass, replace
from numbers import Integral, Real

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, _fit_context
from sklearn.model_selection import GroupShuffleSplit
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import (
    _check_sample_weight,
    check_is_fitted,
    column_or_1d,
)

from sktransfer.backbones._backbone import Backbone
from sktransfer.backbones._load import load_backbone
from sktransfer.backbones._seeding import seeded
from sktransfer.embedding._mixin import SourceMixin, StagesReprMixin, Summary
from sktransfer.embedding._prefix import (
    Pass,
    resolve_cache,
    resolve_device,
    resolve_precision,
)
from sktransfer.finetuning._examples import Examples, Inputs, embed_tuned
from sktransfer.finetuning._head import prior_scores, solve_head
from sktransfer.finetuning._network import (
    Network,
    Standardise,
    make_head,
    restandardise,
)
from sktransfer.finetuning._train import (
    LR_SCHEDULES,
    OPTIMIZERS,
    Plan,
    epochs_table,
    train,
)
from sktransfer.inputs._augment import resolve_augment
from sktransfer.inputs._images import check_images, checked_images, table_range

POSITIVE = Interval(Real, 0, None, closed="neither")
_NOT_NEGATIVE = Interval(Real, 0, None, closed="left")
_COUNT = Interval(Integral, 0, None, closed="left")
_AT_LEAST_ONE = Interval(Integral, 1, None, closed="left")
# What scikit-learn keeps of a table.
_COLUMNS = ("n_features_in_", "feature_names_in_")


@dataclass
class _Start:
    """A fitted estimator as the start of a further fit."""

    backbone: Backbone
    head: torch.nn.Module
    known: dict
    value_range: tuple[float, float] | None
    source: Backbone
    n_iter: int
    seen: tuple[float, int]
    optimizer: torch.optim.Optimizer | None


@dataclass
class _Job:
    """What a call of `fit` or `partial_fit` is to do."""

    epochs: int
    classes: object = None
    groups: object = None
    partial: bool = False


class BaseFineTune(StagesReprMixin, SourceMixin, BaseEstimator):
    """What classifier and regressor share: all but the meaning of `y`."""

    # What is resolved where it is used, with errors of its own.
    _parameter_constraints: dict = {
        "backbone": "no_validation",
        "weights": "no_validation",
        "augment": "no_validation",
        "device": "no_validation",
        "cache": "no_validation",
        "freeze": [Integral, str],
        "hidden_layer_sizes": ["array-like"],
        "dropout": [Interval(Real, 0, 1, closed="left")],
        "optimizer": [StrOptions(set(OPTIMIZERS)), callable],
        "lr": [POSITIVE],
        "backbone_lr_mult": [_NOT_NEGATIVE],
        "layer_decay": [Interval(Real, 0, 1, closed="right")],
        "weight_decay": [_NOT_NEGATIVE],
        "l2_sp": [_NOT_NEGATIVE],
        "head_epochs": [_COUNT],
        "max_epochs": [_COUNT],
        "unfreeze_every": [_COUNT],
        "lr_schedule": [StrOptions(set(LR_SCHEDULES))],
        "batch_size": [_AT_LEAST_ONE],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [_AT_LEAST_ONE],
        "image_shape": [list, tuple, None],
        "image_size": [_AT_LEAST_ONE, None],
        "precision": [StrOptions({"float32", "bfloat16"})],
        "warm_start": ["boolean"],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
        "net_params": [dict, None],
        "solve_head": ["boolean"],
    }

    def __init__(
        self,
        backbone,
        *,
        weights,
        freeze,
        hidden_layer_sizes,
        dropout,
        optimizer,
        lr,
        backbone_lr_mult,
        layer_decay,
        weight_decay,
        l2_sp,
        head_epochs,
        max_epochs,
        unfreeze_every,
        lr_schedule,
        batch_size,
        augment,
        early_stopping,
        validation_fraction,
        n_iter_no_change,
        image_shape,
        image_size,
        device,
        precision,
        cache,
        warm_start,
        random_state,
        verbose,
        net_params,
        solve_head,
    ):
        self.backbone = backbone
        self.weights = weights
        self.freeze = freeze
        self.hidden_layer_sizes = hidden_layer_sizes
        self.dropout = dropout
        self.optimizer = optimizer
        self.lr = lr
        self.backbone_lr_mult = backbone_lr_mult
        self.layer_decay = layer_decay
        self.weight_decay = weight_decay
        self.l2_sp = l2_sp
        self.head_epochs = head_epochs
        self.max_epochs = max_epochs
        self.unfreeze_every = unfreeze_every
        self.lr_schedule = lr_schedule
        self.batch_size = batch_size
        self.augment = augment
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.image_shape = image_shape
        self.image_size = image_size
        self.device = device
        self.precision = precision
        self.cache = cache
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose
        self.net_params = net_params
        self.solve_head = solve_head

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y, sample_weight=None, groups=None):
        """Tune the network on images and their targets.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_pixels)
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        sample_weight : array-like of shape (n_samples,), optional
            A weight of k is the same as k copies of the image, one of 0 as none.
        groups : array-like of shape (n_samples,), optional
            Images of one group, such as those of one patient, are never divided
            between what is trained on and what is held out, for early stopping or the
            choice of the penalty.

        Returns
        -------
        self
            This estimator, fitted. If the fit fails or is interrupted, it is unfitted;
            a parameter that is refused leaves it as it was.
        """
        start = self._start() if self.warm_start and self._is_fitted() else None
        kept = _COLUMNS if start is not None else ()
        for name in [name for name in vars(self) if name.endswith("_")]:
            if name not in kept:
                delattr(self, name)
        job = _Job(self.max_epochs, groups=groups)
        vars(self).update(self._fitted(X, y, sample_weight, start, job))
        return self

    def _partial_fit(self, X, y, sample_weight, classes=None):
        start = self._start() if self._is_fitted() else None
        job = _Job(1, classes=classes, partial=True)
        fitted = self._fitted(X, y, sample_weight, start, job)
        if start is not None:
            for name in ("history_", "n_images_", "class_count_"):
                if name in fitted:
                    fitted[name] = getattr(self, name) + fitted[name]
            # The head that it was chosen for is another one now.
            vars(self).pop(f"{self._penalty}_", None)
        vars(self).update(fitted)
        return self

    def _start(self):
        """What a further fit starts from."""
        return _Start(
            self.backbone_,
            self.head_,
            self._known(),
            self.value_range_,
            self.source_,
            self.n_iter_,
            self.seen_,
            # After loading, there is no net.
            getattr(getattr(self, "net_", None), "optimizer_", None),
        )

    def _fitted(self, X, y, sample_weight, start, job):
        """Fit; return what is to be known of it."""
        samples, y = check_images(self, X, y, reset=start is None, multi_output=True)
        y = _column(y)
        weights = _check_sample_weight(
            sample_weight, y, dtype=np.float64, ensure_non_negative=True
        )
        _check_some_weigh(weights, "sample")
        value_range = None
        if isinstance(samples, np.ndarray):
            known_range = start and start.value_range
            value_range = known_range or table_range(samples[weights > 0])
        images = checked_images(samples, self.image_shape, value_range)
        targets, known = self._encode(y, weights, job.classes, start and start.known)
        weights = weights * self._class_weights(targets, weights, known)
        _check_some_weigh(weights, "class")
        counts = {"n_images_": int((weights > 0).sum())}
        counts |= self._counts(targets[weights > 0], known)
        examples = Examples(images, targets, weights, _codes(job.groups, y))
        if start is not None and job.partial:
            examples.go_on_from(*start.seen)
        teacher = self._teacher_scores(X, examples.images.rows, known)
        if teacher is not None:
            examples.targets = np.column_stack([examples.targets, teacher])
        tuned = self._tune(examples, start, job, known)
        return {**known, **counts, **tuned, "value_range_": value_range}

    def _tune(self, examples, start, job, known) -> dict:
        """Train on examples; return the fitted attributes."""
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        if start is None:
            backbone = load_backbone(
                self.backbone,
                weights=self.weights,
                image_size=self.image_size,
                random_state=seed,
            )
            source, done = backbone, 0
        else:
            backbone, source, done = start.backbone, start.source, start.n_iter
        depth = backbone.freeze_depth(self.freeze)
        way = self._pass(backbone, depth)
        augment = resolve_augment(self.augment, backbone.recipe.crop)
        inputs = Inputs(way, resolve_cache(self.cache), examples, augment)
        solves = self._solves_head(inputs.all_frozen) and not job.partial
        self._refuse_no_training(inputs, start, job.epochs or solves)
        rows, held_out = self._split(examples, known, seed, solves)
        # Another fit, though a warm one, sees all its data: another call may not.
        before = start if job.partial else None
        known = self._standardised(examples, rows, known, before)
        # Other pictures, orders and drops in each call that goes on.
        with seeded(_mixed(seed, done), way.device):
            if solves:
                head, history, known = self._solved_head(inputs, known)
            elif start is None:
                head, history = self._first_head(inputs, rows, held_out, known)
            else:
                head, history = copy.deepcopy(start.head), []
                if before and inputs.all_frozen:
                    restandardise(head, inputs.embeddings(), before.seen[1])
            network = inputs.network(
                head, self.precision, fixed_norms=self.weights is not None
            )
            plan = replace(
                self._plan(known, way.device, partial=job.partial),
                epochs_done=done,
                source=source.stages[depth:],
                optimizer_before=before.optimizer if before else None,
            )
            net = train(
                network,
                inputs.rows(rows, training=True),
                None if held_out is None else inputs.rows(held_out),
                plan,
                0 if solves else job.epochs,
            )
        return known | {
            "backbone_": backbone.tuned(depth, network.suffix),
            # On the CPU, as the backbone: a pickle must open where there is no GPU.
            "head_": copy.deepcopy(network.head).cpu(),
            "net_": net,
            "history_": history + epochs_table(net, "tune"),
            "freeze_depth_": depth,
            "source_": source,
            "n_iter_": done + len(net.history),
            "seen_": examples.seen,
        }

    def _solves_head(self, all_frozen: bool) -> bool:
        """Whether `fit` solves a convex problem, where there is nothing else to do."""
        plain = not (self.net_params or self.dropout or len(self.hidden_layer_sizes))
        own = callable(self.optimizer) or getattr(self, "teacher", None) is not None
        usual = plain and not own and self.augment is None
        return bool(self.solve_head and all_frozen and usual)

    def _refuse_no_training(self, inputs, start, anything) -> None:
        scratch = self.weights is None
        by_head = start is None and not scratch and not inputs.all_frozen
        if not anything and not (by_head and self.head_epochs):
            raise ValueError(
                f"max_epochs={self.max_epochs} leaves nothing to train. Pass at least "
                "1, or freeze='all', which fits the head alone."
            )

    def _solved_head(self, inputs, known):
        """Make the head of a linear probe, with the best coefficients there are."""
        begin, kind = time.perf_counter(), self._kind(known)
        embeddings, examples = inputs.embeddings(), inputs.examples
        zeros = np.zeros(self._n_outputs(known))
        head = make_head(Standardise.of(embeddings), (), 0.0, zeros)
        name = self._penalty
        penalty, loss = solve_head(
            kind, head, embeddings, examples, getattr(self, name)
        )
        seconds = time.perf_counter() - begin
        row = {"phase": "solve", "epoch": 1, "train_loss": loss, "seconds": seconds}
        return head, [row], {**known, f"{name}_": penalty}

    def _first_head(self, inputs, rows, held_out, known):
        """Make the head and train it alone, on the embeddings of the source network.

        A random head would first spoil the features that it stands on: Kumar et al.,
        "Fine-tuning can distort pretrained features and underperform
        out-of-distribution", ICLR 2022.
        """
        sizes, examples = self.hidden_layer_sizes, inputs.examples
        if not all(isinstance(size, Integral) and size > 0 for size in sizes):
            raise ValueError(
                f"hidden_layer_sizes={sizes!r} are no sizes. Accepted are positive "
                "integers, one for each hidden layer, as in (64, 32)."
            )
        kind, n_outputs = self._kind(known), self._n_outputs(known)
        targets, weights = examples.targets[rows], examples.weights[rows]
        layers = sizes, self.dropout, prior_scores(kind, targets, weights, n_outputs)
        if self.weights is None and not inputs.all_frozen:
            # There are no features to keep, nor any scale of them: it is to be learnt.
            neutral = Standardise.nothing(inputs.way.backbone.n_features)
            return make_head(neutral, *layers), []
        embeddings = inputs.embeddings()
        head = make_head(Standardise.of(embeddings[rows]), *layers)
        if not self.head_epochs or inputs.all_frozen:
            return head, []
        read = torch.from_numpy(embeddings).__getitem__
        net = train(
            Network(torch.nn.Sequential(), head),
            examples.rows(read, rows),
            None if held_out is None else examples.rows(read, held_out),
            self._plan(known, inputs.way.device, head_only=True),
            self.head_epochs,
        )
        return head.cpu(), epochs_table(net, "head")

    def _plan(self, known, device, head_only=False, partial=False) -> Plan:
        stops = self.early_stopping and not head_only
        # A call is an epoch: nobody knows how many will come.
        constant = head_only or partial
        return Plan(
            kind=self._kind(known),
            optimizer=self.optimizer,
            lr=self.lr,
            backbone_lr_mult=self.backbone_lr_mult,
            layer_decay=self.layer_decay,
            weight_decay=self.weight_decay,
            l2_sp=self.l2_sp,
            lr_schedule="constant" if constant else self.lr_schedule,
            batch_size=self.batch_size,
            unfreeze_every=0 if head_only else self.unfreeze_every,
            patience=self.n_iter_no_change if stops else None,
            device=device,
            verbose=self.verbose,
            net_params=self.net_params or {},
            loss_options=self._loss_options(),
            goes_on=partial,
        )

    def _split(self, examples, known, seed, solves):
        """Numbers of the examples to train on, and of those to validate on, if any."""
        everything, groups = np.arange(len(examples)), examples.groups
        if not self.early_stopping or solves:
            return everything, None
        try:
            kind = self._splitter(known) if groups is None else GroupShuffleSplit
            splitter = kind(1, test_size=self.validation_fraction, random_state=seed)
            return next(splitter.split(everything, examples.targets[:, 0], groups))
        except ValueError as error:
            raise ValueError(
                f"early_stopping=True cannot set aside validation_fraction="
                f"{self.validation_fraction} of {len(examples)} different examples: "
                f"{error} Pass more examples, a larger validation_fraction, or "
                "early_stopping=False."
            ) from error

    def _standardised(self, examples, rows, known, before):
        """Bring targets to the scale that is trained on, and tell what it is."""
        return known

    def _pass(self, backbone, depth, pooling="none") -> Pass:
        device = resolve_device(self.device)
        precision = resolve_precision(self.precision, device)
        return Pass(backbone, depth, pooling, device=device, precision=precision)

    def _outputs(self, X) -> np.ndarray:
        """Outputs of the head for images, (n_samples, n_outputs) float64."""
        check_is_fitted(self)
        samples = check_images(self, X, reset=False)
        images = checked_images(samples, self.image_shape, self.value_range_)
        way = self._pass(self.backbone_, len(self.backbone_.stages), "avg")
        embeddings = embed_tuned(
            images, way, self.freeze_depth_, resolve_cache(self.cache)
        )
        head = copy.deepcopy(self.head_).cpu().double().eval()
        with torch.inference_mode():
            return head(embeddings.double()).numpy()

    def _is_fitted(self):
        return hasattr(self, "backbone_")

    __sklearn_is_fitted__ = _is_fitted

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.target_tags.multi_output = True
        return tags

    @property
    def frozen_stages_(self):
        """Names of the leading stages that were not trained."""
        check_is_fitted(self)
        return self.backbone_.stage_names[: self.freeze_depth_]

    @property
    def n_trained_parameters_(self):
        """Number of parameters of the stages that were trained, and of the head."""
        check_is_fitted(self)
        trained = [self.backbone_.stages[self.freeze_depth_ :], self.head_]
        return sum(p.numel() for part in trained for p in part.parameters())

    def _summary(self):
        if not self._is_fitted():
            return None
        return Summary(self.backbone_, self.freeze_depth_, self.n_trained_parameters_)


def _check_some_weigh(weights, kind: str) -> None:
    if not (weights > 0).any():
        raise ValueError(
            f"All {kind} weights are zero, which leaves no example to learn from. "
            f"{kind.capitalize()} weights must contain at least one non-zero number."
        )


def _mixed(seed: int, done: int) -> int:
    """Seed of a fit that goes on after some epochs; the first one's is as it is."""
    if not done:
        return seed
    return int(np.random.SeedSequence((seed, done)).generate_state(1)[0])


def _codes(groups, y) -> np.ndarray | None:
    """Number the groups."""
    if groups is None:
        return None
    groups = column_or_1d(groups)
    missing = np.flatnonzero([g is None or g != g for g in groups.tolist()])
    if len(groups) != len(y) or len(missing):
        what = f"{len(groups)} values" if len(groups) != len(y) else "missing values"
        where = f" in rows {missing[:5].tolist()}" if len(missing) else ""
        raise ValueError(
            f"groups has {what}{where}, and y has {len(y)} targets. Pass one group for "
            "each image, such as the number of its patient."
        )
    return np.unique(groups, return_inverse=True)[1]


def _column(y):
    y = y.toarray() if issparse(y) else y
    return column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y
