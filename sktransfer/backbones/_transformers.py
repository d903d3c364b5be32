"""Backbones of transformers, which is imported only when one of them is asked for."""

PACKAGE = "transformers"


def kind_of(model) -> str:
    """Return what the samples of a model, or of a name, are."""
    raise NotImplementedError


def load(name, weights):
    """Load the stages and the reader of a model of transformers."""
    raise NotImplementedError


def reader_of(model):
    """Return the reader of a model that a user made."""
    raise NotImplementedError
