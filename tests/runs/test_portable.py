"""Nothing that only Unix has is imported at module level: preferl can be imported anywhere."""

import subprocess
import sys

PROGRAM = """
import importlib, pkgutil, sys
UNIX = ("fcntl", "grp", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty")
import torch, transformers, fastapi, sqlalchemy, uvicorn  # what others import is theirs
import datasets, peft, alembic, matplotlib.pyplot, rich.progress, jsonargparse
kept = {name: sys.modules.pop(name) for name in UNIX if name in sys.modules}

class Blocked:
    def find_spec(self, name, path=None, target=None):
        caller = sys._getframe(1)
        while caller and "importlib" in caller.f_code.co_filename:
            caller = caller.f_back
        if name in UNIX and "preferl" in caller.f_globals.get("__name__", ""):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
import preferl
names = [module.name for module in pkgutil.walk_packages(preferl.__path__, "preferl.")]
for name in names:
    if "migrations" not in name and not name.endswith("__main__"):
        importlib.import_module(name)
from preferl.runs.devices import peak_memory_mib
print(len(names), peak_memory_mib(torch.device("cpu")))
"""


def test_every_module_can_be_imported_without_what_only_unix_has():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    count, peak = done.stdout.split()[-2:]
    assert int(count) > 100
    assert peak == "nan"
