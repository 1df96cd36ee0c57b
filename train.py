"""Train a CIFAR-10 classifier: `python train.py` is the recipe behind the released weights.

`torchrun --nproc-per-node=N train.py` trains the same with N processes, on N GPUs or, with
`--device cpu`, on one thread each (OMP_NUM_THREADS says how many).
"""

import argparse
import shlex
import sys
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch.amp import GradScaler

import data
import distributed
import engine
import models
import plots
import recipe as recipes
import storage
import utils
from recipe import Recipe
from run import Monitor, Run, Saver, Settings, check_types, seed_dropout

ROOT = Path(__file__).resolve().parent
IMAGE_SIZE = (3, 32, 32)
EVAL_SPLITS = ("test", "val", "none")
SAMPLE_WARNING = (
    "*** NOT CIFAR-10: training on the built-in sample of 2,000 images. Its accuracy says only that"
    " the code works. Put CIFAR-10 into data/raw, or name its folder with --data-dir. ***"
)
EVALUATION_BATCH = 500
RECIPE_FLAGS = [
    field.name for field in fields(Recipe) if field.name not in ("milestones", "nesterov")
]
AUTO = Path("auto")
CHECKPOINT_MINUTES = 5.0
# What a run does not keep, so that the command that resumes it must say it again.
UNSETTLED = ("data_dir", "device", "compile", "checkpoint_minutes")


def parse_arguments(argv: list[str] | None) -> dict[str, Any]:
    """The flags that were given, by name; what was not given is not there."""
    parser = utils.ArgumentParser(description=__doc__, argument_default=argparse.SUPPRESS)
    add = parser.add_argument_group("data").add_argument
    add("--data", choices=data.SOURCES, help="auto: CIFAR-10 if it can be had, else the sample")
    add(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="CIFAR-10 lies or is downloaded here (data/raw)",
    )
    add("--download-url", metavar="URL", help="a mirror of cifar-10-python.tar.gz")
    add("--eval-split", choices=EVAL_SPLITS, help="scored after each epoch; val is not trained on")
    add = parser.add_argument_group("network").add_argument
    add("--model", choices=models.names(), help=f"({models.names()[0]})")
    add("--summary", action="store_true", help="print layers, parameters and MACs, and stop")
    group = "recipe (each network has its own defaults: see recipe.py)"
    add = parser.add_argument_group(group).add_argument
    add("--epochs", type=int, metavar="N", help="passes over the training images")
    add("--batch-size", type=int, metavar="N", help="images a step")
    add("--optimizer", choices=recipes.OPTIMIZERS, help="muon: with sgd for all but 1x1 kernels")
    add("--learning-rate", type=float, metavar="X", help="at the peak of the schedule")
    add("--schedule", choices=recipes.SCHEDULES, help="how the learning rate falls")
    add("--warmup", type=float, metavar="X", help="fraction of the steps in which it rises")
    add("--momentum", type=float, metavar="X")
    add("--weight-decay", type=float, metavar="X", help="on kernels, not on norms and biases")
    add("--muon-weight-decay", type=float, metavar="X", help="on the kernels that Muon trains")
    add("--label-smoothing", type=float, metavar="X")
    add("--ema-decay", type=float, metavar="X", help="of the averaged weights, a step; 0: none")
    add("--crop-padding", type=int, metavar="N", help="pixels; 0: no random crop")
    add("--padding-mode", choices=data.PADDING_MODES)
    add("--flip", choices=data.FLIPS, help="mirroring; alternating: every other epoch")
    add("--cutout", type=int, metavar="N", help="side of the blanked square, pixels; 0: none")
    add("--mixup", type=float, metavar="X", help="largest share of another image")
    add = parser.add_argument_group("run").add_argument
    add("--device", help="auto, cpu, cuda, cuda:1, mps (auto)")
    add("--precision", choices=("auto", *utils.PRECISIONS), help="of the mixed precision (auto)")
    add("--compile", action="store_true", help="torch.compile: a slow first epoch, for a GPU")
    add("--seed", type=int, metavar="N", help="of weights, order and augmentation (0)")
    add("--output", type=Path, metavar="DIR", help="folder of the run (runs/NETWORK-TIME)")
    add(
        "--resume",
        type=Path,
        metavar="PATH",
        help="go on from the last.pt of a run; auto: of the newest in --output or, without it, in"
        " runs; a new run where there is none",
    )
    add(
        "--checkpoint-minutes",
        type=float,
        metavar="X",
        help=f"between the checkpoints within an epoch ({CHECKPOINT_MINUTES:g})",
    )
    given = vars(parser.parse_args(argv))
    if not given.get("checkpoint_minutes", 0.0) >= 0:
        parser.error(f"--checkpoint-minutes {given['checkpoint_minutes']}: choose 0 or more")
    return given


def new_settings(given: dict[str, Any], device: torch.device) -> Settings:
    """The settings of a fresh run: the flags, and the network's own recipe for the rest."""
    model = given.get("model", models.names()[0])
    recipe = replace(recipes.RECIPES[model], **{k: given[k] for k in RECIPE_FLAGS if k in given})
    source = given.get("data", "auto")
    eval_split = given.get("eval_split")
    need = required_splits(eval_split or "test")
    directory = given.get("data_dir", data.DEFAULT_DIRECTORY)
    found = data.find(source, directory, need=need, download_url=given.get("download_url"))
    if eval_split is None:
        eval_split = "val" if found == "sample" else "test"
    precision = utils.pick_precision(given.get("precision", "auto"), device)
    return Settings(
        model=model,
        config=models.config_dict(model),
        recipe=recipe,
        source=found,
        eval_split=eval_split,
        precision=utils.precision_name(precision),
        seed=given.get("seed", 0),
    )


def settings_of(checkpoint: dict[str, Any], given: dict[str, Any], path: Path) -> Settings:
    """The settings of an interrupted run, which no flag may contradict."""
    if "training" not in checkpoint:
        raise utils.RunError(
            f"{path} holds released weights, which cannot be resumed: use a last.pt"
        )
    try:
        settings = dict(checkpoint["training"]["settings"])
        recipe = dict(settings.pop("recipe"))
        recipe["milestones"] = tuple(
            (float(a), float(b), float(c)) for a, b, c in recipe["milestones"]
        )
        settings = Settings(recipe=Recipe(**recipe), **settings)
        if (settings.model, settings.config) != (checkpoint["model"], checkpoint["config"]):
            raise ValueError("the weights are those of another network")
        check_types(settings)
        check_types(settings.recipe)
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        raise utils.RunError(f"{path} is damaged: its settings make no sense") from error
    settled = {**asdict(settings), **asdict(settings.recipe), "data": settings.source}
    changed = [
        name for name, value in given.items() if value not in ("auto", settled.get(name, value))
    ]
    if changed:
        flags = ", ".join("--" + name.replace("_", "-") for name in changed)
        raise utils.RunError(f"{flags} cannot change with --resume: start a new run instead")
    return settings


def required_splits(eval_split: str) -> tuple[str, ...]:
    train_split = "train" if eval_split == "val" else "train+val"
    return (train_split,) if eval_split == "none" else (train_split, eval_split)


def find_resumed(given: dict[str, Any]) -> Path | None:
    """The checkpoint to go on from; None for a new run."""
    if given.get("resume") != AUTO:
        return given.get("resume")
    if "output" in given:
        return storage.find_latest([given["output"]])
    model = given.get("model", models.names()[0])
    return storage.find_latest((ROOT / "runs").glob(f"{model}-*"))


def output_folder(given: dict[str, Any], settings: Settings, resumed: Path | None) -> Path:
    """The folder of the run; a resumed run stays where it was."""
    if "output" in given:
        return given["output"]
    if resumed is not None:
        return resumed.parent
    return ROOT / "runs" / f"{settings.model}-{datetime.now():%Y%m%d-%H%M%S}"


def augmentation_of(recipe: Recipe) -> data.Augmentation:
    """The fields of a recipe that say what is done to the images."""
    names = [field.name for field in fields(data.Augmentation)]
    return data.Augmentation(**{name: getattr(recipe, name) for name in names})


def build_loaders(
    settings: Settings, directory: Path, device: torch.device
) -> tuple[data.Loader, data.Loader | None, data.Split | None]:
    """The training and the evaluation loader, and the split evaluated (None where none is)."""
    recipe = settings.recipe
    common = {
        "seed": settings.seed,
        "device": device,
        "mean": data.MEAN,
        "std": data.STD,
        "dtype": utils.PRECISIONS[settings.precision],
    }
    common |= {"rank": distributed.rank(), "world_size": distributed.world_size()}
    split = data.load(settings.source, directory, settings.train_split)
    augmentation = augmentation_of(recipe)
    train = data.Loader(split, recipe.batch_size, augmentation=augmentation, shuffle=True, **common)
    if settings.eval_split == "none":
        return train, None, None
    split = data.load(settings.source, directory, settings.eval_split)
    size = min(EVALUATION_BATCH * distributed.world_size(), len(split))
    return train, data.Loader(split, size, augmentation=None, shuffle=False, **common), split


def build_run(settings: Settings, device: torch.device, steps_per_epoch: int) -> Run:
    model = models.build(settings.model, **settings.config)
    model = distributed.wrap(model.to(device, memory_format=torch.channels_last), device)
    optimizer = recipes.build_optimizer(model, settings.recipe)
    scaled = settings.precision == "fp16"
    return Run(
        settings=settings,
        model=model,
        optimizer=optimizer,
        scheduler=recipes.build_scheduler(optimizer, settings.recipe, steps_per_epoch),
        ema=recipes.build_ema(utils.unwrap(model), settings.recipe),
        scaler=GradScaler(device.type, enabled=scaled),
        device=device,
        metrics=engine.RunningMetrics(device, distributed.total),
    )


def resume(run: Run, checkpoint: dict[str, Any], loader: data.Loader, path: Path) -> None:
    """Bring a fresh run to where `checkpoint`, which was loaded from `path`, left off.

    Raises:
        utils.RunError: the checkpoint does not fit.
    """
    try:
        run.load(checkpoint)
        images = min(run.batch * loader.batch_size, loader.images)
        metrics = run.metrics.state_dict()
        if not 0 <= run.batch <= len(loader) or metrics["total"] != images or run.seconds < 0:
            raise ValueError("its position within the epoch makes no sense")
        if run.scheduler.last_epoch != run.epoch * len(loader) + run.batch:
            raise ValueError("its learning rate is that of another step")
        if run.epoch != len(run.history):
            raise ValueError("its history is not that of its epochs")
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        raise utils.RunError(f"{path} does not fit its own settings: {e}") from e


def train_one_epoch(run: Run, loader: data.Loader, monitor: Monitor) -> engine.Metrics:
    """Train the epoch under way from its next batch to its end."""
    if run.batch == 0:
        run.begin_epoch()
    loader.set_epoch(run.epoch, run.batch)
    with monitor:
        metrics = engine.train_epoch(
            run.model,
            loader,
            run.optimizer,
            run.scheduler,
            run.ema,
            run.scaler,
            run.metrics,
            label_smoothing=run.settings.recipe.label_smoothing,
            precision=utils.PRECISIONS[run.settings.precision],
            weights=loader.weights(),
            after_step=monitor,
        )
        monitor.check(metrics.loss)
        monitor.count_time()
    return metrics


def print_epoch(
    run: Run, row: dict[str, Any], train: engine.Metrics, scored: engine.Metrics | None
) -> None:
    """The two lines of results, and one of how it goes on."""
    epochs = run.settings.recipe.epochs
    print(f"Epoch {run.epoch}/{epochs}")
    print(utils.metrics_line("Train", train.loss, train.correct, train.total))
    if scored is not None:
        name = run.settings.eval_split.capitalize()
        print(utils.metrics_line(name, scored.loss, scored.correct, scored.total))
    left = (epochs - run.epoch) * sum(r["seconds"] for r in run.history) / len(run.history)
    print(
        f"Learning rate {row['learning_rate']:.4g}, {row['seconds']:.1f} s,"
        f" {row['images_per_second']:.0f} images/s, {utils.duration(left)} left",
        flush=True,
    )


def evaluate(
    run: Run, loader: data.Loader | None, interruption: utils.Interruption
) -> engine.Evaluation | None:
    if loader is None:
        return None
    # Of a very short batch this process may have no image, and not every layer takes none.
    batches = (batch for batch in interruption.watch(loader) if len(batch[1]))
    precision = utils.PRECISIONS[run.settings.precision]
    own = engine.evaluate(run.scored, batches, precision=precision)
    # Each process classified a part of every batch: back to the order of the split.
    order = torch.arange(loader.images)
    places = torch.cat([order[loader.part(batch)] for batch in range(len(loader))])
    logits, labels = (distributed.merge(x, places, len(order)) for x in (own.logits, own.labels))
    return engine.Evaluation(logits, labels)


def train_to_the_end(
    run: Run,
    loader: data.Loader,
    eval_loader: data.Loader | None,
    saver: Saver,
    interruption: utils.Interruption,
) -> engine.Evaluation | None:
    """Train to the last epoch, saving after each; returns the last evaluation (or None)."""
    evaluation = None
    while run.epoch < run.settings.recipe.epochs:
        learning_rate = run.learning_rate(steps_ago=run.batch)
        monitor = Monitor(run, len(loader), saver, interruption)
        metrics = train_one_epoch(run, loader, monitor)
        evaluation = evaluate(run, eval_loader, interruption)
        scored = None if evaluation is None else evaluation.metrics
        row = {
            "epoch": run.epoch + 1,
            "train_loss": metrics.loss,
            "train_accuracy": metrics.accuracy,
            "eval_loss": None if scored is None else scored.loss,
            "eval_accuracy": None if scored is None else scored.accuracy,
            "learning_rate": learning_rate,
            "seconds": run.seconds,
            "images_per_second": metrics.total / run.seconds,
        }
        run.end_epoch(row)
        saver.save()
        print_epoch(run, row, metrics, scored)
    # A run that was resumed after its last epoch has not been evaluated by this process.
    return evaluation or evaluate(run, eval_loader, interruption)


def train(
    run: Run, loader: data.Loader, eval_loader: data.Loader | None, saver: Saver
) -> engine.Evaluation | None:
    """Train to the last epoch; where SIGINT or SIGTERM comes before, save and raise Interrupted."""
    if run.history and distributed.is_main():
        # A kill may have come between the last checkpoint and its row.
        utils.write_history(saver.output / "history.csv", run.history)
    with utils.Interruption(agree=distributed.highest) as interruption:
        try:
            return train_to_the_end(run, loader, eval_loader, saver, interruption)
        except utils.Interrupted:
            saver.save()
            raise


def draw_augmentation(settings: Settings, loader: data.Loader, output: Path) -> None:
    """Training images as the network sees them, brought back to pixels."""
    images, _ = next(iter(loader))
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (data.MEAN, data.STD))
    pixels = (images.float().cpu() * std + mean).mul(255).round().clamp(0, 255).byte()
    title = f"{settings.title}: training images as the network sees them"
    plots.augmentation(pixels, output / "augmentation.png", title=title)


def draw(run: Run, evaluation: engine.Evaluation | None, output: Path) -> None:
    """The figures of a finished run."""
    settings = run.settings
    plots.validation(
        run.history,
        output / "validation.png",
        title=settings.title,
        eval_split=settings.eval_split,
        label_smoothed=settings.recipe.label_smoothing > 0,
    )
    if evaluation is None:
        return
    title = f"{settings.title}, {settings.eval_split} split"
    confusion = evaluation.confusion
    correct, total = confusion.diag().tolist(), confusion.sum(1).tolist()
    print(utils.class_table(correct, total, data.CLASSES))
    plots.class_accuracy(correct, total, data.CLASSES, output / "class_accuracy.png", title=title)
    plots.confusion_matrix(confusion, data.CLASSES, output / "confusion_matrix.png", title=title)


def load_resumed(path: Path) -> tuple[dict[str, Any], Path]:
    """The checkpoint to go on from, and its file: where `path` is damaged, the one before it."""
    older = path.with_name(storage.PREVIOUS)
    try:
        return storage.load_checkpoint(path), path
    except utils.RunError as error:
        if path.name != storage.LAST or not older.exists():
            raise
        checkpoint = storage.load_checkpoint(older)
        print(f"{error}; going on from {older.name}, the one before it", file=sys.stderr)
        return checkpoint, older


def resume_command(given: dict[str, Any], output: Path) -> str:
    flags = ["--resume", output / storage.LAST]
    for name in UNSETTLED:
        if name in given:
            value = [] if given[name] is True else [given[name]]
            flags += ["--" + name.replace("_", "-"), *value]
    return shlex.join([*distributed.command(), sys.argv[0], *map(str, flags)])


@dataclass(frozen=True)
class Plan:
    """What the flags and the files say that is to be done.

    Attributes:
        resumed: the checkpoint to go on from that the user asked for, None for a new run.
        source: the one that was intact, and `checkpoint` its content.
    """

    settings: Settings
    output: Path
    resumed: Path | None = None
    source: Path | None = None
    checkpoint: dict[str, Any] | None = None


def make_plan(given: dict[str, Any], device: torch.device) -> Plan:
    resumed = find_resumed(given)
    if resumed is None:
        settings = new_settings(given, device)
        return Plan(settings, output_folder(given, settings, None))
    checkpoint, source = load_resumed(resumed)
    settings = settings_of(checkpoint, given, source)
    storage.rebuild(models.build, checkpoint, source)  # refuses weights of another network
    return Plan(settings, output_folder(given, settings, resumed), resumed, source, checkpoint)


def carry_out(plan: Plan, given: dict[str, Any], device: torch.device) -> None:
    """Train, save and draw."""
    settings, output = plan.settings, plan.output
    utils.pick_precision(settings.precision, device)  # refuses what the device cannot do
    if settings.source == "sample":
        print(SAMPLE_WARNING, flush=True)
    directory = given.get("data_dir", data.DEFAULT_DIRECTORY)
    loader, eval_loader, _ = build_loaders(settings, directory, device)
    is_main = distributed.is_main()
    with storage.locked(output) if is_main else nullcontext():
        if is_main:
            storage.claim(output, plan.resumed, plan.source)
        utils.seed_everything(settings.seed)
        run = build_run(settings, device, len(loader))
        if given.get("compile"):
            run.model.compile(dynamic=False)  # an epoch's last batch has a size of its own
        if is_main:
            utils.print_summary(models.build(settings.model, **settings.config), IMAGE_SIZE)
            utils.write_json(output / "config.json", asdict(settings))
            draw_augmentation(settings, loader, output)
        seed_dropout(settings.seed, 0)
        if plan.checkpoint is not None:  # last, for it restores the random state
            resume(run, plan.checkpoint, loader, plan.source)
        saver = Saver(run, output, given.get("checkpoint_minutes", CHECKPOINT_MINUTES))
        try:
            evaluation = train(run, loader, eval_loader, saver)
        except utils.Interrupted as interrupted:
            print(f"{interrupted}: all is saved; go on with\n{resume_command(given, output)}")
            sys.exit(interrupted.status)
        if is_main:
            storage.save_checkpoint(output / "weights.pt", run.weights())
            draw(run, evaluation, output)
    print(f"Weights, history and figures are in {output}")
    if settings.source == "sample":
        print(SAMPLE_WARNING)


def work_together(given: dict[str, Any], device: torch.device) -> None:
    """The whole training, by this process alone or with others."""
    is_main = distributed.is_main()
    with distributed.process_group(device):
        # Files are read by one process, so that the others see no other state of them.
        planned = distributed.broadcast(make_plan(given, device) if is_main else None)
        try:
            carry_out(planned, given, device)
        except RuntimeError as error:
            if not distributed.is_lost(error):
                raise
            raise utils.RunError(
                "another process of this training ended; the last checkpoint, if there is one yet,"
                f" is intact: go on with {resume_command(given, planned.output)}"
            ) from error


def main(argv: list[str] | None = None) -> None:
    with distributed.one_voice():
        with distributed.alike():
            given = parse_arguments(argv)
        if given.get("summary"):
            utils.print_summary(models.build(given.get("model", models.names()[0])), IMAGE_SIZE)
            return
        device = distributed.pick_device(given.get("device", "auto"))
        work_together(given, device)


if __name__ == "__main__":
    utils.run_script(main, data.DataError, models.ModelError, recipes.RecipeError, OSError)
