"""preferl: RLHF, complete, correct and fast, from preferences to policy.

The pipeline is ``sft -> collect -> reward -> rl -> evaluate -> report``; each arrow is a directory on
disk. Importing the package loads no heavy library: import the module you need, for example
``from preferl.maths.policy import gae``.
"""

__version__ = "0.1.0"
