"""What FineTuneClassifier and FineTuneRegressor share: all but the meaning of `y`."""

import copy
import time
from dataclasses import dataclass, replace
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
from sktransfer.backbones._load import load_backbone
from sktransfer.backbones._seeding import seeded
from sktransfer.embedding._mixin import SourceMixin, StagesReprMixin, Summary
from sktransfer.embedding._prefix import (
    Prefix,
    resolve_cache,
    resolve_device,
    resolve_precision,
)
from sktransfer.finetuning._examples import Examples, Inputs, embed_tuned
from sktransfer.finetuning._head import solve_head
from sktransfer.finetuning._loss import distils, teacher_scores
from sktransfer.finetuning._network import (
    Network,
    Standardise,
    make_head,
    restandardise,
)
from sktransfer.finetuning._parameters import SharedParameters
from sktransfer.finetuning._targets import fitted_targets
from sktransfer.finetuning._train import Plan, epochs_table, train
from sktransfer.inputs._image_tables import table_range
from sktransfer.inputs._validate import as_samples, check_samples

# What scikit-learn keeps of a table.
_COLUMNS = ("n_features_in_", "feature_names_in_")


@dataclass
class _Job:
    """What a call of `fit` or `partial_fit` is to do."""

    epochs: int
    classes: object = None
    groups: object = None
    partial: bool = False


class BaseFineTune(SharedParameters, StagesReprMixin, SourceMixin, BaseEstimator):
    """What classifier and regressor share: all but the meaning of `y`."""

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
        start = copy.copy(self) if self.warm_start and self._is_fitted() else None
        kept = _COLUMNS if start is not None else ()
        for name in [name for name in vars(self) if name.endswith("_")]:
            if name not in kept:
                delattr(self, name)
        job = _Job(self.max_epochs, groups=groups)
        vars(self).update(self._fitted(X, y, sample_weight, start, job))
        return self

    def _partial_fit(self, X, y, sample_weight, classes=None):
        start = self if self._is_fitted() else None
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

    def _fitted(self, X, y, sample_weight, start, job):
        """Fit; return what is to be known of it."""
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        backbone = self._load(seed) if start is None else start.backbone_
        reader, reset = backbone.reader, start is None
        checked, y = check_samples(
            self, X, y, reader=reader, reset=reset, multi_output=True
        )
        y = _column(y)
        weights = _check_sample_weight(
            sample_weight, y, dtype=np.float64, ensure_non_negative=True
        )
        _check_some_weigh(weights, "sample")
        value_range = None
        if isinstance(checked, np.ndarray):
            known_range = start and start.value_range_
            value_range = known_range or table_range(checked[weights > 0])
        samples = as_samples(reader, checked, self.image_shape, value_range)
        before = start and fitted_targets(start)
        targets = self._targets(y, weights, job.classes, before)
        encoded = targets.encode(y, weights)
        weights = targets.weighted(encoded, weights)
        _check_some_weigh(weights, "class")
        positive = weights > 0
        counts = {"n_images_": int(positive.sum()), **targets.counts(encoded[positive])}
        examples = Examples(samples, encoded, weights, _codes(job.groups, y))
        if start is not None and job.partial:
            examples.go_on_from(*start.seen_)
        if distils(self):
            scores = teacher_scores(self, targets, X, examples.samples.rows)
            examples.targets = np.column_stack([examples.targets, scores])
        inputs = self._inputs(backbone, examples)
        tuned = self._tune(inputs, targets, seed, start, job)
        return {**counts, **tuned, "value_range_": value_range}

    def _tune(self, inputs, targets, seed, start, job) -> dict:
        """Train on examples; return the fitted attributes."""
        examples, prefix = inputs.examples, inputs.prefix
        source, done = prefix.backbone, 0
        if start is not None:
            source, done = start.source_, start.n_iter_
        solves = self._solves_head(inputs.all_frozen) and not job.partial
        self._refuse_no_training(inputs, start, job.epochs or solves)
        parts = self._split(examples, targets, seed, solves)
        # Another fit, though a warm one, sees all its data: another call may not.
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
            # After loading, there is no net.
            optimizer_before=getattr(getattr(before, "net_", None), "optimizer_", None),
        )
        # Other pictures, orders and drops in each call that goes on.
        with seeded(_mixed(seed, done), prefix.device):
            head, found = self._head(inputs, parts, plan, start, solves)
            network, net = self._train(inputs, parts, plan, head)
        history = found.pop("history_", []) + epochs_table(net, "tune")
        n_iter = done + len(net.history)
        training = {"net_": net, "history_": history, "n_iter_": n_iter}
        further = {"source_": source, "seen_": examples.seen}
        tuned = _tuned(prefix, network)
        return targets.attributes | found | training | further | tuned

    def _load(self, seed: int) -> Backbone:
        return load_backbone(
            self.backbone,
            weights=self.weights,
            image_size=self.image_size,
            random_state=seed,
        )

    def _inputs(self, backbone, examples) -> Inputs:
        prefix = self._prefix(backbone, backbone.freeze_depth(self.freeze))
        augment = backbone.reader.augmentation(self.augment)
        return Inputs(prefix, resolve_cache(self.cache), examples, augment)

    def _head(self, inputs, parts, plan, start, solves):
        """Make the head that the training begins with, and what is to be told of it."""
        if solves:
            return self._solved_head(inputs, plan.targets)
        if start is None:
            return self._first_head(inputs, parts, plan)
        head = copy.deepcopy(start.head_)
        if plan.phase == "call" and inputs.all_frozen:
            restandardise(head, inputs.embeddings(), start.seen_[1])
        return head, {}

    def _train(self, inputs, parts, plan, head):
        """Train the stages that are not frozen, and the head."""
        network = inputs.network(
            head, self.precision, fixed_norms=self.weights is not None
        )
        rows, held_out = parts
        valid = None if held_out is None else inputs.rows(held_out)
        return network, train(network, inputs.rows(rows, training=True), valid, plan)

    def _solves_head(self, all_frozen: bool) -> bool:
        """Whether `fit` solves a convex problem, where there is nothing else to do."""
        plain = not (self.net_params or self.dropout or len(self.hidden_layer_sizes))
        own = callable(self.optimizer) or distils(self)
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

    def _solved_head(self, inputs, targets):
        """Make the head of a linear probe, with the best coefficients there are."""
        begin, name = time.perf_counter(), self._penalty
        embeddings, examples = inputs.embeddings(), inputs.examples
        zeros = np.zeros(targets.n_outputs)
        head = make_head(Standardise.of(embeddings), (), 0.0, zeros)
        penalty, loss = solve_head(
            targets, head, embeddings, examples, getattr(self, name)
        )
        seconds = time.perf_counter() - begin
        row = {"phase": "solve", "epoch": 1, "train_loss": loss, "seconds": seconds}
        return head, {"history_": [row], f"{name}_": penalty}

    def _first_head(self, inputs, parts, plan):
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
        rows, held_out = parts
        encoded, weights = examples.targets[rows], examples.weights[rows]
        layers = sizes, self.dropout, plan.targets.prior_scores(encoded, weights)
        if self.weights is None and not inputs.all_frozen:
            # There are no features to keep, nor any scale of them: it is to be learnt.
            neutral = Standardise.nothing(inputs.prefix.backbone.n_features)
            return make_head(neutral, *layers), {}
        embeddings = inputs.embeddings()
        head = make_head(Standardise.of(embeddings[rows]), *layers)
        if not self.head_epochs or inputs.all_frozen:
            return head, {}
        read = torch.from_numpy(embeddings).__getitem__
        net = train(
            Network(torch.nn.Sequential(), head),
            examples.rows(read, rows),
            None if held_out is None else examples.rows(read, held_out),
            replace(plan, phase="head", epochs=self.head_epochs),
        )
        return head.cpu(), {"history_": epochs_table(net, "head")}

    def _split(self, examples, targets, seed, solves):
        """Numbers of the examples to train on, and of those to validate on, if any."""
        everything, groups = np.arange(len(examples)), examples.groups
        if not self.early_stopping or solves:
            return everything, None
        try:
            kind = targets.splitter if groups is None else GroupShuffleSplit
            splitter = kind(1, test_size=self.validation_fraction, random_state=seed)
            return next(splitter.split(everything, examples.targets[:, 0], groups))
        except ValueError as error:
            raise ValueError(
                f"early_stopping=True cannot set aside validation_fraction="
                f"{self.validation_fraction} of {len(examples)} different examples: "
                f"{error} Pass more examples, a larger validation_fraction, or "
                "early_stopping=False."
            ) from error

    def _prefix(self, backbone, depth, pooling="none") -> Prefix:
        device = resolve_device(self.device)
        precision = resolve_precision(self.precision, device)
        return Prefix(backbone, depth, pooling, device=device, precision=precision)

    def _outputs(self, X) -> np.ndarray:
        """Outputs of the head for images, (n_samples, n_outputs) float64."""
        check_is_fitted(self)
        reader = self.backbone_.reader
        checked = check_samples(self, X, reader=reader, reset=False)
        samples = as_samples(reader, checked, self.image_shape, self.value_range_)
        whole = self._prefix(self.backbone_, len(self.backbone_.stages), "avg")
        embeddings = embed_tuned(
            samples, whole, self.freeze_depth_, resolve_cache(self.cache)
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


def _tuned(prefix: Prefix, network: Network) -> dict:
    """What is to be kept of a network that was trained."""
    return {
        "backbone_": prefix.backbone.tuned(prefix.depth, network.suffix),
        # On the CPU, as the backbone: a pickle must open where there is no GPU.
        "head_": copy.deepcopy(network.head).cpu(),
        "freeze_depth_": prefix.depth,
    }


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
