"""What the tests of the sources share."""

import pytest

from kdexport.recipe import Data
from kdexport.sources.datasets import load_data


@pytest.fixture
def load(tmp_path):
    """Return a function that loads data as a run does, with a cache folder of its own."""
    return lambda source, seed=0, **keys: load_data(Data(source=str(source), **keys), seed, tmp_path / "cache")
