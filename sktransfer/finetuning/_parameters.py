"""The parameters that FineTuneClassifier and FineTuneRegressor share."""

import functools
import inspect
from numbers import Integral, Real

from sklearn.utils._param_validation import Interval, StrOptions

from sktransfer.finetuning._callbacks import LR_SCHEDULES
from sktransfer.finetuning._train import OPTIMIZERS
from sktransfer.finetuning._trained import TRAIN_ONLY
from sktransfer.inputs._images import ImageReader

POSITIVE = Interval(Real, 0, None, closed="neither")
_NOT_NEGATIVE = Interval(Real, 0, None, closed="left")
_COUNT = Interval(Integral, 0, None, closed="left")
_AT_LEAST_ONE = Interval(Integral, 1, None, closed="left")


class SharedParameters:
    """The constructor and the constraints of the parameters of both estimators."""

    # Parameters without validation are checked where they are resolved, by errors that
    # can say more, such as which names of backbones are similar.
    _parameter_constraints: dict = {
        "backbone": "no_validation",
        "weights": "no_validation",
        "augment": "no_validation",
        "device": "no_validation",
        "cache": "no_validation",
        "freeze": [Integral, str],
        "train_only": [StrOptions(set(TRAIN_ONLY))],
        "hidden_layer_sizes": ["array-like"],
        "dropout": [Interval(Real, 0, 1, closed="left")],
        "optimizer": [StrOptions(set(OPTIMIZERS)), callable],
        "lr": [POSITIVE],
        "backbone_lr_mult": [_NOT_NEGATIVE, StrOptions({"auto"})],
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
        "max_length": [POSITIVE, None],
        "sampling_rate": [_AT_LEAST_ONE, None],
        "decoding": [StrOptions(set(ImageReader.decodings))],
        "on_error": [StrOptions({"raise", "skip", "nan"})],
        "precision": [StrOptions({"float32", "bfloat16"})],
        "warm_start": ["boolean"],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
        "net_params": [dict, None],
        "solve_head": ["boolean"],
    }

    def __init__(
        self,
        # The network, and what of it is trained.
        backbone="tiny",
        *,
        weights="default",
        freeze=0,
        train_only="all",
        hidden_layer_sizes=(),
        dropout=0.0,
        # How it is trained.
        optimizer="adamw",
        lr=1e-3,
        backbone_lr_mult="auto",
        layer_decay=1.0,
        weight_decay=1e-4,
        l2_sp=0.0,
        head_epochs=1,
        max_epochs=10,
        unfreeze_every=0,
        lr_schedule="cosine",
        batch_size=32,
        augment=None,
        early_stopping=False,
        validation_fraction=0.1,
        n_iter_no_change=5,
        # How samples are read.
        image_shape=None,
        image_size=None,
        max_length=None,
        sampling_rate=None,
        decoding="exact",
        on_error="raise",
        # Where it is computed.
        device="auto",
        precision="float32",
        cache="auto",
        # How one fit follows another, and what it prints.
        warm_start=False,
        random_state=None,
        verbose=0,
        net_params=None,
        # How a linear head is fitted; the estimators add what their targets need.
        solve_head=True,
    ):
        # Setting all of them at once makes a new parameter a single line above. There
        # must not be any other local variable yet.
        given = dict(locals())
        del given["self"]
        vars(self).update(given)


def shared_parameters(init):
    """Replace ``**shared`` in a constructor's signature by the shared parameters.

    scikit-learn, the documentation and the help of a notebook read the parameters from
    this signature, and no parameter or default is written twice.
    """
    own = inspect.signature(init).parameters
    shared = inspect.signature(SharedParameters.__init__).parameters
    more = [own[name] for name in own if name not in {*shared, "shared"}]
    signature = inspect.Signature([*shared.values(), *more])

    @functools.wraps(init)
    def constructor(self, *args, **kwargs):
        # Else the error would name SharedParameters, which no user knows.
        for name in kwargs.keys() - signature.parameters.keys():
            raise TypeError(
                f"{type(self).__name__}.__init__() got an unexpected keyword argument "
                f"{name!r}"
            )
        init(self, *args, **kwargs)

    constructor.__signature__ = signature
    return constructor
