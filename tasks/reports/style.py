"""One style for all pictures: Petroff's colours, which colour-blind readers can tell apart, and little beside the data.

Petroff 2021, "Accessible color sequences for data visualization", arXiv 2107.02270.
"""

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

OURS, OTHERS, QUIET = "#e76300", "#3f90da", "#94a4a2"  # rows of MS-SSM, other rows, and what only gives the context


# Decorates what draws; the figures of others in the same process keep their own style.
styled = plt.style.context(
    [
        "petroff10",
        {
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.titlelocation": "left",
            "axes.titlesize": "medium",
            "grid.alpha": 0.3,
            "legend.frameon": False,
            "savefig.dpi": 150,
        },
    ]
)
