"""Tensors as outputs of transformers, where the settings of scikit-learn say so."""

import numpy as np
import torch
from sklearn import get_config
from sklearn.utils._set_output import ADAPTERS_MANAGER, _get_output_config


class _TorchAdapter:
    """What ``set_output(transform="torch")`` means, as scikit-learn's adapters tell it.

    An estimator whose output is an array or a frame gives it as a tensor, on the
    device of its input.
    """

    container_lib = "torch"

    def create_container(self, X_output, X_original, columns, inplace=True):
        if isinstance(X_output, torch.Tensor):
            return X_output
        device = X_original.device if isinstance(X_original, torch.Tensor) else None
        return torch.as_tensor(np.asarray(X_output), device=device)

    def is_supported_container(self, X):
        # Otherwise `FeatureUnion` and `ColumnTransformer` would ask for its columns.
        return False

    def rename_columns(self, X, columns):
        return X

    def hstack(self, Xs):
        return torch.cat(list(Xs), dim=1)


# scikit-learn looks up all containers by their names here, its own too.
ADAPTERS_MANAGER.adapters.setdefault(_TorchAdapter.container_lib, _TorchAdapter())


def dispatches(X) -> bool:
    """Whether scikit-learn's array API dispatch gives tensors for `X`."""
    return isinstance(X, torch.Tensor) and get_config()["array_api_dispatch"]


def gives_tensors(transformer, X) -> bool:
    """Whether the output of a transformer for `X` has to be a tensor."""
    container = _get_output_config("transform", transformer)["dense"]
    return container == "torch" or (container == "default" and dispatches(X))
