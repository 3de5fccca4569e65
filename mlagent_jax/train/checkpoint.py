"""Checkpoints of training stages, on orbax: in the background, atomic, checked.

A checkpoint is a folder named by its step with two items: `state`, the leaves of
any pytree under readable paths ("params/layers/mlp/up_proj/kernel"), and `meta`, a
small JSON object (data position, counters). Orbax writes into a temporary folder
and renames it when complete, so a run that is killed at any moment leaves the
checkpoints before that one usable. Every host writes its own shards, and arrays are
restored onto the devices that the template's shardings name, which need not be those
that saved them. Tensorstore does not notice a flipped bit in an array's file, so a
checksum of every leaf goes along.
"""

import contextlib
import functools
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from mlagent_jax.errors import CheckpointError, RunInterruptedError

_STATE, _META = "state", "meta"
_DAMAGED_SUFFIX = ".damaged"
# Larger leaves are stored in pieces of at most this size, single layers if possible,
# so that other programs can read a leaf without holding it.
_CHUNK_BYTES = 1 << 25
_Checksums = Callable[[Mapping[str, Any]], dict[str, jax.Array]]

_log = logging.getLogger(__name__)


class _DamagedError(Exception):
    """The files of one checkpoint are missing, cut or scrambled."""


class Restored(NamedTuple):
    """A checkpoint as read back.

    Attributes:
      step: updates done when it was saved.
      tree: like the template, or nested dicts where there was none.
      meta: the JSON object saved with it.
    """

    step: int
    tree: Any
    meta: dict[str, Any]


class Checkpoints:
    """The checkpoints of one stage.

    Args:
      directory: created if missing; nothing else should live in it.
      keep: how many of the newest checkpoints stay.
      best_metric: if given, the checkpoint whose `metrics[best_metric]` is lowest
        stays besides.
    """

    def __init__(
        self, directory: Path, keep: int, *, best_metric: str | None = None
    ) -> None:
        self.directory = directory.resolve()
        self._manager = _open(self.directory, keep, best_metric)
        self._checksums = _make_checksums()

    def save(
        self,
        step: int,
        tree: Any,
        meta: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Copies `tree` to the host and writes it in the background.

        The arrays may be donated as soon as this returns; `wait` says when the
        checkpoint is on the disk. Saving a step that is already there does nothing:
        runs are deterministic, so it holds the same numbers.

        Args:
          step: updates done.
          tree: any pytree of arrays (a typed PRNG key as its key data).
          meta: JSON values.
          metrics: for `best_metric`.

        Raises:
          CheckpointError: this one or the one before could not be written, for
            example because the disk is full; older ones are untouched.
        """
        leaves = dict(_flatten(tree))
        record = {
            "meta": dict(meta),
            "checksums": _read_checksums(self._checksums, leaves),
        }
        items = ocp.args.Composite(
            **{
                _STATE: ocp.args.PyTreeSave(
                    leaves, save_args={k: _save_args(x) for k, x in leaves.items()}
                ),
                _META: ocp.args.JsonSave(record),
            }
        )
        metrics = None if metrics is None else dict(metrics)
        with self._writing():
            self._manager.save(step, args=items, metrics=metrics)

    def wait(self) -> None:
        """Returns when every checkpoint is on the disk.

        Raises:
          CheckpointError: the last one could not be written.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def steps(self) -> list[int]:
        """Returns the steps of all complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def restore_latest(self, template: Any) -> Restored | None:
        """Returns the newest usable checkpoint, or None if none was ever saved.

        A checkpoint that cannot be read is reported by a warning, renamed to
        "<step>.damaged" so that the step can be saved again, and the one before it is
        tried.

        Args:
          template: pytree of arrays or `jax.ShapeDtypeStruct`s with the expected
            shapes and dtypes; leaves with a sharding are placed by it.

        Raises:
          CheckpointError: every checkpoint is damaged, or one was saved by a
            differently shaped model or optimizer (all differing leaves are listed).
          RunInterruptedError: one is damaged and the run has several hosts. It is
            set aside, but the others may wait for this host in the middle of it.
        """
        damaged: list[str] = []
        for step in reversed(self.steps()):
            try:
                return _restore(self._manager, step, template)
            except _DamagedError as error:
                damaged.append(self._set_aside(step, error))
                if jax.process_count() > 1:
                    raise RunInterruptedError(
                        f"{self.directory}/{step} is damaged ({error}) and set aside; "
                        "the same command continues from the checkpoint before it"
                    ) from error
        damaged = sorted(p.name for p in self.directory.glob(f"*{_DAMAGED_SUFFIX}"))
        if damaged:
            raise CheckpointError(
                f"{self.directory}: no usable checkpoint; damaged: {damaged}. Restore "
                "one of them, or remove the folder to start the stage anew"
            )
        return None

    def close(self) -> None:
        """Waits for the last checkpoint and frees what the manager holds."""
        with self._writing():
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{self.directory}: could not write a checkpoint "
                f"({type(error).__name__}: {error!s:.300}); older ones are untouched. "
                "Free disk space and start again"
            ) from error

    def _set_aside(self, step: int, error: _DamagedError) -> str:
        path = self.directory / str(step)
        target = path.with_name(path.name + _DAMAGED_SUFFIX)
        _log.warning(
            "checkpoint %s is damaged (%s); kept as %s, using the one before",
            path,
            error,
            target.name,
        )
        with contextlib.suppress(FileNotFoundError):  # another host was faster
            path.rename(target)
        self._manager.reload()
        return target.name


def load_params(
    directory: Path,
    *,
    prefix: str = "params",
    template: Any = None,
    best_metric: str | None = None,
) -> Any:
    """Returns one subtree of a stage's newest (or best) usable checkpoint.

    Reads that subtree alone, and changes nothing on disk.

    Args:
      directory: the `checkpoints` folder of a stage.
      prefix: path of the subtree, e.g. "params".
      template: as for `Checkpoints.restore_latest`, but weights saved in a narrower
        type are widened to its own; None gives nested dicts of arrays, each whole on
        the default device.
      best_metric: prefer the checkpoint that is best by this metric.

    Raises:
      CheckpointError: there is no checkpoint, none is readable, or its leaves do not
        fit `template`.
    """
    steps = candidate_steps(directory, best_metric)
    with contextlib.closing(_open(directory.resolve(), None, None)) as manager:
        for step in steps:
            try:
                return _restore(manager, step, template, prefix=prefix + "/").tree
            except _DamagedError as error:
                _log.warning("checkpoint %s/%d is damaged (%s)", directory, step, error)
                if jax.process_count() > 1:  # the others may have read it
                    break
    raise CheckpointError(
        f"{directory}: no usable checkpoint among steps {steps}; has the stage run?"
    )


def fingerprint(tree: Any) -> str:
    """Returns a short text that tells arrays from others, wherever they live.

    It is made of exact sums of bit patterns: another mesh gives the same text, unlike
    a norm, whose last digits follow from the order of additions.
    """
    sums = _read_checksums(_make_checksums(), dict(_flatten(tree)))
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()[:16]


def candidate_steps(directory: Path, best_metric: str | None = None) -> list[int]:
    """Returns the steps of a stage's checkpoints, the one to prefer first.

    Args:
      directory: the `checkpoints` folder of a stage.
      best_metric: as for `load_params`.

    Raises:
      CheckpointError: there is none.
    """
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such folder; has the stage run?")
    with contextlib.closing(_open(directory.resolve(), None, best_metric)) as manager:
        steps = sorted(manager.all_steps(), reverse=True)
        best = manager.best_step() if best_metric is not None else None
    if not steps:
        raise CheckpointError(f"{directory}: no checkpoint; has the stage run?")
    return steps if best is None else [best, *(s for s in steps if s != best)]


def _open(
    directory: Path, keep: int | None, best_metric: str | None
) -> ocp.CheckpointManager:
    """Returns orbax's manager; with `keep` None it is only read from."""
    policies = ocp.checkpoint_managers
    preserve: list[Any] = [policies.LatestN(n=keep)]
    best_fn = None
    if best_metric is not None:
        best_fn = functools.partial(_negative, best_metric)
        preserve.append(policies.BestN(get_metric_fn=best_fn, n=1))
    options = ocp.CheckpointManagerOptions(
        create=keep is not None,
        cleanup_tmp_directories=keep is not None,
        enable_async_checkpointing=True,
        # An unwritable folder shows at once, not as threads that cannot be joined.
        async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
        preservation_policy=policies.AnyPreservationPolicy(preserve),
        best_fn=best_fn,
        save_root_metadata=False,
    )
    return ocp.CheckpointManager(
        directory,
        options=options,
        item_handlers={
            _STATE: ocp.PyTreeCheckpointHandler(),
            _META: ocp.JsonCheckpointHandler(),
        },
    )


def _save_args(leaf: jax.Array) -> ocp.SaveArgs:
    if leaf.ndim < 2 or leaf.nbytes <= _CHUNK_BYTES:
        return ocp.SaveArgs()
    # Layers are the first axis of three or more; each becomes chunks of its own.
    axes = (0,) if leaf.ndim > 2 else ()
    return ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES, shard_axes=axes)


def _negative(name: str, metrics: Mapping[str, float]) -> float:
    return -metrics[name]  # orbax calls the highest value the best


def _restore(
    manager: ocp.CheckpointManager, step: int, template: Any, prefix: str = ""
) -> Restored:
    with _reading():
        saved = {
            path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            for path, leaf in manager.item_metadata(step)[_STATE].tree.items()
            if path.startswith(prefix)
        }
    expected = saved if template is None else dict(_flatten(template, prefix))
    can_widen = bool(prefix)  # weights alone; a training state must fit exactly
    _check_leaves(f"{manager.directory}/{step}", expected, saved, can_widen)
    with _reading():
        stored = {k: _with_dtype(x, saved[k].dtype) for k, x in expected.items()}
        restored = manager.restore(step, args=_restore_args(stored))
        leaves, record = restored[_STATE], restored[_META]
        checksums = _read_checksums(_make_checksums(), leaves)
        wrong = [k for k, v in checksums.items() if v != record["checksums"][k]]
        if wrong:
            raise ValueError(f"wrong checksums of {wrong}")
    if template is None:
        tree = _nest({path.removeprefix(prefix): x for path, x in leaves.items()})
    else:
        treedef = jax.tree.structure(template)
        tree = treedef.unflatten(
            [leaves[path].astype(x.dtype) for path, x in expected.items()]
        )
    return Restored(step, tree, record["meta"])


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    # Orbax raises plain Exception, among many others, for files that it cannot read.
    except Exception as error:
        raise _DamagedError(f"{type(error).__name__}: {error!s:.300}") from error


def _restore_args(leaves: Mapping[str, Any]) -> ocp.args.Composite:
    one_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    state = ocp.args.PyTreeRestore(
        item=dict.fromkeys(leaves, 0),
        restore_args={
            path: ocp.ArrayRestoreArgs(
                sharding=getattr(leaf, "sharding", None) or one_device,
                global_shape=leaf.shape,
                dtype=leaf.dtype,
            )
            for path, leaf in leaves.items()
        },
        partial_restore=True,
    )
    return ocp.args.Composite(**{_STATE: state, _META: ocp.args.JsonRestore()})


def _read_checksums(checksums: _Checksums, leaves: Mapping[str, Any]) -> dict[str, int]:
    return {k: int(v) for k, v in jax.device_get(checksums(leaves)).items()}


def _make_checksums() -> _Checksums:
    """Returns leaves -> for each the sum of its bit patterns, modulo 2**32."""

    def checksum(x: jax.Array) -> jax.Array:
        if x.dtype == jnp.bool_:
            return jnp.sum(x, dtype=jnp.uint32)
        unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
        bits = jax.lax.bitcast_convert_type(x, unsigned)
        return jnp.sum(bits, dtype=jnp.uint32)

    return jax.jit(lambda leaves: {k: checksum(x) for k, x in leaves.items()})


def _with_dtype(leaf: Any, dtype: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding)


def _check_leaves(
    where: str,
    expected: Mapping[str, Any],
    saved: Mapping[str, Any],
    can_widen: bool,
) -> None:
    wrong = [f"missing {path}" for path in expected if path not in saved]
    wrong += [f"unexpected {path}" for path in saved if path not in expected]
    for path in expected.keys() & saved.keys():
        want, have = expected[path], saved[path]
        is_same = want.dtype == have.dtype or (
            can_widen and jnp.promote_types(want.dtype, have.dtype) == want.dtype
        )
        if want.shape != have.shape or not is_same:
            wrong.append(
                f"{path}: saved {have.dtype}{list(have.shape)}, expected "
                f"{want.dtype}{list(want.shape)}"
            )
    if wrong:
        raise CheckpointError(
            f"{where} does not fit this run's config:\n  "
            + "\n  ".join(sorted(wrong))
            + "\nUse the config that wrote it, or another --workdir"
        )


def _flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        yield prefix + name, leaf


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree
