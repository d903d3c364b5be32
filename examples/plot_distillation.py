"""
A large model into a small one
==============================

A tuned network may be too large for where it is needed. A small one learns more from
its scores, which tell how alike two classes are, than from the labels alone:
distillation.
"""

# %%
# The teacher: the bundled network, tuned on 400 handwritten digits.

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from sktransfer import FineTuneClassifier

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(
    X, y, train_size=400, stratify=y, random_state=0
)
teacher = FineTuneClassifier(max_epochs=5, random_state=0).fit(X_train, y_train)
print(f"teacher: {teacher.score(X_test, y_test):.3f}")
print(f"{teacher.backbone_.n_parameters:,} parameters")

# %%
# The student: two convolutions, from scratch, on pictures of 16 pixels.

student = nn.Sequential(
    nn.Conv2d(3, 16, 3, stride=2, padding=1),
    nn.ReLU(),
    nn.Conv2d(16, 32, 3, stride=2, padding=1),
    nn.ReLU(),
    nn.AdaptiveAvgPool2d(2),
    nn.Flatten(),
)
settings = {
    "weights": None,
    "image_size": 16,
    "max_epochs": 40,
    "lr": 5e-3,
    "backbone_lr_mult": 1.0,
    "random_state": 0,
}
alone = FineTuneClassifier(student, **settings).fit(X_train, y_train)
taught = FineTuneClassifier(student, teacher=teacher, **settings).fit(X_train, y_train)
print(f"{taught.n_trained_parameters_:,} parameters")
print(f"by the labels alone: {alone.score(X_test, y_test):.3f}")
print(f"with the teacher:    {taught.score(X_test, y_test):.3f}")

# %%
# The student has a three-hundredth of the teacher's parameters; what it learns from the
# scores closes half of the gap.

models = {"teacher": teacher, "student, by labels": alone, "student, taught": taught}
figure, ax = plt.subplots(layout="constrained", figsize=(5, 3.5))
for (name, model), marker in zip(models.items(), "sov", strict=True):
    n_parameters = model.backbone_.n_parameters
    ax.plot(n_parameters, model.score(X_test, y_test), marker, ms=10, label=name)
ax.set(xscale="log", xlabel="parameters", ylabel="test accuracy")
ax.margins(0.1)
ax.legend(loc="lower right")
plt.show()
