"""Experiments: each makes a table, a figure and their provenance in one folder, and goes on when stopped.

A module of this package has a frozen dataclass `Config` with `out` and the experiment's options, and a
function `run(config)` that returns an exit status.
"""

# Name -> module, and what it does in a line.

EXPERIMENTS = {
    "warm-start": ("mammomil.experiments.warm_start", "train the small models that chapters start from"),
}
