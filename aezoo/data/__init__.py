"""Data: anything that holds samples becomes a `Source`, and a source gives batches."""

from .load import data_for, load_data
from .named import DATASETS
from .sources import Batch, Source

__all__ = ["DATASETS", "Batch", "Source", "data_for", "load_data"]
