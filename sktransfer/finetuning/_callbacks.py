"""Training callbacks: schedules, L2-SP, unfreezing, divergence, early stopping."""

import functools
import math

import torch
from skorch import NeuralNet
from skorch.callbacks import Callback, EarlyStopping, EpochScoring, LRScheduler
from torch import nn
from torch.optim import lr_scheduler

from sktransfer.finetuning._network import Network

# Li et al. (2018) give the decay of the head a tenth of the strength of the pull.
_HEAD_PULL = 0.1


def callbacks_of(plan, n_steps: int, validates: bool) -> list:
    """Return the named callbacks of a phase of the training.

    To add a regulariser or schedule, add a callback here and a parameter to the
    estimators.
    """
    estimator = plan.estimator
    # While the head is trained first, no stage is trained.
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
    """Return the callback of early stopping, if any.

    It must come after the callbacks of training, which would miss the last epoch
    otherwise.
    """
    estimator = plan.estimator
    if not estimator.early_stopping or plan.phase == "head" or not plan.epochs:
        return []
    # Any decrease of the loss counts, however small. Skorch's default is relative.
    settings = {"threshold": 0.0, "load_best": True, "sink": silent}
    patience = estimator.n_iter_no_change
    return [("early_stopping", EarlyStopping(patience=patience, **settings))]


def stopped_early(net) -> bool:
    """Whether an interrupt was a callback that stops a fit, and not Ctrl-C.

    Skorch ends a fit by raising a KeyboardInterrupt, too.
    """
    return any(
        (isinstance(callback, EarlyStopping) and callback.misses_ == callback.patience)
        or (isinstance(callback, TellOfEpochs) and callback.stopped)
        for _, callback in net.callbacks_
    )


def _schedule(plan, n_steps: int) -> LRScheduler | None:
    policy = LR_SCHEDULES[plan.estimator.lr_schedule]
    # The number of calls of `partial_fit` to come is unknown, and so is their schedule.
    # The first head is trained at a constant rate, too.
    if policy is None or plan.phase != "tune":
        return None
    return LRScheduler(
        policy, n_steps=n_steps, given={*plan.net_params}, step_every="batch"
    )


def _cosine(optimizer, n_steps, given, last_epoch=-1):
    # CosineAnnealingLR of torch computes each rate from the previous one, and thereby
    # accumulates rounding errors.
    factor = functools.partial(cosine, n_steps)
    return lr_scheduler.LambdaLR(optimizer, factor)


def cosine(n_steps: int, step: int) -> float:
    """Return the factor of the learning rate at a step: half a cosine from 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * min(step / n_steps, 1)))


def _one_cycle(optimizer, n_steps, given, last_epoch=-1):
    has_momentum = not optimizer.defaults.keys().isdisjoint(("momentum", "betas"))
    # A momentum that the user has set must not be cycled.
    own = not given.isdisjoint(("optimizer__momentum", "optimizer__betas"))
    peaks = [group["lr"] for group in optimizer.param_groups]
    # One more step than there are, since skorch asks for the rate after the last one.
    return lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=peaks,
        total_steps=n_steps + 1,
        cycle_momentum=has_momentum and not own,
    )


# How learning rates change from step to step: functions of the optimizer, the number of
# steps and the names of the arguments that the user has set.
LR_SCHEDULES = {"cosine": _cosine, "one-cycle": _one_cycle, "constant": None}


def bare(net: NeuralNet) -> Network:
    """Return the network of a net, without the wrapper of distributed training."""
    return getattr(net.module_, "module", net.module_)


class PullToSource(Callback):
    """L2-SP: pull the weights towards those of the source.

    It adds the gradient of ``strength / 2 * |w - w_source|^2 + beta / 2 * |head|^2``,
    as proposed by Li, Grandvalet and Davoine, "Explicit inductive bias for transfer
    learning with convolutional networks", ICML 2018.
    """

    def __init__(self, strength: float, source: nn.Module):
        self.strength = strength
        self.source = source

    def on_train_begin(self, net, **kwargs):
        own = dict(bare(net).suffix.named_parameters())
        # The suffix is empty while the head is trained alone.
        source = dict(self.source.named_parameters()) if own else {}
        self.start_ = {
            name: parameter.detach().to(own[name].device)
            for name, parameter in source.items()
            if own[name].requires_grad
        }

    def on_grad_computed(self, net, named_parameters, **kwargs):
        with torch.no_grad():
            for name, parameter in bare(net).suffix.named_parameters():
                # Stages that gradual unfreezing has not reached have no gradient.
                if parameter.grad is not None:
                    away = parameter - self.start_[name]
                    parameter.grad.add_(away, alpha=self.strength)
            for parameter in bare(net).head.parameters():
                parameter.grad.add_(parameter, alpha=_HEAD_PULL * self.strength)

    def on_train_end(self, net, **kwargs):
        # On a GPU, these are a second copy of the network, which must not stay there.
        del self.start_


class GradualUnfreezing(Callback):
    """Train one more stage every few epochs, from the last stage to the first.

    A stage in which nothing is trained, such as pooling, does not take an epoch. The
    method is from Howard and Ruder, "Universal language model fine-tuning for text
    classification", ACL 2018.
    """

    def __init__(self, every: int, done: int):
        self.every = every
        self.done = done

    def on_epoch_begin(self, net, **kwargs):
        network = bare(net)
        stages = [i for i, s in enumerate(network.suffix) if network.trained(s)]
        awake = 1 + (self.done + len(net.history) - 1) // self.every
        network.rest(stages[-awake] if awake <= len(stages) else 0)

    def on_train_end(self, net, **kwargs):
        # The fitted network must not depend on how far the unfreezing came.
        bare(net).rest(0)


class CountRealRows(Callback):
    """Exclude the rows that only fill up a batch from the means of an epoch."""

    def on_batch_end(self, net, batch, training, **kwargs):
        _, y = batch
        # Skorch weights the loss of each batch by this number, which it has set to the
        # length of the batch.
        name = "train_batch_size" if training else "valid_batch_size"
        net.history.record_batch(name, int((y[:, -1] > 0).sum()))


class RefuseDivergence(Callback):
    """Stop with an error if the loss is not finite, since training cannot recover."""

    def on_epoch_end(self, net, **kwargs):
        epoch = net.history[-1]
        # The user may have removed the scoring by `net_params`.
        loss = epoch.get("train_loss", 0.0)
        if not math.isfinite(loss):
            raise ValueError(
                f"Training diverged: the loss of epoch {epoch['epoch']} is {loss}. Use "
                f"a lower lr (it was {net.lr}), and check that the targets and sample "
                "weights are of moderate size."
            )


def told_of(plan) -> list:
    """Return what tells the callbacks of scikit-learn of each epoch.

    It must come after all other callbacks, so that an epoch ends when they are done.
    """
    return [("told", TellOfEpochs(plan))] if plan.epochs else []


class TellOfEpochs(Callback):
    """Tell the callbacks of scikit-learn of each epoch, and stop if one asks for it."""

    def __init__(self, plan):
        self.plan = plan
        self.stopped = False

    def on_train_begin(self, net, **kwargs):
        name = "train-head" if self.plan.phase == "head" else "train"
        self.phase = self.plan.task.subtask(name, self.plan.epochs).begin()
        self.epoch = None

    def on_epoch_begin(self, net, **kwargs):
        self.epoch = self.phase.subtask("epoch").begin()

    def on_epoch_end(self, net, **kwargs):
        epoch, self.epoch = self.epoch, None
        if epoch.end(functools.partial(self.plan.fitted, bare(net))):
            self.stopped = True
            raise KeyboardInterrupt

    def on_train_end(self, net, **kwargs):
        # If early stopping interrupted an epoch, it has loaded the best weights by now.
        if self.epoch is not None:
            self.epoch.end(functools.partial(self.plan.fitted, bare(net)))
        self.phase.end()


def _scoring(targets) -> EpochScoring:
    """Return the callback that computes `valid_score` on the validation rows."""
    score = functools.partial(_validation_score, targets)
    return EpochScoring(score, lower_is_better=False, name="valid_score")


def _validation_score(targets, net, X, y) -> float:
    encoded, weights = X.y[:, :-1].numpy(), X.y[:, -1].numpy()
    return targets.validation_score(net.predict_proba(X), encoded, weights)


def silent(*args, **kwargs):
    """Take the place of `print`, and print nothing."""
