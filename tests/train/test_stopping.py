"""Signals are remembered, cut host work short, and are given back."""

import os
import signal
import time

import pytest

from mlagent_jax.train.stopping import StopSignal


def kill_me(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # Python runs handlers between two instructions


def test_nothing_is_set_before_a_signal_and_handlers_are_given_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal() as stop:
        assert not stop.is_set()
        assert stop.interruptible(lambda: 7) == 7
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_remembered_and_named(number):
    with StopSignal() as stop:
        kill_me(number)
        assert stop.is_set()
        assert stop.interruptible(lambda: 7) is None  # not even begun
        message = str(stop.error("sft after update 3"))
        assert message.startswith(f"sft after update 3: stopped by {number.name};")


def test_work_on_the_host_is_left_at_once():
    cleaned_up = []

    def work():
        try:
            kill_me(signal.SIGTERM)
            return 7
        finally:
            cleaned_up.append(True)

    with StopSignal() as stop:
        assert stop.interruptible(work) is None
        assert cleaned_up == [True]
        kill_me(signal.SIGTERM)  # a second one changes nothing
        assert stop.is_set()


def test_the_second_ctrl_c_ends_the_program_at_once():
    with StopSignal() as stop:
        kill_me(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            kill_me(signal.SIGINT)
        assert stop.is_set()


def test_errors_of_the_work_are_passed_on():
    def work():
        raise OSError("disk")

    with StopSignal() as stop, pytest.raises(OSError, match="disk"):
        stop.interruptible(work)
