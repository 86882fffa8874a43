"""Random search of GMIC's hyper-parameters on Optuna: one study, any number of workers on any machines.

OUT/study.journal is the study; OUT/trials/NNNN is the training run of a trial, an ordinary one, held by its
worker (see `workers`). A trial that runs by the study, but that no living worker holds, was cut short:
whoever asks for work next takes that very trial, with its number and values, and resumes its checkpoint.
"""

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pandas as pd
import torch
import tyro
from torch.utils.data import DataLoader

from mammomil.dataset import MammogramDataset, collate
from mammomil.files import InputError, atomic_path, provenance, read_json, write_json
from mammomil.gmic import GMIC
from mammomil.index import Index, read_index, subset
from mammomil.jobs import run_training
from mammomil.recipes import GMICRun, Scale, preset
from mammomil.types import FINDINGS
from mammomil.weights import load_model
from mammomil.workers import (
    holding,
    import_optuna,
    is_held,
    is_orphan,
    journal,
    locked,
    start_workers,
    take,
)

if TYPE_CHECKING:
    from optuna import Study, Trial

Bounds = tuple[float, float]

_STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}


@dataclass(frozen=True)
class SearchSpace:
    """Lowest and highest of the values drawn, log-uniform in between; the GMIC paper's (checklist G10)."""

    learning_rate: Bounds = (10**-5.5, 10**-3.8)
    """Of Adam. The paper has 10^-5.5 to 10^-3.8. The quick scale has a range as wide and ten times higher,
    10^-4.5 to 10^-2.8: its small network learns at 2e-4 to 5e-4 and has few epochs."""
    weight: Bounds = (10**-5, 10**-2.8)
    """lambda, weight of the saliency map's regulariser. The paper has 10^-5 to 10^-2.8."""
    beta: Bounds = (math.exp(-1.6), math.exp(1.6))
    """Exponent of the regulariser. The paper has e^-1.6 to e^1.6."""
    top_t: Bounds = (math.exp(-5), math.exp(-1.5))
    """t, fraction of the map that makes y_loc. The paper has e^-5 to e^-1.5."""

    def __post_init__(self):
        for name, (low, high) in vars(self).items():
            if not 0 < low <= high < math.inf:
                raise ValueError(f"space.{name} is two numbers, 0 < low <= high, not {low} {high}.")


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Draw hyper-parameters at random, train a GMIC with each draw, and list the best.

    The search of the GMIC paper (section 3.1): learning rate, lambda, beta and t; 100 models of 40 epochs;
    reported are the five with the best validation AUC of malignant findings. Start the same command as often
    as you like, on one machine or on several that share the disk of OUT: all work on one study. Stopped or
    killed, the same command goes on. OUT/trials.csv lists the trials with validation figures; test figures
    are in OUT/trials/NNNN/result.json alone, so that nobody chooses by them.

    The options of `mammomil train gmic` say what the trials share. Draws replace --train.learning-rate,
    --objective.weight, --objective.beta and --model.top-t; trials are ranked by --train.monitor; without
    --cache, prepared images are kept in OUT/cache.
    """

    run: Annotated[GMICRun, tyro.conf.arg(name="")]
    """What the trials share; its `out` is the folder of the search."""
    trials: int = 100
    """Trials of the whole study, whoever trains them. A larger number goes on with a finished study."""
    prune: bool = False
    """End a trial early when its best figure is below the median of complete trials at the same epoch; from
    the sixth trial and a quarter of the epochs on. Saves time, and prefers large learning rates, which start
    fast; the paper does not."""
    workers: int = 1
    """Processes to start on this machine, each on a trial of its own. They share the cores, and the GPUs."""
    space: SearchSpace = SearchSpace()
    """The lowest and highest value of each draw."""

    def __post_init__(self):
        if min(self.trials, self.workers) < 1:
            raise ValueError("trials and workers must be 1 or more.")


def search_preset(scale: Scale, data: Path, out: Path) -> SearchConfig:
    """Return a search with the settings of a scale: `full` is the paper's, `quick` fits two CPU cores."""
    run = preset("gmic", scale, data, out)
    if scale == "full":
        return SearchConfig(run=run)
    return SearchConfig(run=run, trials=12, space=SearchSpace(learning_rate=(10**-4.5, 10**-2.8)))


def run_search(config: SearchConfig) -> int:
    """Work on a search until no trial is left to begin, and print the best.

    Files in OUT: `study.journal`, `trials.csv`, `search.json` (provenance), `trials/NNNN/` (see
    `run_training`), `cache/` (prepared images, for all trials).

    Returns:
        An exit status: 0; 1 if no trial succeeded or a worker broke down; 130 if stopped.

    Raises:
        InputError: Optuna is missing, OUT holds another search, or the first three trials all failed.
    """
    study, n = open_study(config), config.workers
    status = _work(config) if n == 1 else start_workers(_work, config, n)
    table = _write_tables(study, config)
    print(search_text(config, table))
    if status == 130:
        print("Stopped; everything is saved. The same command goes on from here.")
    return status or int(_ranked(table, config.run.train.monitor).empty)


def open_study(config: SearchConfig) -> "Study":
    """Open the study of a search, or begin it.

    Raises:
        InputError: Optuna is missing, the index cannot be read, or OUT holds a search with other settings.
    """
    optuna, run = import_optuna(), config.run
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("one process trains a trial: start the search without a launcher, with --workers.")
    read_index(run.data)  # says now, and not in each trial, that it cannot be read
    told, places = dataclasses.asdict(config), ("out", "cache", "memory_gb", "resume")
    settings = {k: v for k, v in told["run"].items() if k not in places} | {"space": told["space"]}
    settings = json.loads(json.dumps(settings, default=str))
    with locked(run.out):
        if not (run.out / "config.json").exists():
            write_json(run.out / "config.json", settings)
        known = read_json(run.out / "config.json")
        changed = [f"{k} {known.get(k)}" for k, value in settings.items() if known.get(k) != value]
        if changed:
            raise InputError(
                f"{run.out}: holds a search with {'; '.join(changed)}. Give the same, or another --out."
            )
        pruner = optuna.pruners.MedianPruner(5, max(run.train.epochs // 4, 1))
        return optuna.create_study(
            study_name="gmic",
            storage=journal(run.out / "study.journal"),
            direction="minimize" if run.train.monitor.startswith("loss") else "maximize",
            sampler=optuna.samplers.RandomSampler(),
            pruner=pruner if config.prune else optuna.pruners.NopPruner(),
            load_if_exists=True,
        )


def suggest(space: SearchSpace, trial: "Trial", seed: int) -> dict[str, float]:
    """Draw the values of a trial with Optuna's `RandomSampler`.

    Each value has a generator of its own, seeded by (seed, trial, place in the space): workers draw different
    trials, trial 7 of a seed is the same with any number of them, and also if it is cut short between draws.
    """
    from optuna.samplers import RandomSampler

    values = {}
    for place, (name, (low, high)) in enumerate(vars(space).items()):
        state = np.random.SeedSequence((seed, trial.number, place)).generate_state(1)
        trial.study.sampler = RandomSampler(int(state[0]))
        values[name] = trial.suggest_float(name, low, high, log=True)
    return values


def trial_run(config: SearchConfig, number: int, values: dict[str, float]) -> GMICRun:
    """Return the training run of a trial.

    All trials have the seed of the search, as an index without splits is split by it: figures of different
    validation patients could not be compared.
    """
    base = config.run
    return dataclasses.replace(
        base,
        out=trial_folder(base.out, number),
        train=dataclasses.replace(base.train, learning_rate=values["learning_rate"]),
        objective=dataclasses.replace(base.objective, weight=values["weight"], beta=values["beta"]),
        model=dataclasses.replace(base.model, top_t=values["top_t"]),
        cache=base.cache or base.out / "cache",
        resume=True,
    )


def trial_folder(out: Path, number: int) -> Path:
    """Return the folder of a trial's training run."""
    return out / "trials" / f"{number:04d}"


def _work(config: SearchConfig) -> int:
    """Train trial after trial; return 0, or 130 if stopped."""
    study = open_study(config)
    while not is_orphan() and (trial := _claim(study, config)) is not None:
        with holding(trial_folder(config.run.out, trial.number)):
            if not _run_trial(study, trial, config):
                return 130
        print(_progress_text(config, _write_tables(study, config), trial.number), flush=True)
    return 0


def _claim(study: "Study", config: SearchConfig) -> "Trial | None":
    """Take a trial that was cut short, else begin one; None when all are begun."""
    from optuna import Trial

    out = config.run.out
    with locked(out):
        trials = study.get_trials(deepcopy=False)
        ended = [trial for trial in trials if trial.state.is_finished()]
        if len(ended) == 3 and all(trial.state.name == "FAIL" for trial in ended):
            reason = ended[-1].user_attrs["reason"]
            raise InputError(f"{out}: the first three trials failed. Delete it and correct this: {reason}")
        running = [trial for trial in trials if trial.state.name == "RUNNING"]
        if free := [trial for trial in running if not is_held(trial_folder(out, trial.number))]:
            trial = Trial(study, free[0]._trial_id)  # the trial itself, not a copy of it
        elif len(trials) < config.trials:
            trial = study.ask()
        else:
            return None
        take(trial_folder(out, trial.number))
        return trial


def _run_trial(study: "Study", trial: "Trial", config: SearchConfig) -> bool:
    """Train a trial, or go on with it, and tell the study; return False if stopped."""
    from optuna.trial import TrialState

    run = trial_run(config, trial.number, suggest(config.space, trial, config.run.train.seed))
    monitor = run.train.monitor

    def on_epoch(row: dict[str, Any]) -> bool:
        if (value := row.get("val", {}).get(monitor)) is None:
            raise InputError(f"{run.data}: val images give no {monitor}, which needs both classes.")
        known = study.get_trials(deepcopy=False)[trial.number].intermediate_values
        if row["epoch"] not in known:  # a trial that goes on is asked again about its last epoch
            trial.report(value, row["epoch"])
            if row["epoch"] + 1 < run.train.epochs and trial.should_prune():
                trial.set_user_attr("pruned", True)  # kept: the median may be another one later
        return "pruned" in trial.user_attrs

    try:
        result = run_training(run, progress=False, on_epoch=on_epoch)
        if result.interrupted:
            return False
        on_epoch(result.history[-1])
    except InputError as error:
        trial.set_user_attr("reason", str(error).removeprefix(f"{run.out}: "))
        study.tell(trial, state=TrialState.FAIL)
        return True
    best = next(row for row in reversed(result.history) if row["best"])
    minutes = round(sum(row["seconds"] for row in result.history) / 60, 2)
    trial.set_user_attr("told", {"epochs": len(result.history), "minutes": minutes, **best["val"]})
    if "pruned" in trial.user_attrs:
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, best["val"][monitor])
    return True


def _write_tables(study: "Study", config: SearchConfig) -> pd.DataFrame:
    """Write trials.csv and search.json as the study stands, and return the table."""
    out, monitor = config.run.out, config.run.train.monitor
    with locked(out):
        rows = [
            {"trial": t.number, "state": _STATES.get(t.state.name, "waiting"), **t.params}
            | {name: math.nan if v is None else v for name, v in t.user_attrs.get("told", {}).items()}
            | {"reason": t.user_attrs.get("reason")}
            for t in study.get_trials(deepcopy=False)
        ]
        columns = dict.fromkeys(
            ("trial", "state", *vars(config.space), "reason", "epochs", "minutes", monitor)
        )
        columns |= dict.fromkeys(name for row in rows for name in row)
        table = pd.DataFrame(rows, columns=list(columns))
        with atomic_path(out / "trials.csv") as temporary:
            table.to_csv(temporary, index=False)
        facts = provenance(
            command="search gmic", settings=read_json(out / "config.json"), trials=config.trials,
            prune=config.prune, states=table["state"].value_counts().to_dict(),
            chosen_by=f"validation {monitor}",
            best=_ranked(table, monitor).head(5)[["trial", monitor]].to_dict("records"),
        )  # fmt: skip
        write_json(out / "search.json", facts)
    return table


def _ranked(table: pd.DataFrame, figure: str) -> pd.DataFrame:
    """Return the trials that have a model and the figure, best first; of equal ones the earlier first."""
    kept = table[table["state"].isin(["complete", "pruned"]) & table[figure].notna()]
    return kept.sort_values([figure, "trial"], ascending=[figure.startswith("loss"), True])


def _progress_text(config: SearchConfig, table: pd.DataFrame, number: int) -> str:
    """Return a line such as `trial 7: auc_malignant 0.71, best 0.78 (trial 3), 12 of 100`."""
    figure, row = config.run.train.monitor, table.iloc[number]
    parts = [f"{figure} {row[figure]:.3f}" if row["state"] != "failed" else f"failed ({row['reason']})"]
    if row["state"] == "pruned":
        parts.append(f"pruned after {row['epochs']:.0f} epochs")
    if len(ranked := _ranked(table, figure)):
        parts.append(f"best {ranked[figure].iloc[0]:.3f} (trial {ranked['trial'].iloc[0]})")
    done = table["state"].isin(["complete", "pruned", "failed"]).sum()
    return f"trial {number}: {', '.join(parts)}, {done} of {config.trials}"


def search_text(config: SearchConfig, table: pd.DataFrame, n: int = 5) -> str:
    """Return how a search stands, and its best trials, as a person reads them."""
    figure = config.run.train.monitor
    states = ", ".join(f"{count} {state}" for state, count in table["state"].value_counts().items())
    lines = [f"{len(table)} of {config.trials} trials begun: {states or 'none'}."]
    lines += [f"trial {row.trial} failed: {row.reason}" for row in table.itertuples() if row.reason]
    if len(best := _ranked(table, figure).head(n)):
        names = [figure, *(f"auc_{finding}" for finding in FINDINGS), *vars(config.space), "epochs"]
        columns = [name for name in dict.fromkeys(["trial", *names]) if name in best]
        lines += ["", f"Best by validation {figure}:"]
        lines += [best[columns].to_string(index=False, na_rep="-", float_format="{:.3g}".format), ""]
        lines.append(f"models: {config.run.out / 'trials'}/NNNN/model; all: {config.run.out / 'trials.csv'}")
    return "\n".join(lines)


def top_trials(out: str | Path, n: int = 5, figure: str = "auc_malignant") -> list[Path]:
    """Return the model folders of the best trials of a search, best first.

    Complete and pruned trials count, by the validation figure of the epoch whose weights were kept; those
    without such a figure do not. Of equal ones the earlier goes first.

    Args:
        out: the folder of the search.
        n: how many; fewer where there are no more.
        figure: a column of trials.csv; larger is better, but for a loss.

    Raises:
        InputError: there is no such search or figure, or no trial to choose.
    """
    path = Path(out) / "trials.csv"
    if not path.is_file():
        raise InputError(f"{path}: there is no such file. Name the folder of a search.")
    table = pd.read_csv(path)
    if figure not in table or (ranked := _ranked(table, figure)).empty:
        known = ", ".join(name for name in table if name.startswith(("auc", "loss")))
        raise InputError(f"{path}: no trial with a model has {figure}; figures there: {known}.")
    return [trial_folder(Path(out), number) / "model" for number in ranked["trial"].head(n)]


@torch.inference_mode()
def ensemble_predictions(
    model_dirs: Sequence[str | Path],
    index: Index,
    split: str | None = None,
    cache: str | Path | None = None,
    batch_size: int = 8,
) -> pd.DataFrame:
    """Average the probabilities of several GMICs, as the paper does with its five best.

    Every image is read and prepared once for all models that prepare it alike; one in the cache never.

    Args:
        model_dirs: model folders, for example from `top_trials`.
        index: the images.
        split: the images to predict; None is all.
        cache: folder of prepared images, such as OUT/cache of the search.
        batch_size: images in one pass.

    Returns:
        A row per image that can be read, in the order of the index: `image_id`, `patient_id`, `exam_id`,
        `laterality`, `view`, labels `benign` and `malignant` (NaN where unknown), and the mean probabilities
        `p_benign` and `p_malignant`.

    Raises:
        InputError: no folder, or one that holds no GMIC; no image can be used.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = [load_model(folder) for folder in model_dirs]
    wrong = [str(d) for d, one in zip(model_dirs, loaded, strict=True) if not isinstance(one.model, GMIC)]
    if wrong or not loaded:
        raise InputError(f"{', '.join(wrong) or 'no model'}: this ensemble is made of folders of GMICs.")
    chosen = index if split is None else subset(index, split)
    sums = []
    for preprocess in dict.fromkeys(one.preprocess for one in loaded):
        models = [one.model.to(device).eval() for one in loaded if one.preprocess == preprocess]
        data = MammogramDataset(chosen, preprocess, cache=cache)
        data.prepare_all(progress=False)
        prob = np.zeros((len(data), len(FINDINGS)))
        for batch in DataLoader(data, batch_size, collate_fn=collate):
            for model in models:
                patches = torch.Generator(device).manual_seed(0)  # for the ablation with random ones
                prob[batch.row.numpy()] += model(batch.image.to(device), patches).y.double().cpu().numpy()
        sums.append(pd.DataFrame(prob, data.images["image_id"], [f"p_{name}" for name in FINDINGS]))
    mean = (sum(sums) / len(loaded)).dropna()  # NaN: one way of preparing refuses the image
    columns = ["image_id", "patient_id", "exam_id", "laterality", "view", *FINDINGS]
    return chosen.images[columns].merge(mean, "inner", left_on="image_id", right_index=True)
