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
    # The metrics of scorers.
    *_in(
        "sklearn.metrics._classification",
        "accuracy_score balanced_accuracy_score brier_score_loss cohen_kappa_score "
        "d2_brier_score d2_log_loss_score f1_score fbeta_score hamming_loss "
        "hinge_loss jaccard_score log_loss matthews_corrcoef precision_score "
        "recall_score zero_one_loss",
    ),
    *_in(
        "sklearn.metrics._ranking",
        "average_precision_score coverage_error dcg_score "
        "label_ranking_average_precision_score label_ranking_loss ndcg_score "
        "roc_auc_score top_k_accuracy_score",
    ),
    *_in(
        "sklearn.metrics._regression",
        "d2_absolute_error_score d2_pinball_score d2_tweedie_score "
        "explained_variance_score max_error mean_absolute_error "
        "mean_absolute_percentage_error mean_gamma_deviance mean_pinball_loss "
        "mean_poisson_deviance mean_squared_error mean_squared_log_error "
        "mean_tweedie_deviance median_absolute_error r2_score "
        "root_mean_squared_error root_mean_squared_log_error",
    ),
    *_in(
        "sklearn.metrics.cluster._supervised",
        "adjusted_mutual_info_score adjusted_rand_score completeness_score "
        "fowlkes_mallows_score homogeneity_score mutual_info_score "
        "normalized_mutual_info_score rand_score v_measure_score",
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
