"""Compiles a run's programs for TPUs or GPUs, without one: does it fit, how fast?

    python -m launch.aot --config=configs/qwen2_5_7b_sft.py --topology=v5p:2x2x2 \
        --program=sft --json=sft.json
    python -m launch.aot --config=configs/qwen2_5_7b_ppo.py --topology=h100:8

Needs their compiler (`pip install "mlagent_jax[tpu]"` or `"mlagent_jax[gpu]"`). Prints
a table and writes the same numbers as JSON. Exit status 0 if everything fits, 1 if
something does not.

Where the numbers come from: memory from the compiler's own placement; FLOPs, memory
traffic and collectives from the text of the compiled module, loops multiplied out
(`mlagent_jax/parallel/hlo_counts.py`); times from them and the chip's published peaks
(`topology.py`, `gpus.py`, `roofline.py`). XLA's own estimates of time are not used:
they visit a loop's body once. For a GPU it would choose kernels by trying them; here
it takes its defaults, so that memory, traffic and collectives hold, tiles do not.
"""

import dataclasses
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import app, flags
from absl import logging as absl_logging

from launch import common, exits, run_record
from mlagent_jax.config import ModelConfig, RunConfig
from mlagent_jax.errors import MlAgentError
from mlagent_jax.parallel.topology import Slice, parse_slice

if TYPE_CHECKING:  # At run time only after the environment is set.
    from mlagent_jax.parallel.aot import Program, ProgramReport

_TOPOLOGY = flags.DEFINE_string(
    "topology",
    None,
    "Slice to compile for, e.g. v5e:4x4, v5p:2x2x2, v6e:4x4; or GPUs of one host: "
    "a100:1, h100:8, h200:4.",
)
_PROGRAM = flags.DEFINE_enum(
    "program",
    "all",
    ["sft", "score", "ppo", "sample", "all"],
    "What to compile; all = everything that a PPO iteration keeps resident.",
)
_SHARED_TOKENS = flags.DEFINE_integer(
    "shared_tokens",
    None,
    "With sample.num_prefixes: how many tokens of each prompt lie in a shared prefix; "
    "by default all of the longest prompt, as several samples of one state have it.",
    lower_bound=1,
)
_JSON = flags.DEFINE_string("json", None, "File for the numbers.")
_HLO_DIR = flags.DEFINE_string("hlo_dir", None, "Folder for the compiled modules.")

_GIB = 2**30
_SAMPLING = ("prefill", "decode")
# Kinds of memory that are not what a program is given and keeps.
_PASSING = ("temporaries", "other_arguments", "host", "total", "capacity")
_MAX_NAMES = 4  # of a list that is printed; the JSON has all


def main(argv: Sequence[str]) -> None:
    """Compiles, prints and writes; a deliberate error ends with exit status 2."""
    if len(argv) > 1:
        exits.fail(f"unexpected arguments {argv[1:]}")
    try:
        target = parse_slice(_TOPOLOGY.value or "")
        fits = _compile_all(common.flagged_config(), target, _PROGRAM.value)
    except MlAgentError as error:
        exits.fail(str(error))
    else:
        sys.exit(0 if fits else 1)


def use_compiler_only() -> None:
    """Tells libtpu that there is no TPU to look for; before jax starts its backends."""
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5p-8",  # any; the topology is asked for by name
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nobody owns a chip: no lock is needed
    }


def _compile_all(config: RunConfig, target: Slice, which: str) -> bool:
    use_compiler_only()
    from launch import run_programs
    from mlagent_jax.parallel import topology
    from mlagent_jax.parallel.fit import check_stage

    model = run_programs.resolved_model(config, target.chip.platform)
    stage = "sft" if which == "sft" else "ppo"
    check_stage(config, model, target.num_chips, stage)
    reports: list[ProgramReport] = []
    if which in ("sft", "score", "ppo", "all"):
        devices = topology.devices(target)
        if which == "sft":
            programs = [run_programs.sft_program(config, model, devices)]
        else:
            programs = [
                program
                for program in run_programs.ppo_programs(config, model, devices)
                if which in (program.name, "all")
            ]
        reports += [_compile(program, target) for program in programs]
    if which in ("sample", "all"):
        host = Slice(chip=target.chip, shape=target.host_shape)
        shared = run_programs.shared_tokens(config.sample, _SHARED_TOKENS.value)
        programs = run_programs.sample_programs(
            config, model, topology.devices(host), shared
        )
        reports += [_compile(program, host) for program in programs]
    fits = all(report.fits for report in reports)
    result: dict[str, Any] = {
        "config": config.name,
        "topology": target.name,
        "chip": dataclasses.asdict(target.chip),
        "programs": {report.name: report for report in reports},
    }
    if which == "all" and fits:
        is_ahead = config.ppo.max_staleness > 0
        iteration = resident_together(reports, is_ahead=is_ahead)
        _print_memory("all together", iteration)
        fits = iteration["total"] <= iteration["capacity"]
        result["iteration"] = iteration
    result["fits"] = fits
    if not fits:
        result["suggestion"] = too_few_chips(reports, target.num_chips) or suggestion(
            config, model, target, which
        )
        print(f"\ndoes not fit {target.name}; try: {result['suggestion']}")
    if _JSON.value is not None:
        run_record.write_json(Path(_JSON.value), result)
    return fits


def _compile(program: "Program", target: Slice) -> "ProgramReport":
    from mlagent_jax.model.attention import kernel_cost
    from mlagent_jax.parallel.aot import compile_program

    print(f"\ncompiling {program.name} for {target.name} ...", flush=True)
    report, text = compile_program(program, target, kernel_cost)
    if _HLO_DIR.value is not None and text:
        folder = Path(_HLO_DIR.value)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{program.name}.hlo.txt").write_text(text)
    _print_report(report)
    return report


def resident_together(
    reports: Sequence["ProgramReport"], *, is_ahead: bool
) -> dict[str, float]:
    """Returns the memory of a whole PPO iteration on one chip, by kind.

    Actor, critic, both optimizers and a reference stay. The sampler's copy of the
    policy and its cache are there while it samples, when two copies meet as a new one
    is made. The programs run one after the other, so that of what else they need only
    the largest counts. The sum is ours, not the compiler's, which sees one program
    at a time.

    Args:
      reports: of all programs.
      is_ahead: whether rollouts are sampled during updates (`ppo.max_staleness`).
    """
    kept: dict[str, float] = {}
    sampler: dict[str, float] = {}
    learning = sampling = 0.0
    for report in reports:
        held = _held(report)
        passing = report.hbm["total"] - sum(held.values())
        if report.name in _SAMPLING:
            sampler |= held
            sampling = max(sampling, passing)
        else:
            kept |= held
            learning = max(learning, passing)
    # The cache is not there yet while the copy is made.
    sampling = max(sampling + sum(sampler.values()), 2 * sampler["parameters"])
    passing = learning + sampling if is_ahead else max(learning, sampling)
    return kept | {
        "while_sampling": sampling,
        "while_learning": learning,
        "total": sum(kept.values()) + passing,
        "capacity": reports[0].hbm["capacity"],
    }


def too_few_chips(reports: Sequence["ProgramReport"], num_chips: int) -> str:
    """Returns what to do if what stays on a chip does not fit, "" if it does.

    No smaller batch would help then.

    Args:
      reports: of the run's programs.
      num_chips: of the slice.
    """
    kept: dict[str, float] = {}
    for report in reports:
        kept |= {} if report.name in _SAMPLING else _held(report)
    size, capacity = sum(kept.values()), reports[0].hbm["capacity"]
    if size <= capacity:
        return ""
    return (
        f"a slice of at least {math.ceil(num_chips * size / capacity)} chips, or chips "
        f"with more memory: {', '.join(kept)} alone take {size / _GIB:.2f} GiB of a "
        f"chip's {capacity / _GIB:.2f}"
    )


def _held(report: "ProgramReport") -> dict[str, float]:
    """Returns what a program is given and keeps, by kind."""
    return {k: size for k, size in report.hbm.items() if k not in _PASSING}


def suggestion(config: RunConfig, model: ModelConfig, target: Slice, which: str) -> str:
    """Returns what to change in a run that does not fit, most helpful first."""
    from mlagent_jax.parallel.fit import tensor_sizes
    from mlagent_jax.parallel.mesh import mesh_shape

    section, name = (config.sft, "sft") if which == "sft" else (config.ppo, "ppo")
    data, fsdp, tensor = mesh_shape(config.mesh, target.num_chips)
    ideas: list[str] = []
    if model.remat == "none":
        ideas.append("--set model.remat=layer")
    larger = [n for n in tensor_sizes(model, fsdp * tensor) if n > tensor]
    larger = [n for n in larger if (fsdp * tensor) % n == 0]
    if which != "sample" and section.micro_batch_size > data * fsdp:
        ideas.append(f"--set {name}.micro_batch_size={data * fsdp}")
    if which != "sample" and larger:
        rows = data * fsdp * tensor // larger[0]
        ideas.append(
            f"--set mesh.tensor={larger[0]} --set {name}.micro_batch_size={rows}"
        )
    if which in ("sample", "all") and config.sample.num_slots > 8:
        ideas.append(f"--set sample.num_slots={config.sample.num_slots // 2}")
    if model.remat != "offload" and which != "sample":
        ideas.append("--set model.remat=offload")
    ideas.append("a slice with more chips, or chips with more memory")
    return "; or ".join(ideas)


def _print_report(report: "ProgramReport") -> None:
    mesh = " x ".join(f"{axis} {size}" for axis, size in report.mesh.items())
    print(f"{report.name} on {report.topology} ({mesh}), {dict(report.settings)}")
    print(f"  compiled in {report.compile_s:.0f} s; fits: {report.fits}")
    _print_memory("memory of a chip", report.hbm)
    bound = report.roofline
    if bound is None:
        print(f"  compiler: {report.message.splitlines()[0]}")
        return
    print(
        f"  model {report.model_flops:.3e} FLOP; a chip computes "
        f"{report.device_flops:.3e}, moves {report.hbm_traffic_bytes / 1e9:.2f} GB"
    )
    print(
        f"  at the peaks: compute {bound.compute_s:.4f} s, memory {bound.hbm_s:.4f} s, "
        f"interconnect {bound.interconnect_s:.4f} s"
    )
    print(
        f"  MFU at most {bound.mfu_upper_bound:.1%} with full overlap, "
        f"{bound.mfu_without_overlap:.1%} without; interconnect alone allows "
        f"{bound.mfu_communication_bound:.1%}"
    )
    for row in report.collectives[:8]:
        print(
            f"    {row.kind:<18} of {row.group_size:>3} along {row.slice_dims!s:<9} "
            f"x {row.executions:<6} {row.received_bytes / 1e9:9.3f} GB "
            f"{row.seconds:8.4f} s"
        )
    for label, names in (
        ("counted once (trips depend on data)", report.open_loops),
        ("kernels of unknown cost", report.unknown_kernels),
    ):
        if names:
            shown = ", ".join(names[:_MAX_NAMES])
            more = len(names) - _MAX_NAMES
            print(f"    {label}: {shown}" + (f" and {more} more" if more > 0 else ""))


def _print_memory(title: str, hbm: Any) -> None:
    parts = ", ".join(f"{kind} {size / _GIB:.2f}" for kind, size in hbm.items())
    print(f"  {title}, GiB: {parts}")


if __name__ == "__main__":
    absl_logging.set_verbosity(absl_logging.WARNING)
    app.run(main)
