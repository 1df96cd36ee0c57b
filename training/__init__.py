"""A training: its recipe, its settings, its run from first to last epoch, its checkpoints."""
