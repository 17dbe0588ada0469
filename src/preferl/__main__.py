"""``python -m preferl`` is the same as ``preferl``."""

from preferl.runs import signals


def main() -> int:
    """The command line, which can be interrupted from its first import on; returns the exit code."""
    with signals.handled():
        from preferl.cli import main as command_line

        return command_line()


if __name__ == "__main__":
    raise SystemExit(main())
