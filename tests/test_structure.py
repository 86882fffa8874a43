import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The way of the data, top to bottom. A module imports only modules above it.
ORDER = [
    "files", "downloads", "types",
    "dicom", "pectoral", "preprocess", "noise", "anatomy", "lesions", "phantom", "phantom_set", "index",
    "readers.mini_mias", "readers.folder", "augment", "cache", "dataset",
    "regions", "pooling", "backbones", "gmic", "cnn_m", "encoders", "dual_branch", "region_model",
    "region_data", "codes", "losses", "weights",
    "intervals", "froc", "metrics", "protocols", "runs", "workers", "validation", "train", "recipes",
    "jobs", "search",
    "items", "predictor", "panels", "plots", "display_base", "table_displays", "displays", "region_plots",
    "report", "predict", "predicted", "judging", "evaluate", "evaluation_figures", "evaluation_plots",
    "evaluation_report", "demo",
    "experiments.common", "experiments.warm_start", "experiments.reader_scores", "experiments.reader_study",
    "experiments.gmic_runs", "experiments.gmic_ablation", "experiments.gmic_search",
    "experiments.region_runs", "experiments.region_tables", "experiments.dual_branch_weak",
    "experiments.dual_branch_semi",
    "experiments.probability_plane", "experiments.annotation_budget", "experiments.compare", "practice",
    "cli",
    "marks", "scenes", "explorer", "explorers.views", "explorers.saliency", "explorers.retrieval",
    "explorers.attention", "explorers.replay", "explorers.ablation", "explorers.readers", "explorers.ranking",
    "explorers.selection", "explorers.iom", "explorers.froc", "explorers.plane", "explorers.budget",
    "widgets",
    "check.answers", "check.welcome", "check.mammograms", "check.saliency", "check.regions",
    "check.attention", "check.training", "check.ablation", "check.evidence", "check.codes", "check.branches",
    "check.selection", "check.weak", "check.contours", "check.semi", "check.budget", "check.operating",
    "check.plane", "check.versus", "check.yours", "check.scale", "classroom", "preflight",
]  # fmt: skip


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted((ROOT / "mammomil").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT / "mammomil").with_suffix("").parts)
        if not name.endswith("__init__"):
            found[name] = path
    return found


def test_the_list_names_every_module():
    assert set(modules()) == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_a_module_imports_only_modules_above_it(name):
    tree = ast.parse(modules()[name].read_text(encoding="utf-8"))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mammomil"):
            package = node.module.removeprefix("mammomil").lstrip(".")
            names = [package, *(f"{package}.{alias.name}".lstrip(".") for alias in node.names)]
            imported |= {n for n in names if n in ORDER}
    above = set(ORDER[: ORDER.index(name)])
    assert imported <= above, f"{name} imports {sorted(imported - above)} from below"


def test_help_and_import_load_nothing_heavy():
    """`mammomil --help` answers within a second because it imports no torch; nor does `import mammomil`."""
    code = (
        "import sys, mammomil, mammomil.cli; mammomil.cli.main(['--help']);"
        "heavy = {'torch', 'torchvision', 'sklearn', 'skimage', 'pandas', 'matplotlib', 'pydicom', 'scipy'};"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "mammomil COMMAND" in done.stdout


def test_the_model_loads_neither_torchvision_nor_scikit_learn():
    code = (
        "import sys, mammomil.gmic, mammomil.losses;"
        "heavy = {'torchvision', 'sklearn', 'skimage', 'pandas', 'matplotlib', 'pydicom', 'accelerate'};"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_conda_environment_is_in_step_with_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "environment.yml").read_text()
    low = project["requires-python"].removeprefix(">=")
    newest = max(
        int(c.rsplit(".", 1)[1]) for c in project["classifiers"] if re.search(r"Python :: 3\.\d+$", c)
    )
    assert f"python>={low},<3.{newest + 1}" in lines
    assert "--constraint constraints.txt" in lines
    extras = re.search(r"--editable \.\[(\w+)\]", lines)
    assert extras is not None
    assert extras[1] in project["optional-dependencies"]
    for line in (ROOT / "Makefile").read_text().splitlines():
        if line.startswith("EXTRAS ?="):
            assert line.split()[-1] == extras[1]


def test_constraints_pin_every_dependency_once_and_name_no_address():
    text = (ROOT / "constraints.txt").read_text()
    pins = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9._]+", line) for line in pins)
    names = [line.split("==")[0].lower() for line in pins]
    assert len(names) == len(set(names))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(d for extra in project["optional-dependencies"].values() for d in extra),
    ]
    for requirement in wanted:
        name = re.match(r"[A-Za-z0-9_-]+", requirement)[0].lower().replace("_", "-")
        assert name == "mammomil" or name in names, f"{name} has no version in constraints.txt"


def test_core_dependencies_have_floors_and_no_ceilings():
    """A ceiling could make an install replace torch or numpy in a running Colab session."""
    for requirement in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]:
        assert re.fullmatch(r"[A-Za-z-]+>=[0-9.]+", requirement), requirement


def test_the_readmes_python_examples_run(monkeypatch, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    assert len(blocks) == 3
    for block in (blocks[0], blocks[2]):  # the second needs a trained model: see test_predict
        exec(compile(block, "README.md", "exec"), {})
