"""
How far to freeze: a grid search
================================

The freeze depth is one parameter of `FineTuneClassifier`, and searched like any other.
Frozen stages run once for each image in the whole search, so that deep freezing costs
next to nothing.
"""

# %%
# Three hundred handwritten digits, and a search over the stages of the bundled network.

from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV

from sktransfer import FineTuneClassifier, FreezeDepthDisplay, TrainingHistoryDisplay

X, y = load_digits(return_X_y=True)
X, y = X[:300], y[:300]
model = FineTuneClassifier(max_epochs=3, batch_size=16, random_state=0)
search = GridSearchCV(model, {"freeze": ["all", "layer3", "layer2"]}, cv=3)
search.fit(X, y)

# %%
# Score and time for each depth. The points are the folds: where their spread is wider
# than a step of the curve, the step means little.

display = FreezeDepthDisplay.from_search(search)

# %%
# How a model is trained whose last stage is not frozen. (With all stages frozen, there
# is nothing to train: the linear head is solved.)

tuned = model.set_params(freeze="layer3").fit(X, y)
display = TrainingHistoryDisplay.from_estimator(tuned)

# %%
# What the best model is made of.

search.best_estimator_
