"""Measures a run's programs on the devices at hand: tokens a second, MFU, memory.

    python -m launch.measure --config=configs/qwen2_5_7b_sft.py --program=sft \
        --workdir=runs/measured
    python -m launch.measure --config=configs/qwen2_5_7b_ppo.py --program=sample

The programs are those that `launch.aot` compiles and the stages run, at their longest
rows; weights are random and nothing is downloaded. Prints a report and writes
<workdir>/measured.json, each program in its place: another call adds to it. MFU and
the share of the memory's bandwidth are of the chip's published peaks (`topology.py`,
`gpus.py`); on other devices, such as a CPU, there are times and tokens only.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

from launch import common, device_setup, measure_inputs, run_programs, run_record
from mlagent_jax.config import RunConfig
from mlagent_jax.errors import ConfigError, RunInterruptedError
from mlagent_jax.parallel import hosts
from mlagent_jax.parallel.aot import Program
from mlagent_jax.parallel.chip import Chip
from mlagent_jax.parallel.fit import check_stage
from mlagent_jax.parallel.topology import chip_of
from mlagent_jax.train.lm import ProgressBar
from mlagent_jax.train.stopping import StopSignal

_PROGRAM = flags.DEFINE_enum(
    "program",
    "all",
    ["sft", "score", "ppo", "sample", "all"],
    "What to measure; sample = prefill and decode.",
)
_CALLS = flags.DEFINE_integer(
    "calls", 5, "Timed calls of each program, after one that is not.", lower_bound=1
)
_SHARED_TOKENS = flags.DEFINE_integer(
    "shared_tokens",
    None,
    "With sample.num_prefixes: tokens of each prompt in a shared prefix; by default "
    "all of the longest prompt.",
    lower_bound=1,
)
_TRACE_DIR = flags.DEFINE_string(
    "trace_dir",
    None,
    "Folder for a profile of one more call of each program, for XProf or Perfetto.",
)

_GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """What a program took.

    Attributes:
      devices: how many, and what they call themselves.
      mesh: sizes of the mesh's axes.
      settings: sizes that the program was made from.
      versions: of jax and others.
      compile_s: seconds of tracing and compiling, or of finding that in the cache.
      seconds: of each timed call, in order.
      tokens: of a call, over all devices.
      tokens_per_s: at the median call.
      flops_per_s: of the model's FLOPs, a device, at the median call.
      mfu: that over the chip's peak; None if the peak is not known.
      hbm_frac: what a device must read over what its memory could have delivered in
        the median call; None where products set the pace or the peak is not known.
      peak_bytes: most memory in use on a device so far, in this process; None if the
        device does not say.
    """

    devices: str
    mesh: dict[str, int]
    settings: dict[str, Any]
    versions: dict[str, str]
    compile_s: float
    seconds: tuple[float, ...]
    tokens: int
    tokens_per_s: float
    flops_per_s: float
    mfu: float | None
    hbm_frac: float | None
    peak_bytes: int | None


def main(run: common.Run, stop: StopSignal) -> None:
    """Measures one program after the other; each is recorded when it is done.

    Raises:
      RunInterruptedError: it was asked to stop.
    """
    device_setup.use_compilation_cache()
    path = run.workdir / "measured.json"
    found = _recorded(path)
    for program in _programs(run.config, _PROGRAM.value):
        if stop.is_set():
            raise RunInterruptedError("stopped; the same command measures again")
        with common.progress(_CALLS.value + 1, program.name, "call") as bar:
            measured = _measure(program, _CALLS.value, bar)
        if hosts.is_primary():
            _print(program.name, measured)
            found[program.name] = measured
            run_record.write_json(path, found)


def _recorded(path: Path) -> dict[str, Any]:
    """Returns what was measured before, by the name of the program.

    Raises:
      ConfigError: the file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} is damaged ({error}); move it away") from error


def _programs(config: RunConfig, which: str) -> Iterator[Program]:
    devices = jax.devices()
    model = run_programs.resolved_model(config, devices[0].platform)
    shared = run_programs.shared_tokens(config.sample, _SHARED_TOKENS.value)
    if which in ("sft", "all"):
        check_stage(config, model, len(devices), "sft")
        yield run_programs.sft_program(config, model, devices)
    if which in ("score", "ppo", "all"):
        check_stage(config, model, len(devices), "ppo")
        for program in run_programs.ppo_programs(config, model, devices):
            if which in (program.name, "all"):
                yield program
    if which in ("sample", "all"):
        local = jax.local_devices()
        yield from run_programs.sample_programs(config, model, local, shared)


def _measure(program: Program, num_calls: int, bar: ProgressBar) -> Measured:
    """Returns what calls of the program took, once it is compiled and warm.

    Raises:
      ConfigError: it needs more memory than the devices have.
      JaxRuntimeError: it fails otherwise.
    """
    start = time.monotonic()
    try:
        compiled = program.lower().compile()
        compile_s = time.monotonic() - start
        with jax.set_mesh(program.mesh):
            seconds = _timed_calls(program, compiled, num_calls, bar)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ConfigError(
            f"{program.name}: does not fit the memory of the devices "
            f"({str(error).splitlines()[0]:.300}). `python -m launch.aot` says what "
            "would fit"
        ) from error
    return _summary(program, compile_s, seconds)


def _timed_calls(
    program: Program, compiled: Any, num_calls: int, bar: ProgressBar
) -> list[float]:
    arguments = measure_inputs.first_arguments(program)
    seconds: list[float] = []
    for index in range(num_calls + 1):
        jax.block_until_ready(arguments)
        hosts.barrier("call")
        start = time.monotonic()
        result = jax.block_until_ready(compiled(*arguments))
        seconds.append(time.monotonic() - start)
        arguments = measure_inputs.next_arguments(program, arguments, result)
        del result
        bar.update(1)
        if index > 0:
            median = statistics.median(seconds[1:])
            bar.set_postfix_str(f"{program.call.tokens / median:,.0f} tokens/s")
    if _TRACE_DIR.value is not None:
        with jax.profiler.trace(str(Path(_TRACE_DIR.value) / program.name)):
            jax.block_until_ready(compiled(*arguments))
    return seconds[1:]


def _summary(program: Program, compile_s: float, seconds: Sequence[float]) -> Measured:
    devices = list(program.mesh.devices.flat)
    chip, call = chip_of(devices[0].device_kind), program.call
    median = statistics.median(seconds)
    flops_per_s = call.flops / len(devices) / median
    stats = jax.local_devices()[0].memory_stats()  # None on a CPU
    return Measured(
        devices=f"{len(devices)} x {devices[0].device_kind}",
        mesh=dict(program.mesh.shape),
        settings=dict(program.settings),
        versions=run_record.versions(),
        compile_s=compile_s,
        seconds=tuple(seconds),
        tokens=call.tokens,
        tokens_per_s=call.tokens / median,
        flops_per_s=flops_per_s,
        mfu=None if chip is None else flops_per_s / chip.flops_per_s,
        hbm_frac=_hbm_frac(chip, call.floor_bytes, median),
        peak_bytes=(stats or {}).get("peak_bytes_in_use"),
    )


def _hbm_frac(chip: Chip | None, floor_bytes: float, seconds: float) -> float | None:
    if chip is None or floor_bytes == 0:
        return None
    return floor_bytes / seconds / chip.hbm_bytes_per_s


def _print(name: str, measured: Measured) -> None:
    mesh = " x ".join(f"{axis} {size}" for axis, size in measured.mesh.items())
    median = statistics.median(measured.seconds)
    print(f"\n{name} on {measured.devices} ({mesh}), {measured.settings}")
    print(
        f"  ready in {measured.compile_s:.0f} s; a call {median:.4f} s "
        f"[{min(measured.seconds):.4f}, {max(measured.seconds):.4f}], "
        f"{len(measured.seconds)} calls of {measured.tokens:,} tokens"
    )
    shares = [f"{measured.tokens_per_s:,.0f} tokens/s"]
    shares.append(f"{measured.flops_per_s / 1e12:.3g} TFLOP/s of the model a device")
    if measured.mfu is not None:
        shares.append(f"MFU {measured.mfu:.1%}")
    if measured.hbm_frac is not None:
        shares.append(f"{measured.hbm_frac:.1%} of the memory's bandwidth")
    if measured.peak_bytes is not None:
        shares.append(f"{measured.peak_bytes / _GIB:.2f} GiB at most")
    print(f"  {', '.join(shares)}")


if __name__ == "__main__":
    common.run_device_stage(main)
