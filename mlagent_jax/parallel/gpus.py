"""GPUs to compile for: their published peaks, and how XLA is told of each.

Peaks are those of NVIDIA's data sheets as others quote them (2026-11-27), of the SXM
boards, products without sparsity. The links are NVLink's: half of the published number,
which is of both directions. Memory is what JAX takes of it unless it is told otherwise:
three quarters (XLA_PYTHON_CLIENT_MEM_FRACTION).

The compiler wants a device or a description of one. What a kind has on each of its
processors follows from the CUDA programming guide, table "Technical specifications per
compute capability".
"""

from functools import partial

from mlagent_jax.parallel.chip import Chip

_MEM_FRACTION = 0.75


def _gpu(
    name: str,
    *,
    product: str,
    capability: int,
    flops_per_s: float,
    memory_bytes: int,
    hbm_bytes_per_s: float,
    link_bytes_per_s: float,
    num_cores: int,
    clock_ghz: float,
    shared_bytes: int,
    l2_bytes: int,
) -> Chip:
    description = f"""
        gpu_device_info {{
          threads_per_block_limit: 1024
          threads_per_warp: 32
          shared_memory_per_block: 49152
          shared_memory_per_core: {shared_bytes}
          shared_memory_per_block_optin: {shared_bytes - 1024}
          threads_per_core_limit: 2048
          core_count: {num_cores}
          fpus_per_core: {64 if capability == 8 else 128}
          block_dim_limit_x: 2147483647
          block_dim_limit_y: 65535
          block_dim_limit_z: 65535
          memory_bandwidth: {int(hbm_bytes_per_s)}
          l2_cache_size: {l2_bytes}
          clock_rate_ghz: {clock_ghz}
          device_memory_size: {memory_bytes}
          cuda_compute_capability {{ major: {capability} }}
          registers_per_core_limit: 65536
          registers_per_block_limit: 65536
        }}
        platform_name: "CUDA"
        dnn_version_info {{ major: 9 minor: 8 }}
        runtime_version {{ major: 12 minor: 8 }}
        device_description_str: "{product}"
    """
    return Chip(
        name=name,
        platform="gpu",
        kinds=(product,),
        flops_per_s=flops_per_s,
        hbm_bytes=int(_MEM_FRACTION * memory_bytes),
        hbm_bytes_per_s=hbm_bytes_per_s,
        link_bytes_per_s=link_bytes_per_s,
        num_dims=1,
        max_shape=(8,),
        description=description,
    )


_hopper = partial(
    _gpu,
    capability=9,
    flops_per_s=989e12,
    link_bytes_per_s=450e9,
    num_cores=132,
    clock_ghz=1.98,
    shared_bytes=228 * 1024,
    l2_bytes=50 * 2**20,
)

GPUS = (
    _gpu(
        "a100",
        product="NVIDIA A100-SXM4-80GB",
        capability=8,
        flops_per_s=312e12,
        memory_bytes=85_100_000_000,
        hbm_bytes_per_s=2_039e9,
        link_bytes_per_s=300e9,
        num_cores=108,
        clock_ghz=1.41,
        shared_bytes=164 * 1024,
        l2_bytes=40 * 2**20,
    ),
    _hopper(
        "h100",
        product="NVIDIA H100 80GB HBM3",
        memory_bytes=84_900_000_000,
        hbm_bytes_per_s=3_350e9,
    ),
    _hopper(
        "h200",
        product="NVIDIA H200",
        memory_bytes=150_000_000_000,
        hbm_bytes_per_s=4_800e9,
    ),
)
