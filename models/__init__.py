"""What a model version is and how it runs: card, registry, pixels, preprocessing, session, prediction.

Knows nothing of peers, disks that receive, or clocks; imports none of ``gateway``, ``drift``, ``xai``.
"""

from pathlib import Path


def bundled_folders() -> tuple[Path, ...]:
    """Folders of the bundles that ship with the code, by name and version."""
    return tuple(sorted(card.parent for card in (Path(__file__).parent / "bundled").glob("*/*/card.yaml")))
