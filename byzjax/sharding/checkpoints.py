"""States on disk that move between numbers of processes and devices: `Checkpoints`."""

import itertools
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import GetAttrKey

from byzjax import checks
from byzjax.sharding import programs, states
from byzjax.sharding.layout import Layout, axes_of, is_spec
from byzjax.sharding.way import check_layout
from byzjax.trees import Tree

_ROWS = "worker_state"  # The field of a TrainState whose leaves have a row a worker.
_REMEMBERED = ("aggregator_state", "attack_state")  # Those that may have columns.


class Checkpoints:
    r"""Checkpoints of training in a folder, by orbax.

    Each is a folder named by its step. Every process writes and reads the parts that
    its own devices have. A checkpoint of one number of processes and devices goes to
    any other: what rules remember of coordinates has the same length everywhere, and of
    the workers' states the rows are found by their workers. Only columns that a rule or
    attack remembers keep to a mesh on which the model is sharded in the same way, as
    they lie in its order; elsewhere they are refused.

    **Guarantee.** A checkpoint is there as a whole or not at all, whenever a process is
    killed. Restored, a state is what it was to the bit, typed keys among it. A worker
    that was absent when it was saved begins anew.

    Args:
      folder: which all processes share. It is made, if it is not there.
      keep: how many stay, the one just saved and the latest; None is all.

    Raises:
      ImportError: without orbax, the extra `checkpoint`.
      TypeError, ValueError: `keep` that is no count.

    Example:
      >>> import tempfile, jax, jax.numpy as jnp
      >>> import byzjax
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     checkpoints = byzjax.sharding.Checkpoints(folder)
      ...     checkpoints.save(7, {"w": jnp.arange(3.0), "key": jax.random.key(1)})
      ...     like = {"w": jnp.zeros(3), "key": jax.random.key(0)}
      ...     step, tree = checkpoints.restore(like)
      >>> print(step, tree["w"], jax.random.key_data(tree["key"]))
      7 [0. 1. 2.] [0 1]

    Reference:
      orbax, https://orbax.readthedocs.io, from which the folders are readable as well.
    """

    def __init__(self, folder: Any, *, keep: int | None = 2):
        self._orbax = _orbax()
        self.folder = pathlib.Path(folder).resolve()
        self.keep = keep
        if keep is not None:
            checks.count("sharding.Checkpoints", keep=keep, minimum=1)

    def steps(self) -> list[int]:
        """Of which steps there are whole checkpoints, in order."""
        if not self.folder.is_dir():
            return []
        return sorted(
            int(path.name)
            for path in self.folder.iterdir()
            if path.name.isascii() and path.name.isdigit()
        )

    def save(self, step: int, tree: Tree, layout: Layout | None = None) -> None:
        """Writes a tree, such as a `TrainState`; all processes of the layout call it.

        Args:
          step: its number.
          tree: of arrays and numbers. Rows of fields named `worker_state` belong to
            workers; other arrays of one process alone are to be the same in all.
          layout: where it lies; None: in this process.

        Raises:
          ValueError: several processes and no layout; leaves of one name.
        """
        checks.count("sharding.Checkpoints.save", step=step)
        self.folder.mkdir(parents=True, exist_ok=True)
        leaves = {
            name: _as_data(leaf) for name, leaf in _named(tree).items() if np.size(leaf)
        }
        path = self.folder / str(step)
        notes = {
            "absent": list(layout.absent) if layout else [],
            "shards": layout.num_worker_shards if layout else 1,
            "order": _order(layout),
        }
        with self._checkpointer("save", layout) as checkpointer:
            checkpointer.save(
                path,
                self._orbax.args.PyTreeSave(leaves),
                force=True,
                custom_metadata=notes,
            )
        if self.keep is not None and jax.process_index() == _first(layout):
            others = [old for old in self.steps() if old != step]
            for old in others[: len(others) + 1 - self.keep]:
                shutil.rmtree(self.folder / str(old), ignore_errors=True)

    def restore(
        self, like: Tree, layout: Layout | None = None, step: int | None = None
    ) -> tuple[int, Tree]:
        """Reads a tree onto the devices of another; all processes call it.

        Args:
          like: of the structure, shapes, types and devices that it is to have, as from
            `trainer.init`. Of the workers' states the number of rows may differ.
          layout: where `like` lies.
          step: which one; None: the latest.

        Returns:
          The step, and the tree.

        Raises:
          FileNotFoundError: there is none, or not this one.
          ValueError: one of another structure, shapes or types; columns that are
            remembered in another order.
        """
        steps = self.steps()
        wanted = steps[-1] if step is None and steps else step
        if wanted not in steps:
            raise FileNotFoundError(
                "sharding.Checkpoints.restore needs a checkpoint "
                f"{'' if step is None else f'of step {step} '}in {self.folder}, got "
                f"{f'those of {steps}' if steps else 'none'}"
            )
        path = self.folder / str(wanted)
        with self._checkpointer("restore", layout) as checkpointer:
            found = checkpointer.metadata(path)
            notes, shapes = found.custom_metadata or {}, found.item_metadata.tree
        wishes = {name: leaf for name, leaf in _named(like).items() if np.size(leaf)}
        rows = {name for name, row in _rows(like).items() if row and name in wishes}
        _check(path, wishes, rows, shapes, notes, layout)
        _check_order(path, wishes, notes, layout)
        here = layout.absent if layout else ()
        moved = rows if tuple(notes.get("absent", ())) != here else set()
        asked = {
            name: self._asked(
                leaf, shapes[name].shape if name in moved else None, layout
            )
            for name, leaf in wishes.items()
        }
        with self._checkpointer("restore", layout) as checkpointer:
            got = checkpointer.restore(
                path, self._orbax.args.PyTreeRestore(shapes, restore_args=asked)
            )
        if moved:
            index = {
                x: _places(notes["absent"], shapes[x].shape[0], here, wishes[x])
                for x in moved
            }
            others = {name: _as_data(wishes[name]) for name in sorted(moved)}
            got |= programs.taken({x: got[x] for x in moved}, index, others)
        leaves = {
            name: _as_key(got[name], leaf) if name in got else leaf
            for name, leaf in _named(like).items()
        }
        return wanted, jax.tree.unflatten(jax.tree.structure(like), leaves.values())

    def _checkpointer(self, verb, layout):
        if layout is not None:
            check_layout(f"sharding.Checkpoints.{verb}", layout)
        elif jax.process_count() > 1:
            raise ValueError(
                f"sharding.Checkpoints.{verb} needs the layout with "
                f"{jax.process_count()} processes, got layout=None"
            )
        # Only these come to its barriers: others may have died. JAX counts a barrier's
        # uses by its name, which belongs to those that came first.
        own = layout.processes if layout else None
        options = self._orbax.options.MultiprocessingOptions(
            primary_host=_first(layout),
            active_processes=set(own) if own else None,
            barrier_sync_key_prefix="-".join(map(str, own)) if own else None,
        )
        handler = self._orbax.PyTreeCheckpointHandler(multiprocessing_options=options)
        return self._orbax.Checkpointer(handler, multiprocessing_options=options)

    def _asked(self, leaf, saved, layout):
        """How a leaf is read; with as many rows as `saved`, if some are to be taken."""
        if not isinstance(leaf, jax.Array):
            return self._orbax.RestoreArgs(restore_type=np.ndarray)
        data = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        shape, sharding = data.shape, leaf.sharding
        if saved is not None and layout is not None:
            rows = saved[0] + -saved[0] % layout.num_worker_shards
            shape, sharding = (rows, *saved[1:]), programs.automatic(leaf.sharding)
        return self._orbax.ArrayRestoreArgs(
            restore_type=jax.Array, sharding=sharding, global_shape=shape, strict=False
        )


def _orbax():
    try:  # When it is needed: it takes a second, and is an extra.
        import orbax.checkpoint
    except ImportError as error:
        raise ImportError(
            "sharding.Checkpoints needs orbax-checkpoint: "
            "pip install '.[checkpoint]', from a checkout"
        ) from error
    return orbax.checkpoint


def _first(layout):
    return layout.processes[0] if layout else 0


def _named(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {_name(path): leaf for path, leaf in leaves}
    if len(named) < len(leaves):
        names = [_name(path) for path, _ in leaves]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(
            "sharding.Checkpoints needs leaves with names of their own, got several "
            f"called {twice}: keep dots out of the keys"
        )
    return named


def _rows(tree):
    """Which leaves have a row a worker."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_name(path): GetAttrKey(_ROWS) in path for path, _ in leaves}


def _name(path):
    return jax.tree_util.keystr(path, simple=True, separator=".") or "tree"


def _is_key(leaf):
    return isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) and jnp.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    )


def _as_data(leaf):
    """A leaf as orbax takes it: keys as numbers, what one process has as NumPy's."""
    if _is_key(leaf):
        leaf = jax.random.key_data(leaf)
    if isinstance(leaf, jax.Array):
        spread = not leaf.is_fully_addressable or len(leaf.sharding.device_set) > 1
        return leaf if spread else np.asarray(leaf)
    return np.asarray(leaf)


def _as_key(data, like):
    if _is_key(like):
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(like))
    if not isinstance(like, jax.Array | np.ndarray):
        return type(like)(np.asarray(data)[()])
    return data


def _live(absent):
    return (worker for worker in itertools.count() if worker not in set(absent))


def _places(before, count, after, like):
    """For each row of `like` the row of its worker before, or -1."""
    rows = dict(zip(_live(before), range(count), strict=False))
    workers = itertools.islice(_live(after), like.shape[0])
    return np.asarray([rows.get(worker, -1) for worker in workers])


def _order(layout):
    """What decides in which order columns are remembered; "" for that of the leaves."""
    specs = [] if layout is None else jax.tree.leaves(layout.params, is_leaf=is_spec)
    if layout is None or not any(axes_of(spec) for spec in specs):
        return ""
    sizes = {name: layout.mesh.shape[name] for name in layout.others}
    return f"{sizes} {[str(spec) for spec in specs]}"


def _check_order(path, wishes, notes, layout):
    """Says so when columns that a rule or attack remembers would change places."""
    saved, here = notes.get("order", ""), _order(layout)
    columns = [
        name
        for name, leaf in wishes.items()
        if name.startswith(_REMEMBERED) and states.is_kept(np.shape(leaf))
    ]
    if saved != here and columns:
        raise ValueError(
            "sharding.Checkpoints.restore needs the model sharded as it was when "
            f"saved, as {columns} remember columns in its order, got "
            f"{here or 'no second axis'} for {saved or 'no second axis'} in {path}: "
            "restore it with such a layout"
        )


def _check(path, wishes, rows, shapes, notes, layout):
    """Says so when a checkpoint is not of such a tree."""
    owner = "sharding.Checkpoints.restore"
    if set(wishes) != set(shapes):
        lacking, spare = set(wishes) - set(shapes), set(shapes) - set(wishes)
        raise ValueError(
            f"{owner} needs a checkpoint of a tree like this one, got {path}, in which "
            f"there is no {sorted(lacking) or 'leaf too few'}, and beside it "
            f"{sorted(spare) or 'nothing'}: make the trainer as it was"
        )
    shards = layout.num_worker_shards if layout else 1
    for name, leaf in wishes.items():
        data = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        want = np.shape(data), np.dtype(getattr(data, "dtype", type(data)))
        got = tuple(shapes[name].shape), np.dtype(shapes[name].dtype)
        fits = want == got
        if name in rows:
            # So many of them are of workers; the others fill devices up.
            least = max(want[0][0] - shards, got[0][0] - notes.get("shards", 1)) + 1
            fits = want[0][1:] == got[0][1:] and want[1] == got[1]
            if tuple(notes.get("absent", ())) == (layout.absent if layout else ()):
                fits = fits and least <= min(want[0][0], got[0][0])
        if not fits:
            raise ValueError(
                f"{owner} needs a checkpoint of a tree like this one, of {want[1]} "
                f"{want[0]} at {name}, got {got[1]} {got[0]} in {path}: make the "
                "trainer as it was, of as many workers"
            )
