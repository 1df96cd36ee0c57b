"""Train a CIFAR-10 classifier; `torchrun --nproc-per-node=N train.py` uses N GPUs or processes."""

import argparse
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    import startup

    startup.begin()

import torch

import data
import models
import utils
from training import checkpoint as checkpoints
from training import devices, distributed, report, run_folder, tensorboard
from training.compilation import prepare
from training.epochs import Saver, train
from training.figures import AfterEpoch, draw, draw_augmentation, is_over
from training.flags import add_flags, compact, file, folder
from training.interruption import Interrupted, resume_command
from training.recipe import RECIPES, RecipeError
from training.run import Run, build_loaders, build_run, resume, seed_dropout
from training.settings import AUTO, Options, Plan, find_data, make_plan, network_of, open_folder
from training.weights import add_data_dir, load_again

SAMPLE_WARNING = (
    "*** NOT CIFAR-10: trained on the built-in sample of 2,000 images. The accuracy only shows that"
    " the code works. Put CIFAR-10 into data/raw, or name its folder with --data-dir. ***"
)


def folder_or_auto(text: str) -> Path | str:
    """The value of --resume. "./auto" and "auto/" name a folder."""
    return AUTO if text == AUTO else folder(text)


def parse_arguments(argv: list[str] | None) -> dict[str, Any]:
    """The flags given, by name; omitted flags are absent."""
    parser = utils.ArgumentParser(
        usage="%(prog)s [--FLAG VALUE ...]",
        description=__doc__,
        formatter_class=compact,
        argument_default=argparse.SUPPRESS,
        add_help=False,
    )
    group = parser.add_argument_group("run")
    add_flags(group, Options())
    add = group.add_argument
    add("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps (auto)")
    add(
        "--compile",
        action="store_true",
        help="use torch.compile; adds minutes before the first step",
    )
    add("--no-graph", action="store_true", help="on one GPU, do without a CUDA graph; slower")
    add("--deterministic", action="store_true", help="deterministic algorithms on GPUs; slower")
    add("--summary", action="store_true", help="print layers, parameters and MACs, and exit")
    add("-h", "--help", action="help", help="print this help and exit")
    group = parser.add_argument_group("files")
    add_data_dir(group)
    add = group.add_argument
    add("--output", type=folder, metavar="DIR", help="folder for the run (runs/NETWORK-TIME)")
    resumed = "continue; auto: the latest in --output or of --model, else a new one"
    add("--resume", type=folder_or_auto, metavar="PATH", help=resumed)
    start = "train these weights further, from the recipe's first epoch on"
    add("--weights", nargs=1, type=file, metavar="FILE", help=start)
    taught = "distil from these checkpoints; several share each batch"
    add("--teacher", nargs="+", type=file, metavar="F", help=taught)
    events = "log to OUTPUT/tensorboard (pip install tensorboard)"
    add("--tensorboard", action="store_true", help=events)
    model = Options.model
    group = parser.add_argument_group(f"recipe (defaults in brackets are those of {model})")
    add_flags(group, RECIPES[model])
    return vars(parser.parse_args(argv))


def execute(plan: Plan, given: dict[str, Any], device: torch.device, locks: ExitStack) -> None:
    """Train, save and draw; `locks` receives the folder's lock."""
    settings, output = plan.settings, plan.output
    devices.pick_precision(settings.precision, device)  # raises if the device cannot do it
    directory = given.get("data_dir", data.DEFAULT_DIRECTORY)
    loader, eval_loader = build_loaders(settings, directory, device)
    is_main = distributed.is_main()
    if is_main:
        open_folder(plan, locks)
    utils.seed_everything(settings.seed)
    run = build_run(settings, device, len(loader))
    prepare(run, loader, compile="compile" in given, graph="no_graph" not in given)
    seed_dropout(settings.seed, 0)
    if plan.checkpoint is not None and plan.resumed is not None:
        # Last, because it restores the random state.
        resume(run, plan.checkpoint, loader, plan.resumed)
    elif settings.weights:
        run.start_from(load_again(settings.weights[0], "--weights"))
    if is_main:
        announce(run, loader, eval_loader, output)
    board = None
    if is_main and given.get("tensorboard"):
        board = tensorboard.Board(run, output / "tensorboard")
    after_epoch = AfterEpoch(run, output, board) if is_main else lambda: None
    saver = Saver(run, output, given.get("checkpoint_minutes", Options.checkpoint_minutes))
    try:
        evaluation = train(run, loader, eval_loader, saver, after_epoch)
    except Interrupted as interrupted:
        command = resume_command(given, output)
        utils.say_goodbye(f"{interrupted}: everything is saved; continue with\n{command}")
        sys.exit(interrupted.status)
    if is_main:
        checkpoints.save_checkpoint(output / run_folder.WEIGHTS, run.released())
        draw(run, evaluation, output)
        if board is not None:
            board.close(sorted(output.glob("*.png")))
    print(f"Weights, history and figures are in {utils.clean(output)}")
    if settings.source == "sample":
        print(SAMPLE_WARNING)


def announce(run: Run, loader: data.Loader, eval_loader: data.Loader | None, output: Path) -> None:
    """Print and save what the run is about to do."""
    print(report.first_lines(run, loader, eval_loader, output), flush=True)
    settings = run.settings
    environment = report.environment(run.device)
    utils.write_json(output / "config.json", {**asdict(settings), "environment": environment})
    layers = report.summary(settings.model, settings.config)
    utils.write_atomically(output / "summary.txt", f"{layers}\n".encode())
    draw_augmentation(settings, loader, output)


def plan_and_train(given: dict[str, Any], device: torch.device) -> None:
    """Run the training, in this process alone or together with others."""
    is_main = distributed.is_main()
    with distributed.process_group(device), ExitStack() as locks:
        # Only one process reads the files, so all processes act on the same state of them.
        plan = distributed.broadcast(make_plan(given, device, locks) if is_main else None)
        if distributed.broadcast(is_over(plan) if is_main else None):
            epochs = plan.settings.recipe.epochs
            folder_name = utils.clean(plan.output)
            print(f"The run in {folder_name} is complete: all {epochs} epochs are trained")
            return
        if plan.requested is not None:  # maybe on another machine, without the images
            settings = plan.settings
            distributed.broadcast(
                find_data(settings.source, settings.eval_split, given) if is_main else None
            )
        try:
            with devices.refusing_lack_of_memory(device, "choose a smaller --batch-size"):
                execute(plan, given, device, locks)
        except RuntimeError as error:
            if not distributed.is_lost(error):
                raise
            raise utils.RunError(
                "another process of this training ended; the last checkpoint, if any, is intact:"
                f" continue with {resume_command(given, plan.output)}"
            ) from error


def main(argv: list[str] | None = None) -> None:
    with distributed.report_once():
        with distributed.only_main_reports():
            given = parse_arguments(argv)
        if given.get("summary"):
            print(report.summary(*network_of(given)))
            return
        if given.get("tensorboard"):
            tensorboard.require()
        if given.get("deterministic"):
            devices.make_deterministic()
        device = distributed.pick_device(given.get("device", "auto"))
        plan_and_train(given, device)


if __name__ == "__main__":
    utils.run_script(main, data.DataError, models.ModelError, RecipeError, OSError)
    distributed.leave()
