"""The command line, called in this process."""

from collections.abc import Callable

import pytest
from typer.testing import CliRunner, Result

from kdexport.cli import app


@pytest.fixture
def kdexport() -> Callable[..., Result]:
    """Return a function that runs ``kdexport ARGUMENTS...`` and gives exit code, stdout and stderr."""
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])
