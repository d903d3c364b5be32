"""FineTuneClassifier: a pretrained network, tuned to tell classes."""

from numbers import Real

from sklearn.base import ClassifierMixin, _fit_context
from sklearn.utils._param_validation import Interval, StrOptions

from sktransfer.finetuning._base import BaseFineTune
from sktransfer.finetuning._parameters import POSITIVE, shared_parameters
from sktransfer.finetuning._targets import fitted_targets, label_targets


class FineTuneClassifier(ClassifierMixin, BaseFineTune):
    """Classify images with a pretrained network, tuned end to end.

    The last layer of the network gives way to a new head, and head and stages are
    trained on the target task, as many of the stages as `freeze` leaves.

    Parameters
    ----------
    backbone : str, callable, torch.nn.Module, Backbone or fitted estimator, \
            default="tiny"
        The network; see `load_backbone`. A fitted `FineTuneClassifier` or
        `FineTuneRegressor` gives its tuned weights: one's own source task.
    weights : str, enum member, path, (path, "sha256:...") or None, default="default"
        The weights to start from; see `load_backbone`. None initialises at random:
        training from scratch, the baseline that shows whether transfer helps. Only
        then do batch norms learn new statistics; else they keep those of the source.
    freeze : int or str, default=0
        How many leading stages stay as they are, to the last bit, batch-norm
        statistics included: a number (negative counts from the end), the name of the
        last frozen stage, or "all", which fits the head alone (a linear probe). Where
        only stages without parameters, such as pooling, would be left, it is "all".
    hidden_layer_sizes : tuple of int, default=()
        Widths of fully connected ReLU layers between embedding and output.
    dropout : float, default=0.0
        Probability of dropping a unit after each hidden layer; without hidden layers,
        of dropping a feature of the embedding.
    optimizer : {"adamw", "sgd"} or a torch optimizer class, default="adamw"
        "sgd" has Nesterov momentum 0.9. Options go through `net_params`, as in
        ``{"optimizer__momentum": 0.8}``.
    lr : float, default=1e-3
        Learning rate of the head.
    backbone_lr_mult : float, default=0.1
        Ratio of the backbone's learning rate to the head's.
    layer_decay : float, default=1.0
        Factor that multiplies the learning rate once more for each stage towards
        the input. Stages without parameters do not count.
    weight_decay : float, default=1e-4
        Of all weights but biases and norms, as the optimizer understands it.
    l2_sp : float, default=0.0
        Strength of the pull of the tuned stages to their source weights, in place of
        `weight_decay`: adds ``l2_sp / 2 * |w - w_source|^2 + l2_sp / 20 * |head|^2``
        to the loss (L2-SP, [1]_).
    head_epochs : int, default=1
        Epochs in which the head alone is trained first (LP-FT, [2]_); none with
        ``weights=None``, where there are no features to keep.
    max_epochs : int, default=10
        Epochs in which stages and head are trained.
    unfreeze_every : int, default=0
        Gradual unfreezing [3]_: at first only the last of the stages that `freeze`
        leaves is trained, and one more every so many epochs. 0 trains all at once.
    lr_schedule : {"cosine", "one-cycle", "constant"}, default="cosine"
        How learning rates change from batch to batch.
    batch_size : int, default=32
        Images per training step.
    augment : None, "mild", "light", "strong" or callable, default=None
        Random changes of training images, inside `fit` only: "mild" crops a little,
        and suits also pictures whose left and right differ in meaning (text, hands,
        digits); "light" crops more and flips, for photographs; "strong" applies
        TrivialAugmentWide as well. A callable takes and returns a picture, a tensor of
        shape (3, H, W). Without augmentation, frozen stages compute each image once;
        with it, in each epoch.
    early_stopping : bool, default=False
        Set part of the data aside, stop when its loss no longer falls, and return to
        the epoch of its least loss.
    validation_fraction : float, default=0.1
        The part set aside if `early_stopping`.
    n_iter_no_change : int, default=5
        Epochs without a better validation loss before stopping.
    image_shape : tuple of int or None, default=None
        How to read the rows of a 2-D numeric `X`, as in `numpy.reshape`; None infers
        a square grey or RGB image. Numbers other than uint8 and uint16 that leave
        [0, 1] are scaled by the least and greatest value that `fit` saw.
    image_size : int or None, default=None
        Side in pixels of the square input of the network. None is the recipe of the
        weights; smaller is cheaper.
    device : str, default="auto"
        "cpu", "cuda", "cuda:1", "mps"; "auto" takes what is there.
    precision : {"float32", "bfloat16"}, default="float32"
        Of the computation (weights stay float32).
    cache : str, path, EmbeddingCache or None, default="auto"
        Where outputs of frozen stages are kept by the content of the image: folds,
        candidates and epochs of a search then share them. "auto" in memory, a folder
        between processes and runs, None nowhere.
    warm_start : bool, default=False
        Start a further `fit` from the weights of the last one. A solved head has one
        optimum, whatever it starts from.
    random_state : int, RandomState instance or None, default=None
        Seed of initialisation, order, augmentation and dropout.
    verbose : int, default=0
        1 prints a line for each epoch.
    net_params : dict or None, default=None
        Any arguments of `skorch.NeuralNet`: ``{"callbacks": [...],
        "criterion__label_smoothing": 0.1, "iterator_train__num_workers": 2,
        "compile": True}``. Callbacks are added to ours; a ``"criterion"`` is a class
        that takes ``reduction="none"``, as torch's losses do. With
        ``"accelerator"``, an ``accelerate.Accelerator``, the processes that it knows
        train together. Parameters of this estimator, such as ``lr``, are refused here.
    solve_head : bool, default=True
        Whether a linear head on stages that are all frozen is solved to its optimum,
        by scikit-learn's `LogisticRegression` on the standardised embeddings (one for
        each label if there are several). Then the parameters of the training, such as
        `lr`, `max_epochs` and `early_stopping`, do not matter. False trains this last
        layer by gradient descent, as do `hidden_layer_sizes`, `dropout`, `augment`,
        `teacher`, `net_params` and an optimizer class.
    class_weight : dict, "balanced" or None, default=None
        Weight of each class; "balanced" makes all classes weigh the same.
    teacher : fitted classifier or None, default=None
        A classifier whose scores are learned together with the labels: distillation
        of a large model into a small one [4]_. It must know the same classes.
    temperature : float, default=2.0
        What the logits of teacher and student are divided by in distillation.
    distill_weight : float, default=0.5
        Weight of the teacher's term in the loss, from 0 to 1; that of the labels is
        what is left.
    C : float or None, default=None
        Inverse of the regularisation strength of a solved head, as in
        `LogisticRegression`. None chooses it by the cross-validated log loss of the
        training images: in five folds, made up to five times where there are fewer
        than 300 images, and only as many as hold 1,000 images where there are more.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels; for multilabel targets, the numbers of the columns.
    backbone_ : Backbone
        The tuned network: the frozen stages and the trained ones.
    head_ : torch.nn.Module
        What stands on its embedding.
    net_ : skorch.NeuralNet
        The net that trained the stages that were not frozen, and the head.
    history_ : list of dict
        A row for each epoch: ``phase`` ("head", "tune" or "solve"), ``epoch``,
        ``train_loss``, ``seconds``, with early stopping also ``valid_loss`` and
        ``valid_score``. ``pandas.DataFrame(model.history_)`` makes it a table.
    n_images_ : int
        Number of images of positive weight that it learnt from.
    class_count_ : ndarray of shape (n_classes,)
        How many of these had each class.
    C_ : float, or ndarray of shape (n_labels,)
        The C that was given or chosen, for each label if there are several. Only of a
        head that was solved.
    n_iter_ : int
        Epochs of tuning, with those of the fits that this one went on from.
    source_ : Backbone
        The network that the first fit started from.
    freeze_depth_ : int
        How many leading stages were frozen.
    frozen_stages_ : tuple of str
        Their names.
    n_features_in_ : int
        Number of columns of `X` seen in `fit`, where `X` was two-dimensional.
    feature_names_in_ : ndarray of str
        Names of the columns of `X` seen in `fit`, where it had any.

    See Also
    --------
    FineTuneRegressor : The same for numbers.
    PretrainedFeatureExtractor : Embeddings for any scikit-learn estimator.

    References
    ----------
    .. [1] Li, Grandvalet and Davoine, "Explicit inductive bias for transfer learning
       with convolutional networks", ICML 2018.
    .. [2] Kumar, Raghunathan, Jones, Ma and Liang, "Fine-tuning can distort pretrained
       features and underperform out-of-distribution", ICLR 2022.
    .. [3] Howard and Ruder, "Universal language model fine-tuning for text
       classification", ACL 2018.
    .. [4] Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network",
       2015, arXiv:1503.02531.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sktransfer import FineTuneClassifier
    >>> X, y = load_digits(n_class=3, return_X_y=True)
    >>> model = FineTuneClassifier(freeze="all", random_state=0)
    >>> model.fit(X[:200], y[:200]).score(X[200:300], y[200:300]) > 0.9
    True
    """

    _parameter_constraints: dict = {
        **BaseFineTune._parameter_constraints,
        "C": [POSITIVE, None],
        "class_weight": [dict, StrOptions({"balanced"}), None],
        "teacher": "no_validation",
        "temperature": [POSITIVE],
        "distill_weight": [Interval(Real, 0, 1, closed="both")],
    }
    _sources = ("backbone", "teacher")
    _penalty = "C"

    @shared_parameters
    def __init__(
        self,
        backbone="tiny",
        *,
        class_weight=None,
        teacher=None,
        temperature=2.0,
        distill_weight=0.5,
        C=None,
        **shared,
    ):
        super().__init__(backbone, **shared)
        self.class_weight = class_weight
        self.teacher = teacher
        self.temperature = temperature
        self.distill_weight = distill_weight
        self.C = C

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y, classes=None, sample_weight=None):
        """Train one epoch more, or the first one.

        At a constant learning rate, since nobody knows how many calls will come; what
        the optimizer has learnt of its gradients is kept between calls, also in a
        pickle, but not by `save`.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_pixels)
            The training images of this call.
        y : array-like of shape (n_samples,) or (n_samples, n_labels)
            Their labels.
        classes : array-like of shape (n_classes,), optional
            All labels that will ever come; needed in the first call, and the same in
            any other.
        sample_weight : array-like of shape (n_samples,), optional
            A weight of k is the same as k copies of the image.

        Returns
        -------
        self
            This estimator. If the call fails or is interrupted, it is as before.
        """
        if classes is None and not self._is_fitted():
            raise ValueError(
                "The first call of partial_fit needs classes, all the labels that will "
                "ever come: pass classes=numpy.unique(y_all)."
            )
        return self._partial_fit(X, y, sample_weight, classes)

    def predict(self, X):
        """Predict labels.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_pixels)
            The images to classify.

        Returns
        -------
        ndarray of shape (n_samples,) or, for multilabel targets, (n_samples, n_labels)
            The most probable class of each image; for multilabel targets, 1 for each
            label that is more probable than not.
        """
        scores = self._outputs(X)
        return fitted_targets(self).predictions(scores)

    def predict_proba(self, X):
        """Predict probabilities.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_pixels)
            The images to classify.

        Returns
        -------
        ndarray of shape (n_samples, n_classes), float64
            In the order of `classes_`; for multilabel targets, of each label.
        """
        scores = self._outputs(X)
        return fitted_targets(self).probabilities(scores)

    def decision_function(self, X):
        """Give the scores that predictions are made of.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_pixels)
            The images to classify.

        Returns
        -------
        ndarray of shape (n_samples, n_classes), or (n_samples,) for two classes
            Logits; of two classes, the second one's minus the first one's.
        """
        scores = self._outputs(X)
        return fitted_targets(self).decisions(scores)

    def _targets(self, y, weights, classes, before):
        return label_targets(y, weights, classes, before, self.class_weight)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags
