"""Training of a suffix and a head over skorch: rows, loss, schedule, callbacks."""

import copy
import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from skorch import NeuralNet
from skorch.callbacks import Callback, EarlyStopping, EpochScoring, LRScheduler
from skorch.helper import predefined_split
from skorch.hf import AccelerateMixin
from torch import nn
from torch.optim import lr_scheduler

from sktransfer.embedding._threads import keep_freed_memory
from sktransfer.finetuning._net_params import check_net_params
from sktransfer.finetuning._network import Network

OPTIMIZERS = {
    "adamw": (torch.optim.AdamW, {}),
    "sgd": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
}
LR_SCHEDULES = ("cosine", "one-cycle", "constant")
# Devices for which torch has fused optimizers, for each of its versions.
_FUSED = ("cpu", "cuda")
# Of `net_params`, what becomes a part of something of ours.
_OURS = ("callbacks", "criterion")
# Li et al. (2018) weigh the head's decay at a tenth of the pull to the source.
_HEAD_PULL = 0.1


class Rows(torch.utils.data.Dataset):
    """Training rows that are taken by the batch: inputs, targets and weights.

    Parameters
    ----------
    read : callable
        Array of row numbers -> tensor of inputs.
    targets : ndarray of shape (n, n_targets)
    weights : ndarray of shape (n,)
    training : bool
        Whether batch norm will see the batches, which needs two rows.
    mean_weight : float, optional
        What a row weighs on average, if not only these rows are to tell.
    """

    def __init__(
        self,
        read: Callable,
        targets,
        weights,
        training: bool = False,
        mean_weight: float | None = None,
    ):
        self.read = read
        self.training = training
        # A mean of 1, so that a row weighs the same in whatever batch it comes; and in
        # float32 no weight is 0, which is the mark of a row that fills up a batch.
        weights = weights / (mean_weight or np.mean(weights))
        weights = np.maximum(weights, np.finfo(np.float32).tiny)
        y = np.column_stack([targets, weights])
        self.y = torch.from_numpy(y.astype(np.float32))

    def __len__(self):
        return len(self.y)

    def __getitems__(self, rows):
        rows = list(rows)
        y = self.y[rows]
        if len(rows) == 1 and self.training:
            # The second row weighs nothing.
            rows = [rows[0], (rows[0] + 1) % len(self)]
            y = self.y[rows]
            y[1, -1] = 0
        return self.read(np.array(rows)), y

    def __getitem__(self, row):
        return self.__getitems__([row])


def as_batch(batch):
    """Collate what is a batch already."""
    return batch


_LOSSES = {
    "classes": nn.CrossEntropyLoss,
    "labels": nn.BCEWithLogitsLoss,
    "values": nn.MSELoss,
}


class WeightedLoss(nn.Module):
    """Mean of a loss over rows, each times its weight, the last column of the target.

    Parameters
    ----------
    kind : {"classes", "labels", "values"}
        Cross-entropy on one class for each row, binary cross-entropy on an indicator
        matrix, or the squared error.
    temperature : float or None
        For distillation, where log-probabilities of a teacher follow the class in the
        target: Hinton, Vinyals and Dean, "Distilling the knowledge in a neural
        network", 2015.
    distill_weight : float
        Weight of the teacher's term; the labels have the rest.
    criterion : type of nn.Module, optional
        In place of those losses, with a value for each row (``reduction="none"``).
    **options
        For the loss, such as ``label_smoothing``.
    """

    def __init__(
        self,
        kind: str,
        temperature=None,
        distill_weight=0.0,
        criterion=None,
        **options,
    ):
        super().__init__()
        self.temperature = temperature
        self.distill_weight = distill_weight
        self.kind = kind
        self.loss = (criterion or _LOSSES[kind])(reduction="none", **options)

    def forward(self, output, target):
        target, weight = target[:, :-1], target[:, -1]
        if self.kind == "classes":
            rows = self.loss(output, target[:, 0].long())
            if self.temperature is not None:
                rows = rows + self.distill_weight * (
                    self._from_teacher(output, target[:, 1:]) - rows
                )
        else:
            rows = self.loss(output, target).mean(dim=1)
        # A row that only fills up a batch weighs nothing, and does not count.
        return (rows * weight).sum() / (weight > 0).sum().clamp(min=1)

    def _from_teacher(self, output, teacher):
        heat = self.temperature
        student = nn.functional.log_softmax(output / heat, dim=1)
        teacher = nn.functional.log_softmax(teacher / heat, dim=1)
        gap = (teacher.exp() * (teacher - student)).sum(dim=1)
        # The gradient of softened scores shrinks with the square of the temperature.
        return heat**2 * gap


def split_decay(optimizer: type, groups, **options):
    """Make an optimizer that lets biases and norms, all 1-D tensors, not decay."""
    split = []
    for group in groups:
        flat = [p for p in group["params"] if p.ndim <= 1]
        rest = [p for p in group["params"] if p.ndim > 1]
        split += [{**group, "params": rest}] if rest else []
        split += [{**group, "params": flat, "weight_decay": 0.0}] if flat else []
    return optimizer(split, **options)


def cosine(n_steps: int, step: int) -> float:
    """Factor of the learning rate at a step: half a cosine from 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * min(step / n_steps, 1)))


def bare(net: NeuralNet) -> Network:
    """The network of a net, out of what spreads it over processes."""
    return getattr(net.module_, "module", net.module_)


class PullToSource(Callback):
    """L2-SP: add the gradient of the pull of the weights to those of the source.

    Of ``strength / 2 * |w - w_source|^2 + beta / 2 * |head|^2``, Li, Grandvalet and
    Davoine, "Explicit inductive bias for transfer learning with convolutional
    networks", ICML 2018.
    """

    def __init__(self, strength: float, source: nn.Module):
        self.strength = strength
        self.source = source

    def on_train_begin(self, net, **kwargs):
        own = dict(bare(net).suffix.named_parameters())
        source = dict(self.source.named_parameters()) if own else {}
        self.start_ = {
            name: parameter.detach().to(own[name].device)
            for name, parameter in source.items()
        }

    def on_grad_computed(self, net, named_parameters, **kwargs):
        with torch.no_grad():
            for name, parameter in bare(net).suffix.named_parameters():
                if parameter.grad is not None:
                    away = parameter - self.start_[name]
                    parameter.grad.add_(away, alpha=self.strength)
            for parameter in bare(net).head.parameters():
                parameter.grad.add_(parameter, alpha=_HEAD_PULL * self.strength)

    def on_train_end(self, net, **kwargs):
        del self.start_


class GradualUnfreezing(Callback):
    """Let one more stage train, from the last to the first, every so many epochs.

    A stage without parameters, such as pooling, does not take an epoch.

    Howard and Ruder, "Universal language model fine-tuning for text
    classification", ACL 2018.
    """

    def __init__(self, every: int, done: int):
        self.every = every
        self.done = done

    def on_epoch_begin(self, net, **kwargs):
        suffix = bare(net).suffix
        stages = [i for i, stage in enumerate(suffix) if [*stage.parameters()]]
        awake = 1 + (self.done + len(net.history) - 1) // self.every
        bare(net).rest(stages[-awake] if awake <= len(stages) else 0)

    def on_train_end(self, net, **kwargs):
        bare(net).rest(0)


class CountRealRows(Callback):
    """Leave the rows that only fill up a batch out of the means of an epoch."""

    def on_batch_end(self, net, batch, training, **kwargs):
        _, y = batch
        name = "train_batch_size" if training else "valid_batch_size"
        net.history.record_batch(name, int((y[:, -1] > 0).sum()))


class RefuseDivergence(Callback):
    """Stop with an error where the loss is no number: nothing is learnt from there."""

    def on_epoch_end(self, net, **kwargs):
        epoch = net.history[-1]
        # A user may have taken the scoring out.
        loss = epoch.get("train_loss", 0.0)
        if not math.isfinite(loss):
            raise ValueError(
                f"Training diverged: the loss of epoch {epoch['epoch']} is {loss}. Use "
                f"a lower lr, now {net.lr}, and check that targets and sample weights "
                "are of moderate size."
            )


def validation_accuracy(net, X, y) -> float:
    """Accuracy on the validation rows, for the table of epochs."""
    scores = net.predict_proba(X)
    target, weights = X.y[:, :-1].numpy(), X.y[:, -1].numpy()
    if net.criterion_.kind == "labels":
        right = ((scores > 0) == (target > 0.5)).mean(axis=1)
    else:
        right = scores.argmax(axis=1) == target[:, 0]
    return float(np.average(right, weights=weights))


def validation_r2(net, X, y) -> float:
    """R2 on the validation rows, the mean of that of each target."""
    target, weights = X.y[:, :-1].numpy(), X.y[:, -1].numpy()
    mean = np.average(target, axis=0, weights=weights)
    left = weights @ (target - net.predict_proba(X)) ** 2
    total = weights @ (target - mean) ** 2
    return float(np.mean(1 - left / np.maximum(total, 1e-12)))


@dataclass
class Plan:
    """How to train: the parameters of an estimator, resolved to plain values."""

    kind: str
    optimizer: str | type
    lr: float
    backbone_lr_mult: float = 1.0
    layer_decay: float = 1.0
    weight_decay: float = 0.0
    l2_sp: float = 0.0
    lr_schedule: str = "cosine"
    batch_size: int = 32
    unfreeze_every: int = 0
    epochs_done: int = 0
    source: nn.Module | None = None
    patience: int | None = None
    device: str = "cpu"
    verbose: int = 0
    net_params: dict = field(default_factory=dict)
    loss_options: dict = field(default_factory=dict)
    # Whether another call may go on, and what a call before has left for this one.
    goes_on: bool = False
    optimizer_before: torch.optim.Optimizer | None = None


def train(network: Network, rows: Rows, valid: Rows | None, plan: Plan, epochs: int):
    """Train a network; return the skorch net that did it.

    Ctrl-C propagates, where skorch's own ``fit`` would swallow it.
    """
    keep_freed_memory()
    net = _make_net(network, len(rows), valid, plan, epochs)
    net.initialize()
    if plan.optimizer_before is not None:
        _take_over_state(net.optimizer_, plan.optimizer_before)
    net.notify("on_train_begin", X=rows, y=None)
    if epochs:
        try:
            net.fit_loop(rows, None, epochs=epochs)
        except KeyboardInterrupt:
            if not _stopped_early(net):
                raise
        except torch.OutOfMemoryError as error:
            raise RuntimeError(
                f"Training does not fit in the memory of {plan.device!r} at "
                f"batch_size={plan.batch_size} ({error}). Use a smaller batch_size or "
                "image_size, freeze more stages, or precision='bfloat16'; in a search, "
                "fewer n_jobs, whose processes share that memory."
            ) from error
    net.notify("on_train_end", X=rows, y=None)
    # The net is kept, and pickled, without the data it was validated on, and without
    # callbacks that hold what it was trained with, on a GPU perhaps.
    net.train_split = None
    ours = {name for name, _ in _callbacks(plan, 1, valid) + _stopping(plan, 1)}
    net.callbacks = plan.net_params.get("callbacks") or []
    net.callbacks_ = [pair for pair in net.callbacks_ if pair[0] not in ours]
    if not plan.goes_on:
        # The averages of AdamW are twice the size of the network.
        net.optimizer_.state.clear()
    if isinstance(net, SpreadNet):
        net.let_go()
    return net


def _take_over_state(optimizer, before) -> None:
    """Go on with the averages of an optimizer, if it was one for the same tensors."""
    now = optimizer.state_dict()
    groups = zip(optimizer.param_groups, before.param_groups, strict=False)
    pairs = [(one["params"], other["params"]) for one, other in groups]
    same = type(optimizer) is type(before) and all(
        [p.shape for p in one] == [p.shape for p in other] for one, other in pairs
    )
    if same and len(optimizer.param_groups) == len(before.param_groups):
        # Copies: a call that is interrupted leaves the estimator as it was.
        state = copy.deepcopy(before.state_dict()["state"])
        optimizer.load_state_dict({**now, "state": state})


def _stopped_early(net) -> bool:
    """Whether an interrupt was skorch's way to end a fit, and not a Ctrl-C."""
    return any(
        isinstance(callback, EarlyStopping) and callback.misses_ == callback.patience
        for _, callback in net.callbacks_
    )


def _make_net(network, n_rows, valid, plan, epochs) -> NeuralNet:
    optimizer, _ = _optimizer(plan)
    check_net_params(plan.net_params, optimizer, _LOSSES[plan.kind])
    settings = {
        **_optimizer_settings(network, plan),
        "lr": plan.lr,
        "criterion": functools.partial(
            WeightedLoss,
            plan.kind,
            criterion=_criterion(plan.net_params),
            **plan.loss_options,
        ),
        "batch_size": plan.batch_size,
        "max_epochs": epochs,
        "iterator_train__shuffle": True,
        "iterator_train__collate_fn": as_batch,
        "iterator_valid__collate_fn": as_batch,
        "train_split": None if valid is None else predefined_split(valid),
        "device": plan.device,
        "verbose": plan.verbose,
        **{name: v for name, v in plan.net_params.items() if name not in _OURS},
    }
    kind = NeuralNet
    rows_per_step = settings.get("iterator_train__batch_size", settings["batch_size"])
    if (accelerator := settings.get("accelerator")) is not None:
        kind, rows_per_step = SpreadNet, rows_per_step * accelerator.num_processes
        # The accelerator chooses the device, and one process prints for all.
        sink = accelerator.print if plan.verbose else _silent
        settings |= {"device": None, "callbacks__print_log__sink": sink}
    callbacks = [
        *_callbacks(plan, epochs * math.ceil(n_rows / rows_per_step), valid),
        *(plan.net_params.get("callbacks") or []),
        *_stopping(plan, epochs),
    ]
    return kind(_Factory(network), callbacks=callbacks, **settings)


def _optimizer(plan) -> tuple:
    return OPTIMIZERS.get(plan.optimizer, (plan.optimizer, {}))


def _optimizer_settings(network, plan) -> dict:
    optimizer, options = _optimizer(plan)
    if plan.optimizer in OPTIMIZERS and torch.device(plan.device).type in _FUSED:
        # One pass over each tensor, in place of ten with copies between them.
        options = {"fused": True, **options}
    # L2-SP takes the place of the decay to zero, which would pull against it.
    decay = 0.0 if plan.l2_sp else plan.weight_decay
    parameters = inspect.signature(optimizer).parameters
    any_name = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if "weight_decay" in parameters or any_name:
        options = {"weight_decay": decay, **options}
    elif decay:
        raise ValueError(
            f"The optimizer {getattr(optimizer, '__name__', optimizer)} has no weight "
            f"decay, and weight_decay={decay}. Use weight_decay=0, or another one."
        )
    return {
        "optimizer": functools.partial(split_decay, optimizer),
        "optimizer__param_groups": _stage_rates(network.suffix, plan),
        **{f"optimizer__{name}": value for name, value in options.items()},
    }


def _criterion(net_params: dict) -> type | None:
    """Loss of the user, which ours is to weigh by row."""
    criterion = net_params.get("criterion")
    if isinstance(criterion, nn.Module):
        kind = type(criterion).__name__
        raise ValueError(
            f"net_params has the criterion {criterion!r}, which gives one value for a "
            f"batch. Pass its class, {kind}, and its arguments as 'criterion__<name>': "
            "it is made with reduction='none', since each row has a weight."
        )
    return criterion


class SpreadNet(AccelerateMixin, NeuralNet):
    """A net that Hugging Face's accelerate trains, in several processes if so."""

    def _initialize_accelerator(self):
        # Not the loss, which has nothing to learn: on CPUs, accelerate refuses that.
        losses, self._criteria = self._criteria, []
        try:
            return super()._initialize_accelerator()
        finally:
            self._criteria = losses

    def let_go(self) -> None:
        """Forget what trains: it belongs to these processes, and no pickle holds it."""
        self.accelerator, self.optimizer_ = None, None
        self.callbacks, self.callbacks_ = [], []


class _Factory:
    """Gives the network, as skorch would keep training one given as an instance.

    A pickle leaves it out: skorch stores its module by itself, so that what was on a
    GPU opens where there is none.
    """

    def __init__(self, network):
        self.network = network

    def __call__(self):
        if self.network is None:
            raise RuntimeError(
                "This net comes out of a pickle, without what it started from, and "
                "cannot be initialised again. Fit the estimator anew."
            )
        return self.network

    def __reduce__(self):
        return _Factory, (None,)


def _stage_rates(suffix, plan) -> list:
    """Learning rate of each stage: lower the further from the head."""
    # Pooling and the like learn nothing, and are no step towards the input.
    trained = [name for name, stage in suffix._modules.items() if [*stage.parameters()]]
    rates = {}
    for distance, name in enumerate(reversed(trained)):
        factor = plan.backbone_lr_mult * plan.layer_decay**distance
        rates[name] = plan.lr * factor
    # Below whatever wraps the network, as torch.compile does.
    return [(f"*suffix.{name}.*", {"lr": rate}) for name, rate in rates.items()]


def _callbacks(plan, n_steps, valid) -> list:
    callbacks = [("real_rows", CountRealRows()), ("divergence", RefuseDivergence())]
    if valid is not None:
        regression = plan.kind == "values"
        score = validation_r2 if regression else validation_accuracy
        scoring = EpochScoring(score, lower_is_better=False, name="valid_score")
        callbacks.append(("valid_score", scoring))
    if plan.lr_schedule == "cosine" and n_steps:
        factor = functools.partial(cosine, n_steps)
        schedule = LRScheduler(
            lr_scheduler.LambdaLR, lr_lambda=factor, step_every="batch"
        )
        callbacks.append(("lr_schedule", schedule))
    elif plan.lr_schedule == "one-cycle" and n_steps:
        own = {"optimizer__momentum", "optimizer__betas"} & plan.net_params.keys()
        schedule = LRScheduler(
            _one_cycle, n_steps=n_steps, keep_momentum=bool(own), step_every="batch"
        )
        callbacks.append(("lr_schedule", schedule))
    if plan.l2_sp:
        callbacks.append(("l2_sp", PullToSource(plan.l2_sp, plan.source)))
    if plan.unfreeze_every:
        unfreezing = GradualUnfreezing(plan.unfreeze_every, plan.epochs_done)
        callbacks.append(("unfreezing", unfreezing))
    return callbacks


def _stopping(plan, epochs) -> list:
    """Stop early; after all other callbacks, which are to hear of the last epoch."""
    if plan.patience is None or not epochs:
        return []
    # Any fall of the loss is one, however small.
    settings = {"threshold": 0.0, "load_best": True, "sink": _silent}
    return [("early_stopping", EarlyStopping(patience=plan.patience, **settings))]


def _one_cycle(optimizer, n_steps, keep_momentum, last_epoch=-1):
    has_momentum = not optimizer.defaults.keys().isdisjoint(("momentum", "betas"))
    peaks = [group["lr"] for group in optimizer.param_groups]
    # One step more than there are, since skorch asks for the rate after the last.
    return lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=peaks,
        total_steps=n_steps + 1,
        cycle_momentum=has_momentum and not keep_momentum,
    )


def _silent(*args, **kwargs):
    pass


def epochs_table(net: NeuralNet, phase: str) -> list[dict]:
    """What happened in each epoch, a row each."""
    names = {
        "train_loss": "train_loss",
        "valid_loss": "valid_loss",
        "valid_score": "valid_score",
        "dur": "seconds",
    }
    return [
        {"phase": phase, "epoch": epoch["epoch"]}
        | {name: float(epoch[key]) for key, name in names.items() if key in epoch}
        for epoch in net.history
    ]
