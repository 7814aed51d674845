"""The rates and times as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7")  # Okabe and Ito, told apart by the colour-blind


def draw(medians: Mapping[Any, Any], path: Path) -> None:
    """Bars of instances a second (above) and p99 time to Success (below) by associations, for the largest PDU."""
    largest = max(point.pdu_bytes for point in medians)
    kinds = list(dict.fromkeys(point.object_name for point in medians))
    names = list(dict.fromkeys(point.receiver for point in medians))
    counts = sorted({point.associations for point in medians})
    figure, axes = plt.subplots(2, len(kinds), figsize=(3.6 * len(kinds), 6), squeeze=False, layout="constrained")
    for column, kind in enumerate(kinds):
        for row, (figure_name, label) in enumerate(
            (("instances_per_s", "instances a second"), ("p99_ms", "p99 time to Success, ms"))
        ):
            axis = axes[row][column]
            for number, name in enumerate(names):
                found = {
                    point.associations: getattr(each, figure_name)
                    for point, each in medians.items()
                    if (point.object_name, point.receiver, point.pdu_bytes) == (kind, name, largest) and not each.void
                }
                places = [counts.index(count) + (number - len(names) / 2 + 0.5) * 0.8 / len(names) for count in found]
                axis.bar(places, list(found.values()), 0.8 / len(names), label=name, color=_COLOURS[number % 4])
            axis.set_xticks(range(len(counts)), [str(count) for count in counts])
            axis.set_xlabel("associations")
            axis.set_title(kind if row == 0 else "")
            if column == 0:
                axis.set_ylabel(label)
    axes[0][0].legend(fontsize="small")
    figure.suptitle(f"Reception, PDUs of {largest >> 10} KB")
    figure.savefig(path, dpi=120)
    plt.close(figure)
