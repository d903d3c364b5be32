"""
An image, a text and a number in every row
==========================================

Rows of a frame with a picture, a note and a price: a `ColumnTransformer` embeds each
kind of column by a network of that kind, scales the number, and one linear model learns
from all of them.
"""

# %%
# Offers in a shop of prints. The picture is a patch of one of two photographs, the note
# is what the seller says of its state, and whether a print is sold depends on both, and
# on the price: flowers are bought, good states are bought, and so is what is cheap.

import tempfile

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_sample_images
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, PreTrainedTokenizerFast

from sktransfer import FineTuneClassifier, PretrainedFeatureExtractor

GOOD = ["mint", "crisp", "bright", "clean", "fresh", "flawless", "glossy", "vivid"]
GOOD += ["tidy", "pristine", "smooth", "intact", "spotless", "lovely", "fine", "neat"]
BAD = ["torn", "faded", "stained", "bent", "dusty", "scratched", "yellowed", "worn"]
BAD += ["dull", "frayed", "smudged", "creased", "foxed", "cracked", "damp", "mouldy"]
rng = np.random.default_rng(0)


def note(is_good):
    words = rng.choice(GOOD if is_good else BAD, 2, replace=False)
    thing = rng.choice(["paper", "ink", "corners"])
    return f"a {words[0]} print with {words[1]} {thing}"


corners = [(i, j) for i in range(0, 384, 32) for j in range(0, 608, 64)]
patches = [
    (photo[i : i + 8, j : j + 8], is_flower)
    for is_flower, photo in enumerate(load_sample_images().images)
    for i, j in corners
]
rng.shuffle(patches)
is_flower = np.array([is_flower for _, is_flower in patches])
is_good = rng.integers(0, 2, len(patches))
price = rng.uniform(5, 50, len(patches)).round(2)
wish = 2 * is_flower + 2 * is_good - (price - 27) / 10 - 2
y = np.where(wish + rng.logistic(scale=0.3, size=len(patches)) > 0, "sold", "left")
offers = pd.DataFrame(
    {
        "picture": [patch for patch, _ in patches],
        "note": [note(good) for good in is_good],
        "price": price,
    }
)
offers.head(3)[["note", "price"]]

# %%
# An encoder of texts that has learnt from other notes which words are good news. It is
# made and trained here, to need no download; in its place there could be the name or
# the folder of a pretrained one, ``"hf/<name>"``.

other_good = rng.integers(0, 2, 1000)
other_notes = [note(good) for good in other_good]
words = sorted(
    {word for text in [*other_notes, *offers["note"]] for word in text.split()}
)
vocabulary = {word: i for i, word in enumerate(["[UNK]", "[PAD]", *words])}
tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
folder = tempfile.mkdtemp()
PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
BertConfig(
    vocab_size=len(vocabulary),
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=16,
    initializer_range=0.1,
).save_pretrained(folder)
encoder = FineTuneClassifier(
    f"hf/{folder}",
    weights=None,
    lr=5e-3,
    backbone_lr_mult=1.0,
    max_epochs=3,
    random_state=0,
).fit(other_notes, other_good)

# %%
# One model for each set of columns; the bundled network embeds the pictures. No single
# column tells much, since each is a third of the reason; together they tell most of it.
# The words of the notes, counted, say less than the encoder: there are few notes, and
# what a word means has to be learnt from their labels alone.

pictures = make_pipeline(PretrainedFeatureExtractor(), StandardScaler())
notes = make_pipeline(PretrainedFeatureExtractor(encoder), StandardScaler())
parts = {
    "price": (StandardScaler(), ["price"]),
    "picture": (pictures, ["picture"]),
    "note": (notes, ["note"]),
    "note, by its words": (TfidfVectorizer(), "note"),
}
sets = {name: [part] for name, part in parts.items()}
sets["price, picture and note"] = [*parts.values()][:3]
scores = {}
for name, transformers in sets.items():
    model = make_pipeline(make_column_transformer(*transformers), LogisticRegression())
    scores[name] = cross_val_score(model, offers, y, cv=4)
    print(f"{name:>24}: {scores[name].mean():.3f} +- {scores[name].std():.3f}")

# %%
# The bars are means, and the points are the folds.

figure, ax = plt.subplots(layout="constrained", figsize=(6, 3))
for name, folds in reversed(scores.items()):
    ax.barh(name, folds.mean(), height=0.6, color="C0", alpha=0.5)
    ax.plot(folds, [name] * len(folds), "o", color="C0")
ax.axvline(max(np.mean(y == "sold"), np.mean(y == "left")), color="grey", ls="--")
ax.set(xlim=(0.4, 1.02), xlabel="accuracy in 4 folds (dashed: guessing)")
plt.show()
