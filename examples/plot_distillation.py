"""
A small network from a large one
================================

A tuned network may be too slow for where it is to run. A small one that learns from its
scores, beside the labels, gets nearer to it than one that learns from the labels alone
(Hinton, Vinyals and Dean 2015).
"""

# %%
# The teacher: the bundled network, tuned on handwritten digits. The student: a network
# of three thin convolutions.

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from sktransfer import FineTuneClassifier

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(
    X, y, train_size=300, test_size=500, stratify=y, random_state=0
)
teacher = FineTuneClassifier(
    freeze="layer3", max_epochs=5, batch_size=16, random_state=0
)
teacher.fit(X_train, y_train)


def student():
    return nn.Sequential(
        *[nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()],
        *[nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU()],
        *[nn.Conv2d(32, 48, 3, 2, 1), nn.BatchNorm2d(48), nn.ReLU()],
        *[nn.AdaptiveAvgPool2d(1), nn.Flatten()],
    )


# %%
# The same student with and without a teacher.

settings = {
    "weights": None,
    "image_size": 32,
    "max_epochs": 15,
    "batch_size": 16,
    "lr": 5e-3,
    "backbone_lr_mult": 1.0,
    "random_state": 0,
}
alone = FineTuneClassifier(student, **settings)
taught = FineTuneClassifier(student, **settings, teacher=teacher, distill_weight=0.8)
alone.fit(X_train, y_train)
taught.fit(X_train, y_train)
for name, model in {"teacher": teacher, "alone": alone, "taught": taught}.items():
    print(
        f"{name:>8}: {model.score(X_test, y_test):.3f}, "
        f"{model.backbone_.n_parameters:,} parameters"
    )
