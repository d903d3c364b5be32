"""Training of a suffix and a head by skorch."""

import copy
import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from skorch import NeuralNet
from skorch.helper import predefined_split
from skorch.hf import AccelerateMixin
from torch import nn

from sktransfer.backbones._names import name_of, stage_of
from sktransfer.embedding._tasks import Task
from sktransfer.embedding._threads import keep_freed_memory
from sktransfer.finetuning._callbacks import (
    callbacks_of,
    silent,
    stopped_early,
    stopping_of,
    told_of,
)
from sktransfer.finetuning._loss import make_criterion
from sktransfer.finetuning._net_params import check_net_params
from sktransfer.finetuning._network import Network
from sktransfer.finetuning._targets import Targets

OPTIMIZERS = {
    "adamw": (torch.optim.AdamW, {}),
    "sgd": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
}
# The ratio of the learning rate of the backbone to that of the head, by what is
# trained: a network in which little can change needs, and bears, larger changes of it.
# Of 1, 3 and 10, the last one is mostly best for "tiny", but too much for the norms of
# MobileNetV2 (benchmarks/quality/train_only.py).
_RATIOS = {"all": 0.1, "norms": 3.0, "biases": 3.0}
# Devices for which every supported version of torch has fused optimizers.
_FUSED = ("cpu", "cuda")
# Devices from which skorch opens the pickle of a net everywhere.
_OPENED = ("cpu", "cuda")
# Arguments in `net_params` that are combined with those of the estimator.
_OURS = ("callbacks", "criterion")


class Rows(torch.utils.data.Dataset):
    """Training rows, read by the batch: inputs, targets and weights.

    Parameters
    ----------
    read : callable
        A function that turns an array of row indices into a tensor of inputs.
    targets : ndarray of shape (n_rows, n_targets)
        The encoded targets.
    weights : ndarray of shape (n_rows,)
        The weights of the rows.
    training : bool
        Whether the batches are for training, where batch norms need two rows.
    mean_weight : float, optional
        The average weight of a row, if other rows than these count, too.
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
        # The mean over all rows, not over each batch, is 1, so that a row weighs the
        # same in any batch. No weight becomes 0 in float32, since 0 marks the rows that
        # fill up a batch.
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
            # Batch norm needs two values of each channel. The second row has no weight.
            rows = [rows[0], (rows[0] + 1) % len(self)]
            y = self.y[rows]
            y[1, -1] = 0
        return self.read(np.array(rows)), y

    def __getitem__(self, row):
        return self.__getitems__([row])


def as_batch(batch):
    """Return a batch as it is, since `Rows` are read by the batch."""
    return batch


@dataclass
class Plan:
    """How a network is trained in one phase of a fit.

    Parameters
    ----------
    estimator : BaseFineTune
        The estimator, whose parameters are read where they are used.
    targets : Targets
        The targets of the estimator.
    phase : {"head", "tune", "call"}
        What is trained: the head alone, before anything else; all that is not frozen,
        in a fit; or the same in a call of `partial_fit`, which may be continued.
    device : str
        The device to train on.
    epochs : int
        The number of epochs.
    epochs_done : int
        The number of epochs of earlier fits.
    source : nn.Module, optional
        The trained stages as they were before the first fit.
    task : Task
        The task of the fit, of which each epoch is a part.
    fitted : callable
        A function from the network to the attributes of an estimator that is fitted as
        far as the network is trained.
    optimizer_before : torch.optim.Optimizer, optional
        The optimizer of the previous call, whose state is taken over.
    """

    estimator: object
    targets: Targets
    phase: str
    device: str
    epochs: int
    epochs_done: int = 0
    source: nn.Module | None = None
    task: Task = field(default_factory=Task)
    fitted: Callable | None = None
    optimizer_before: torch.optim.Optimizer | None = None

    @property
    def net_params(self) -> dict:
        return self.estimator.net_params or {}

    @property
    def users_callbacks(self) -> list:
        return self.net_params.get("callbacks") or []


def train(network: Network, rows: Rows, valid: Rows | None, plan: Plan) -> NeuralNet:
    """Train a network and return the skorch net that did so.

    Ctrl-C propagates, whereas skorch's own ``fit`` would suppress it.
    """
    # Skorch's own `fit` has the same steps.
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
            f"Training does not fit in the memory of {plan.device!r} with "
            f"batch_size={plan.estimator.batch_size} ({error}). Use a smaller "
            "batch_size or image_size, precision='bfloat16', or freeze more stages. In "
            "a search, use fewer n_jobs, whose processes share that memory."
        ) from error


def _tidy(net, plan) -> None:
    """Remove from a net, which is kept and pickled, what only the training needed.

    This includes the validation data, and our callbacks, which may hold tensors on a
    GPU.
    """
    net.train_split = None
    theirs = plan.users_callbacks
    ours = {pair[0] for pair in net.callbacks if pair not in theirs}
    net.callbacks = theirs
    net.callbacks_ = [pair for pair in net.callbacks_ if pair[0] not in ours]
    if plan.phase != "call":
        # The state of AdamW is twice as large as the network. Only a further call of
        # `partial_fit` continues with it.
        net.optimizer_.state.clear()
    if isinstance(net, SpreadNet):
        net.let_go()
    elif torch.device(plan.device).type not in _OPENED:
        _move_to_host(net)


def _move_to_host(net) -> None:
    """Move a net to the CPU, with the state of its optimizer."""
    state = net.optimizer_.state_dict()
    net.device = "cpu"
    # For some devices, this makes other parameters, which the optimizer has to take.
    net.module_.to("cpu")
    net.criterion_.to("cpu")
    net.initialize_optimizer()
    net.optimizer_.load_state_dict(state)


def _take_over_state(optimizer, before) -> None:
    """Continue with the state of an optimizer, if it belongs to the same tensors."""
    # `strict=False`, as the numbers of groups are compared below.
    now = optimizer.state_dict()
    groups = zip(optimizer.param_groups, before.param_groups, strict=False)
    pairs = [(one["params"], other["params"]) for one, other in groups]
    same = type(optimizer) is type(before) and all(
        [p.shape for p in one] == [p.shape for p in other] for one, other in pairs
    )
    if same and len(optimizer.param_groups) == len(before.param_groups):
        # A copy, so that an interrupted call leaves the estimator unchanged.
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
        # The arguments of the user come last, since they take precedence.
        **{name: v for name, v in plan.net_params.items() if name not in _OURS},
    }
    kind = NeuralNet
    rows_per_step = arguments.get("iterator_train__batch_size", arguments["batch_size"])
    if (accelerator := arguments.get("accelerator")) is not None:
        kind, rows_per_step = SpreadNet, rows_per_step * accelerator.num_processes
        # The accelerator chooses the device, and only its main process prints.
        sink = accelerator.print if estimator.verbose else silent
        arguments |= {"device": None, "callbacks__print_log__sink": sink}
    n_steps = plan.epochs * math.ceil(n_rows / rows_per_step)
    callbacks = [
        *callbacks_of(plan, n_steps, validates=valid is not None),
        *plan.users_callbacks,
        *stopping_of(plan),
        *told_of(plan),
    ]
    return kind(_Factory(network), callbacks=callbacks, **arguments)


def split_decay(optimizer: type, groups, **options):
    """Make an optimizer of what is trained, without decay of biases and norms.

    Biases and the parameters of norms are 1-D tensors.
    """
    split = []
    for group in groups:
        trained = [p for p in group["params"] if p.requires_grad]
        flat = [p for p in trained if p.ndim <= 1]
        rest = [p for p in trained if p.ndim > 1]
        split += [{**group, "params": rest}] if rest else []
        split += [{**group, "params": flat, "weight_decay": 0.0}] if flat else []
    return optimizer(split, **options)


def _optimizer(estimator) -> tuple:
    return OPTIMIZERS.get(estimator.optimizer, (estimator.optimizer, {}))


def _optimizer_arguments(network, estimator, device: str) -> dict:
    optimizer, options = _optimizer(estimator)
    if estimator.optimizer in OPTIMIZERS and torch.device(device).type in _FUSED:
        # A fused optimizer makes one pass over each tensor, instead of ten with copies
        # in between.
        options = {"fused": True, **options}
    # L2-SP replaces the decay towards zero, which would work against it.
    decay = 0.0 if estimator.l2_sp else estimator.weight_decay
    parameters = inspect.signature(optimizer).parameters
    any_name = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    # An optimizer with ``**kwargs`` is assumed to pass the decay on.
    if "weight_decay" in parameters or any_name:
        options = {"weight_decay": decay, **options}
    elif decay:
        raise ValueError(
            f"Invalid weight_decay={decay}: the optimizer "
            f"{getattr(optimizer, '__name__', optimizer)} has no weight decay. Use "
            "weight_decay=0, or another optimizer."
        )
    return {
        "optimizer": functools.partial(split_decay, optimizer),
        "optimizer__param_groups": _stage_rates(network, estimator),
        **{f"optimizer__{name}": value for name, value in options.items()},
    }


def _stage_rates(network, estimator) -> list:
    """Return the learning rate of each stage, which decreases towards the input."""
    ratio = estimator.backbone_lr_mult
    ratio = _RATIOS[estimator.train_only] if ratio == "auto" else ratio
    # Stages in which nothing is trained, such as pooling, do not count as a step, and
    # the blocks of a stage that was cut are one step.
    stages = network.suffix._modules.items()
    trained = [name for name, stage in stages if network.trained(stage)]
    wholes = {name: stage_of(name_of(name)) or name for name in trained}
    steps = list(dict.fromkeys(reversed(wholes.values())))
    rates = {}
    for name, whole in wholes.items():
        distance = steps.index(whole)
        factor = ratio * estimator.layer_decay**distance
        rates[name] = estimator.lr * factor
    # The asterisk stands for the prefix of a wrapper, such as that of torch.compile.
    return [(f"*suffix.{name}.*", {"lr": rate}) for name, rate in rates.items()]


class SpreadNet(AccelerateMixin, NeuralNet):
    """A net that Hugging Face's accelerate trains, possibly in several processes."""

    def _initialize_accelerator(self):
        # The loss is left out, since it has no parameters: on CPUs, accelerate refuses
        # to distribute such a module.
        losses, self._criteria = self._criteria, []
        try:
            return super()._initialize_accelerator()
        finally:
            self._criteria = losses

    def let_go(self) -> None:
        """Drop what belongs to these processes and therefore cannot be pickled."""
        self.accelerator, self.optimizer_ = None, None
        self.callbacks, self.callbacks_ = [], []


class _Factory:
    """Return the network when called, in place of a module class.

    Skorch would go on training a module that it is given as an instance. A pickle does
    not contain the network: skorch stores its module separately, in such a way that a
    net from a GPU opens on a machine without one.
    """

    def __init__(self, network):
        self.network = network

    def __call__(self):
        if self.network is None:
            raise RuntimeError(
                "This net was loaded from a pickle, which does not contain its initial "
                "network, and cannot be initialised again. Fit the estimator again."
            )
        return self.network

    def __reduce__(self):
        return _Factory, (None,)


def epochs_table(net: NeuralNet, phase: str) -> list[dict]:
    """Return the history of a net, with a row for each epoch."""
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
