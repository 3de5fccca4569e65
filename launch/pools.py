"""Opens the worker pool of a run, with an editor in front of it where one is needed."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from launch import common
from launch.policies import make_editor
from mlagent_jax.env.editor import EditingPool
from mlagent_jax.env.pools import make_pool
from mlagent_jax.env.snapshots import SnapshotStore
from mlagent_jax.env.step_loop import Pool
from mlagent_jax.types import Task


@contextmanager
def open_pool(
    run: common.Run, tasks: Mapping[str, Task], store: SnapshotStore
) -> Iterator[Pool]:
    """Yields a pool for `tasks`; its processes and its editor end with the context.

    Args:
      run: its `env` section has the workers and the action profile, its `editor`
        section who edits in profile `mlab`.
      tasks: task id -> task.
      store: where workspaces are kept.
    """
    cfg = run.config.env
    with ExitStack() as stack:
        pool = stack.enter_context(make_pool(tasks, store.root, cfg))
        if cfg.profile == "direct":
            yield pool
            return
        editor = make_editor(run)
        stack.callback(editor.close)
        yield EditingPool(pool, editor, store, cfg)
