"""Where a warning points: at the code of the user, however far up it is."""

import sys


def level_of_the_caller() -> int:
    """Return the `stacklevel` at which a warning points at the user's own code."""
    # The depth varies: scikit-learn wraps methods, and joblib may be in between.
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and _is_within(frame.f_globals.get("__name__")):
        frame, level = frame.f_back, level + 1
    return level


def _is_within(module: str | None) -> bool:
    return str(module).partition(".")[0] in ("sktransfer", "sklearn", "joblib")
