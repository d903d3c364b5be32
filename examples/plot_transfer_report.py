"""
Is transfer helping?
====================

`transfer_report` scores a model beside the same network from scratch, a linear probe,
pixels and guessing, on the same folds.
"""

# %%
# Two hundred handwritten digits, and a network of which the last stages are tuned.

from sklearn.datasets import load_digits

from sktransfer import FineTuneClassifier, TransferReportDisplay, transfer_report

X, y = load_digits(n_class=5, return_X_y=True)
X, y = X[:200], y[:200]
model = FineTuneClassifier(freeze="layer4", max_epochs=5, batch_size=16, random_state=0)
report = transfer_report(model, X, y, cv=4)
report

# %%
# The points are the folds.

TransferReportDisplay.from_report(report)
