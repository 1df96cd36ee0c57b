"""The landscape: which of our networks it draws."""

import data
import models
from experiments import landscape


def test_ours_are_the_networks_with_weights_or_a_history(monkeypatch):
    names = ("under25k", "baseline", "teacher", "plain_100_epochs", "never trained")
    monkeypatch.setattr(models, "names", lambda: names)
    systems = landscape.ours(data.load("sample", "", "val"))
    assert [system.name for system in systems] == ["under25k", "baseline", "plain_100_epochs"]
    small, baseline, plain = systems
    assert (small.parameters, baseline.parameters, plain.parameters) == (23_062, 112_966, 96_118)
    assert small.low == small.high > 0.85  # on 500 images of val; 0.915 on all
    assert 0.8 < baseline.low < 0.85
