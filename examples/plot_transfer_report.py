"""
Is transfer helping?
====================

`transfer_report` scores a model beside the same network from scratch, a linear probe,
pixels and guessing, on the same folds.
"""

# %%
# A small network of our own learns the digits 0 to 4, to be transferred to 5 to 9, of
# which there are a hundred.

from sklearn.datasets import load_digits
from torch import nn

from sktransfer import FineTuneClassifier, TransferReportDisplay, transfer_report


def block(n_in, n_out):
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, 3, stride=2, padding=1), nn.BatchNorm2d(n_out), nn.ReLU()
    )


def network():
    return nn.Sequential(
        *[block(3, 16), block(16, 32), block(32, 48)],
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )


X, y = load_digits(return_X_y=True)
settings = {"image_size": 32, "lr": 1e-2, "batch_size": 16, "random_state": 0}
source = FineTuneClassifier(network, weights=None, backbone_lr_mult=1.0, **settings)
source.fit(X[y < 5][:400], y[y < 5][:400])
X, y = X[y >= 5][:100], y[y >= 5][:100]
report = transfer_report(FineTuneClassifier(source, freeze=2, **settings), X, y, cv=4)
report

# %%
# The points are the folds.

display = TransferReportDisplay.from_report(report)
