"""Tables: from columns of numbers and words to a tensor that `tabular_ae` takes, and scikit-learn's.

Legend: N rows, D columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..registry import nearest

MIXED = {0: 3, 4: 4, 9: 5}  # columns of "wine-mixed" that hold classes: alcohol, magnesium, colour intensity
MISSING = 0.05


class Table(NamedTuple):
    """What `encode_table` returns."""

    x: Tensor
    """(N, D) float32; a class is its index, a missing entry NaN."""
    columns: tuple[int, ...]
    """The number of classes of each column, 0 for numbers: the `columns` of `tabular_ae`."""
    classes: dict[str, list[str]]
    """The names of the classes, by the column's name."""
    names: list[str]
    """The columns' names, by default their positions."""


def encode_table(table: Any, *, categorical: Sequence[str] = (), like: Table | None = None) -> Table:
    """Rows of numbers and words as a tensor: a column of words becomes the index of each word among the column's sorted words.

    Args:
        table: a mapping of columns {name: values}, a list of rows (mappings or sequences), or a DataFrame of pandas or polars.
            None, "" (or blanks) and NaN are missing. Words that all read as numbers are numbers.
        categorical: names of columns that hold classes although they look like numbers; their classes are sorted as numbers.
        like: a table that was encoded before: columns and classes are its own, as test data needs.

    Raises ValueError for columns of different lengths, unknown names, a column with nothing in it or with one class only, and
    words that `like` does not have."""
    columns = _columns(table)
    names = list(columns)
    lengths = {name: len(values) for name, values in columns.items()}
    if not names or len(set(lengths.values())) != 1 or not lengths[names[0]]:
        raise ValueError(f"a table has columns of one length, at least 1; got {lengths or 'no column'}")
    if like is not None and names != like.names:
        raise ValueError(
            f"the columns are {', '.join(names)}; the table that it is to be like has {', '.join(like.names)}"
        )
    for name in categorical:
        if name not in columns:
            raise ValueError(f"categorical names {name!r}; the columns are {', '.join(names)}.{nearest(name, names)}")
    encoded, sizes, classes = [], [], {}
    for name, values in columns.items():
        cells = [_cell(v) for v in values]
        there = [c for c in cells if c is not None]
        if not there:
            raise ValueError(f"column {name!r} holds nothing")
        known: list[str] | None = like.classes.get(name) if like is not None else None
        words = any(_number(c) is None for c in there) or name in categorical
        if known is None and words:
            if like is not None:
                raise ValueError(f"column {name!r} holds words, but numbers in the table that it is to be like")
            known = _sorted({_word(c) for c in there})
            if len(known) < 2:
                raise ValueError(f"column {name!r} holds one class only, {known[0]!r}; leave it out")
        encoded.append([math.nan if c is None else _encode(c, known, name) for c in cells])
        sizes.append(len(known) if known else 0)
        if known:
            classes[name] = known
    return Table(torch.tensor(encoded, dtype=torch.float32).t().contiguous(), tuple(sizes), classes, names)


def _columns(table: Any) -> dict[str, Sequence[Any]]:
    """{name: values} of whatever holds a table."""
    if isinstance(table, Mapping):
        return {str(name): list(values) for name, values in table.items()}
    if hasattr(table, "columns"):  # of pandas or polars
        return {str(name): list(table[name]) for name in table.columns}
    rows = list(table)
    if rows and isinstance(rows[0], Mapping):
        names = list(dict.fromkeys(name for row in rows for name in row))
        return {str(name): [row.get(name) for row in rows] for name in names}
    widths = {len(row) for row in rows}
    if len(widths) > 1:
        raise ValueError(f"the rows have {', '.join(map(str, sorted(widths)))} cells; they must have the same number")
    return {str(i): list(column) for i, column in enumerate(zip(*rows))}


def _cell(value: Any) -> Any:
    """None for what is missing, in any of its forms."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    value = value.item() if hasattr(value, "item") else value  # NumPy's numbers
    odd = isinstance(value, float) and math.isnan(value)
    return None if odd or type(value).__name__ in ("NAType", "NaTType") else value


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _word(value: Any) -> str:
    number = None if isinstance(value, str) else _number(value)
    return str(int(number)) if number is not None and number.is_integer() else str(value).strip()


def _sorted(words: set[str]) -> list[str]:
    """By value if all are numbers, else by letters."""
    return sorted(words) if any(_number(w) is None for w in words) else sorted(words, key=float)


def _encode(cell: Any, known: list[str] | None, name: str) -> float:
    if known is None:
        return float(cell)
    word = _word(cell)
    if word not in known:
        raise ValueError(f"column {name!r} holds {word!r}; its classes are {', '.join(known)}.{nearest(word, known)}")
    return float(known.index(word))


# --------------------------------------------------------------------------------------------------- tables by name


def wine(split: str) -> tuple[Tensor, Tensor, list[str]]:
    """scikit-learn's 178 wines: (N, 13) measurements, three cultivars; every fifth row is for testing."""
    from sklearn.datasets import load_wine

    return _split(load_wine(), split)


def breast_cancer(split: str) -> tuple[Tensor, Tensor, list[str]]:
    """scikit-learn's 569 tumours: (N, 30) measurements, malignant or benign; every fifth row is for testing."""
    from sklearn.datasets import load_breast_cancer

    return _split(load_breast_cancer(), split)


def wine_mixed(split: str) -> tuple[Tensor, Tensor, list[str]]:
    """The wines with three columns cut into classes of equal shares of the training rows (alcohol 3, magnesium 4, colour intensity
    5: `columns={0: 3, 4: 4, 9: 5}`), and 5 % of all entries missing, completely at random, always the same ones."""
    x, y, names = wine(split)
    train = wine("train")[0]
    for column, classes in MIXED.items():
        edges = torch.quantile(train[:, column], torch.arange(1, classes) / classes)
        x[:, column] = torch.bucketize(x[:, column].contiguous(), edges).float()
    generator = torch.Generator().manual_seed(0 if split == "train" else 1)
    return x.masked_fill(torch.rand(x.shape, generator=generator) < MISSING, math.nan), y, names


def _split(bunch: Any, split: str) -> tuple[Tensor, Tensor, list[str]]:
    x, y = torch.from_numpy(bunch.data).float(), torch.from_numpy(bunch.target).long()
    test = torch.arange(len(x)) % 5 == 4
    keep = test if split == "test" else ~test
    return x[keep], y[keep], [str(name) for name in bunch.target_names]
