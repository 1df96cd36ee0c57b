"""Training: recipes, settings, the run from first to last epoch, checkpoints."""
