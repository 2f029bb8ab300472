"""The names that users import."""

import subprocess
import sys

import kdexport


def test_names() -> None:
    assert kdexport.__all__ == [
        "KDExportError",
        "Recipe",
        "RunDirectory",
        "bench",
        "distill",
        "evaluate",
        "export",
        "report",
        "run",
        "search",
    ]
    assert all(callable(getattr(kdexport, name)) for name in kdexport.__all__)


def test_a_stage_can_be_called_before_and_after_its_package_is_imported() -> None:
    code = """
from kdexport import distill
assert callable(distill)
import kdexport.distill.losses as losses
from kdexport import distill
assert callable(distill) and losses.soft_targets is kdexport_losses()
""".replace("kdexport_losses()", "distill.losses.soft_targets")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_name_that_is_not_there() -> None:
    assert not hasattr(kdexport, "distil")
