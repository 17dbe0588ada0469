"""Pure functions on tensors: losses, advantages, KL, statistics."""
