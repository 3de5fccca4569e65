"""The same workload by ours and the peers, in turns, each in its own process."""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from launch.bench.child import Child, PeerMissingError

PEERS = ("ours", "hf", "tunix")
# Workload -> who takes part in it.
WORKLOADS = {
    "decode_uniform": PEERS,
    "decode_agent": PEERS,
    "sft_uniform": PEERS,
    "sft_ragged": PEERS,
    "sft_ragged_sorted": PEERS,
}


def compare(
    names: Sequence[str], rounds: int, folder: Path, pythons: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """Yields what every peer took for every workload, as far as it is known.

    After each round, so that a call that is stopped leaves what it has measured. A
    peer that ends is not measured any further; the others go on.

    The order of the peers is another one in every round, so that a machine that
    gets slower hurts all of them.

    Args:
      names: workloads.
      rounds: timed calls of each; one more before them is not timed.
      folder: from `launch.bench.prepare`.
      pythons: peer -> interpreter.

    Yields:
      "rounds": workload -> peer -> list of {"seconds", "tokens"}; "equal": workload
      -> peer -> how far it gives the same as ours; "versions": workload -> peer ->
      library -> version; "not_measured": peer -> reason.

    Raises:
      PeerMissingError: our own process did not start, or has ended.
    """
    result: dict[str, Any] = {
        "rounds": {},
        "equal": {},
        "versions": {},
        "not_measured": {},
    }
    children: dict[str, Child] = {}
    with contextlib.ExitStack() as stack:
        for peer in PEERS:
            try:
                children[peer] = Child(peer, pythons[peer], folder)
            except PeerMissingError as error:
                if peer == "ours":
                    raise
                result["not_measured"][peer] = str(error)
                continue
            stack.callback(children[peer].close)
        for name in names:

            def run(peer: str, name: str = name) -> dict[str, Any] | None:
                try:
                    return children[peer].run(name)
                except PeerMissingError as error:
                    if peer == "ours":
                        raise
                    result["not_measured"][peer] = str(error)
                    children.pop(peer).close()
                    return None

            peers = [peer for peer in WORKLOADS[name] if peer in children]
            answers = {peer: run(peer) for peer in peers}
            firsts = {peer: first for peer, first in answers.items() if first}
            result["versions"][name] = {p: children[p].versions for p in firsts}
            result["equal"][name] = {
                peer: agreement(firsts["ours"]["detail"], first["detail"])
                for peer, first in firsts.items()
                if "ours" in firsts and peer != "ours"
            }
            taken: dict[str, list[dict[str, float]]] = {peer: [] for peer in firsts}
            orders = itertools.cycle(itertools.permutations(firsts))
            for _ in tqdm(range(rounds), desc=f"{name:<18}", unit="round"):
                for peer in next(orders):
                    answer = run(peer) if peer in children else None
                    if answer:
                        del answer["detail"]
                        taken[peer].append(answer)
                result["rounds"][name] = {p: taken[p] for p in taken if taken[p]}
                yield result


def agreement(ours: list[Any], theirs: list[Any]) -> str:
    """Returns in words how far two results of the first call are the same.

    Replies are compared token by token. Losses are compared as numbers where both
    made as many updates (otherwise batches differ by design).
    """
    if ours and isinstance(ours[0], list):
        same = sum(a == b for a, b in zip(ours, theirs, strict=True))
        tokens = sum(
            x == y
            for a, b in zip(ours, theirs, strict=True)
            for x, y in zip(a, b, strict=False)
        )
        total = sum(map(len, ours))
        return f"{same} of {len(ours)} replies, {tokens} of {total} tokens"
    if len(ours) != len(theirs):
        return f"{len(ours)} updates against {len(theirs)}"
    difference = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    return f"losses differ by at most {difference:.1e}"
