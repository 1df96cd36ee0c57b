"""Signals wait until a training has saved."""

import os
import signal

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
        # The system's own handler is back: a second Ctrl-C ends the process at once.
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    assert signal.getsignal(number) == before


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
