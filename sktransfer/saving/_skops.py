"""skops, which stores what is scikit-learn's own, and what it may load unasked."""


def import_skops(where: str, kind: str):
    """Import skops.io, or say what to install for a part of some kind."""
    try:
        import skops.io
    except ImportError as error:
        raise ImportError(
            f"{where} holds {kind}, which is saved and loaded by the skops package: "
            "pip install 'sktransfer[skops]'."
        ) from error
    return skops.io


def _in(module: str, names: str) -> set[str]:
    return {f"{module}.{name}" for name in names.split()}


# What skops does not know, and only splits, scores or routes rows. That not all are
# there in each version of scikit-learn does not matter: they are names to compare.
HARMLESS = {
    *_in(
        "sklearn.model_selection._split",
        "GroupKFold GroupShuffleSplit KFold LeaveOneGroupOut LeaveOneOut "
        "LeavePGroupsOut LeavePOut PredefinedSplit RepeatedKFold "
        "RepeatedStratifiedKFold ShuffleSplit StratifiedGroupKFold StratifiedKFold "
        "StratifiedShuffleSplit TimeSeriesSplit _CVIterableWrapper",
    ),
    *_in(
        "sklearn.metrics._scorer",
        "_CurveScorer _MultimetricScorer _PassthroughScorer _Scorer "
        "negative_likelihood_ratio positive_likelihood_ratio",
    ),
    *_in("sklearn.utils._metadata_requests", "MetadataRequest MethodMetadataRequest"),
}
