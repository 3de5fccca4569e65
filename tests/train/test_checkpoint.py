"""A checkpoint is whole or not there; damage costs one checkpoint, never the run."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlagent_jax.config import MeshConfig, OptimizerConfig
from mlagent_jax.errors import CheckpointError
from mlagent_jax.parallel.mesh import make_mesh
from mlagent_jax.train.checkpoint import Checkpoints, load_params
from mlagent_jax.train.lm import abstract_on_mesh
from mlagent_jax.train.optimizer import make_optimizer
from mlagent_jax.train.state import init_state


def make_tree(value: float) -> dict:
    return {
        "params": {
            "norm": {"scale": jax.random.normal(jax.random.key(int(value)), 4096)}
        },
        "count": jnp.asarray(int(value), jnp.int32),
        "is_done": jnp.asarray([True, False]),
        "half": jnp.full(3, value, jnp.bfloat16),
    }


def save_all(directory: Path, steps, keep: int = 2) -> None:
    with Checkpoints(directory, keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_tree(step), {"cursor": step})


def restore(directory: Path, template=None):
    with Checkpoints(directory, 2) as checkpoints:
        return checkpoints.restore_latest(template or make_tree(0))


def assert_equal(ours, theirs) -> None:
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def damage(step_dir: Path, how: str) -> None:
    data = [p for p in (step_dir / "state").rglob("*") if p.parent.name == "d"]
    meta = step_dir / "meta" / "metadata"
    if how == "flipped bit":
        for path in data:
            if path.stat().st_size > 10_000:
                content = bytearray(path.read_bytes())
                content[len(content) // 2] ^= 0x10
                path.write_bytes(content)
    elif how == "truncated":
        for path in data:
            path.write_bytes(path.read_bytes()[:20])
    elif how == "garbled":
        for path in data:
            path.write_bytes(b"?" * path.stat().st_size)
    elif how == "no arrays":
        for path in data:
            path.unlink()
    elif how == "no manifest":
        for path in (step_dir / "state").rglob("manifest.ocdbt"):
            path.unlink()
    elif how == "no state":
        shutil.rmtree(step_dir / "state")
    elif how == "no meta":
        meta.unlink()
    else:
        meta.write_text('{"meta": ')


def test_the_newest_comes_back_bit_for_bit(tmp_path):
    save_all(tmp_path / "c", [1, 2, 3])
    step, tree, meta = restore(tmp_path / "c")
    assert (step, meta) == (3, {"cursor": 3})
    assert_equal(tree, make_tree(3))


def test_a_stage_that_never_saved_has_nothing_to_restore(tmp_path):
    assert restore(tmp_path / "c") is None


def test_the_newest_and_the_best_are_kept(tmp_path):
    with Checkpoints(tmp_path / "c", 2, best_metric="loss") as checkpoints:
        for step, loss in enumerate([3.0, 1.0, 2.0, 4.0, 5.0]):
            checkpoints.save(step, make_tree(step), {}, {"loss": loss})
    with Checkpoints(tmp_path / "c", 2, best_metric="loss") as checkpoints:
        assert checkpoints.steps() == [1, 3, 4]
    best = load_params(tmp_path / "c", best_metric="loss")
    assert_equal(best, make_tree(1)["params"])
    assert_equal(load_params(tmp_path / "c"), make_tree(4)["params"])


@pytest.mark.parametrize(
    "how",
    [
        "flipped bit",
        "truncated",
        "garbled",
        "no arrays",
        "no manifest",
        "no state",
        "no meta",
        "half meta",
    ],
)
def test_a_damaged_newest_one_is_set_aside_for_the_one_before(tmp_path, how, caplog):
    save_all(tmp_path / "c", [1, 2])
    damage(tmp_path / "c" / "2", how)
    with Checkpoints(tmp_path / "c", 2) as checkpoints:
        step, tree, _ = checkpoints.restore_latest(make_tree(0))
        assert step == 1
        assert_equal(tree, make_tree(1))
        assert "2 is damaged" in caplog.text
        checkpoints.save(2, make_tree(20), {})  # the step can be saved again
    assert (tmp_path / "c" / "2.damaged").is_dir()
    step, tree, _ = restore(tmp_path / "c")
    assert step == 2
    assert_equal(tree, make_tree(20))


def test_with_all_damaged_nothing_is_guessed(tmp_path):
    save_all(tmp_path / "c", [1, 2])
    for step in ("1", "2"):
        damage(tmp_path / "c" / step, "truncated")
    for _ in range(2):  # the second start must not begin anew either
        with pytest.raises(CheckpointError, match=r"damaged: \['1.damaged', '2.dam"):
            restore(tmp_path / "c")


def test_every_leaf_that_does_not_fit_is_listed(tmp_path):
    save_all(tmp_path / "c", [1])
    template = make_tree(0) | {"extra": jnp.zeros(1), "half": jnp.zeros(4)}
    del template["count"]
    with pytest.raises(CheckpointError) as error:
        restore(tmp_path / "c", template)
    for part in (
        "missing extra",
        "unexpected count",
        "half: saved bfloat16[3], expected float32[4]",
    ):
        assert part in str(error.value)
    assert restore(tmp_path / "c").step == 1  # a wrong config damages nothing


def test_parameters_alone_are_read_and_placed_by_a_template(tmp_path):
    save_all(tmp_path / "c", [1])
    before = sorted(p for p in (tmp_path / "c").rglob("*"))
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=4))
    template = abstract_on_mesh({"norm": {"scale": jnp.zeros(4096)}}, mesh)
    params = load_params(tmp_path / "c", template=template)
    assert params["norm"]["scale"].sharding == template["norm"]["scale"].sharding
    assert_equal(params, make_tree(1)["params"])
    assert sorted(p for p in (tmp_path / "c").rglob("*")) == before


def test_a_missing_stage_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="has the stage run"):
        load_params(tmp_path / "sft" / "checkpoints")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="has the stage run"):
        load_params(tmp_path / "empty")


def make_template(devices: int, data: int, fsdp: int, tensor: int):
    cfg = MeshConfig(data=data, fsdp=fsdp, tensor=tensor)
    mesh = make_mesh(cfg, devices=jax.devices()[:devices])
    params = {"lm_head": {"kernel": jnp.arange(64.0).reshape(8, 8)}}
    optimizer = make_optimizer(OptimizerConfig(peak_lr=1e-3), 10)
    return abstract_on_mesh(
        jax.eval_shape(lambda: init_state(params, optimizer)), mesh
    ), init_state(params, optimizer)


@pytest.mark.parametrize("shape", [(8, 2, 2, 2), (4, 1, 4, 1), (2, 1, 1, 2), (1,) * 4])
def test_a_state_of_eight_devices_is_restored_on_any_mesh_and_back(tmp_path, shape):
    template, state = make_template(8, 1, 4, 2)
    save_and_restore(tmp_path / "8", state, template, make_template(*shape)[0])
    save_and_restore(tmp_path / "1", state, make_template(*shape)[0], template)


def save_and_restore(directory, state, save_template, restore_template) -> None:
    with Checkpoints(directory, 1) as checkpoints:
        shardings = jax.tree.map(lambda x: x.sharding, save_template)
        checkpoints.save(1, jax.device_put(state, shardings), {})
    with Checkpoints(directory, 1) as checkpoints:
        restored = checkpoints.restore_latest(restore_template)
    assert restored is not None
    assert_equal(restored.tree, state)
    assert jax.tree.map(lambda x: x.sharding, restored.tree) == jax.tree.map(
        lambda x: x.sharding, restore_template
    )


def test_the_tree_may_be_donated_right_after_a_save(tmp_path):
    bump = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    tree = {"x": jnp.zeros((256, 1024))}
    with Checkpoints(tmp_path / "c", 100) as checkpoints:
        for step in range(8):
            checkpoints.save(step, tree, {})
            tree = bump(bump(tree))
    with Checkpoints(tmp_path / "c", 100) as checkpoints:
        for step in reversed(range(8)):
            restored = checkpoints.restore_latest(tree)
            assert restored.step == step
            assert float(restored.tree["x"].min()) == 2.0 * step
            assert float(restored.tree["x"].max()) == 2.0 * step
            shutil.rmtree(tmp_path / "c" / str(step))
            checkpoints._manager.reload()


def test_what_cannot_be_written_is_one_clear_error(tmp_path):
    with Checkpoints(tmp_path / "c", 2) as checkpoints:
        checkpoints.save(1, make_tree(1), {})
        checkpoints.wait()
        shutil.rmtree(tmp_path / "c")
        (tmp_path / "c").write_text("in the way")
        with pytest.raises(CheckpointError, match="could not write a checkpoint"):
            checkpoints.save(2, make_tree(2), {})


def test_saving_goes_on_in_the_background_until_wait(tmp_path):
    tree = {"x": jax.random.normal(jax.random.key(0), (1 << 10, 1 << 10))}
    with Checkpoints(tmp_path / "c", 2) as checkpoints:
        checkpoints.save(1, tree, {})
        assert checkpoints._manager.is_saving_in_progress()
        checkpoints.wait()
        assert (tmp_path / "c" / "1").is_dir()
        assert_equal(checkpoints.restore_latest(tree).tree, tree)


def test_what_fails_in_the_background_is_raised_by_wait(tmp_path, monkeypatch):
    def fail():
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device")

    with Checkpoints(tmp_path / "c", 2) as checkpoints:
        checkpoints.save(1, make_tree(1), {})
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints._manager, "wait_until_finished", fail)
            with pytest.raises(CheckpointError, match="No space left on device"):
                checkpoints.wait()


def test_large_leaves_are_stored_in_pieces_and_layers_apart(tmp_path):
    tree = {"x": jnp.ones((8, 1024, 2048)), "y": jnp.ones((8192, 2048))}
    with Checkpoints(tmp_path / "c", 2) as checkpoints:
        checkpoints.save(1, tree, {})
    array = tmp_path / "c" / "1" / "state" / "array_metadatas" / "process_0"
    assert '"chunk_shape": [1, 1024, 2048]' in array.read_text()
    assert '"chunk_shape": [4096, 2048]' in array.read_text()
    assert_equal(restore(tmp_path / "c", tree).tree, tree)


def test_saving_a_small_state_takes_a_moment(tmp_path, tiny_params):
    state = init_state(tiny_params, make_optimizer(OptimizerConfig(peak_lr=1.0), 1))
    with Checkpoints(tmp_path / "c", 2) as checkpoints:
        checkpoints.save(0, state, {})
        start = time.process_time()
        for step in range(1, 5):
            checkpoints.save(step, state, {})
        assert (time.process_time() - start) / 4 < 0.5


_SAVER = """
import sys
from pathlib import Path
import jax.numpy as jnp
from mlagent_jax.train.checkpoint import Checkpoints
with Checkpoints(Path(sys.argv[1]), 2) as checkpoints:
    step = max(checkpoints.steps(), default=0)
    print("ready", flush=True)
    while True:
        step += 1
        checkpoints.save(step, {"x": jnp.full((64, 1024), float(step))}, {"at": step})
"""


def test_killed_while_saving_the_last_whole_checkpoint_is_there(tmp_path):
    folder = tmp_path / "c"
    newest = 0
    for delay_s in (0.15, 0.31):
        process = subprocess.Popen(
            [sys.executable, "-c", _SAVER, str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"XLA_FLAGS": ""},
        )
        assert process.stdout is not None
        process.stdout.readline()
        while newest + 2 not in [int(p.name) for p in folder.glob("*[0-9]")]:
            time.sleep(0.01)
        time.sleep(delay_s)
        process.send_signal(signal.SIGKILL)
        process.wait()
        step, tree, meta = restore(folder, {"x": jnp.zeros((64, 1024))})
        assert step > newest
        assert meta == {"at": step}
        np.testing.assert_array_equal(tree["x"], np.full((64, 1024), float(step)))
        newest = step
