"""The parameter `score` of a detector, which is a method of that name, too."""

from __future__ import annotations

from typing import Any


class ScoreName(str):
    """The name of a score that can be called as scikit-learn calls an estimator's `score`: detector.score(X) -> float."""

    __slots__ = ("owner",)
    owner: Any

    def __call__(self, X: Any, y: Any = None) -> float:
        """The mean of `score_samples(X)`, high = normal, as of a density; y is ignored."""
        return float(self.owner.score_samples(X).mean())


class ScoreParameter:
    """Descriptor: keeps what was given in the instance, unchanged, and gives text as a `ScoreName`.

    Scikit-learn's tools (pipelines, searches) ask an estimator for a method `score`, and a detector's parameter has that name."""

    def __get__(self, owner: Any, kind: Any = None) -> Any:
        if owner is None:
            return self
        try:
            given = vars(owner)["score"]
        except KeyError:
            raise AttributeError("score") from None
        if type(given) is not str:
            return given
        name = ScoreName(given)
        name.owner = owner
        return name

    def __set__(self, owner: Any, value: Any) -> None:
        vars(owner)["score"] = str(value) if isinstance(value, ScoreName) else value
