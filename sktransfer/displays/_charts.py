"""Charts of searches, histories, rankings and reports, in scikit-learn's idiom.

A display holds numbers; its `plot` draws them.
"""

import re

import numpy as np

from sktransfer.displays._drawing import fold_names, legend, name_rows, panels, width_of
from sktransfer.finetuning._parts import ends_of

# Okabe and Ito's colours, told apart in all common forms of colour blindness.
BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#8C8C8C"


class FreezeDepthDisplay:
    """Score against freeze depth, with its spread over folds, and the fit time.

    Parameters
    ----------
    depths : list of str
        Freeze depths, from none frozen to all.
    scores : ndarray of shape (n_depths, n_folds)
        Test score of each depth in each fold.
    seconds : ndarray of shape (n_depths,)
        Mean time of a fit.
    score_name : str, default="score"
        What the score is called on its axis.

    Attributes
    ----------
    ax_ : ndarray of matplotlib Axes
        That of the scores and, unless one ax was given, that of the seconds.
    figure_ : matplotlib Figure

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
        """Read a fitted search over freeze depths, and plot it.

        Where other parameters were searched too, the best of their values stands for
        each depth. Of a halving search, that is from the last iteration that the depth
        has reached: those dropped early had fewer resources. Candidates without a depth
        of their own are left out. Freeze depths that leave the same parameters to
        train, as "all" and -1 do where the last stage only pools, are one.

        Parameters
        ----------
        search : fitted GridSearchCV, RandomizedSearchCV or halving search
            Over an estimator with a ``freeze`` parameter.
        param : str, optional
            The parameter that is the freeze depth; None looks for one.
        ax : matplotlib Axes, optional
            Where to draw the scores alone; None makes a new figure.

        Returns
        -------
        FreezeDepthDisplay

        Raises
        ------
        ValueError
            If the freeze depth is not to be told among the parameters, or the score
            to show among several.
        """
        results, metric = search.cv_results_, _metric_of(search)
        param = _freeze_parameter(results, param)
        # In one grid of several, it may be missing.
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
        """Draw the scores and, without an `ax`, the seconds below them.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            For the scores alone.

        Returns
        -------
        FreezeDepthDisplay
            This display.
        """
        self.figure_, self.ax_ = panels(self, ax, 2, height_ratios=(2.4, 1))
        places = np.arange(len(self.depths))
        _draw_folds(self.ax_[0], self.scores, "o-")
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
        """Turn the names of the depths where they would lie over each other."""
        axes = self.ax_[-1]
        inches = axes.get_window_extent().width / self.figure_.dpi
        widest = max(map(width_of, self.depths))
        if widest + 6 > 72 * inches / len(self.depths):
            axes.tick_params(axis="x", rotation=45)


class TrainingHistoryDisplay:
    """Losses and validation score of each epoch of a fit.

    Parameters
    ----------
    history : list of dict
        The ``history_`` of a `FineTuneClassifier` or `FineTuneRegressor`.

    Attributes
    ----------
    ax_ : ndarray of matplotlib Axes
        That of the losses and, if there was a validation part and no ax was given,
        that of its score.
    figure_ : matplotlib Figure

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
        """Read the history of a fitted estimator, and plot it.

        Parameters
        ----------
        estimator : fitted FineTuneClassifier or FineTuneRegressor
            The estimator whose ``history_`` is drawn.
        ax : matplotlib Axes, optional
            Where to draw the losses alone; None makes a new figure.

        Returns
        -------
        TrainingHistoryDisplay
        """
        return cls(estimator.history_).plot(ax)

    def plot(self, ax=None):
        """Draw the losses and, without an `ax`, the validation score below them.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            For the losses alone.

        Returns
        -------
        TrainingHistoryDisplay
            This display.
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
        The candidates, best first.
    scores : ndarray of shape (n_candidates,)
        Score of each candidate.
    errors : ndarray of shape (n_candidates,) or None
        Standard errors of the scores.
    chance : float or None
        What guessing gets.
    score_name : str, default="score"
        What the score is called on its axis.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure

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
        """Read the table of `rank_backbones` or of a `BackboneSelector`, and plot it.

        Parameters
        ----------
        ranking : Table
            What `rank_backbones` returned, or a selector's ``ranking_``.
        column : str, optional
            The column to show; None is the probe, or else the first score.
        ax : matplotlib Axes, optional
            Where to draw; None makes a new figure.

        Returns
        -------
        BackboneRankingDisplay
        """
        rows = [row for row in ranking if row["error"] is None]
        if column is None:
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
        """Draw the scores, the best of the ranking on top.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; None makes a new figure.

        Returns
        -------
        BackboneRankingDisplay
            This display.
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
    """Scores of a model and its baselines in each fold, with means.

    Parameters
    ----------
    scores : dict of str to ndarray of shape (n_folds,)
        By model, as in `TransferReport.scores`.
    verdict : str, default=""
        Stands above the chart.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure

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
        """Read what `transfer_report` has found, and plot it.

        Parameters
        ----------
        report : TransferReport
            What `transfer_report` returned.
        ax : matplotlib Axes, optional
            Where to draw; None makes a new figure.

        Returns
        -------
        TransferReportDisplay
        """
        return cls(report.scores, report.verdict).plot(ax)

    def plot(self, ax=None):
        """Draw the folds of each model, and its mean with the standard error.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; None makes a new figure.

        Returns
        -------
        TransferReportDisplay
            This display.
        """
        names, height = fold_names(self.scores)
        self.figure_, (self.ax_,) = panels(self, ax, 1, height=1.6 + height)
        scores = np.array(list(self.scores.values()))
        _draw_folds(self.ax_, scores, "D", upright=False)
        name_rows(self.ax_, names)
        self.ax_.set_xlabel("score")
        # Above the legend, which may be as wide as the axes.
        self.ax_.set_title(self.verdict, loc="left", pad=24)
        return self


def _metric_of(search) -> str:
    """Name, within the results, of the score that the search goes by."""
    if not search.multimetric_:
        return "score"
    if not isinstance(search.refit, str):
        raise ValueError(
            f"The search has several scores and refit={search.refit!r}, which names "
            "none of them. Set search.refit to the name of the one to show."
        )
    return search.refit


def _freeze_parameter(results, param) -> str:
    """Name of the parameter of a search that is the freeze depth."""
    searched = [key.removeprefix("param_") for key in results if key[:6] == "param_"]
    found = [name for name in searched if name.split("__")[-1] == "freeze"]
    if param in searched or (param is None and len(found) == 1):
        return param or found[0]
    given = "" if param is None else f" Got param={param!r}."
    raise ValueError(
        f"The search is over {searched}, of which {found or 'none'} are freeze "
        f"depths.{given} Pass param=, the name of the one to show."
    )


def _best_rows(results, depths, metric) -> list[int]:
    """Of the rows of the results, the best of each depth, by depth."""
    ranks = results[f"rank_test_{metric}"]
    # Scores of different iterations are not of the same data, or training.
    rounds = np.asarray(results.get("iter", np.zeros(len(ranks))))
    best = {}
    for row in np.lexsort((ranks, -rounds)):
        if row in depths:
            best.setdefault(depths[row], row)
    return [best[depth] for depth in sorted(best)]


def _names_of(given, depths) -> dict:
    """Name each depth as it was given: "all", or else the first way."""
    names = {}
    for row, value in given.items():
        if isinstance(value, str) and value == "all":
            names[depths[row]] = value
        names.setdefault(depths[row], str(value))
    return names


def _depth_of(search, values):
    """Make what gives a freeze depth its place: in the network, or as first given."""
    *_, model = ends_of(search)
    backbone = getattr(model, "backbone_", None)
    return values.index if backbone is None else backbone.freeze_depth


def _draw_folds(axes, scores: np.ndarray, marks: str, upright=True) -> None:
    """Draw the score of each fold, and the mean of each row with its standard error."""
    places, folds = np.arange(len(scores)), {"color": GREY, "alpha": 0.5}
    means, errors = scores.mean(axis=1), None
    if scores.shape[1] > 1:
        errors = scores.std(axis=1, ddof=1) / np.sqrt(scores.shape[1])
    # Rows lie beside each other, or one above the other.
    order, error = (1, "yerr") if upright else (-1, "xerr")
    axes.plot(*(places, scores)[::order], "o", markersize=4, **folds)
    options = {error: errors, "fmt": marks, "label": "mean and standard error"}
    axes.errorbar(*(places, means)[::order], color=BLUE, capsize=4, **options)
    axes.plot([], [], "o", markersize=4, label="folds", **folds)
    legend(axes)
