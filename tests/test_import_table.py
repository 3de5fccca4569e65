"""The border between host code and device code, and who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mlagent_jax"
HOST = {"types", "config", "errors"}
ALLOWED = {
    "errors": set(),
    "codec": {"errors"},
    "types": {"errors", "codec"},
    "config": {"errors"},
    "parallel": {"config", "errors"},
    "model": {"parallel", "config", "errors"},
    "text": HOST,
    "env": HOST | {"text", "policy"},
    "sample": {"model", "parallel", "config", "errors"},
    "policy": HOST | {"text", "sample", "model", "parallel"},
    "data": HOST | {"text", "parallel", "env"},
    "train": {"model", "parallel", "data", "text", *HOST},
    "rl": HOST
    | {"model", "parallel", "sample", "policy", "data", "env", "train", "text"},
    "explore": HOST | {"policy", "env", "text", "data"},
    "evaluation": HOST | {"policy", "env", "text", "data"},
}
DEVICE_ONLY = {"jax", "flax", "optax", "orbax"}
# Parts of the host world that must not pull in jax, by prefix.
HOST_MODULES = (
    "codec",
    "types",
    "config",
    "errors",
    "env",
    "text",
    "explore",
    "evaluation",
    "policy.base",
    "policy.api",
    "policy.scripted",
    "data.trajectories",
    "data.state_pool",
)


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports_of(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_what_the_table_allows(path):
    package = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if package == "__init__":
        return
    ours = {
        name.split(".")[1]
        for name in imports_of(path)
        if name.startswith("mlagent_jax.")
    }
    assert ours - {package} <= ALLOWED[package]


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_model_imports_flax_and_host_code_no_jax_at_all(path):
    module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    roots = {name.split(".")[0] for name in imports_of(path)}
    if not module.startswith("model"):
        assert "flax" not in roots
    if module.startswith(HOST_MODULES):
        assert not roots & DEVICE_ONLY


def test_policies_other_than_local_and_the_environment_see_base_only():
    for path in modules():
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if module.startswith("env"):
            used = {n for n in imports_of(path) if n.startswith("mlagent_jax.policy")}
            assert all(n.startswith("mlagent_jax.policy.base") for n in used)


def test_importing_the_host_world_never_loads_jax():
    names = [
        ".".join(("mlagent_jax", *p.relative_to(PACKAGE).with_suffix("").parts))
        for p in modules()
        if p.stem != "__init__"
    ]
    host = [n for n in names if n.removeprefix("mlagent_jax.").startswith(HOST_MODULES)]
    code = (
        "import importlib, sys\n"
        f"for name in {host!r}: importlib.import_module(name)\n"
        "print(sorted({'jax', 'flax', 'optax'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_flags_are_read_in_launch_only(path):
    assert not any(name.startswith("absl") for name in imports_of(path))
