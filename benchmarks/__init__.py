"""The measurements side by side behind every figure of speed in the README."""
