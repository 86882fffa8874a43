"""The command `mammomil`: demo, phantom, index, train, search, predict, evaluate, experiment.

Help must answer at once, so torch and the rest of the library are imported by the command that needs them.
"""

import contextlib
import difflib
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from mammomil import __version__
from mammomil.files import InputError

if TYPE_CHECKING:
    from mammomil.index import Index

Paths = tuple[Path, ...]


def _demo(out: Path = Path("demo_output"), seed: int = 0, force: bool = False) -> int:
    """Train GMIC and the dual-branch network, both small, on synthetic mammograms, and show what they see.

    Starts from a half-trained GMIC in data_samples, says what it can do, trains it on, trains a dual-branch
    network from the same labels, and shows both on the same exams, which neither has seen. Needs no network
    and no GPU; takes about five minutes on two cores. Look at OUT/report/report.html. A demo that was stopped
    goes on where it was.

    Args:
        out: folder for everything the demo makes.
        seed: another seed, another set of phantoms and another model.
        force: delete what an earlier demo left in OUT, and start again.
    """
    from mammomil.demo import run_demo

    return run_demo(out, seed, force)


def _phantom(
    out: Path,
    exams: int = 20,
    scale: Literal["quick", "half", "full"] = "quick",
    seed: int = 0,
    conspicuity: float = 1.0,
    crowd: int = 0,
    workers: int = 1,
    samples: bool = False,
    force: bool = False,
) -> int:
    """Draw synthetic four-view exams with exact truth. An interrupted run continues where it stopped.

    Args:
        out: folder for index.csv, findings.csv, images/, masks/, truth/ and a data card.
        exams: number of exams, four images each.
        scale: `quick` is 368x240 pixels, `half` 1472x960, `full` 2944x1920.
        seed: the same seed draws the same exams.
        conspicuity: contrast of lesions: 0.5 is subtle, 1 is physics, 3 is trivial.
        crowd: so many more findings in every breast, to train small fields of view on.
        workers: processes that draw; 0 is one per core.
        samples: draw the phantoms that data_samples ships (40 quick exams, 4 at half scale in OUT/half, 1 at
            full scale in OUT/full); the options above but OUT and WORKERS do not count then.
        force: replace a finished set in OUT.
    """
    from mammomil.phantom_set import write_phantoms, write_samples

    if samples:
        print(write_samples(out, force=force, workers=workers))
    else:
        settings = (exams, scale, seed, conspicuity)
        print(write_phantoms(out, *settings, force=force, workers=workers, crowd=crowd))
    return 0


def _mini_mias(src: tyro.conf.Positional[Path], out: Path, seed: int = 0, force: bool = False) -> int:
    """Index the mini-MIAS films: 322 MLO views at 0.2 mm with class, severity and circles.

    Args:
        src: the folder with Info.txt and mdb001.pgm to mdb322.pgm, as far as you have them.
        out: folder for index.csv and findings.csv; the films stay where they are.
        seed: seed of the split of the patients into train, val and test.
        force: replace an index in OUT.
    """
    from mammomil.index import split_patients
    from mammomil.readers import mini_mias

    index = mini_mias.read(src)
    return _write_index(index._replace(images=split_patients(index.images, seed=seed)), out, force)


def _folder(
    src: tyro.conf.Positional[Path],
    out: Path,
    labels: Path | None = None,
    seed: int = 0,
    force: bool = False,
) -> int:
    """Index a folder of mammograms (DICOM, PNG, PGM, TIFF), with a table of labels if you have one.

    Laterality and view come from DICOM tags or file names; labels nobody gave stay unknown.

    Args:
        src: the folder; its subfolders are searched too.
        out: folder for index.csv; the images stay where they are.
        labels: CSV with a column `path` relative to SRC, and others such as `benign`, `malignant`,
            `patient_id`.
        seed: seed of the split of the patients into train, val and test.
        force: replace an index in OUT.
    """
    from mammomil.index import split_patients
    from mammomil.readers import folder

    index, failures = folder.read(src, labels)
    if (index.images["split"] == "").all():
        index = index._replace(images=split_patients(index.images, seed=seed))
    status = _write_index(index, out, force)
    for path, reason in failures:
        print(f"left out: {path}: {reason}", file=sys.stderr)
    return 1 if failures else status


def _write_index(index: "Index", out: Path, force: bool) -> int:
    """Write an index whose paths lead from OUT to the images, and say what is in it."""
    from mammomil.index import write_index

    if (out / "index.csv").exists() and not force:
        raise InputError(
            f"{out / 'index.csv'}: exists already. Replace it with --force, or choose another --out."
        )
    write_index(index, out)
    images = index.images
    print(f"{out / 'index.csv'}: {len(images)} images of {images['patient_id'].nunique()} patients")
    for split, group in images.groupby("split"):
        counts = ", ".join(
            f"{int((group[name] == 1).sum())} {name}, {int(group[name].isna().sum())} unknown"
            for name in ("benign", "malignant")
        )
        print(f"  {split}: {len(group)} images ({counts})")
    return 0


def _predict(
    paths: Annotated[tyro.conf.Positional[Paths], tyro.conf.arg(metavar="PATH...")],
    model: Paths,
    out: Path,
    save_maps: bool = False,
    panels: bool = True,
) -> int:
    """Say what a trained model sees: probabilities, regions and pictures, in the pixels of your files.

    Args:
        paths: files, folders or an index.csv; DICOM, 8- and 16-bit PNG, PGM, TIFF.
        model: one or more model folders, as `mammomil train` writes them.
        out: folder for predictions.csv, regions.csv, breasts.csv, failures.csv, panels/ and report.html.
        save_maps: also write the saliency maps as maps/IMAGE.npz.
        panels: draw a picture of every image.
    """
    from mammomil.predict import predict_to_folder

    if not paths:
        raise InputError("name at least one image, folder or index.csv to predict.")
    return predict_to_folder(model, paths, out, save_maps=save_maps, panels=panels)


def _evaluate(
    data: Path,
    model: Path | None = None,
    predictions: Path | None = None,
    split: Literal["all", "train", "val", "test"] = "all",
    out: Path | None = None,
    mask_iom: bool = False,
) -> int:
    """Say how well models do on images whose answers are known: who has a finding, and where.

    Give --model to predict the images now, or --predictions to judge what `mammomil predict` wrote before,
    of one or of several models. The printed table gives, per finding and with 95 % intervals over patients:
    the AUC, the chance that an image with the finding gets a higher probability than one without; of the
    images with a lesion whose place is known, the share in which the region the model trusts most hits it
    (intersection over the smaller area of 0.5 or more), and the share in which the saliency map is highest
    within the lesion's box. Read AUC and places together: a model may be right for the wrong reason. Judge
    on images it was not trained on.

    With --out there is a page with all of it: figures per image, breast and exam, ROC, FROC and reliability
    curves, the probability plane, maps against masks, the largest errors, pairs of models compared, and what
    was left out.

    Args:
        data: the index.csv of the images, or its folder; places need a findings.csv beside it.
        model: a model folder, as `mammomil train` writes it.
        predictions: a folder that `mammomil predict` wrote; maps are judged if it was with --save-maps.
        split: the images to judge. Choose test for a figure to report.
        out: folder for report.html, figures/, evaluation.json (all figures) and evaluation.csv (images).
        mask_iom: compare regions with the pixels of a lesion where there is a mask, not with its box.
    """
    from mammomil.evaluation_report import evaluate_to_folder

    return evaluate_to_folder(data, model, predictions, None if split == "all" else split, out, mask_iom)


def _experiment(args: Sequence[str]) -> int:
    """Run an experiment; its options are the fields of its `Config`."""
    from importlib import import_module

    from mammomil.experiments import EXPERIMENTS

    if not args or args[0] not in EXPERIMENTS:
        names = "\n".join(f"  {name:<17} {text}" for name, (_, text) in EXPERIMENTS.items())
        print(
            "usage: mammomil experiment NAME [--scale quick|full] [--data INDEX] [--out DIR] ...\n\n"
            f"{names}\n\n"
            "An experiment writes a table, a figure and where they come from. Stopped, it goes on when run "
            "again.\n"
            "`mammomil experiment NAME --help` lists the options."
        )
        return 0 if args and args[0] in ("-h", "--help") else 2
    module = import_module(EXPERIMENTS[args[0]][0])
    default = module.defaults(_scale_of(args[1:])) if hasattr(module, "defaults") else None
    prog = f"mammomil experiment {args[0]}"
    config = tyro.cli(module.Config, **({"default": default} if default else {}), args=args[1:], prog=prog)
    from mammomil.experiments.common import Stopped

    try:
        return module.run(config)
    except Stopped:
        print("stopped; everything is saved. The same command goes on from here.")
        return 130


@contextlib.contextmanager
def _one_voice() -> Iterator[None]:
    """Where a launcher has started several processes, let the first one speak; the others tell errors."""
    with contextlib.ExitStack() as stack:
        if os.environ.get("RANK", "0") != "0":
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        yield


@_one_voice()
def _train(args: Sequence[str]) -> int:
    """Train a model on an index. The defaults of all options depend on --scale."""
    from mammomil.jobs import run_training
    from mammomil.recipes import RUNS, preset
    from mammomil.runs import processes

    if not args or args[0] not in RUNS:
        print(
            f"usage: mammomil train {{{','.join(RUNS)}}} --data INDEX --out DIR [--scale quick|full] ...\n\n"
            "  gmic         GMIC from image labels, as the paper trains it\n"
            "  dual-branch  regions classified and ranked, from image labels; with --annotated, also boxes\n"
            "  classifier   the plain ResNet-22: BI-RADS pre-training for GMIC, or Table 1's baseline\n\n"
            "`mammomil train gmic --help` lists the options of GMIC, and so on."
        )
        return 0 if args and args[0] in ("-h", "--help") else 2
    kind, rest = args[0], list(args[1:])
    default = preset(kind, _scale_of(rest), Path(), Path())
    for name in ("data", "out"):  # the two options without a default, in tyro's way of saying so
        object.__setattr__(default, name, tyro.MISSING)
    run = tyro.cli(type(default), default=default, args=rest, prog=f"mammomil train {kind}")
    result = run_training(run)
    processes().destroy_process_group()
    if result.interrupted:
        print(f"stopped after {len(result.history)} epochs; everything is saved. Continue with --resume.")
        return 130
    model = run.out / "model"
    print(f"model: {model}\nlook at it: mammomil predict --model {model} --out DIR PATH...")
    return 0


def _search(args: Sequence[str]) -> int:
    """Search hyper-parameters at random. The defaults of all options depend on --scale."""
    from mammomil.search import run_search, search_preset

    if not args or args[0] != "gmic":
        print(
            "usage: mammomil search gmic --data INDEX --out DIR [--scale quick|full] [--trials N] ...\n\n"
            "Train many GMICs with hyper-parameters drawn at random, and list the best, as its paper does.\n"
            "`mammomil search gmic --help` lists the options."
        )
        return 0 if args and args[0] in ("-h", "--help") else 2
    rest = list(args[1:])
    default = search_preset(_scale_of(rest), Path(), Path())
    for name in ("data", "out"):
        object.__setattr__(default.run, name, tyro.MISSING)
    return run_search(tyro.cli(type(default), default=default, args=rest, prog="mammomil search gmic"))


def _scale_of(args: Sequence[str]) -> str:
    """Read --scale ahead of all other options, because it sets their defaults."""
    for option, value in zip(args, [*args[1:], ""], strict=False):
        if option == "--scale" and value in ("quick", "full"):
            return value
        if option in ("--scale=quick", "--scale=full"):
            return option.split("=")[1]
    return "quick"


def _index(args: Sequence[str]) -> int:
    """Make the table of images that `train` and `predict` read."""
    return tyro.extras.subcommand_cli_from_dict(
        {"mini-mias": _mini_mias, "folder": _folder},
        prog="mammomil index",
        description="Make the table of images that train and predict read.",
        args=args,
    )


def _simple(function: Callable[..., int], name: str) -> Callable[[Sequence[str]], int]:
    return lambda args: tyro.cli(function, args=args, prog=f"mammomil {name}")


COMMANDS: dict[str, tuple[str, Callable[[Sequence[str]], int]]] = {
    "demo": ("train both models on phantoms and look at what they see", _simple(_demo, "demo")),
    "phantom": ("draw synthetic exams with exact lesion masks", _simple(_phantom, "phantom")),
    "index": ("make the table of images of a data set", _index),
    "train": ("train a model on an index", _train),
    "search": ("find hyper-parameters of GMIC by a random search", _search),
    "predict": ("look at your own mammograms through a trained model", _simple(_predict, "predict")),
    "evaluate": ("measure a trained model on images whose answers are known", _simple(_evaluate, "evaluate")),
    "experiment": ("make a table and a figure anew, with the models behind them", _experiment),
}


def _usage() -> str:
    commands = "\n".join(f"  {name:<10} {text}" for name, (text, _) in COMMANDS.items())
    return (
        f"mammomil {__version__}: weakly supervised mammography, to learn from and to train\n\n"
        f"usage: mammomil COMMAND [options]\n\n{commands}\n\n"
        "`mammomil COMMAND --help` explains a command. Start with `mammomil demo`.\n"
        "For teaching and research. Not a medical device."
    )


def main(args: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    0 is success, 1 something that could not be used, 2 a wrong command line, 130 stopped by Ctrl-C.
    """
    args = list(sys.argv[1:] if args is None else args)
    if not args or args[0] in ("-h", "--help"):
        print(_usage())
        return 0 if args else 2
    if args[0] == "--version":
        print(f"mammomil {__version__}")
        return 0
    if args[0] not in COMMANDS:
        near = difflib.get_close_matches(args[0], COMMANDS, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        print(f"mammomil: no command {args[0]!r}.{hint}\n\n{_usage()}", file=sys.stderr)
        return 2
    try:
        return COMMANDS[args[0]][1](args[1:])
    except InputError as error:
        print(f"mammomil: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.filename is None:
            raise
        print(f"mammomil: {error.filename}: {error.strerror}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("mammomil: stopped.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
