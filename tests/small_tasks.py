"""Pictures and targets to learn from."""

import numpy as np
import PIL.Image
from sklearn.model_selection import GridSearchCV


def make_picture(seed=0, height=48, width=64):
    """A smooth, asymmetric colour picture, (height, width, 3) uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, size=(4, 5, 3), dtype=np.uint8)
    return np.asarray(PIL.Image.fromarray(coarse).resize((width, height)))


def make_table():
    """Rows of 64 values, which are 8 x 8 or 16 x 4 pictures, and targets."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (24, 64), dtype=np.uint8), np.arange(24) % 2


def make_task(n=24, seed=0):
    """Noisy pictures of two classes, whose mean colours differ."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    shade = np.where(y, 150, 100)[:, None, None, None]
    X = np.clip(rng.normal(shade, 60, (n, 20, 20, 3)), 0, 255).astype(np.uint8)
    return list(X), np.array(["dark", "light"])[y]


def make_texts(n=24, seed=0):
    """Texts of one to seven words, of two classes: those of one hold "good"."""
    rng = np.random.default_rng(seed)
    words = np.array(["bad", "day", "a", "so", "too", "very", "film"])
    y = np.arange(n) % 2
    texts = []
    for label in y:
        chosen = rng.choice(words, rng.integers(1, 8)).tolist()
        chosen[rng.integers(len(chosen))] = "good" if label else chosen[0]
        texts.append(" ".join(chosen))
    return texts, np.array(["no", "yes"])[y]


def searched(model, name="max_epochs", refit=True):
    """A search that has nothing to choose from."""
    return GridSearchCV(model, {name: [1]}, cv=2, refit=refit)
