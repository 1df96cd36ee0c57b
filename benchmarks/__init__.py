"""The measurements behind every speed figure in the README and docs."""
