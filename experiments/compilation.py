"""JAX's persistent compilation cache: what was compiled once is read the next time."""

import os
import pathlib
from typing import Any

import jax


def keep(cache_dir: str | os.PathLike[str] | None = None) -> pathlib.Path | None:
    """Keeps compiled programs in a folder, for this process and those it starts.

    Who has chosen a folder already, by $JAX_COMPILATION_CACHE_DIR or in `jax.config`,
    keeps it; an empty variable turns the cache off.

    Args:
      cache_dir: of which `xla/` is used; ~/.cache/byzjax by default.
    """
    variable = "JAX_COMPILATION_CACHE_DIR"
    chosen: Any = jax.config  # Its options are no attributes to a type checker.
    given = os.environ.get(variable, chosen.jax_compilation_cache_dir)
    if given is not None:
        return pathlib.Path(given) if given else None
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = pathlib.Path(cache_dir or pathlib.Path(home, "byzjax")).expanduser()
    folder = folder / "xla"
    options = {
        variable: str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    }
    os.environ |= options
    for name, value in options.items():
        jax.config.update(name.lower(), value if name == variable else float(value))
    return folder
