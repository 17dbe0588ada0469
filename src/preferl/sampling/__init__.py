"""Text out of a policy."""
