"""``preferl design-reward``: what to collect, how to judge it, and when to trust the reward model."""
