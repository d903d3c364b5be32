"""What a fitted classifier predicts besides labels: scores and probabilities."""

from sktransfer.finetuning._targets import fitted_targets


class Probabilities:
    """The predictions of a classifier that are made of the outputs of its head."""

    def predict_proba(self, X):
        """Predict the probabilities of the classes.

        Parameters
        ----------
        X : sequence of samples, or array-like of shape (n_samples, n_pixels)
            The samples to classify.

        Returns
        -------
        ndarray of shape (n_samples, n_classes), float64
            The probability of each class, in the order of `classes_`; for multilabel
            targets, the probability of each label. A tensor where `predict` gives one,
            also for classes that are strings.
        """
        scores, _ = self._outputs(X)
        return fitted_targets(self).probabilities(scores)

    def predict_log_proba(self, X):
        """Predict the logarithms of the probabilities of the classes.

        Parameters
        ----------
        X : sequence of samples, or array-like of shape (n_samples, n_pixels)
            The samples to classify.

        Returns
        -------
        ndarray of shape (n_samples, n_classes), float64
            The logarithms of what `predict_proba` returns, computed from the scores, so
            that they are finite also where a probability is rounded to 0.
        """
        scores, _ = self._outputs(X)
        return fitted_targets(self).log_probabilities(scores)

    def decision_function(self, X):
        """Compute the scores that the predictions are based on.

        Parameters
        ----------
        X : sequence of samples, or array-like of shape (n_samples, n_pixels)
            The samples to classify.

        Returns
        -------
        ndarray of shape (n_samples, n_classes), or (n_samples,) for two classes
            The logits of the classes; for two classes, the logit of the second one
            minus that of the first. A tensor where `predict_proba` gives one.
        """
        scores, _ = self._outputs(X)
        return fitted_targets(self).decisions(scores)
