"""How a policy is updated from a rollout."""
