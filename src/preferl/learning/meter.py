"""Weighted means of what many steps saw, and their maxima."""

import math

from preferl.runs import distributed


class Meter:
    """Weighted means of named numbers, and their maxima."""

    def __init__(self) -> None:
        self.total: dict[str, float] = {}
        self.weight: dict[str, float] = {}
        self.maximum: dict[str, float] = {}

    def add(self, name: str, value: float, weight: float) -> None:
        self.total[name] = self.total.get(name, 0.0) + value * weight
        self.weight[name] = self.weight.get(name, 0.0) + weight
        self.maximum[name] = max(self.maximum.get(name, -math.inf), value)

    def merge(self, other: "Meter") -> None:
        for name, total in other.total.items():
            self.total[name] = self.total.get(name, 0.0) + total
            self.weight[name] = self.weight.get(name, 0.0) + other.weight[name]
            self.maximum[name] = max(self.maximum.get(name, -math.inf), other.maximum[name])

    def of_all(self) -> "Meter":
        """What all processes have seen."""
        whole = Meter()
        for meter in distributed.all_gather(self):
            whole.merge(meter)
        return whole

    def means(self) -> dict[str, float]:
        return {name: self.total[name] / self.weight[name] for name in self.total}
