"""Benchmarks: the work is what it says, and ratios are computed from the rounds."""

import json
from typing import ClassVar

import pytest

from launch.bench import compare
from launch.bench.child import Child, PeerMissingError
from launch.bench.compare import agreement
from launch.bench.results import draw, make_cpu_ratios, make_ratios, make_table
from launch.bench.shapes import (
    Shapes,
    Work,
    choose_end_ids,
    cut,
    make_work,
    parse_shapes,
)


def test_work_has_the_sizes_it_names_and_survives_the_file(tmp_path):
    shapes = Shapes(vocab=97)
    work = make_work(shapes)
    assert work == make_work(shapes)
    assert {len(p) for p in work.uniform_prompts} == {shapes.prompt}
    lengths = [len(p) for p in work.agent_prompts]
    assert len(lengths) == shapes.groups * shapes.group_size
    assert min(lengths) >= 100
    assert max(lengths) <= shapes.longest_prompt
    starts = {tuple(p[:80]) for p in work.agent_prompts}
    assert len(starts) == shapes.groups
    ragged = [len(row) for row in work.ragged_rows]
    assert min(ragged) >= 64
    assert max(ragged) <= shapes.longest
    work.save(tmp_path / "work.json")
    assert Work.load(tmp_path / "work.json") == work


def test_sizes_can_be_changed_and_typos_are_refused():
    assert parse_shapes(["batch=3"]).batch == 3
    for wrong in ("batches=3", "batch=x", "batch=0", "batch"):
        with pytest.raises(ValueError, match="expected name=<positive integer>"):
            parse_shapes([wrong])


def test_end_tokens_spread_the_lengths_of_replies_and_leave_none_short():
    work = make_work(Shapes(vocab=997, prompt=400, batch=40))
    replies = work.uniform_prompts
    end_ids = choose_end_ids(replies, 997)
    lengths = sorted(len(cut(reply, end_ids)) for reply in replies)
    assert lengths[0] > 20
    assert lengths[len(lengths) // 2] < 0.4 * 400
    assert len(set(lengths)) > 10


def rounds(*seconds: float) -> list[dict]:
    return [{"seconds": s, "cpu_s": 2 * s, "tokens": 100} for s in seconds]


RESULT = {
    "rounds": {
        "decode_agent": {
            "ours": rounds(1.0, 1.0, 9.0),
            "hf": rounds(4.0, 2.0, 3.0),
            "tunix": rounds(2.0, 2.0, 2.0),
        },
        "sft_uniform": {"ours": rounds(1.0, 1.0), "hf": rounds(0.5, 0.5)},
    },
    "equal": {"decode_agent": {"hf": "64 of 64 replies"}},
    "versions": {
        "decode_agent": {"ours": {"Python": "3.13.0", "jax": "0.12.0"}},
        "sft_uniform": {"ours": {"Python": "3.11.7", "jax": "0.10.2"}},
    },
    "not_measured": {"tunix": "No module named 'tunix'"},
    "own": {"curve": {"points": [{"batch": 1, "ms": 2.0}, {"batch": 2, "ms": 3.0}]}},
}


def test_ratios_are_of_medians_and_the_best_peer_is_the_fastest():
    ratios = make_ratios(RESULT["rounds"])
    assert ratios == {
        "decode_agent/hf": 3.0,
        "decode_agent/tunix": 2.0,
        "decode_agent/best_peer": 2.0,
        "sft_uniform/hf": 0.5,
        "sft_uniform/best_peer": 0.5,
    }
    assert make_cpu_ratios(RESULT["rounds"])["decode_agent/hf"] == 3.0


def test_table_and_plot_show_every_workload_and_what_is_missing(tmp_path):
    result = RESULT | {
        "ratios": make_ratios(RESULT["rounds"]),
        "cpu_ratios": make_cpu_ratios(RESULT["rounds"]),
    }
    table = make_table(result)
    assert "| decode_agent | mlagent_jax | 100 | 11 | 100 | 3 |" in table
    assert "mlagent_jax: Python 3.13.0, jax 0.12.0 (decode_agent)\n" in table
    assert "mlagent_jax: Python 3.11.7, jax 0.10.2 (sft_uniform)\n" in table
    assert "Tunix: not measured (No module named 'tunix')" in table
    draw(json.loads(json.dumps(result)), tmp_path / "bench.png")
    assert (tmp_path / "bench.png").stat().st_size > 1_000


class FakeChild:
    """Stands for a peer's process; Tunix is not installed."""

    calls: ClassVar[list[str]] = []

    def __init__(self, name, python, folder):
        if name == "tunix":
            raise PeerMissingError("No module named 'tunix'")
        self.name, self.versions = name, {"python": python}

    def run(self, workload):
        self.calls.append(self.name)
        detail = [[1, 2]] if self.name == "ours" else [[1, 3]]
        return {"seconds": 1.0, "cpu_s": 2.0, "tokens": 2, "detail": detail}

    def close(self):
        self.calls.append(f"close {self.name}")


def test_peers_run_in_turns_in_changing_order_after_a_call_that_is_not_timed(
    monkeypatch, tmp_path
):
    monkeypatch.setattr(compare, "Child", FakeChild)
    FakeChild.calls.clear()
    pythons = dict.fromkeys(compare.PEERS, "python3")
    *_, result = compare.compare(["decode_uniform"], 2, tmp_path, pythons)
    assert FakeChild.calls == ["ours", "hf"] * 2 + ["hf", "ours"] + [
        "close hf",
        "close ours",
    ]
    taken = result["rounds"]["decode_uniform"]
    assert {peer: len(answers) for peer, answers in taken.items()} == {
        "ours": 2,
        "hf": 2,
    }
    assert result["equal"]["decode_uniform"] == {"hf": "0 of 1 replies, 1 of 2 tokens"}
    assert result["not_measured"] == {"tunix": "No module named 'tunix'"}
    versions = {"python": "python3"}
    assert result["versions"] == {
        "decode_uniform": dict.fromkeys(["ours", "hf"], versions)
    }


def test_a_missing_interpreter_is_said(tmp_path):
    with pytest.raises(PeerMissingError, match=r"No such file.*none/python"):
        Child("hf", str(tmp_path / "none/python"), tmp_path)


def test_without_our_own_process_there_is_nothing_to_compare(tmp_path):
    pythons = dict.fromkeys(compare.PEERS, str(tmp_path / "none/python"))
    with pytest.raises(PeerMissingError, match="did not start"):
        next(compare.compare(["sft_uniform"], 1, tmp_path, pythons))


@pytest.mark.parametrize("at_call", [1, 2])
def test_a_peer_that_ends_leaves_the_others_to_go_on(monkeypatch, tmp_path, at_call):
    class Mortal(FakeChild):
        def run(self, workload):
            answer = super().run(workload)
            if self.name == "hf" and self.calls.count("hf") == at_call:
                raise PeerMissingError(f"ended during {workload}: out of memory")
            return answer

    monkeypatch.setattr(compare, "Child", Mortal)
    FakeChild.calls.clear()
    pythons = dict.fromkeys(compare.PEERS, "python3")
    names = ["decode_uniform", "sft_uniform"]
    *_, result = compare.compare(names, 2, tmp_path, pythons)
    assert {name: list(taken) for name, taken in result["rounds"].items()} == {
        name: ["ours"] for name in names
    }
    assert FakeChild.calls.count("hf") == at_call
    assert FakeChild.calls.count("ours") == 2 * (1 + 2)
    reason = "ended during decode_uniform: out of memory"
    assert result["not_measured"]["hf"] == reason


def test_our_own_end_is_an_error(monkeypatch, tmp_path):
    class Mortal(FakeChild):
        def run(self, workload):
            raise PeerMissingError(f"ended during {workload}: a bug")

    monkeypatch.setattr(compare, "Child", Mortal)
    pythons = dict.fromkeys(compare.PEERS, "python3")
    with pytest.raises(PeerMissingError, match="ended during sft_uniform: a bug"):
        list(compare.compare(["sft_uniform"], 2, tmp_path, pythons))


def test_agreement_counts_equal_replies_and_compares_losses():
    assert agreement([[1, 2], [3, 4]], [[1, 2], [3, 5]]) == (
        "1 of 2 replies, 3 of 4 tokens"
    )
    assert agreement([1.0, 2.0], [1.0, 2.5]) == "losses differ by at most 5.0e-01"
    assert agreement([1.0], [1.0, 2.0]) == "1 updates against 2"
