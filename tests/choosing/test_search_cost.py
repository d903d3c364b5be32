import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    GroupShuffleSplit,
    KFold,
    RandomizedSearchCV,
    ShuffleSplit,
)
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.svm import SVC

from sktransfer import (
    EmbeddingCache,
    FineTuneClassifier,
    PretrainedFeatureExtractor,
    search_cost,
)
from tests.small_network import (
    backbone_of_blocks,
    counts,
    small_backbone,
    text_backbone,
)
from tests.small_tasks import make_task

N = 24
X = np.random.default_rng(0).integers(0, 256, (N, 16, 16, 3), dtype=np.uint8)
y = np.arange(N) % 2


def model(**parameters):
    settings = {"max_epochs": 2, "head_epochs": 0, "random_state": 0}
    settings |= {"cache": EmbeddingCache()} | parameters
    return FineTuneClassifier(small_backbone(), **settings)


def fits_of(search, **options):
    """Fit a search; give depth, epochs and number of images of each fit within."""
    fits = []
    fit = FineTuneClassifier.fit

    def counted(self, X, y, *args):
        epochs = 0 if self.freeze == "all" else self.max_epochs
        fits.append((self.freeze, epochs, len(X)))
        return fit(self, X, y, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FineTuneClassifier, "fit", counted)
        search.fit(X, y, **options)
    return fits


def test_what_a_search_costs_is_told_in_the_kind_of_its_samples():
    search = GridSearchCV(FineTuneClassifier(text_backbone()), {"freeze": [1]}, cv=2)
    cost = str(search_cost(search, ["a good film", "a bad day"] * 4, [0, 1] * 4))
    assert "1 pass over 8 texts" in cost
    assert "image" not in cost


def test_a_search_computes_what_was_told():
    search = GridSearchCV(model(), {"freeze": [1, 2, "all"]}, cv=3)
    cost = search_cost(search, X, y)
    assert (cost.n_candidates, cost.n_splits, cost.n_fits) == (3, 3, 10)
    assert str(cost).startswith("10 fits: 3 candidates in 3 folds, and the best once")
    assert "1 pass over 24 images" in str(cost)
    counts.clear()
    assert len(fits_of(search)) == cost.n_fits
    # What the first fold trains on in a batch of 32, filled up; the rest in another.
    assert counts["a"] == cost.n_passes * 2 * 32
    # A head on stages that are all frozen is solved, and takes no steps.
    assert cost.n_steps == 2 * 2 * 3 * 16 + 2 * N


@pytest.mark.parametrize("freeze", [["b.0", "b", "all"], ["a", "b.1", "b.0"]])
def test_cuts_after_blocks_share_a_pass(freeze):
    tuned = model().set_params(backbone=backbone_of_blocks())
    assert (
        search_cost(GridSearchCV(tuned, {"freeze": freeze}, cv=3), X, y).n_passes == 1
    )
    embedder = PretrainedFeatureExtractor(backbone_of_blocks())
    for stages, passes in [(["b.0", "b.1", "b.0"], 2), (["b", "b.2"], 1)]:
        search = GridSearchCV(
            make_pipeline(embedder, SVC()),
            {"pretrainedfeatureextractor__stage": stages},
            cv=3,
        )
        assert search_cost(search, X, y).n_passes == passes


def test_what_differs_in_the_network_is_a_pass_of_its_own():
    grid = {"image_size": [16, 20], "freeze": [0, 1, 2], "augment": [None, "light"]}
    cost = search_cost(GridSearchCV(model(), grid, cv=2, refit=False), X, y)
    assert (cost.n_fits, cost.n_passes, cost.n_augmented) == (24, 2, 8)
    assert "8 fits augment" in str(cost)
    assert "once more" not in str(cost)


def test_the_first_head_stands_on_a_pass_of_the_source():
    search = GridSearchCV(model(head_epochs=1), {"freeze": [0]}, cv=3, refit=False)
    for weights, max_epochs, passes in (("default", 0, 1), (None, 1, 0)):
        search.estimator.set_params(weights=weights, max_epochs=max_epochs)
        assert search_cost(search, X, y).n_passes == passes
        counts.clear()
        search.fit(X, y)
        # And one, of the tuned network, over each fold's test images.
        steps = max_epochs * 3 * 16
        assert counts["a"] == 3 * 32 + passes * 2 * 32 + steps


def in_whole_batches(n=96):
    """Images whose three folds are whole batches of 32, with nothing filled up."""
    images = np.random.default_rng(0).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)
    return images, np.arange(n) % 2


def check_passes(search, expected, at_least=None):
    """Compare what is told with the rows that the first stage computes."""
    X, y = in_whole_batches()
    cost = search_cost(search, X, y)
    assert cost.n_passes == expected
    # Where frozen stages cannot run beforehand, the first one sees each step, too.
    steps = cost.n_steps if cost.n_augmented else 0
    assert cost.n_augmented in (0, cost.n_fits)
    counts.clear()
    search.fit(X, y)
    passes = (counts.get("a", 0) - steps) / len(X)
    assert (expected if at_least is None else at_least) <= passes <= expected


@pytest.mark.parametrize("refit", [True, False])
@pytest.mark.parametrize("train_score", [True, False])
@pytest.mark.parametrize(
    ("grid", "passes"),
    [
        ({"freeze": [1]}, 1),
        ({"freeze": ["all"]}, 1),
        ({"freeze": [1, 2], "weights": [None]}, 1),
        ({"freeze": ["all"], "augment": ["light"]}, 1),
        ({"freeze": ["all"], "augment": ["light"], "weights": [None]}, 1),
    ],
)
def test_passes_are_those_that_are_made(grid, passes, train_score, refit):
    settings = {"cv": 3, "refit": refit, "return_train_score": train_score}
    check_passes(GridSearchCV(model(), grid, **settings), passes)


def test_predictions_of_augmented_fits_are_passes_too():
    # Training has seen other images. Those of one fold's test are known in the next.
    grid = {"freeze": [1, 2], "augment": ["light"]}
    check_passes(GridSearchCV(model(), grid, cv=3), 2, at_least=1.5)
    # Of random weights there is nothing for a first head.
    random = {**grid, "weights": [None]}
    check_passes(GridSearchCV(model(), random, cv=3), 1)
    # Pictures as they are leave what stages give, if they are first.
    for augment, passes in [(["light", None], 2), ([None, "light"], 1)]:
        search = GridSearchCV(model(), {"freeze": [1], "augment": augment}, cv=3)
        assert search_cost(search, X, y).n_passes == passes


@pytest.mark.parametrize("refit", [True, False])
@pytest.mark.parametrize("augment", [None, "light"])
@pytest.mark.parametrize("freeze", [1, "all"])
@pytest.mark.parametrize(
    "unshared", [{"cache": None}, {"weights": None, "random_state": None}]
)
def test_fits_that_share_nothing_have_passes_of_their_own(
    unshared, freeze, augment, refit
):
    part = model(freeze=freeze, augment=augment).set_params(**unshared)
    search = GridSearchCV(part, {"lr": [0.1, 0.01]}, cv=3, refit=refit)
    # Augmented fits from random weights run frozen stages alone for the test images.
    tests_alone = part.weights is None and augment and freeze == 1
    check_passes(search, 6 + refit, at_least=6 / 3 if tests_alone else None)


def test_fits_from_scratch_have_no_passes_even_without_a_cache():
    search = GridSearchCV(model(cache=None, weights=None), {"freeze": [0]}, cv=3)
    assert search_cost(search, X, y).n_passes == 0
    search.estimator.set_params(weights="default")
    assert search_cost(search, X, y).n_passes == 4


@pytest.mark.parametrize(
    ("cache", "train_score", "passes"),
    [(EmbeddingCache(), False, 1), (None, False, 7), (None, True, 13)],
)
def test_passes_of_embeddings(cache, train_score, passes):
    embedding = PretrainedFeatureExtractor(small_backbone(), cache=cache)
    settings = {"cv": 3, "return_train_score": train_score}
    search = GridSearchCV(
        make_pipeline(embedding, SVC()), {"svc__C": [1, 2]}, **settings
    )
    # Training images, two of three, are embedded once more for their own score.
    check_passes(search, passes, 7 + 6 * 2 / 3 if train_score else None)


def test_searches_over_embeddings_and_groups():
    pipe = make_pipeline(PretrainedFeatureExtractor(small_backbone()), SVC())
    grid = {"svc__C": [1, 2, 3], "pretrainedfeatureextractor__stage": [1, 2]}
    search = RandomizedSearchCV(pipe, grid, n_iter=6, cv=GroupKFold(4))
    cost = search_cost(search, X, y, groups=np.arange(N) % 4)
    assert (cost.n_fits, cost.n_passes, cost.n_steps) == (25, 2, 0)


def random_search(shared):
    """A search whose draws are all from one generator, its own or the global one."""
    generator = np.random.RandomState(3) if shared else None
    return RandomizedSearchCV(
        model(random_state=generator),
        {"freeze": [1, 2, "all"], "max_epochs": range(1, 6)},
        n_iter=4,
        # As groups are not of one size, folds are not either.
        cv=GroupShuffleSplit(2, test_size=0.5, random_state=generator),
        random_state=generator,
    )


@pytest.mark.parametrize("shared", [True, False])
def test_the_search_stays_as_it_is(shared):
    groups = np.repeat(range(6), [1, 2, 3, 4, 6, 8])
    np.random.seed(0)  # noqa: NPY002
    fits = fits_of(random_search(shared), groups=groups)
    np.random.seed(0)  # noqa: NPY002
    search = random_search(shared)
    cost = search_cost(search, X, y, groups=groups)
    assert search_cost(search, X, y, groups=groups) == cost
    assert fits_of(search, groups=groups) == fits
    steps = sum(epochs * n for _, epochs, n in fits[:-1])
    assert cost.n_steps == steps + N * max(epochs for _, epochs, _ in fits)


def test_parts_that_a_grid_shares_with_the_search_stay_as_they_are():
    part, generator = model(weights=None), np.random.RandomState(0)
    grid = {"clf": [part], "clf__freeze": [0], "clf__random_state": [generator]}
    search_cost(GridSearchCV(Pipeline([("clf", None)]), grid), X, y)
    assert part.freeze == model().freeze
    assert part.random_state == 0
    assert generator.randint(1000) == np.random.RandomState(0).randint(1000)


def test_an_iterator_of_folds_is_refused_and_kept():
    folds = KFold(3).split(X)
    with pytest.raises(ValueError, match=r"cv, a generator .*cv=list"):
        search_cost(GridSearchCV(model(), {"freeze": [1]}, cv=folds), X, y)
    assert len(list(folds)) == 3


def test_the_refit_counts_as_the_costliest_candidate():
    grid = {"max_epochs": [3, 1], "freeze": [1, 2]}
    search = GridSearchCV(model(augment="light", max_epochs=2), grid, cv=2)
    cost = search_cost(search, X, y)
    assert cost.n_steps == 2 * (3 + 1) * 2 * (N // 2) + 3 * N
    assert cost.n_augmented == cost.n_fits == 9
    assert "9 fits augment" in str(cost)
    search.refit = False
    cost = search_cost(search, X, y)
    assert cost.n_steps == 2 * (3 + 1) * 2 * (N // 2)
    assert cost.n_augmented == cost.n_fits == 8


@pytest.mark.parametrize("empty", ["passthrough", None])
def test_the_network_may_be_in_the_grid_alone(empty):
    part, depths, folds = model(), [1, "all"], KFold(2)
    grid = {"clf": [part], "clf__freeze": depths}
    cost = search_cost(GridSearchCV(Pipeline([("clf", empty)]), grid, cv=folds), X, y)
    assert cost == search_cost(GridSearchCV(part, {"freeze": depths}, cv=folds), X, y)


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (SVC(), "cost of a SVC is not known"),
        (GridSearchCV(LogisticRegression(), {"C": [1]}), "0 parts with a pretrained"),
    ],
)
def test_what_is_no_such_search_is_refused(search, message):
    with pytest.raises(ValueError, match=message):
        search_cost(search, X, y)


def test_augmentation_without_frozen_stages_makes_nothing_run_again():
    X, y = make_task()
    model = FineTuneClassifier(small_backbone(), augment="mild", random_state=0)
    cost = search_cost(GridSearchCV(model, {"freeze": [0, 1]}, cv=2), X, y)
    assert cost.n_augmented == 2 + 1
    search = GridSearchCV(model, {"freeze": [0]}, cv=2)
    assert search_cost(search, X, y).n_augmented == 0


@pytest.mark.parametrize("refit", [True, False])
def test_a_single_split_is_not_taken_for_a_refit(refit):
    cv = ShuffleSplit(1, test_size=0.5, random_state=0)
    cost = search_cost(GridSearchCV(model(), {"lr": [0.1]}, cv=cv, refit=refit), X, y)
    assert (cost.n_fits, cost.refit) == (1 + refit, refit)
    assert ("once more" in str(cost)) == refit
