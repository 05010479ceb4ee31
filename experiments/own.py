"""A Python file of one's own as a figure: `load` reads it once a process."""

import functools
import importlib.util
import pathlib
import sys
from types import ModuleType


def load(path: str | pathlib.Path) -> ModuleType:
    """The module that a file defines: `configs()`, and maybe `CLAIM` and `plot`.

    The file may import what lies beside it, and register names of its own. It is read
    once, so that names are registered once; processes that train read it again.

    Raises:
      ValueError: no such file, an error in it, or no `configs()`.
    """
    return _load(pathlib.Path(path).resolve())


@functools.cache
def _load(path: pathlib.Path) -> ModuleType:
    if not path.is_file():
        raise ValueError(f"--config needs a Python file, got {path}")
    name = f"experiments_own_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"--config needs a Python file, got {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # As an import does, so that classes can be found again.
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"{path} could not be read: {error}") from error
    finally:
        sys.path.remove(str(path.parent))
    if not callable(getattr(module, "configs", None)):
        raise ValueError(
            f"{path} needs a function configs() that returns a list of Config, such as "
            "experiments.config.grid(...)"
        )
    return module
