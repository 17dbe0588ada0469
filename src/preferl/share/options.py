"""Options of ``preferl card`` and ``preferl push``."""

from dataclasses import dataclass

PARTS = ("model", "adapter", "value_model")  # folders of a stage that hold weights


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """Options of ``preferl push``."""

    stage: str | None = None
    """Whose model; by default that of the policy that was evaluated, or else of the last one."""
    part: str = "model"
    """``model``, ``adapter`` (the LoRA weights alone) or ``value_model``."""
    license: str | None = None
    """The licence, an identifier of the Hub; by default that of base and data where it is one and known."""
    public: bool = False
    """Everybody may see it; by default nobody but its owner."""
    with_data: bool = False
    """Also uploads the data as NAME-data, with pseudonyms for the people who labelled."""
    dry_run: bool = False
    """Shows the list of files, and asks nothing of the Hub."""
    yes: bool = False
    """Uploads without asking."""
