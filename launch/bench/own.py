"""Workloads without a peer: what ours cost as sizes grow."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

OWN: dict[str, Callable[[int, Path], dict[str, Any]]] = {}
