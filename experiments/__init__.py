"""What was tried: the search over networks and recipes, the ablation, and published results."""
