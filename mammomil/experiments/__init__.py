"""Experiments: each makes a table, a figure and their provenance in one folder, and goes on when stopped.

A module of this package has a frozen dataclass `Config` with `out` and the experiment's options, a function
`run(config)` that returns an exit status and, where they depend on the scale, `defaults(scale)`.
"""

# Name -> module, and what it does in a line.

EXPERIMENTS = {
    "warm-start": ("mammomil.experiments.warm_start", "train the small models that chapters start from"),
    "gmic-ablation": (
        "mammomil.experiments.gmic_ablation",
        "GMIC, Table 1: what each module buys; Section 3.3",
    ),
    "gmic-search": (
        "mammomil.experiments.gmic_search",
        "GMIC, random search and the ensemble of the best five",
    ),
    "reader-study": (
        "mammomil.experiments.reader_study",
        "GMIC, Fig. 3: 14 readers, the model, and both together",
    ),
    "dual-branch-weak": ("mammomil.experiments.dual_branch_weak", "dual branch, Table II weak, Fig. 3 and 5"),
    "dual-branch-semi": (
        "mammomil.experiments.dual_branch_semi",
        "dual branch, Table II semi-supervised, Fig. 5",
    ),
    "probability-plane": ("mammomil.experiments.probability_plane", "dual branch, Fig. 6 and Table III"),
    "annotation-budget": (
        "mammomil.experiments.annotation_budget",
        "what boxes are worth, in minutes of work",
    ),
    "compare": ("mammomil.experiments.compare", "GMIC against the dual branch on the same exams"),
}
