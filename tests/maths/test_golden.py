"""Figures that were computed elsewhere: the package and the slow reference must both give them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from preferl.maths import kl, policy, preference, reference

CASES = json.loads((Path(__file__).parent / "golden.json").read_text())["cases"]


def test_the_reference_shares_nothing_with_what_it_checks():
    lines = Path(reference.__file__).read_text(encoding="utf-8").splitlines()
    imports = [line for line in lines if re.match(r"\s*(import|from)\b", line)]
    assert imports == ["import math", "import numpy as np"]


def find(name):
    return next(getattr(module, name) for module in (preference, policy, kl) if hasattr(module, name))


def tensors(arguments):
    return {
        key: torch.tensor(value, dtype=torch.float64) if isinstance(value, list) else value
        for key, value in arguments.items()
    }


def flat(result):
    parts = result if isinstance(result, tuple) else [result]
    return np.concatenate([np.asarray(part, dtype=np.float64).ravel() for part in parts])


@pytest.mark.parametrize("case", CASES, ids=[f"{case['function']}-{i}" for i, case in enumerate(CASES)])
def test_golden(case):
    expected = np.asarray(case["expected"], dtype=np.float64).ravel()
    ours = flat(find(case["function"])(**tensors(case["arguments"])))
    slow = flat(getattr(reference, case["function"])(**case["arguments"]))
    np.testing.assert_allclose(slow, expected, rtol=0, atol=case["tolerance"])
    np.testing.assert_allclose(ours, expected, rtol=0, atol=case["tolerance"])
