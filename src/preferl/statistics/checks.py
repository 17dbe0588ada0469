"""What every function of this floor asks of its rows and tables."""

import numpy as np
from numpy.typing import ArrayLike


def finite_row(name: str, values: ArrayLike) -> np.ndarray:
    row_N = np.asarray(values, dtype=np.float64)
    if row_N.ndim != 1 or row_N.size == 0:
        raise ValueError(f"{name} has shape {row_N.shape}; it must be one row of at least one value")
    if not np.isfinite(row_N).all():
        raise ValueError(f"{name}[{int(np.argmin(np.isfinite(row_N)))}] is not a finite number")
    return row_N


def finite_table(name: str, values: ArrayLike) -> np.ndarray:
    table_PK = np.asarray(values, dtype=np.float64)
    if table_PK.ndim != 2 or table_PK.size == 0:
        raise ValueError(
            f"{name} has shape {table_PK.shape}; it must be prompts by responses, at least one each"
        )
    if not np.isfinite(table_PK).all():
        row, column = np.argwhere(~np.isfinite(table_PK))[0]
        raise ValueError(f"{name}[{row}, {column}] is not a finite number")
    return table_PK


def unit_row(name: str, values: ArrayLike) -> np.ndarray:
    row_N = finite_row(name, values)
    outside_N = (row_N < 0) | (row_N > 1)
    if outside_N.any():
        where = int(np.argmax(outside_N))
        raise ValueError(f"{name}[{where}] is {row_N[where]}; it must lie in [0, 1]")
    return row_N


def require_same_length(**rows: np.ndarray) -> None:
    if len({len(row) for row in rows.values()}) > 1:
        listed = ", ".join(f"{name} {len(row)}" for name, row in rows.items())
        raise ValueError(f"rows are paired item by item and must be equally long: {listed}")


def require_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; a confidence level lies between 0 and 1")
