"""What every function of this floor asks of its tensors."""

import torch


def require_same_shape(**tensors: torch.Tensor) -> None:
    """Checks that the tensors have one shape and at least one element; keywords are their names.

    Raises:
        ValueError: they do not; the message lists every name with its shape.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    if len(set(shapes.values())) > 1:
        raise ValueError(f"shapes differ and must be equal: {listed}")
    if any(0 in shape for shape in shapes.values()):
        raise ValueError(f"nothing to compute on, a dimension is 0: {listed}")
