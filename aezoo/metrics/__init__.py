"""Figures of codes, factors and samples, as pure functions of tensors: they know no model and no loop.

Each returns {name: (value, standard error, samples)}; the error is NaN where none makes sense, and the docstring says so.
"""
