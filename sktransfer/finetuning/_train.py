"""Training of a suffix and a head over skorch."""

import copy
import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from skorch import NeuralNet
from skorch.helper import predefined_split
from skorch.hf import AccelerateMixin
from torch import nn

from sktransfer.embedding._threads import keep_freed_memory
from sktransfer.finetuning._callbacks import (
    callbacks_of,
    silent,
    stopped_early,
    stopping_of,
)
from sktransfer.finetuning._loss import make_criterion
from sktransfer.finetuning._net_params import check_net_params
from sktransfer.finetuning._network import Network
from sktransfer.finetuning._targets import Targets

OPTIMIZERS = {
    "adamw": (torch.optim.AdamW, {}),
    "sgd": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
}
# Devices for which torch has fused optimizers, for each of its versions.
_FUSED = ("cpu", "cuda")
# Of `net_params`, what becomes a part of something of ours.
_OURS = ("callbacks", "criterion")


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


@dataclass
class Plan:
    """How a network is to be trained in one phase of a fit.

    Parameters
    ----------
    estimator : BaseFineTune
        Whose parameters are read where they are used: nothing passes them on.
    targets : Targets
    phase : {"head", "tune", "call"}
        The head alone, before anything else is trained; a fit; or a call of
        `partial_fit`, after which another one may go on.
    device : str
    epochs : int
    epochs_done : int
        Those of the fits before.
    source : nn.Module, optional
        The trained stages as they were before the first fit.
    optimizer_before : torch.optim.Optimizer, optional
        What the call before has left.
    """

    estimator: object
    targets: Targets
    phase: str
    device: str
    epochs: int
    epochs_done: int = 0
    source: nn.Module | None = None
    optimizer_before: torch.optim.Optimizer | None = None

    @property
    def net_params(self) -> dict:
        return self.estimator.net_params or {}

    @property
    def users_callbacks(self) -> list:
        return self.net_params.get("callbacks") or []


def train(network: Network, rows: Rows, valid: Rows | None, plan: Plan) -> NeuralNet:
    """Train a network; return the skorch net that did it.

    Ctrl-C propagates, where skorch's own ``fit`` would swallow it.
    """
    keep_freed_memory()
    net = _make_net(network, len(rows), valid, plan)
    net.initialize()
    if plan.optimizer_before is not None:
        _take_over_state(net.optimizer_, plan.optimizer_before)
    net.notify("on_train_begin", X=rows, y=None)
    if plan.epochs:
        _run_epochs(net, rows, plan)
    net.notify("on_train_end", X=rows, y=None)
    _tidy(net, plan)
    return net


def _run_epochs(net, rows, plan) -> None:
    try:
        net.fit_loop(rows, None, epochs=plan.epochs)
    except KeyboardInterrupt:
        if not stopped_early(net):
            raise
    except torch.OutOfMemoryError as error:
        raise RuntimeError(
            f"Training does not fit in the memory of {plan.device!r} at "
            f"batch_size={plan.estimator.batch_size} ({error}). Use a smaller "
            "batch_size or image_size, freeze more stages, or precision='bfloat16'; in "
            "a search, fewer n_jobs, whose processes share that memory."
        ) from error


def _tidy(net, plan) -> None:
    """Leave out of a net, which is kept and pickled, what it was trained with.

    That is the data it was validated on, and callbacks that hold tensors, on a GPU
    perhaps.
    """
    net.train_split = None
    theirs = plan.users_callbacks
    ours = {pair[0] for pair in net.callbacks if pair not in theirs}
    net.callbacks = theirs
    net.callbacks_ = [pair for pair in net.callbacks_ if pair[0] not in ours]
    if plan.phase != "call":
        # The averages of AdamW are twice the size of the network.
        net.optimizer_.state.clear()
    if isinstance(net, SpreadNet):
        net.let_go()


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


def _make_net(network, n_rows, valid, plan) -> NeuralNet:
    estimator = plan.estimator
    optimizer, _ = _optimizer(estimator)
    check_net_params(plan.net_params, optimizer, plan.targets.loss)
    arguments = {
        **_optimizer_arguments(network, estimator, plan.device),
        "lr": estimator.lr,
        "criterion": make_criterion(estimator, plan.targets),
        "batch_size": estimator.batch_size,
        "max_epochs": plan.epochs,
        "iterator_train__shuffle": True,
        "iterator_train__collate_fn": as_batch,
        "iterator_valid__collate_fn": as_batch,
        "train_split": None if valid is None else predefined_split(valid),
        "device": plan.device,
        "verbose": estimator.verbose,
        **{name: v for name, v in plan.net_params.items() if name not in _OURS},
    }
    kind = NeuralNet
    rows_per_step = arguments.get("iterator_train__batch_size", arguments["batch_size"])
    if (accelerator := arguments.get("accelerator")) is not None:
        kind, rows_per_step = SpreadNet, rows_per_step * accelerator.num_processes
        # The accelerator chooses the device, and one process prints for all.
        sink = accelerator.print if estimator.verbose else silent
        arguments |= {"device": None, "callbacks__print_log__sink": sink}
    n_steps = plan.epochs * math.ceil(n_rows / rows_per_step)
    callbacks = [
        *callbacks_of(plan, n_steps, validates=valid is not None),
        *plan.users_callbacks,
        *stopping_of(plan),
    ]
    return kind(_Factory(network), callbacks=callbacks, **arguments)


def split_decay(optimizer: type, groups, **options):
    """Make an optimizer that lets biases and norms, all 1-D tensors, not decay."""
    split = []
    for group in groups:
        flat = [p for p in group["params"] if p.ndim <= 1]
        rest = [p for p in group["params"] if p.ndim > 1]
        split += [{**group, "params": rest}] if rest else []
        split += [{**group, "params": flat, "weight_decay": 0.0}] if flat else []
    return optimizer(split, **options)


def _optimizer(estimator) -> tuple:
    return OPTIMIZERS.get(estimator.optimizer, (estimator.optimizer, {}))


def _optimizer_arguments(network, estimator, device: str) -> dict:
    optimizer, options = _optimizer(estimator)
    if estimator.optimizer in OPTIMIZERS and torch.device(device).type in _FUSED:
        # One pass over each tensor, in place of ten with copies between them.
        options = {"fused": True, **options}
    # L2-SP takes the place of the decay to zero, which would pull against it.
    decay = 0.0 if estimator.l2_sp else estimator.weight_decay
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
        "optimizer__param_groups": _stage_rates(network.suffix, estimator),
        **{f"optimizer__{name}": value for name, value in options.items()},
    }


def _stage_rates(suffix, estimator) -> list:
    """Learning rate of each stage: lower the further from the head."""
    # Pooling and the like learn nothing, and are no step towards the input.
    trained = [name for name, stage in suffix._modules.items() if [*stage.parameters()]]
    rates = {}
    for distance, name in enumerate(reversed(trained)):
        factor = estimator.backbone_lr_mult * estimator.layer_decay**distance
        rates[name] = estimator.lr * factor
    # Below whatever wraps the network, as torch.compile does.
    return [(f"*suffix.{name}.*", {"lr": rate}) for name, rate in rates.items()]


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
