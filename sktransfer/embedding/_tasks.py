"""Tasks of a fit, of which the callbacks of scikit-learn 1.9 are told."""

import math

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:  # scikit-learn before 1.9

    class CallbackSupportMixin:
        """Stands for the mixin of scikit-learn, and adds nothing."""

    def with_callbacks(method):
        """Return the method as it is."""
        return method


# The most subtasks for batches, as a progress bar of scikit-learn goes through all of
# them whenever one ends.
_MOST = 100


def is_watched(estimator) -> bool:
    """Whether an estimator has callbacks; none has before scikit-learn 1.9."""
    return bool(getattr(estimator, "_skl_callbacks", None))


class Task:
    """A task of a fit, whose beginning and end the callbacks of an estimator are told.

    As a context manager, it begins and, unless there is an error, ends. Without
    callbacks, it does nothing.

    Parameters
    ----------
    estimator : estimator, optional
        The estimator that is fitted.
    context : sklearn.callback.CallbackContext, optional
        The place of the task among others. If None, nobody is told of it.
    given : dict, optional
        What callbacks may ask for: "X", "y" and "metadata" as passed to `fit`.
    attributes : dict, optional
        What makes the estimator a fitted one at the end of the task, as in `end`.
    """

    def __init__(self, estimator=None, context=None, given=None, attributes=None):
        self._estimator = estimator
        self._context = context
        self._given = given or {}
        self._attributes = attributes

    @classmethod
    def of(cls, estimator, name: str, n_subtasks: int, **given) -> "Task":
        """Return the first task of a fit, to which all others belong."""
        if not is_watched(estimator):
            return cls()
        context = estimator._init_callback_context(name, max_subtasks=n_subtasks)
        # At its end, the estimator itself is fitted.
        return cls(estimator, context, given, {})

    def subtask(self, name: str, n_subtasks: int = 0) -> "Task":
        """Return a part of this task."""
        if self._context is None:
            return self
        context = self._context.subcontext(name, max_subtasks=n_subtasks)
        return Task(self._estimator, context, self._given)

    def begin(self) -> "Task":
        if self._context is not None:
            self._context.call_on_fit_task_begin(
                estimator=self._estimator, **self._given
            )
        return self

    def end(self, attributes=None) -> bool:
        """End the task, and return whether a callback asks to stop.

        `attributes` are those of an estimator that is fitted as far as it is now, or a
        function that returns them, which is called only if a callback wants them.
        """
        if self._context is None:
            return False
        return self._context.call_on_fit_task_end(
            estimator=self._estimator,
            reconstruction_attributes=attributes,
            **self._given,
        )

    __enter__ = begin

    def __exit__(self, kind, error, traceback):
        if kind is None:
            self.end(self._attributes)

    def __reduce__(self):
        # Processes that read samples for a fit have nothing to tell of it.
        return Task, ()


class Batches:
    """The progress of samples: a bar, and subtasks for each batch, or each few of them.

    Parameters
    ----------
    task : Task
        The task that the subtasks belong to.
    bar : tqdm
        The progress bar.
    n_samples : int
        The number of samples.
    size : int
        The number of samples of a batch.
    """

    def __init__(self, task: Task, bar, n_samples: int, size: int):
        self._bar = bar
        self._left = n_samples
        self._size = size * max(1, math.ceil(n_samples / (size * _MOST)))
        n_subtasks = math.ceil(n_samples / self._size)
        self._task = task.subtask("embed", n_subtasks)
        # The samples that are left when each of the subtasks ends.
        self._ends = [i * self._size for i in range(n_subtasks)]
        self._open = None

    def __enter__(self) -> "Batches":
        self._task.begin()
        if self._ends:
            self._open = self._task.subtask("batch").begin()
        return self

    def update(self, count: int) -> None:
        """Count further samples as done."""
        self._bar.update(count)
        self._left -= count
        # Lanes compute several batches at once, but it is told of one after the other.
        while self._ends and self._left <= self._ends[-1]:
            self._ends.pop()
            self._open.end()
            if self._ends:
                self._open = self._task.subtask("batch").begin()

    def __exit__(self, *error):
        self._task.__exit__(*error)
