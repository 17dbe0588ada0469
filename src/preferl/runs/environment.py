"""What a run was made with: versions and machine, for ``env.json`` and the manifests."""

import os
import platform
from importlib import metadata
from typing import Any

from preferl import __version__

PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "safetensors", "numpy")


def environment() -> dict[str, Any]:
    """Versions and machine."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "preferl": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": versions,
    }
