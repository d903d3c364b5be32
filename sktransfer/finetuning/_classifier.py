"""FineTuneClassifier: a pretrained network that is tuned to classify samples."""

from numbers import Real

from sklearn.base import ClassifierMixin, _fit_context
from sklearn.metrics import accuracy_score
from sklearn.utils._param_validation import Interval, StrOptions

from sktransfer.finetuning._base import BaseFineTune
from sktransfer.finetuning._parameters import POSITIVE, shared_parameters
from sktransfer.finetuning._predictions import marked
from sktransfer.finetuning._probabilities import Probabilities
from sktransfer.finetuning._targets import label_targets


class FineTuneClassifier(ClassifierMixin, Probabilities, BaseFineTune):
    """Classify images, texts or sounds with a pretrained network that is fine-tuned.

    The last layer of the network is replaced by a new head, which is trained on the
    target task together with the stages that `freeze` leaves.

    Tune three parameters first: `backbone`, since a larger network knows more;
    `freeze`, since the best depth differs from task to task; and `augment` for images,
    or `max_length` for texts and sounds. Then come `lr` and `max_epochs`.

    The parameters are listed in groups:

    - the network, and what of it is trained: from `backbone` to `dropout`;
    - how it is trained: from `optimizer` to `n_iter_no_change`;
    - how samples are read: from `image_shape` to `on_error`;
    - where it is computed: from `device` to `cache`;
    - how one fit follows another, and what it prints: from `warm_start` to
      `net_params`;
    - what is learnt from the labels, and by which head: from `solve_head` to `C`.

    Parameters
    ----------
    backbone : str, callable, torch.nn.Module, Backbone or fitted estimator, \
            default="tiny"
        The pretrained network; see `load_backbone` for the names and objects that are
        accepted. From a fitted `FineTuneClassifier` or `FineTuneRegressor`, a pipeline
        that ends in one or a search over one, the tuned weights are taken, so that
        training starts from your own source task.
    weights : str, enum member, path, (path, "sha256:...") or None, default="default"
        The weights to start from; see `load_backbone`. If None, the network is
        initialised at random and trained from scratch, which is the baseline that
        shows whether transfer helps. Batch norms learn new statistics only in that
        case; otherwise they keep those of the source.
    freeze : int or str, default=0
        How many leading stages are frozen: a number (negative numbers count from the
        end), the name of the last frozen stage, or "all", which trains the head alone
        (a linear probe). Frozen stages stay bit-identical, batch-norm statistics
        included. If only stages without parameters, such as pooling, would be left to
        train, all stages are frozen. A stage is frozen in part by the name of one of
        its blocks: "layer4.1" freezes its blocks up to the second one. Numbers count
        whole stages.
    train_only : {"all", "norms", "biases"}, default="all"
        Which parameters of the stages that are not frozen are trained: all of them,
        those of the normalisation layers (their scales and shifts, [5]_), or the biases
        [6]_, those of normalisation layers included. All other parameters stay
        bit-identical, and a saved file does not contain them. The head is always
        trained as a whole. If there is no such parameter, `fit` raises an error.
    hidden_layer_sizes : tuple of int, default=()
        The widths of the fully connected ReLU layers between the embedding and the
        output layer.
    dropout : float, default=0.0
        The probability of dropping a unit after each hidden layer or, without hidden
        layers, of dropping a feature of the embedding.
    optimizer : {"adamw", "sgd"} or a torch optimizer class, default="adamw"
        The optimizer. "sgd" uses a Nesterov momentum of 0.9. Its options are set
        through `net_params`, as in ``{"optimizer__momentum": 0.8}``.
    lr : float, default=1e-3
        The learning rate of the head.
    backbone_lr_mult : float or "auto", default="auto"
        The ratio of the learning rate of the backbone to that of the head. "auto" is
        0.1, or 3 if `train_only` leaves only norms or biases to train.
    layer_decay : float, default=1.0
        The factor by which the learning rate is multiplied once more for each stage
        towards the input. Stages in which nothing is trained do not count, and what is
        trained of a stage that is frozen in part counts as one.
    weight_decay : float, default=1e-4
        The weight decay, as the optimizer defines it. It applies to all weights except
        biases and the parameters of normalisation layers.
    l2_sp : float, default=0.0
        The strength of the L2-SP penalty [1]_, which pulls the tuned stages towards
        their source weights and replaces `weight_decay`. It adds
        ``l2_sp / 2 * |w - w_source|^2 + l2_sp / 20 * |head|^2`` to the loss.
    head_epochs : int, default=1
        The number of epochs for which the head is trained alone before anything else
        (LP-FT, [2]_). It does not apply to ``weights=None``, where there are no
        features to preserve.
    max_epochs : int, default=10
        The number of epochs for which the stages and the head are trained together;
        with `early_stopping`, the maximum number.
    unfreeze_every : int, default=0
        The number of epochs between two steps of gradual unfreezing [3]_: training
        starts with the last of the stages that `freeze` leaves, and one more stage
        joins in after each such interval. 0 trains them all from the beginning.
    lr_schedule : {"cosine", "one-cycle", "constant"}, default="cosine"
        How the learning rates change from batch to batch.
    batch_size : int, default=32
        The number of samples per training step.
    augment : None, "mild", "light", "strong" or callable, default=None
        The random augmentation of the training samples, applied in `fit` only. For
        images:

        - "mild" crops slightly. It is also suitable for images in which left and right
          have different meanings, such as text, hands and digits;
        - "light" crops more and flips, and is meant for photographs;
        - "strong" applies TrivialAugmentWide as well;
        - a callable takes and returns an image as a tensor of shape (3, H, W).

        For texts and sounds, only a callable: it takes and returns a text, a `str`, or
        a waveform, a float32 tensor of shape (n_values,) at the rate of the network.
        Without augmentation, the frozen stages are computed once for each sample; with
        it, they are computed in each epoch.
    early_stopping : bool, default=False
        Whether to set a part of the training data aside, to stop when the loss on it
        no longer falls, and to restore the weights of the epoch with the lowest loss.
    validation_fraction : float, default=0.1
        The proportion of the training data to set aside for `early_stopping`.
    n_iter_no_change : int, default=5
        The number of epochs without a better validation loss after which
        `early_stopping` ends the training.
    image_shape : tuple of int or None, default=None
        For images: the shape of the image in each row of a 2-D numeric `X`, as in
        `numpy.reshape`. If None, a square grey or RGB image is inferred. Values of
        dtypes other than uint8 and uint16 that lie outside [0, 1] are scaled by the
        minimum and maximum seen in `fit`.
    image_size : int or None, default=None
        For images: the side length, in pixels, of the square input of the network. If
        None, it is given by the preprocessing that belongs to the weights. Smaller
        inputs are cheaper.
    max_length : int, float or None, default=None
        The length at which samples are cut: of texts in tokens, of sounds in seconds.
        Shorter samples are cheaper. If None, it is the length that the weights were
        trained for.
    sampling_rate : int or None, default=None
        The number of values per second of sounds that are arrays without a rate.
        Files, and pairs ``(rate, array)``, have their own.
    decoding : {"exact", "fast"}, default="exact"
        For images: how photographs larger than the input are decoded and resized.
        "exact" decodes and resizes all their pixels. "fast" lets the decoder of a JPEG
        leave out details as long as three times the size of the input is left: a file
        of 12 megapixels takes less than half of the time, and embeddings move by a
        cosine distance of less than 1e-3. Other large files, and images that are
        decoded already, are only resized in two steps, which saves less and moves them
        as much. Use one value, and one form of images, in training and prediction.
        A fitted model keeps the value that it was fitted with.
    on_error : {"raise", "skip", "nan"}, default="raise"
        What to do with samples that cannot be read.

        - "raise" raises an error that names the row and the file;
        - "skip" leaves them out of `fit`, `partial_fit` and `score`, with their targets
          and weights, and issues a single warning that lists them. The fit decodes all
          samples first, except those whose outputs are in the cache. A class that would
          lose all its samples in `fit` is an error, and so are unreadable samples in
          other methods, which have to return a row for each sample;
        - "nan" returns missing values for them and issues a single warning. It applies
          to predictions of a fitted model; `fit` and `score` raise an error. The
          rows of `predict_proba` and `decision_function` are NaN, and so are the
          labels of `predict`, if they are numbers; others are None.
    device : str, default="auto"
        The device to compute on: "cpu", "cuda", "cuda:1" or "mps". "auto" takes an
        accelerator if there is one.
    precision : {"float32", "bfloat16"}, default="float32"
        The floating-point precision of the computation. The weights stay in float32.
    cache : str, path, EmbeddingCache or None, default="auto"
        Where the outputs of frozen stages are stored by the content of the sample, so
        that the folds, candidates and epochs of a search share them. "auto" stores them
        in memory, a folder shares them between processes and runs, and None stores
        nothing.
    warm_start : bool, default=False
        Whether a further call of `fit` starts from the weights of the previous one.
        A solved head has a single optimum, whatever it starts from.
    random_state : int, RandomState instance or None, default=None
        Seeds the initialisation, shuffling, augmentation and dropout. Pass an int for
        reproducible results across multiple function calls.
    verbose : int, default=0
        The verbosity level: 0 is silent, 1 prints a line for each epoch.
    net_params : dict or None, default=None
        Further arguments of `skorch.NeuralNet`, such as
        ``{"callbacks": [...], "criterion__label_smoothing": 0.1,
        "iterator_train__num_workers": 2, "compile": True}``.
        Callbacks are added to those of the estimator. A ``"criterion"`` is a class
        that accepts ``reduction="none"``, as the losses of torch do. With an
        ``accelerate.Accelerator`` as ``"accelerator"``, all its processes train
        together. Arguments that are parameters of this estimator, such as ``lr``, are
        refused here.
    solve_head : bool, default=True
        Whether a linear head on a fully frozen backbone is solved to its optimum by
        scikit-learn's `LogisticRegression` on the standardised embeddings (one for
        each label of a multilabel task). In that case, the parameters of the training,
        such as `lr`, `max_epochs` and `early_stopping`, have no effect. The head is
        trained by gradient descent instead if this is False, or if
        `hidden_layer_sizes`, `dropout`, `augment`, `teacher`, `net_params` or an
        optimizer class is set.
    class_weight : dict, list of dict, "balanced" or None, default=None
        The weight of each class. "balanced" gives all classes the same total weight.
        If None, all classes have a weight of one. For multilabel targets, a list with
        the weights of 0 and 1 for each label, as in ``[{0: 1, 1: 5}, {0: 1, 1: 1}]``,
        or a single dict for all labels; "balanced" gives the samples with and without
        a label the same total weight. The weights of a label apply to its own loss, not
        to that of the other labels.
    teacher : fitted classifier or None, default=None
        A classifier whose predicted probabilities are learnt together with the labels,
        which distils a large model into a small one [4]_. It must have been fitted on
        the same classes.
    temperature : float, default=2.0
        The temperature by which the logits of the teacher and the student are divided
        in distillation.
    distill_weight : float, default=0.5
        The weight of the teacher's term in the loss, between 0 and 1. The term of the
        labels has the remaining weight.
    C : float or None, default=None
        The inverse of the regularisation strength of a solved head, as in
        `LogisticRegression`. If None, it is chosen by the cross-validated log loss of
        the training samples, in five folds. With fewer than 300 samples these are drawn
        up to five times; with more than 1,000 samples, only as many folds are evaluated
        as are needed to hold out 1,000 of them.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The class labels; for multilabel targets, the indices of the columns.
    backbone_ : Backbone
        The tuned network, made of the frozen stages and the trained ones.
    head_ : torch.nn.Module
        The trained head, which takes the embedding of `backbone_`.
    net_ : skorch.NeuralNet
        The net that trained the stages that are not frozen, and the head.
    history_ : list of dict
        A row for each epoch, with ``phase`` ("head", "tune" or "solve"), ``epoch``,
        ``train_loss`` and ``seconds``; with early stopping also ``valid_loss`` and
        ``valid_score``. ``pandas.DataFrame(model.history_)`` makes a table of it.
    n_images_ : int
        The number of training samples with a positive weight.
    class_count_ : ndarray of shape (n_classes,)
        The number of these samples in each class.
    C_ : float, or ndarray of shape (n_labels,)
        The value of `C` that was given or chosen; for multilabel targets, that of each
        label. Defined only when the head was solved.
    n_iter_ : int
        The number of epochs of training after `head_epochs`, including those of the
        earlier fits that this one continues.
    source_ : Backbone
        The network that the first fit started from.
    freeze_depth_ : int
        The number of frozen leading stages.
    frozen_stages_ : tuple of str
        The names of the frozen stages.
    n_features_in_ : int
        The number of columns of `X` seen in `fit`. Defined only when `X` was
        two-dimensional.
    feature_names_in_ : ndarray of str
        The names of the columns of `X` seen in `fit`. Defined only when `X` had column
        names.

    See Also
    --------
    FineTuneRegressor : Predicts numbers in the same way.
    PretrainedFeatureExtractor : Embeds samples for any scikit-learn estimator.

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
    .. [5] Basu, Hu, Massiceti and Feizi, "Strong baselines for parameter-efficient
       few-shot fine-tuning", AAAI 2024, arXiv:2304.01917.
    .. [6] Mai, Zhang, Tu, Chen, Zhang and Chao, "Lessons and insights from a unifying
       study of parameter-efficient fine-tuning (PEFT) in visual recognition", CVPR
       2025, arXiv:2409.16434.

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
        "class_weight": [dict, list, StrOptions({"balanced"}), None],
        "teacher": "no_validation",
        "temperature": [POSITIVE],
        "distill_weight": [Interval(Real, 0, 1, closed="both")],
    }
    # A clone keeps these fitted: like a file of weights, they are given, not learnt.
    _sources = ("backbone", "teacher")
    # Named here because the shared fit stores the value it chose as `C_`.
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
        """Train for one more epoch, or for the first one.

        The learning rate is constant, since the number of calls to come is unknown.
        The state of the optimizer is kept between calls; a pickle contains it, a file
        written by `save` does not.

        Parameters
        ----------
        X : sequence of samples, or array-like of shape (n_samples, n_pixels)
            The training samples of this call.
        y : array-like of shape (n_samples,) or (n_samples, n_labels)
            Their labels.
        classes : array-like of shape (n_classes,), optional
            All labels that any call may contain. They are required in the first call,
            and may be omitted or must be the same in later ones.
        sample_weight : array-like of shape (n_samples,), optional
            The weights of the samples. A weight of k is equivalent to k copies of the
            sample. If None, all samples have a weight of one.

        Returns
        -------
        self
            The fitted estimator. A call that fails or is interrupted leaves it
            unchanged.
        """
        if classes is None and not self._is_fitted():
            raise ValueError(
                "Invalid classes=None: the first call of partial_fit needs classes, "
                "which are all labels that any call may contain. Pass "
                "classes=numpy.unique(y_all)."
            )
        return self._partial_fit(X, y, sample_weight, classes)

    def predict(self, X):
        """Predict the labels of samples.

        Parameters
        ----------
        X : sequence of samples, or array-like of shape (n_samples, n_pixels)
            The samples to classify.

        Returns
        -------
        ndarray of shape (n_samples,) or, for multilabel targets, (n_samples, n_labels)
            The most probable class of each sample; for multilabel targets, an indicator
            matrix with 1 for each label whose probability is above one half. With
            ``on_error="nan"``, the prediction for a sample that cannot be read is NaN
            in an array of floats if classes are numbers, otherwise None in an array of
            objects. If `X` is a tensor and scikit-learn's ``array_api_dispatch`` is on,
            classes that are numbers are a tensor on the device that computed them.
        """
        return marked(*self._predictions(X))

    def score(self, X, y, sample_weight=None):
        """Compute the accuracy of the predictions.

        Parameters
        ----------
        X : sequence of samples, or array-like of shape (n_samples, n_pixels)
            The samples to classify. With ``on_error="skip"``, those that cannot be read
            are left out; with any other value, they are an error.
        y : array-like of shape (n_samples,) or (n_samples, n_labels)
            Their labels.
        sample_weight : array-like of shape (n_samples,), optional
            The weights of the samples.

        Returns
        -------
        float
            The share of the samples whose label is predicted; for multilabel targets,
            of those whose labels are all predicted.
        """
        return self._score(accuracy_score, X, y, sample_weight)

    def _targets(self, y, weights, classes, before):
        return label_targets(y, weights, classes, before, self.class_weight)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        # scikit-learn has this tag for indicator matrices, besides several outputs.
        tags.classifier_tags.multi_label = True
        return tags
