"""``python -m preferl`` is the same as ``preferl``."""

from preferl.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
