"""skops, which stores scikit-learn's own objects, and the types it may load."""

import io
import zipfile


def import_skops(where: str, kind: str):
    """Import skops.io, or say what to install to store an object of this kind."""
    try:
        import skops.io
    except ImportError as error:
        raise ImportError(
            f"{where} contains {kind}, which is saved and loaded by the skops package. "
            "Install it: pip install 'sktransfer[skops]'."
        ) from error
    return skops.io


def _in(module: str, names: str) -> set[str]:
    return {f"{module}.{name}" for name in names.split()}


# Types that skops does not trust by itself, but which only split, score or route rows.
# Some versions of scikit-learn lack some of them. That does not matter, since the names
# are only compared and never imported.
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


def loads(content: bytes):
    """Load an object that skops stored, if it is made of types that it may load."""
    skops = import_skops("The file", "an estimator of scikit-learn")
    try:
        _check_size(content)
        types = skops.get_untrusted_types(data=content)
        # skops refuses every other type, by name.
        return skops.loads(content, trusted=sorted({*types} & HARMLESS))
    # Of damaged content, skops and the modules it uses raise errors of many types.
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _check_size(content: bytes) -> None:
    """Refuse an archive that is larger than its file, which skops reads into memory."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        size = sum(member.file_size for member in archive.infolist())
    # `save` does not compress them.
    if size > len(content):
        raise ValueError(f"an archive of {len(content):,} bytes with {size:,} in it")
