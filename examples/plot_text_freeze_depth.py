"""
Texts: how far to freeze an encoder
===================================

An encoder of texts learns from two thousand sentences what words are praise, and what
a "not" does to them. Then there are 120 sentences of another task, and the question is
how much of the encoder to keep.
"""

# %%
# Sentences made by a few rules, so that nothing needs to be downloaded. There are
# forty words of praise and blame, and one in four is turned into its opposite. The
# label of a source sentence is whether it praises.

import tempfile

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, PreTrainedTokenizerFast

from sktransfer import FineTuneClassifier, FreezeDepthDisplay

PRAISE = ["superb", "lovely", "fresh", "clever", "warm", "honest", "brilliant"]
PRAISE += ["charming", "delicious", "gentle", "vivid", "elegant", "crisp", "joyful"]
PRAISE += ["polished", "tender", "witty", "rich", "sincere", "bright"]
BLAME = ["dull", "bland", "stale", "clumsy", "cold", "rude", "dreadful", "tedious"]
BLAME += ["greasy", "harsh", "murky", "shabby", "soggy", "gloomy", "sloppy", "bitter"]
BLAME += ["stiff", "thin", "false", "noisy"]
rng = np.random.default_rng(0)


def phrase(praises):
    is_turned = rng.random() < 0.25
    before = ["not", "never", "hardly"] if is_turned else ["really", "quite", "so"]
    words = PRAISE if praises != is_turned else BLAME
    return f"was {rng.choice(before)} {rng.choice(words)}"


is_praise = rng.integers(0, 2, 2000)
things = ["film", "book", "song", "play", "concert", "novel"]
source_texts = [f"the {rng.choice(things)} {phrase(label)}" for label in is_praise]
source_texts[:3]

# %%
# A target sentence praises one of two things and blames the other, in either order.
# Its label is the one that is praised. The words of both labels are the same: what
# counts is which word belongs to which thing.


def compared(praised):
    parts = [f"the {x} {phrase(x == praised)}" for x in ("food", "service")]
    return " but the ".join(part[4:] for part in rng.permutation(parts))


y = rng.choice(["food", "service"], 600)
texts = np.array([f"the {compared(praised)}" for praised in y])
train, test = slice(0, 120), slice(120, None)
texts[:3]

# %%
# The folder of a model of transformers has a configuration, a tokenizer and weights.
# This one is made here, with two small layers and without weights, which are trained
# on the source task. For a pretrained encoder, pass ``"hf/<folder>"`` or
# ``"hf/<name>"`` alone.

words = sorted({*" ".join([*source_texts, *texts]).split()})
vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer.post_processor = processors.TemplateProcessing(
    single="[CLS] $A [SEP]",
    special_tokens=[(end, vocabulary[end]) for end in ("[CLS]", "[SEP]")],
)
folder = tempfile.mkdtemp()
PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
BertConfig(
    vocab_size=len(vocabulary),
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=32,
    initializer_range=0.1,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
).save_pretrained(folder)

settings = {"backbone_lr_mult": 1.0, "random_state": 0}
source = FineTuneClassifier(
    f"hf/{folder}", weights=None, lr=5e-3, max_epochs=5, **settings
)
source.fit(source_texts, is_praise)
print(f"source task, training sentences: {source.score(source_texts, is_praise):.3f}")

# %%
# The fitted classifier is the backbone of the next one, and a grid search chooses how
# many of its stages are frozen. The depths are listed from the least to the most
# frozen: a search stores the states of the depths that it is given, and runs no text
# through a frozen stage twice.

settings |= {"lr": 2e-3, "max_epochs": 12, "batch_size": 16}
model = FineTuneClassifier(source, **settings)
search = GridSearchCV(model, {"freeze": [0, "stem", "layer1", "all"]}, cv=3)
search.fit(texts[train], y[train])
display = FreezeDepthDisplay.from_search(search)

# %%
# The test sentences. The source task never asked which thing is praised, so that a
# linear probe of its embeddings finds little of it, and training all stages, from what
# they know of the words, is the best. (Where the tasks are more alike, or the labels
# fewer, freezing wins.) From scratch, 120 sentences do not teach the same network the
# words, and a linear model of the words cannot tell the labels apart at all.

scratch = FineTuneClassifier(f"hf/{folder}", weights=None, **settings)
tfidf = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(C=10))
for name, candidate in {
    "words (TF-IDF)": tfidf,
    "from scratch": scratch,
    "linear probe": model.set_params(freeze="all"),
    f"best of the search, freeze={search.best_params_['freeze']!r}": search,
}.items():
    if candidate is not search:
        candidate.fit(texts[train], y[train])
    print(f"{name}: {candidate.score(texts[test], y[test]):.3f}")
