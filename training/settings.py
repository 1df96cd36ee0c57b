"""The settings of a run: from the flags of a new one, or the checkpoint of an interrupted one."""

import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

import data
import models
import utils
from training import checkpoint as checkpoints
from training import devices, run_folder
from training.checkpoint_content import MALFORMED, MAX_CONFIG_NUMBER, is_config
from training.flags import check_types, flag, setting, with_flags
from training.optimizer import build_optimizer
from training.recipe import NAMES, Recipe, named_recipe
from training.weights import WeightsFile, find_weights, load_for_cifar10, title

RUNS = Path(__file__).resolve().parents[1] / "runs"  # where new runs have their folders
AUTO = "auto"  # the value of --resume that is no path
EVAL_SPLITS = ("test", "val", "none")


@dataclass(frozen=True)
class Options:
    """The options of a run besides its recipe and its files; see Recipe."""

    model: str = setting("network", default=models.names()[0], choices=models.names())
    recipe: str = setting(
        "default: the network's own; short: 16 epochs", default=NAMES[0], choices=NAMES
    )
    data: str = setting("auto: CIFAR-10, else the sample", default="auto", choices=data.SOURCES)
    eval_split: str = setting(
        "scored after each epoch; val: 5,000 held out",
        default="val",
        choices=EVAL_SPLITS,
    )
    precision: str = setting(
        "of mixed-precision training", default="auto", choices=("auto", *devices.PRECISIONS)
    )
    seed: int = setting(
        "of weights, data order and augmentation", default=0, at_most=utils.LARGEST_SEED
    )
    checkpoint_minutes: float = setting("minutes between checkpoints within an epoch", default=5.0)


@dataclass(frozen=True)
class Settings:
    """All that defines a run; kept in its config.json and its checkpoints."""

    model: str
    config: dict[str, Any]
    recipe: Recipe
    source: str
    eval_split: str
    precision: str
    seed: int
    teachers: tuple[WeightsFile, ...] = ()
    weights: tuple[WeightsFile, ...] = ()  # to start from: one file, or none

    @property
    def train_split(self) -> str:
        return required_splits(self.eval_split)[0]

    @property
    def trained_on(self) -> dict[str, str]:
        """The images that the weights have seen: in this run, and before it if it started from
        trained ones."""
        sources = {self.source, *(file.source for file in self.weights)} - {""}
        splits = "+".join([self.train_split, *(file.train_split for file in self.weights)])
        return {
            "source": "sample" if sources == {"sample"} else "cifar10",
            "train_split": "+".join(sorted({*splits.split("+")} - {""})),
        }

    @property
    def title(self) -> str:
        return title(self.model, self.trained_on)


def required_splits(eval_split: str) -> tuple[str, ...]:
    """The splits that a run with this `eval_split`, which may be "none", reads: the one to train on
    first."""
    train_split = "train" if eval_split == "val" else "train+val"
    return (train_split,) if eval_split == "none" else (train_split, eval_split)


def find_data(source: str, eval_split: str, given: dict[str, Any]) -> str:
    """Make sure that the images of a run are on disk; downloads CIFAR-10 if need be. The source
    that was found."""
    directory = given.get("data_dir", data.DEFAULT_DIRECTORY)
    url = given.get("download_url")
    return data.find(source, directory, need=required_splits(eval_split), download_url=url)


def network_of(given: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and config of the network that the flags ask for: the one in --weights, if given."""
    if "weights" not in given:
        model = given.get("model", Options.model)
        return model, models.config_dict(model)
    (path,) = given["weights"]
    _, checkpoint = load_for_cifar10(path, "--weights")
    model = checkpoint["model"]
    if given.get("model", model) != model:
        raise utils.RunError(f"--weights {path} holds {model}, not {given['model']}")
    return model, checkpoint["config"]


def new_settings(given: dict[str, Any], device: torch.device) -> Settings:
    """The settings of a new run: the flags, and the network's own recipe for the rest."""
    options = with_flags(Options(), given)
    model, config = network_of(given)
    if not is_config(config):
        raise models.ModelError(
            f"the config of {model} does not fit into a checkpoint, which holds numbers up to"
            f" {MAX_CONFIG_NUMBER}, short texts, and lists of them"
        )
    recipe = with_flags(named_recipe(model, config, options.recipe), given)
    # These raise for what the network or the device cannot do, before any data is looked for.
    build_optimizer(models.build(model, **config), recipe)
    precision = devices.pick_precision(options.precision, device)
    teachers = find_weights(given.get("teacher", ()), "--teacher", options.eval_split)
    weights = find_weights(given.get("weights", ()), "--weights", options.eval_split)
    return Settings(
        model=model,
        config=config,
        recipe=recipe,
        source=find_data(options.data, options.eval_split, given),
        eval_split=options.eval_split,
        precision=precision,
        seed=options.seed,
        teachers=teachers,
        weights=weights,
    )


def resumed_settings(checkpoint: dict[str, Any], given: dict[str, Any], path: Path) -> Settings:
    """The settings of an interrupted run. Raises utils.RunError if a flag contradicts them."""
    if "training" not in checkpoint:
        raise utils.RunError(
            f"{path} holds released weights, which cannot be resumed: use last.safetensors"
        )
    if not isinstance(checkpoint["training"], dict):
        raise utils.RunError(f"{path} is damaged: its settings are invalid")
    try:
        settings = settings_from_fields(dict(checkpoint["training"]["settings"]))
        if (settings.model, settings.config) != (checkpoint["model"], checkpoint["config"]):
            raise ValueError("the weights are those of another network")
    except MALFORMED as error:
        raise utils.RunError(f"{path} is damaged: its settings are invalid") from error
    refuse_changes(settings, given)
    if "teacher" not in given:
        return settings
    teachers = find_weights(given["teacher"], "--teacher", settings.eval_split)
    if [file.sha256 for file in teachers] != [file.sha256 for file in settings.teachers]:
        began = ", ".join(file.path for file in settings.teachers) or "no teacher"
        raise utils.RunError(
            f"--teacher cannot change with --resume, except its path: the run began with {began}"
        )
    return replace(settings, teachers=teachers)


def settings_from_fields(fields: dict[str, Any]) -> Settings:
    """The settings from the fields that a checkpoint keeps.

    Raises:
        one of checkpoint_content.MALFORMED: a field is missing or invalid.
    """
    recipe = dict(fields.pop("recipe"))
    milestones = [(float(a), float(b), float(c)) for a, b, c in recipe["milestones"]]
    recipe["milestones"] = tuple(milestones)
    for name in ("teachers", "weights"):
        fields[name] = tuple(WeightsFile(**file) for file in fields.pop(name, ()))
    settings = Settings(recipe=Recipe(**recipe), **fields)
    for record in (settings, settings.recipe, *settings.teachers, *settings.weights):
        check_types(record)
    return settings


def refuse_changes(settings: Settings, given: dict[str, Any]) -> None:
    """RunError if a flag contradicts the settings of the run."""
    settled = {**asdict(settings), **asdict(settings.recipe), "data": settings.source}
    asked = given.get("weights", ())
    settled["weights"] = [p for p in asked if any(file.is_at(p) for file in settings.weights)]
    if "recipe" in given:  # stands for many settings, some of which other flags may override
        named = asdict(named_recipe(settings.model, settings.config, given["recipe"]))
        given = {**named, **{name: value for name, value in given.items() if name != "recipe"}}
    different = [
        name for name, value in given.items() if value not in ("auto", settled.get(name, value))
    ]
    if different:
        flags = ", ".join(map(flag, different))
        raise utils.RunError(f"{flags} cannot change with --resume: start a new run instead")


@dataclass(frozen=True)
class Plan:
    """What a command is about to do, as its flags and files say.

    Attributes:
        output: the folder of the run.
        requested: the checkpoint that the user asked to resume, None for a new run.
        resumed: the checkpoint that was intact and is resumed; `checkpoint` is its content.
        locked: whether the folder's lock is already held.
    """

    settings: Settings
    output: Path
    requested: Path | None = None
    resumed: Path | None = None
    checkpoint: dict[str, Any] | None = None
    locked: bool = False


def make_plan(given: dict[str, Any], device: torch.device, locks: ExitStack) -> Plan:
    """The plan that the given flags ask for.

    If the folder already holds a run, it is locked before anything in it is read, so that no other
    training can change it in between.

    Without --output a new run's folder is created, so that no other command takes its name.

    Args:
        locks: receives the lock, if it is taken, and the removal of a new folder that stays empty.

    Raises:
        utils.RunError, data.DataError, models.ModelError, RecipeError: the plan is impossible.
    """
    folder = find_folder(given)
    if folder is None or not (folder / run_folder.LOCK).exists():
        # An impossible plan is refused before a lock file is left behind.
        plan = read_plan(folder, given, device)
        if folder is None:
            plan = replace(plan, output=utils.new_folder(plan.output))
            locks.callback(utils.remove_if_empty, plan.output)
        if plan.requested is None or plan.requested.parent != folder:
            return plan
    locks.enter_context(run_folder.locked(folder))
    return replace(read_plan(folder, given, device), locked=True)


def read_plan(folder: Path | None, given: dict[str, Any], device: torch.device) -> Plan:
    """As make_plan, for this folder (None: a new one), without locking it."""
    requested = find_requested(given, folder)
    if requested is None or folder is None:
        settings = new_settings(given, device)
        name = f"{settings.model}-{datetime.now():%Y%m%d-%H%M%S}"
        return Plan(settings, folder or RUNS / name)
    checkpoint, resumed = run_folder.load_latest(requested)
    settings = resumed_settings(checkpoint, given, resumed)
    checkpoints.rebuild(checkpoint, resumed)  # refuses weights of another network
    return Plan(settings, folder, requested, resumed, checkpoint)


def find_folder(given: dict[str, Any]) -> Path | None:
    """The folder of the run: of a resumed one, its own; None for a new one without --output."""
    resume = given.get("resume")
    if "output" in given or resume is None:
        return given.get("output")
    if resume == AUTO:
        model = given.get("model") or network_of(given)[0]
        latest = run_folder.find_latest(folders_of(model))
        return None if latest is None else latest.parent
    return resume if resume.is_dir() else resume.parent


def folders_of(model: str) -> list[Path]:
    """The folders of runs/ whose names begin with this network's, and not with a longer one."""
    longer = tuple(f"{name}-" for name in models.names() if name.startswith(f"{model}-"))
    return [path for path in RUNS.glob(f"{model}-*") if not path.name.startswith(longer)]


def find_requested(given: dict[str, Any], folder: Path | None) -> Path | None:
    """The checkpoint to resume; None for a new run."""
    resume = given.get("resume")
    if resume == AUTO:
        return run_folder.find_latest([] if folder is None else [folder])
    return resume / run_folder.LAST if resume is not None and resume.is_dir() else resume


def open_folder(plan: Plan, locks: ExitStack) -> None:
    """Lock the run's folder, and refuse one that holds another run."""
    if not plan.locked:
        locks.enter_context(run_folder.locked(plan.output))
    absent = plan.requested is not None and not plan.requested.exists()
    run_folder.claim(plan.output, plan.requested, plan.resumed)
    if plan.resumed is not None and plan.resumed != plan.requested:
        older, fault = plan.resumed.name, "is missing" if absent else "is damaged"
        newest = utils.clean(plan.requested)
        print(f"{newest} {fault}: continuing from {older}, the one before", file=sys.stderr)
