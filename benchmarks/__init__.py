"""The measurements behind most speed figures in the README and docs."""
