"""Metrics: how good a model is, in the field's own figures, by name.

`base` says what a metric is; `reconstruction`, `bounds`, `latents` and `codes` hold those of models. `probing`, `disentanglement` and
`frechet` are pure functions of codes, labels, factors and features that know no model and no loop; each returns {name: (value, standard
error, samples)}, the error NaN where none makes sense. `labels` and `generated` call them.
"""

from . import reconstruction, bounds, codes, latents, labels, generated  # noqa: F401, I001  the order is that of the table
from .base import METRICS, Figure, Metric, Seen, Subject
from .choosing import chosen, described

__all__ = ["METRICS", "Figure", "Metric", "Seen", "Subject", "chosen", "described"]
