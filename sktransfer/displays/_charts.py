"""Charts of results: displays that store numbers, and draw them in `plot`."""

import re

import numpy as np
from sklearn.utils.validation import check_is_fitted

from sktransfer.displays._drawing import (
    BLUE,
    GREY,
    ORANGE,
    draw_folds,
    fold_names,
    legend,
    name_rows,
    panels,
    width_of,
)
from sktransfer.finetuning._parts import ends_of


class FreezeDepthDisplay:
    """Score and fit time for each freeze depth.

    Parameters
    ----------
    depths : list of str
        The freeze depths, from no frozen stage to all stages frozen.
    scores : ndarray of shape (n_depths, n_folds)
        The test score of each depth in each fold.
    seconds : ndarray of shape (n_depths,)
        The mean fit time of each depth.
    score_name : str, default="score"
        The axis label of the scores.

    Attributes
    ----------
    ax_, figure_ : ndarray of matplotlib Axes, and Figure
        The axes of the scores and, unless `ax` was given, of the fit times, and their
        figure.

    Examples
    --------
    >>> import numpy as np
    >>> from sktransfer import FreezeDepthDisplay
    >>> scores = np.array([[0.8, 0.9], [0.9, 0.95]])
    >>> display = FreezeDepthDisplay(["0", "all"], scores, np.array([9.0, 1.0]))
    >>> display.plot().ax_[0].get_ylabel()
    'score'
    """

    def __init__(self, depths, scores, seconds, score_name="score"):
        self.depths = depths
        self.scores = scores
        self.seconds = seconds
        self.score_name = score_name

    @classmethod
    def from_search(cls, search, *, param=None, ax=None):
        """Plot the results of a search over freeze depths.

        Each depth is represented by its best candidate; in a halving search, by the
        best of the last iteration that it has reached. Candidates without a freeze
        depth are omitted. Depths that leave the same parameters to train, such as
        "all" and -1 if the last stage only pools, are shown as one.

        Parameters
        ----------
        search : fitted GridSearchCV, RandomizedSearchCV or halving search
            The search over an estimator with a ``freeze`` parameter.
        param : str, optional
            The parameter that is the freeze depth. If None, it is found by name.
        ax : matplotlib Axes, optional
            The axes to draw only the scores on. If None, a new figure is created.

        Returns
        -------
        FreezeDepthDisplay
            The display, already plotted.

        Raises
        ------
        ValueError
            If the parameter that is the freeze depth or the score is ambiguous.
        """
        check_is_fitted(search)
        results, metric = search.cv_results_, _metric_of(search)
        param = _freeze_parameter(results, param)
        # A list of grids may contain some that do not search the freeze depth.
        given = {i: p[param] for i, p in enumerate(results["params"]) if param in p}
        depth_of = _depth_of(search, list(given.values()))
        depths = {row: depth_of(value) for row, value in given.items()}
        names = _names_of(given, depths)
        rows = _best_rows(results, depths, metric)
        is_fold = re.compile(rf"split\d+_test_{re.escape(metric)}").fullmatch
        folds = [key for key in results if is_fold(key)]
        scores = np.column_stack([results[key][rows] for key in folds])
        seconds = np.asarray(results["mean_fit_time"])[rows]
        name = search.scoring if isinstance(search.scoring, str) else metric
        return cls([names[depths[row]] for row in rows], scores, seconds, name).plot(ax)

    def plot(self, ax=None):
        """Draw the scores and, unless `ax` is given, the fit times below them.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            The axes to draw only the scores on. If None, a new figure is created.

        Returns
        -------
        FreezeDepthDisplay
            The display itself.
        """
        self.figure_, self.ax_ = panels(self, ax, 2, height_ratios=(2.4, 1))
        places = np.arange(len(self.depths))
        draw_folds(self.ax_[0], self.scores, "o-")
        self.ax_[0].set_ylabel(self.score_name)
        if len(self.ax_) > 1:
            self.ax_[1].bar(places, self.seconds, width=0.5, color=ORANGE)
            self.ax_[1].set_ylabel("fit (s)")
        for axes in self.ax_:
            axes.set_xticks(places, self.depths)
        self._turn_long_names()
        self.ax_[-1].set_xlabel("frozen up to")
        return self

    def _turn_long_names(self):
        """Rotate the names of the depths if they would overlap."""
        axes = self.ax_[-1]
        inches = axes.get_window_extent().width / self.figure_.dpi
        widest = max(map(width_of, self.depths))
        # An inch has 72 points, and 6 of them stay free between names.
        if widest + 6 > 72 * inches / len(self.depths):
            axes.tick_params(axis="x", rotation=45)


class TrainingHistoryDisplay:
    """Losses and validation score over the epochs of a fit.

    Parameters
    ----------
    history : list of dict
        The ``history_`` of a `FineTuneClassifier` or `FineTuneRegressor`.

    Attributes
    ----------
    ax_, figure_ : ndarray of matplotlib Axes, and Figure
        The axes of the losses and, if it is drawn, of the validation score, and their
        figure.

    Examples
    --------
    >>> from sktransfer import TrainingHistoryDisplay
    >>> rows = [{"phase": "tune", "epoch": i, "train_loss": 1 / i} for i in (1, 2, 3)]
    >>> TrainingHistoryDisplay(rows).plot().ax_[0].get_xlabel()
    'epoch'
    """

    def __init__(self, history):
        self.history = history

    @classmethod
    def from_estimator(cls, estimator, *, ax=None):
        """Plot the training history of a fitted estimator.

        Parameters
        ----------
        estimator : fitted FineTuneClassifier or FineTuneRegressor
            The estimator whose ``history_`` is plotted.
        ax : matplotlib Axes, optional
            The axes to draw only the losses on. If None, a new figure is created.

        Returns
        -------
        TrainingHistoryDisplay
            The display, already plotted.
        """
        check_is_fitted(estimator)
        return cls(estimator.history_).plot(ax)

    def plot(self, ax=None):
        """Draw the losses and, unless `ax` is given, the validation score below them.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            The axes to draw only the losses on. If None, a new figure is created.

        Returns
        -------
        TrainingHistoryDisplay
            The display itself.
        """
        scored = any("valid_score" in row for row in self.history)
        self.figure_, self.ax_ = panels(self, ax, 1 + scored)
        epochs = np.arange(1, len(self.history) + 1)
        top, bottom = self.ax_[0], self.ax_[-1]
        lines = [
            (top, "train_loss", "o-", {"color": BLUE, "label": "training"}),
            (top, "valid_loss", "s--", {"color": ORANGE, "label": "validation"}),
        ]
        top.set_ylabel("loss")
        if bottom is not top:
            lines.append((bottom, "valid_score", "s--", {"color": ORANGE}))
            bottom.set_ylabel("validation score")
        for axes, name, style, options in lines:
            values = [row.get(name, np.nan) for row in self.history]
            if not np.isnan(values).all():
                axes.plot(epochs, values, style, markersize=4, **options)
        self._mark_head_epochs()
        legend(top)
        bottom.set_xlabel("epoch")
        bottom.xaxis.get_major_locator().set_params(integer=True)
        return self

    def _mark_head_epochs(self):
        count = sum(row["phase"] == "head" for row in self.history)
        for axes in self.ax_ if 0 < count < len(self.history) else ():
            axes.axvspan(0.5, count + 0.5, color=GREY, alpha=0.15, label="head only")
            axes.set_xlim(0.5, len(self.history) + 0.5)


class BackboneRankingDisplay:
    """Score of each backbone or stage of a ranking, best first.

    Parameters
    ----------
    names : list of str
        The names of the candidates, best first.
    scores : ndarray of shape (n_candidates,)
        The score of each candidate.
    errors : ndarray of shape (n_candidates,) or None
        The standard error of each score, or None to draw no error bars.
    chance : float or None
        The score of guessing, or None to draw no line for it.
    score_name : str, default="score"
        The axis label of the scores.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes, and Figure
        The axes of the scores, and their figure.

    Examples
    --------
    >>> from sktransfer import BackboneRankingDisplay
    >>> display = BackboneRankingDisplay(["one", "two"], [0.9, 0.8], chance=0.5)
    >>> display.plot().ax_.get_xlabel()
    'score'
    """

    def __init__(self, names, scores, errors=None, chance=None, score_name="score"):
        self.names = names
        self.scores = scores
        self.errors = errors
        self.chance = chance
        self.score_name = score_name

    @classmethod
    def from_ranking(cls, ranking, *, column=None, ax=None):
        """Plot the table of `rank_backbones` or of a `BackboneSelector`.

        Parameters
        ----------
        ranking : Table
            The table that `rank_backbones` returned, or the ``ranking_`` of a selector.
        column : str, optional
            The column to show. If None, it is the probe or else the first score.
        ax : matplotlib Axes, optional
            The axes to draw on. If None, a new figure is created.

        Returns
        -------
        BackboneRankingDisplay
            The display, already plotted.
        """
        rows = [row for row in ranking if row["error"] is None]
        if column is None:
            # The first two columns are the backbone and the stage.
            column = "probe" if "probe" in rows[0] else list(rows[0])[2]
        errors = chance = None
        if column == "probe":
            errors = np.array([row["probe_se"] for row in rows])
            chance = rows[0]["chance"]
        networks = {row["backbone"] for row in rows}
        names = [
            row["stage"] if len(networks) == 1 else f"{row['backbone']}, {row['stage']}"
            for row in rows
        ]
        scores = np.array([row[column] for row in rows])
        name = "linear probe" if column == "probe" else column
        return cls(names, scores, errors, chance, name).plot(ax)

    def plot(self, ax=None):
        """Draw the scores, with the best candidate of the ranking on top.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            The axes to draw on. If None, a new figure is created.

        Returns
        -------
        BackboneRankingDisplay
            The display itself.
        """
        names, height = fold_names(self.names)
        self.figure_, (self.ax_,) = panels(self, ax, 1, height=1.2 + height)
        places = np.arange(len(self.names))
        self.ax_.errorbar(
            self.scores, places, xerr=self.errors, fmt="o", color=BLUE, capsize=4
        )
        if self.chance is not None:
            self.ax_.axvline(self.chance, color=GREY, linestyle=":", label="guessing")
            legend(self.ax_)
        name_rows(self.ax_, names)
        self.ax_.set_xlabel(self.score_name)
        return self


class TransferReportDisplay:
    """Scores of a model and its baselines in each fold, with their means.

    Parameters
    ----------
    scores : dict of str to ndarray of shape (n_folds,)
        The scores of each model, as in `TransferReport.scores`.
    verdict : str, default=""
        The title of the chart.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes, and Figure
        The axes of the scores, and their figure.

    Examples
    --------
    >>> import numpy as np
    >>> from sktransfer import TransferReportDisplay
    >>> scores = {"as given": np.array([0.9, 0.8]), "guessing": np.array([0.5, 0.5])}
    >>> TransferReportDisplay(scores, "transfer helps").plot().ax_.get_title("left")
    'transfer helps'
    """

    def __init__(self, scores, verdict=""):
        self.scores = scores
        self.verdict = verdict

    @classmethod
    def from_report(cls, report, *, ax=None):
        """Plot the result of `transfer_report`.

        Parameters
        ----------
        report : TransferReport
            The report that `transfer_report` returned.
        ax : matplotlib Axes, optional
            The axes to draw on. If None, a new figure is created.

        Returns
        -------
        TransferReportDisplay
            The display, already plotted.
        """
        return cls(report.scores, report.verdict).plot(ax)

    def plot(self, ax=None):
        """Draw the scores of each model, and their mean with its standard error.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            The axes to draw on. If None, a new figure is created.

        Returns
        -------
        TransferReportDisplay
            The display itself.
        """
        names, height = fold_names(self.scores)
        self.figure_, (self.ax_,) = panels(self, ax, 1, height=1.6 + height)
        scores = np.array(list(self.scores.values()))
        draw_folds(self.ax_, scores, "D", upright=False)
        name_rows(self.ax_, names)
        self.ax_.set_xlabel("score")
        # The title stands above the legend, which may be as wide as the axes.
        self.ax_.set_title(self.verdict, loc="left", pad=24)
        return self


def _metric_of(search) -> str:
    """Return the name that the score used by the search has in its results."""
    if not search.multimetric_:
        return "score"
    if not isinstance(search.refit, str):
        raise ValueError(
            f"The search has several scores, but its refit={search.refit!r} names "
            "none of them. Set search.refit to the name of the score to show."
        )
    return search.refit


def _freeze_parameter(results, param) -> str:
    """Return the name of the searched parameter that is the freeze depth."""
    searched = [key.removeprefix("param_") for key in results if key[:6] == "param_"]
    found = [name for name in searched if name.split("__")[-1] == "freeze"]
    if param in searched or (param is None and len(found) == 1):
        return param or found[0]
    given = "" if param is None else f" Got param={param!r}."
    raise ValueError(
        f"The search is over {searched}, of which {found or 'none'} are freeze "
        f"depths.{given} Pass param=, the name of the freeze depth to show."
    )


def _best_rows(results, depths, metric) -> list[int]:
    """Return the row with the best result of each depth, sorted by depth."""
    ranks = results[f"rank_test_{metric}"]
    # Iterations of a halving search differ in data or training: compare within one.
    rounds = np.asarray(results.get("iter", np.zeros(len(ranks))))
    best = {}
    for row in np.lexsort((ranks, -rounds)):
        if row in depths:
            best.setdefault(depths[row], row)
    return [best[depth] for depth in sorted(best)]


def _names_of(given, depths) -> dict:
    """Return the name of each depth: "all" if given so, else the value given first."""
    names = {}
    for row, value in given.items():
        if isinstance(value, str) and value == "all":
            names[depths[row]] = value
        names.setdefault(depths[row], str(value))
    return names


def _depth_of(search, values):
    """Return the function that orders freeze depths."""
    *_, model = ends_of(search)
    # Without a refit there is no network that could tell which depths are the same.
    backbone = getattr(model, "backbone_", None)
    if backbone is None:
        return values.index
    for value in values:
        backbone = backbone.cut(value)
    return backbone.freeze_depth
