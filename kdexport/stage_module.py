"""Why ``kdexport.distill`` can be called although it is a package.

``from kdexport import distill`` is the stage's function, and ``kdexport.distill.losses`` is a module inside the
package of the same name. Python binds a subpackage to its parent's attribute, so the package itself answers the call.
Type checkers read the functions in ``kdexport/__init__.py``.
"""

import importlib
import sys
from types import ModuleType
from typing import Any


class StageModule(ModuleType):
    """A module that, called, calls the function of its own name in ``_function_of``."""

    _function_of: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Import the function and call it."""
        name = self.__name__.rpartition(".")[2]
        return getattr(importlib.import_module(self._function_of), name)(*args, **kwargs)


def make_callable(name: str, function_of: str | None = None) -> None:
    """Let the module ``name`` be called; its function is in ``function_of``, by default ``NAME.stage``."""
    module = sys.modules[name]
    module.__class__ = StageModule
    module.__dict__["_function_of"] = function_of or f"{name}.stage"
