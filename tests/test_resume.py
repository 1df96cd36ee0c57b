"""Nothing lost: a training that is stopped, killed, starved or fed with damaged files.

Most runs are of train.py's `main` in this process, on a few images and without figures.
"""

import csv
import errno
import os
import pty
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from fakes import ROOT, hurry

import data
import models
import train
import utils
from stress.life import digest, interrupted_after
from training import checkpoint as checkpoints
from training import distributed, engine, figures, report, run_folder, settings
from training.epochs import CHECK_EVERY, Monitor
from training.run import build_loader, build_run, resume
from training.settings import resumed_settings

IMAGES, STEPS = 40, 3  # of `few_images`, an epoch: batches of 16, 16 and 8
EPOCHS = 2


@pytest.fixture
def command(monkeypatch, capfd):
    """Run train.py on a few images, without figures; returns (status, stdout, stderr)."""
    hurry(monkeypatch)

    def run(*flags):
        capfd.readouterr()
        device = [] if "--device" in flags else ["--device", "cpu"]  # where resuming is exact
        words = [str(word) for word in (*flags, *device)]
        try:
            utils.run_script(lambda: train.main(words), data.DataError, OSError)
            status = 0
        except SystemExit as end:
            status = end.code
        return status, *capfd.readouterr()

    return run


SHORT = f"--model baseline --data sample --device cpu --batch-size 16 --epochs {EPOCHS}".split()
FP32 = [*SHORT, "--precision", "fp32"]


@pytest.fixture
def undisturbed(command, tmp_path):
    """What a run comes to that nothing stops."""
    folder = tmp_path / "undisturbed"
    assert command(*FP32, "--output", folder)[0] == 0
    return digest(checkpoints.load_checkpoint(folder / run_folder.LAST))


def epochs_of(folder):
    with open(folder / "history.csv", newline="") as file:
        return [int(row["epoch"]) for row in csv.DictReader(file)]


def at_step(monkeypatch, number, action):
    """Do something to the run while its step of this number, counted from 1, is being taken."""
    original, steps = Monitor.__call__, []

    def call(self, loss):
        steps.append(loss)
        if len(steps) == number:
            loss = action(self.run, loss)
        original(self, loss)

    monkeypatch.setattr(Monitor, "__call__", call)


# ------------------------------------------------------------------------------------ exact resume


def check_resumes(command, flags, folder):
    """Interrupted in the middle of an epoch, in its evaluation, and after its first step, the run
    "b" ends as the undisturbed run "a" of the same flags."""
    assert command(*flags, "--output", folder / "a")[0] == 0
    positions = []
    for checks in (2, 2, 2):  # of the signals: after each step, and before each batch evaluated
        with interrupted_after(checks):
            assert command(*flags, "--output", folder / "b", "--resume", "auto")[0] == 143
        saved = checkpoints.load_checkpoint(folder / "b" / run_folder.LAST)
        positions.append((saved["epoch"], saved["training"]["batch"]))
    assert positions == [(0, 2), (0, STEPS), (1, 1)]
    assert command(*flags, "--output", folder / "b", "--resume", "auto")[0] == 0
    one, other = (checkpoints.load_checkpoint(folder / run / run_folder.LAST) for run in "ab")
    assert digest(one) == digest(other)
    for run in "ab":
        checkpoints.load_checkpoint(folder / run / run_folder.PREVIOUS)  # raises if it is damaged


@pytest.mark.slow
@pytest.mark.parametrize(
    "model, precision, ema_decay",
    [
        ("baseline", "fp32", 0),
        ("baseline", "fp32", 0.9),
        ("baseline", "bf16", 0),
        ("baseline", "bf16", 0.9),
        ("under25k", "fp32", 0.9),
        ("under25k", "bf16", 0),
        ("under25k", "bf16", 0.9),
    ],
)
def test_resuming_is_exact_from_anywhere(command, tmp_path, model, precision, ema_decay):
    """Dropout, the moving average and the history included."""
    flags = [*SHORT, "--model", model, "--precision", precision, "--ema-decay", ema_decay]
    check_resumes(command, flags, tmp_path)
    assert epochs_of(tmp_path / "b") == [1, 2]
    one, other = (
        checkpoints.load_checkpoint(tmp_path / run / "weights.safetensors") for run in "ab"
    )
    assert all(torch.equal(one["state_dict"][k], v) for k, v in other["state_dict"].items())


@pytest.mark.parametrize("what", ["a momentum that comes later", "a layer without a gradient"])
def test_resuming_is_exact_where_the_optimizer_remembers_little(
    command, tmp_path, monkeypatch, what
):
    """From the milestone in the middle on, the baseline's recipe has a momentum of its own."""
    flags = [*FP32, *(["--momentum", "0"] if "momentum" in what else [])]
    build = models.build

    def build_with_a_layer_that_nothing_uses(name, **config):
        network = build(name, **config)
        if name == "baseline":  # and not the network that tries the device out
            network.unused = torch.nn.Linear(2, 2)
        return network

    if "layer" in what:
        monkeypatch.setattr(models, "build", build_with_a_layer_that_nothing_uses)
    check_resumes(command, flags, tmp_path)


def test_the_seed_given_decides_the_fresh_weights(command, tmp_path):
    flags = [*FP32, "--epochs", 1, "--seed", 5, "--learning-rate", 1e-12]
    assert command(*flags, "--output", tmp_path)[0] == 0
    trained = checkpoints.load_checkpoint(tmp_path / "weights.safetensors")["state_dict"]
    utils.seed_everything(5)
    for name, fresh in models.build("baseline").named_parameters():
        torch.testing.assert_close(trained[name], fresh.detach())


def test_checkpoints_come_within_an_epoch_too(command, tmp_path, monkeypatch):
    saved = []
    original = run_folder.save_latest
    monkeypatch.setattr(
        run_folder,
        "save_latest",
        lambda folder, content: (
            saved.append((content["epoch"], content["training"]["batch"])),
            original(folder, content),
        ),
    )
    assert command(*FP32, "--checkpoint-minutes", "0", "--output", tmp_path / "a")[0] == 0
    assert saved == [(0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3), (2, 0)]
    saved.clear()
    assert command(*FP32, "--output", tmp_path / "b")[0] == 0
    assert saved == [(1, 0), (2, 0)]
    assert command(*FP32, "--checkpoint-minutes", "nan")[0] == 2


def test_the_row_of_a_resumed_epoch_is_that_of_the_whole_epoch(command, tmp_path):
    with interrupted_after(2):
        command(*FP32, "--output", tmp_path / "a")
    saved = checkpoints.load_checkpoint(tmp_path / "a" / run_folder.LAST)["training"]
    assert saved["metrics"]["total"] == 32 and saved["seconds"] > 0
    command("--resume", tmp_path / "a" / run_folder.LAST)
    row = checkpoints.load_checkpoint(tmp_path / "a" / run_folder.LAST)["history"][0]
    assert row["seconds"] > saved["seconds"]
    assert row["images_per_second"] == pytest.approx(IMAGES / row["seconds"])


def test_a_row_that_a_kill_left_out_is_written(command, tmp_path):
    assert command(*FP32, "--output", tmp_path / "a")[0] == 0
    for name in ("history.csv", "weights.safetensors"):
        (tmp_path / "a" / name).unlink()
    status, out, _ = command("--resume", tmp_path / "a" / run_folder.LAST)
    assert status == 0 and "Epoch" not in out
    assert epochs_of(tmp_path / "a") == [1, 2] and (tmp_path / "a" / "weights.safetensors").exists()


# ----------------------------------------------------------------------------------------- signals


@pytest.mark.slow
@pytest.mark.parametrize(
    "number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_saves_and_says_how_to_go_on(
    command, tmp_path, monkeypatch, undisturbed, number, status
):
    run, folder = tmp_path / "a run of 'ä'", tmp_path / "its data"
    with monkeypatch.context() as patch:
        at_step(patch, 2, lambda run, loss: os.kill(os.getpid(), number) or loss)
        ended, out, err = command(*FP32, "--output", run, "--data-dir", folder)
    assert ended == status and err == ""
    saved = checkpoints.load_checkpoint(run / run_folder.LAST)
    assert (saved["epoch"], saved["training"]["batch"]) == (0, 2)  # the step was finished
    words = shlex.split(out.splitlines()[-1])
    assert words[:2] == ["python", "train.py"] and str(folder) in words
    ended, _, err = command(*words[2:])
    assert ended == 0, err
    assert digest(checkpoints.load_checkpoint(run / run_folder.LAST)) == undisturbed


@pytest.mark.slow
def test_a_terminal_that_closes_saves_the_run(tmp_path):
    """The system sends SIGHUP, and whatever is printed from then on fails."""
    run = tmp_path / "run"
    command = [sys.executable, str(ROOT / "train.py"), *FP32, "--checkpoint-minutes", "0"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(
            sys.executable,
            [*command, "--epochs", "1000", "--batch-size", "200", "--output", str(run)],
        )
    shown = b""
    while b"Epoch 1/1000" not in shown:
        shown += os.read(terminal, 4096)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP
    saved = checkpoints.load_checkpoint(run / run_folder.LAST)
    assert (saved["epoch"], saved["training"]["batch"]) > (0, 0)


@pytest.mark.parametrize(
    "error, number, status",
    [(errno.EIO, signal.SIGHUP, 129), (errno.EPIPE, None, 1), (errno.ENOSPC, None, 2)],
)
def test_a_line_that_cannot_be_printed_saves_the_run(
    command, tmp_path, monkeypatch, undisturbed, error, number, status
):
    """A terminal that has closed, a reader that has ended, a full disk: within an epoch."""
    flags = [*FP32, "--output", tmp_path / "a"]

    def fail(pace, step):
        if step == 2:
            if number is not None:
                os.kill(os.getpid(), number)
            raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patch:
        patch.setattr(report.Pace, "step", fail)  # after it, the bar and the forecast are printed
        ended, out, err = command(*flags)
    assert ended == status
    assert ("--resume" in out) == (number is not None)
    assert os.strerror(error) in err if status == 2 else not err
    saved = checkpoints.load_checkpoint(tmp_path / "a" / run_folder.LAST)
    assert (saved["epoch"], saved["training"]["batch"]) == (0, 2)
    assert command("--resume", tmp_path / "a" / run_folder.LAST)[0] == 0
    assert digest(checkpoints.load_checkpoint(tmp_path / "a" / run_folder.LAST)) == undisturbed


# ------------------------------------------------------------------------------------ --resume auto


@pytest.mark.slow
def test_one_command_in_a_loop(command, tmp_path, undisturbed):
    flags = [*FP32, "--output", tmp_path / "a", "--resume", "auto"]
    statuses = []
    while 0 not in statuses:
        with interrupted_after(4):
            statuses.append(command(*flags)[0])
    assert statuses == [143, 143, 0]
    assert digest(checkpoints.load_checkpoint(tmp_path / "a" / run_folder.LAST)) == undisturbed
    assert command(*flags)[0] == 0  # it is over


@pytest.mark.slow
def test_auto_without_a_folder_takes_the_newest_of_the_network(command, tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "RUNS", tmp_path / "runs")
    names = [*models.names(), "baseline-wide"]
    monkeypatch.setattr(models, "names", lambda: names)
    for name in ("baseline-1", "baseline-of-mine", "baseline-wide-3", "under100k-4"):
        with interrupted_after(1):
            command(*FP32, "--model", name.split("-")[0], "--output", tmp_path / "runs" / name)
    assert command(*FP32, "--resume", "auto")[0] == 0
    assert epochs_of(tmp_path / "runs" / "baseline-of-mine") == [1, 2]
    assert not (tmp_path / "runs" / "baseline-1" / "history.csv").read_text().count("\n1,")
    shutil.rmtree(tmp_path / "runs")
    assert command(*FP32, "--resume", "auto")[0] == 0  # afresh
    assert len(list((tmp_path / "runs").glob("baseline-*/weights.safetensors"))) == 1


def test_what_is_settled_may_be_said_again_but_not_changed(command, tmp_path):
    with interrupted_after(1):
        command(*FP32, "--output", tmp_path / "a")
    last = tmp_path / "a" / run_folder.LAST
    before = last.read_bytes()
    status, _, err = command(*FP32, "--resume", last, "--seed", "1", "--flip", "none")
    assert status == 2 and err.count("\n") == 1
    assert "--seed, --flip cannot change" in err and "--epochs" not in err
    assert last.read_bytes() == before
    assert command(*FP32, "--resume", last, "--data", "auto", "--precision", "auto")[0] == 0


def contents(folder):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("evaluated", ["val", "none"])
def test_a_run_that_is_over_is_left_as_it_is(command, tmp_path, monkeypatch, evaluated):
    monkeypatch.setattr(train, "draw", figures.draw)
    run = tmp_path / "a"
    flags = [*FP32, "--eval-split", evaluated, "--output", run]
    assert command(*flags)[0] == 0
    before = contents(run)
    for again in (["--resume", run], [*flags, "--resume", "auto"]):
        status, out, err = command(*again)
        assert (status, err) == (0, "")
        assert out == f"The run in {run} is complete: all {EPOCHS} epochs are trained\n"
    assert contents(run) == before
    (run / figures.CURVES).unlink()  # as after a kill, or where someone wants it drawn anew
    assert command("--resume", run)[0] == 0
    assert contents(run).keys() == before.keys()


@pytest.mark.slow
@pytest.mark.parametrize("auto", [False, True])
@pytest.mark.parametrize(
    "there",
    [{run_folder.LAST, run_folder.LOCK}, {run_folder.LAST}, {run_folder.LOCK}],
    ids=["a run", "a copy of a run", "a run without a checkpoint yet"],
)
def test_what_another_training_did_meanwhile_is_kept(
    command, tmp_path, monkeypatch, undisturbed, auto, there
):
    """The first of two ends its run just before the second gets the lock."""
    run = tmp_path / "a"
    with interrupted_after(2):
        command(*FP32, "--output", run)
    for path in set(run.iterdir()) - {run / name for name in there}:
        path.unlink()
    lock = run_folder._lock

    def lock_late(file, folder):
        shutil.copy(tmp_path / "undisturbed" / run_folder.LAST, run)
        lock(file, folder)

    monkeypatch.setattr(run_folder, "_lock", lock_late)
    flags = [*FP32, "--output", run, "--resume", "auto"] if auto else ["--resume", run]
    status, out, _ = command(*flags)
    assert status == 0 and "Epoch" not in out
    assert digest(checkpoints.load_checkpoint(run / run_folder.LAST)) == undisturbed


# ------------------------------------------------------------------------------- damage and its end


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1000])


def flip(path):
    """One bit of a tensor."""
    content = bytearray(path.read_bytes())
    content[-1000] ^= 4
    path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [truncate, flip, os.remove])
def test_the_checkpoint_before_stands_in_for_a_damaged_one(command, tmp_path, undisturbed, damage):
    run = tmp_path / "a"
    with interrupted_after(2):
        command(*FP32, "--output", run, "--checkpoint-minutes", "0")
    damage(run / run_folder.LAST)
    older = (run / run_folder.PREVIOUS).read_bytes()
    with interrupted_after(1):
        status, _, err = command(*FP32, "--output", run, "--resume", "auto")
    assert status == 143
    fault = "is missing" if damage is os.remove else "is damaged"
    assert err.count("\n") == 1 and f"{fault}: continuing from {run_folder.PREVIOUS}" in err
    if damage is not os.remove:  # the damaged file is gone, what stood in for it is not
        assert (run / run_folder.PREVIOUS).read_bytes() == older
    status, _, err = command(*FP32, "--output", run, "--resume", "auto")
    assert (status, err) == (0, "")
    assert digest(checkpoints.load_checkpoint(run / run_folder.LAST)) == undisturbed


def test_two_damaged_checkpoints_are_never_overwritten(command, tmp_path):
    run = tmp_path / "a"
    with interrupted_after(2):
        command(*FP32, "--output", run, "--checkpoint-minutes", "0")
    for name in (run_folder.LAST, run_folder.PREVIOUS):
        truncate(run / name)
    before = {path: path.read_bytes() for path in run.iterdir()}
    status, _, err = command(*FP32, "--output", run, "--resume", "auto")
    assert status == 2 and err.count("\n") == 1 and "damaged" in err
    assert {path: path.read_bytes() for path in run.iterdir()} == before


@pytest.mark.parametrize("reader", ["open", "safe_open"])
def test_a_checkpoint_that_the_disk_does_not_give_now_is_kept(
    command, tmp_path, monkeypatch, reader
):
    """A network drive may give it later, so the older one must not take its place."""
    run = tmp_path / "a"
    with interrupted_after(2):
        command(*FP32, "--output", run, "--checkpoint-minutes", "0")
    before = {path: path.read_bytes() for path in run.iterdir()}
    original = getattr(checkpoints, reader, open)

    def failing(path, *arguments):
        if Path(path).name == run_folder.LAST:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return original(path, *arguments)

    with monkeypatch.context() as stale:
        stale.setattr(checkpoints, reader, failing, raising=False)
        status, _, err = command(*FP32, "--output", run, "--resume", "auto")
    assert status == 2 and err.count("\n") == 1 and "cannot read" in err
    assert {path: path.read_bytes() for path in run.iterdir()} == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        lambda t: t["settings"].pop("seed"),
        lambda t: t["settings"].update(precision="fp12"),
        lambda t: t["settings"]["recipe"].update(batch_size=2.5),
        lambda t: t["settings"]["recipe"].update(milestones=((0.5, 0.1),)),
        lambda t: t["settings"]["recipe"].update(milestones=((10**400, 0.1, 0.9),)),
        lambda t: t["settings"].update(model="under100k"),
        lambda t: t.pop("optimizer"),
        lambda t: t["optimizer"][0].update(momentum_buffer=torch.zeros(1)),
        lambda t: t["optimizer"].update({99: t["optimizer"].pop(0)}),
        lambda t: t["optimizer"][0].clear(),
        lambda t: t.update(step=77),
        lambda t: t.update(batch=STEPS + 1),
        lambda t: t["metrics"].update(total=0),
        lambda t: t["random"].update(cpu=torch.zeros(3)),
        lambda t: t.update(model={}),
        lambda t: t["model"]["fc.bias"].fill_(float("nan")),
    ],
)
def test_a_training_that_does_not_fit_is_refused(command, interrupted, tmp_path, change):
    path = tmp_path / "run" / run_folder.LAST
    path.parent.mkdir()
    content = checkpoints.load_checkpoint(interrupted)
    change(content["training"])
    checkpoints.save_checkpoint(path, content)
    status, _, err = command("--resume", path)
    assert status == 2 and err.count("\n") == 1, err
    assert checkpoints.load_checkpoint(path)["epoch"] == content["epoch"]  # it is still there


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """The checkpoint of a run that was interrupted after two steps."""
    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.MonkeyPatch.context() as patch, interrupted_after(2):
        hurry(patch)
        with pytest.raises(SystemExit):
            train.main([*FP32, "--output", str(folder)])
    return folder / run_folder.LAST


# --------------------------------------------------------------------------------------- divergence


def lose_a_weight(run, loss):
    with torch.no_grad():
        next(run.model.parameters())[0].fill_(float("inf"))
    return loss


def lose_the_loss(run, loss):
    return loss * float("nan")


def test_several_processes_agree_at_the_end_of_a_short_epoch(monkeypatch):
    """It has fewer steps than there are between checks, and maybe no evaluation after it."""
    monkeypatch.setitem(CHECK_EVERY, "cpu", 50)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "mean", lambda value: value)
    run = mock.MagicMock(device=torch.device("cpu"), batch=0, seconds=0.0)
    saver, interruption = mock.Mock(), mock.Mock()
    monitor = Monitor(run, STEPS, saver, interruption, mock.Mock())
    for step in range(1, STEPS + 1):
        monitor(torch.tensor(1.0))
        assert interruption.check.call_count == saver.save_if_due.call_count == (step == STEPS)


@pytest.mark.parametrize("lose", [lose_a_weight, lose_the_loss])
def test_divergence_ends_the_run_after_the_step(command, tmp_path, monkeypatch, lose):
    at_step(monkeypatch, 5, lose)
    status, out, err = command(*FP32, "--output", tmp_path / "a", "--checkpoint-minutes", "0")
    assert status == 2 and err.count("\n") == 1
    assert "epoch 2, batch 2 (step 5)" in err and "learning rate 0.001" in err
    assert "infinite" in err if lose is lose_a_weight else "the loss became nan" in err
    saved = checkpoints.load_checkpoint(tmp_path / "a" / run_folder.LAST)
    assert (saved["epoch"], saved["training"]["batch"]) == (1, 1)


def test_a_checkpoint_never_holds_a_lost_weight(command, tmp_path, monkeypatch):
    """Where the loss is not looked at after every step, as on an accelerator."""
    at_step(monkeypatch, 4, lose_a_weight)
    monkeypatch.setitem(CHECK_EVERY, "cpu", 50)
    status, _, err = command(*FP32, "--output", tmp_path / "a", "--checkpoint-minutes", "0")
    assert status == 2 and "infinite" in err and "(step 4)" in err
    saved = checkpoints.load_checkpoint(tmp_path / "a" / run_folder.LAST)
    assert (saved["epoch"], saved["training"]["batch"]) == (1, 0)


@pytest.mark.parametrize("loss", [float("nan"), 2e15])
def test_a_lost_score_is_never_saved(command, tmp_path, monkeypatch, loss):
    scored = property(lambda self: engine.Metrics(loss, 50, 500))
    monkeypatch.setattr(engine.Evaluation, "metrics", scored)
    status, _, err = command(*FP32, "--output", tmp_path / "a", "--checkpoint-minutes", "0")
    assert status == 2 and f"the loss became {loss:.3g} by epoch 1" in err
    saved = checkpoints.load_checkpoint(tmp_path / "a" / run_folder.LAST)
    assert saved["epoch"] == 0 and saved["history"] == []


# ------------------------------------------------------------------------------ folder and disk


def test_a_second_run_in_the_folder_is_refused(command, tmp_path):
    with interrupted_after(1):
        command(*FP32, "--output", tmp_path)
    before = (tmp_path / run_folder.LAST).read_bytes()
    with run_folder.locked(tmp_path):
        for flags in (FP32, ["--resume", "auto"]):
            status, _, err = command(*flags, "--output", tmp_path)
            assert status == 2 and "another training is writing to" in err and err.count("\n") == 1
    assert (tmp_path / run_folder.LAST).read_bytes() == before


def test_a_full_disk_ends_the_run_and_loses_nothing(command, tmp_path, undisturbed):
    """A limit on the size of files, which a checkpoint meets and a history does not."""
    run = tmp_path / "a"
    with interrupted_after(4):
        command(*FP32, "--output", run)
    before = (run / run_folder.LAST).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        status, _, err = command("--resume", run / run_folder.LAST)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == 2 and err.count("\n") == 1
    assert "cannot write" in err and "File too large" in err
    assert run_folder.LAST in err and "intact" in err
    assert not list(run.glob(".*.unfinished"))
    assert (run / run_folder.LAST).read_bytes() == before
    assert command("--resume", run / run_folder.LAST)[0] == 0
    assert digest(checkpoints.load_checkpoint(run / run_folder.LAST)) == undisturbed


# -------------------------------------------------------------------------------- other machines


@pytest.mark.slow
def test_compiled_networks_are_saved_under_their_own_names(interrupted):
    checkpoint = checkpoints.load_checkpoint(interrupted)
    run = build_run(resumed_settings(checkpoint, {}, interrupted), torch.device("cpu"), STEPS)
    run.model.compile()  # which compiles nothing before it is called
    run.load(checkpoint)
    names = set(models.build("baseline").state_dict())
    assert set(run.released()["state_dict"]) == set(run.training_state()["model"]) == names


def test_precision_that_the_device_lacks(command, interrupted, tmp_path):
    content = checkpoints.load_checkpoint(interrupted)
    content["training"]["settings"]["precision"] = "fp16"
    checkpoints.save_checkpoint(tmp_path / run_folder.LAST, content)
    status, _, err = command("--resume", tmp_path / run_folder.LAST, "--device", "cpu")
    assert status == 2 and "fp16" in err


def test_from_a_cpu_to_a_gpu(interrupted, few_images, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.zeros(16))
    checkpoint = checkpoints.load_checkpoint(interrupted)
    settings = resumed_settings(checkpoint, {}, interrupted)
    cpu = torch.device("cpu")
    loader = build_loader(settings, *data.load_splits("sample", ROOT, ("train",)), cpu, train=True)
    run = build_run(settings, cpu, STEPS)
    run.device = torch.device("cuda")
    checkpoint["training"]["step"] += 1
    with pytest.raises(utils.RunError, match="another step"):
        resume(run, checkpoint, loader, interrupted)
    assert capsys.readouterr().err == ""  # a refusal is one line
    checkpoint["training"]["step"] -= 1
    resume(run, checkpoint, loader, interrupted)
    assert capsys.readouterr().err.count("Saved without a GPU") == 1


SCRIPTS = ["*.py", "data/*.py", "data/sample/*", "models/*.py", "plots/*.py", "training/*.py"]
BOTH = """
import runpy, sys
root, run = sys.argv[1:]
sys.path[0] = root  # as where the scripts themselves are run
small = "--model baseline --data sample --epochs 1 --batch-size 1000 --device cpu --output"
for script, *flags in (
    ["train.py", *small.split(), run],
    ["test.py", "--checkpoint", run + "/weights.safetensors", "--output", run],
):
    sys.argv = [script, *flags]
    runpy.run_path(f"{root}/{script}", run_name="__main__")
"""


@pytest.mark.slow
def test_on_another_machine(tmp_path):
    """A read-only checkout whose path has spaces and other letters, another working directory, no
    terminal, a locale without those letters, and warnings that are errors."""
    checkout, elsewhere = tmp_path / "a chëckout", tmp_path / "else where"
    for pattern in SCRIPTS:
        for path in ROOT.glob(pattern):
            copy = checkout / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    files = sorted(checkout.rglob("*"))
    for folder in (checkout, *filter(os.path.isdir, files)):
        folder.chmod(0o555)
    elsewhere.mkdir()
    process = subprocess.run(
        [sys.executable, "-c", BOTH, checkout, "the rün"],
        cwd=elsewhere,
        env=os.environ
        | {"PYTHONWARNINGS": "error", "PYTHONIOENCODING": "ascii", "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    assert "Epoch 1/1" in process.stdout and "Val set" in process.stdout
    assert {"weights.safetensors", "confusion_matrix.png"} <= {
        p.name for p in elsewhere.glob("the rün/*")
    }
    assert sorted(checkout.rglob("*")) == files
