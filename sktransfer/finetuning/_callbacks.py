"""Callbacks of the training: schedules, L2-SP, unfreezing, divergence, stopping."""

import functools
import math

import torch
from skorch import NeuralNet
from skorch.callbacks import Callback, EarlyStopping, EpochScoring, LRScheduler
from torch import nn
from torch.optim import lr_scheduler

from sktransfer.finetuning._network import Network

# Li et al. (2018) weigh the head's decay at a tenth of the pull to the source.
_HEAD_PULL = 0.1


def callbacks_of(plan, n_steps: int, validates: bool) -> list:
    """Callbacks of a phase of training, each with its name.

    A regulariser or schedule more is a callback here and a parameter of the estimator.
    """
    estimator = plan.estimator
    # The head that is trained first rests on stages that nobody trains yet.
    unfreezes = estimator.unfreeze_every and plan.phase != "head"
    made = {
        "real_rows": CountRealRows(),
        "divergence": RefuseDivergence(),
        "valid_score": validates and _scoring(plan.targets),
        "lr_schedule": n_steps and _schedule(plan, n_steps),
        "l2_sp": estimator.l2_sp and PullToSource(estimator.l2_sp, plan.source),
        "unfreezing": unfreezes and GradualUnfreezing(unfreezes, plan.epochs_done),
    }
    return [(name, callback) for name, callback in made.items() if callback]


def stopping_of(plan) -> list:
    """Stop early; after all other callbacks, which are to hear of the last epoch."""
    estimator = plan.estimator
    if not estimator.early_stopping or plan.phase == "head" or not plan.epochs:
        return []
    # Any fall of the loss is one, however small.
    settings = {"threshold": 0.0, "load_best": True, "sink": silent}
    patience = estimator.n_iter_no_change
    return [("early_stopping", EarlyStopping(patience=patience, **settings))]


def stopped_early(net) -> bool:
    """Whether an interrupt was skorch's way to end a fit, and not a Ctrl-C."""
    return any(
        isinstance(callback, EarlyStopping) and callback.misses_ == callback.patience
        for _, callback in net.callbacks_
    )


def _schedule(plan, n_steps: int) -> LRScheduler | None:
    policy = LR_SCHEDULES[plan.estimator.lr_schedule]
    # Nobody knows how many calls of `partial_fit` will come.
    if policy is None or plan.phase != "tune":
        return None
    return LRScheduler(
        policy, n_steps=n_steps, given={*plan.net_params}, step_every="batch"
    )


def _cosine(optimizer, n_steps, given, last_epoch=-1):
    # Torch's own computes each rate from the one before, and adds up the roundings.
    factor = functools.partial(cosine, n_steps)
    return lr_scheduler.LambdaLR(optimizer, factor)


def cosine(n_steps: int, step: int) -> float:
    """Factor of the learning rate at a step: half a cosine from 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * min(step / n_steps, 1)))


def _one_cycle(optimizer, n_steps, given, last_epoch=-1):
    has_momentum = not optimizer.defaults.keys().isdisjoint(("momentum", "betas"))
    # A momentum of the user stays as it is.
    own = not given.isdisjoint(("optimizer__momentum", "optimizer__betas"))
    peaks = [group["lr"] for group in optimizer.param_groups]
    # One step more than there are, since skorch asks for the rate after the last.
    return lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=peaks,
        total_steps=n_steps + 1,
        cycle_momentum=has_momentum and not own,
    )


# How rates change from step to step: functions of the optimizer, the number of steps
# and the names of what the user has set.
LR_SCHEDULES = {"cosine": _cosine, "one-cycle": _one_cycle, "constant": None}


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


def _scoring(targets) -> EpochScoring:
    """A score on the validation rows, for the table of epochs."""
    score = functools.partial(_validation_score, targets)
    return EpochScoring(score, lower_is_better=False, name="valid_score")


def _validation_score(targets, net, X, y) -> float:
    encoded, weights = X.y[:, :-1].numpy(), X.y[:, -1].numpy()
    return targets.validation_score(net.predict_proba(X), encoded, weights)


def silent(*args, **kwargs):
    pass
