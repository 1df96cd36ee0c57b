"""What was tried: the search over networks and recipes, the ablation, the landscape."""
