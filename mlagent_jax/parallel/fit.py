"""Whether a mesh divides a model and a batch: arithmetic on sizes, without devices.

Everything that is wrong is listed at once, each with what would do.
"""

from collections.abc import Iterator, Mapping

from mlagent_jax.config import MeshConfig, ModelConfig, RunConfig
from mlagent_jax.errors import ConfigError
from mlagent_jax.parallel.mesh import mesh_shape


def check_stage(
    config: RunConfig, model: ModelConfig, num_devices: int, stage: str
) -> None:
    """Refuses a run that its mesh does not divide, before any device work.

    Args:
      config: of the run.
      model: its model.
      num_devices: of all hosts.
      stage: "pretrain", "sft" or "ppo": whose batches must fit.

    Raises:
      ConfigError: one size or more does not fit; all are listed.
    """
    rows: dict[str, int] = {}
    if stage == "pretrain" and config.pretrain is not None:
        rows["pretrain.batch_size"] = config.pretrain.batch_size
    if stage == "sft":
        rows["sft.micro_batch_size"] = config.sft.micro_batch_size
    if stage == "ppo":
        rows["ppo.micro_batch_size"] = config.ppo.micro_batch_size
    check_mesh(model, config.mesh, num_devices, rows)


def check_mesh(
    model: ModelConfig,
    mesh: MeshConfig,
    num_devices: int,
    rows: Mapping[str, int],
) -> None:
    """Refuses a mesh that does not divide the model or the rows of a batch.

    Args:
      model: to be placed on it.
      mesh: sizes of its axes.
      num_devices: that it is made of.
      rows: name of a config field -> rows that one forward pass takes.

    Raises:
      ConfigError: one size or more does not fit; all are listed.
    """
    problems = list(_problems(model, mesh, num_devices, rows))
    if problems:
        raise ConfigError(
            f"{len(problems)} sizes do not fit the mesh on {num_devices} devices:\n"
            + "\n".join(f"  {problem}" for problem in problems)
        )


def tensor_sizes(model: ModelConfig, largest: int) -> list[int]:
    """Returns sizes of the tensor axis that divide a model, up to `largest`.

    Each device holds whole query heads; several may share one key/value head.
    """
    return [size for size in range(1, largest + 1) if not any(_bad_tensor(model, size))]


def _problems(
    model: ModelConfig,
    mesh: MeshConfig,
    num_devices: int,
    rows: Mapping[str, int],
) -> Iterator[str]:
    try:
        data, fsdp, tensor = mesh_shape(mesh, num_devices)
    except ConfigError as error:
        yield str(error)
        return
    bad = list(_bad_tensor(model, tensor))
    if bad:
        fitting = tensor_sizes(model, num_devices)
        yield f"mesh.tensor = {tensor}: {'; '.join(bad)}; fitting: {fitting}"
    if model.hidden_size % fsdp != 0:
        fitting = [n for n in range(1, num_devices + 1) if model.hidden_size % n == 0]
        yield (
            f"mesh.fsdp = {fsdp}: does not divide model.hidden_size = "
            f"{model.hidden_size}; fitting: {fitting}"
        )
    parts = data * fsdp
    for name, num_rows in rows.items():
        if num_rows % parts != 0:
            yield (
                f"{name} = {num_rows}: expected a multiple of data x fsdp = {parts}, "
                f"such as {-(-num_rows // parts) * parts}"
            )


def _bad_tensor(model: ModelConfig, tensor: int) -> Iterator[str]:
    for name in ("num_heads", "intermediate_size", "vocab_size"):
        size = getattr(model, name)
        if size % tensor != 0:
            yield f"does not divide model.{name} = {size}"
    kv_heads = model.num_kv_heads
    if kv_heads % tensor != 0 and tensor % kv_heads != 0:
        yield f"neither divides model.num_kv_heads = {kv_heads} nor is a multiple of it"
