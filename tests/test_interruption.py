"""Signals wait until a training has saved."""

import os
import signal
import sys

import pytest

from training.interruption import Interrupted, Interruption


@pytest.mark.parametrize(
    "number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_waits_until_it_is_asked_for(number, status):
    before = signal.getsignal(number)
    with Interruption() as interruption:
        interruption.check()
        os.kill(os.getpid(), number)
        assert interruption.received == number  # and this line was still reached
        with pytest.raises(Interrupted) as interrupted:
            interruption.check()
        assert interrupted.value.status == status
        # After Ctrl-C the system's own handler is back: a second one ends the process at once.
        default = signal.getsignal(signal.SIGINT) == signal.SIG_DFL
        assert default == (number == signal.SIGINT)
    assert signal.getsignal(number) == before


def test_signals_that_come_together_are_both_received(monkeypatch):
    """As where a terminal closes upon Ctrl-C. Python says so where one finds its handler gone."""
    complaints, both = [], {signal.SIGHUP, signal.SIGINT}
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    with Interruption() as interruption:
        signal.pthread_sigmask(signal.SIG_BLOCK, both)
        for number in both:
            os.kill(os.getpid(), number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, both)
        with pytest.raises(Interrupted):
            interruption.check()
    assert complaints == []


def test_the_end_of_the_terminal_is_ignored_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGHUP)
            interruption.check()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_watched_items_stop_at_a_signal():
    with Interruption() as interruption:
        seen = []
        with pytest.raises(Interrupted):
            for item in interruption.watch(range(10)):
                seen.append(item)
                if item == 3:
                    os.kill(os.getpid(), signal.SIGTERM)
    assert seen == [0, 1, 2, 3]
