"""Several processes, real ones over Gloo, against one.

Starting a process takes seconds, so two of them do all the work of `work`, the tests look at what
they left behind, and one job of torchrun is killed.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from fakes import ROOT, hurry, noise
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import data
import models
import train
import utils
from training import checkpoint as checkpoints
from training import devices, distributed, engine, epochs
from training.ema import WeightAverage
from training.interruption import Interruption
from training.loss import Loss
from training.optimizer import build_optimizer
from training.recipe import Recipe
from training.run import Run
from training.schedule import learning_rate_factor
from training.settings import Settings

CPU = torch.device("cpu")
IMAGES, BATCH = 15, 7  # batches of 7, 7 and 1: parts of 4 and 3, and of 1 and 0
RECIPE = Recipe(
    epochs=3,
    batch_size=BATCH,
    optimizer="sgd",
    learning_rate=0.1,
    schedule="cosine",
    ema_decay=0.9,
)
FLAGS = """--model baseline --data sample --epochs 2 --batch-size 83 --schedule cosine
    --ema-decay 0.9 --device cpu --precision fp32 --checkpoint-minutes 1000""".split()
SHOWN = 250  # images of the sample that these runs have: three batches of 83 and one of 1


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """As in the processes that torchrun starts."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def loader(rank=0, world_size=1, *, shuffle=True, batch_size=BATCH):
    return data.Loader(
        noise(IMAGES),
        batch_size,
        augmentation=data.Augmentation(crop_padding=4, flip="random", cutout=8)
        if shuffle
        else None,
        seed=5,
        device=CPU,
        mean=data.MEAN,
        std=data.STD,
        dtype=torch.float64,  # so that rounding hides nothing
        shuffle=shuffle,
        rank=rank,
        world_size=world_size,
    )


def network(*, norm):
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=4),
        nn.BatchNorm2d(4) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 8 * 8, 10),
    ).double()


def trained(*, norm, epochs):
    """What a few epochs make of the network, by as many processes as there are."""
    rank, world_size = distributed.rank(), distributed.world_size()
    model = distributed.wrap(network(norm=norm), CPU)
    optimizer = build_optimizer(model, RECIPE)
    shown = loader(rank, world_size)
    scheduler = LambdaLR(optimizer, learning_rate_factor(RECIPE, len(shown)))
    ema = WeightAverage(distributed.unwrap(model), RECIPE.ema_decay)
    no_scaling = torch.amp.GradScaler("cpu", enabled=False)
    passes = engine.Passes(model, Loss(label_smoothing=0.1), no_scaling, torch.float32)
    metrics = []
    for epoch in range(epochs):
        shown.set_epoch(epoch)
        metrics.append(
            engine.train_epoch(
                passes,
                shown,
                optimizer,
                scheduler,
                ema,
                engine.RunningMetrics(CPU, distributed.total),
                loss_weights=shown.loss_weights(),
            )
        )
    state = distributed.unwrap(model).state_dict()
    return {"model": state, "ema": ema.module.state_dict(), "metrics": list(map(vars, metrics))}


def evaluated():
    """A split that the batches do not divide, and whose last batch is too short for all."""
    shown = loader(distributed.rank(), distributed.world_size(), shuffle=False)
    settings = Settings("", {}, RECIPE, "sample", "val", "fp32", 0)
    run = Run(settings, network(norm=True), None, None, None, None, None, CPU, None)
    evaluation = epochs.evaluate(run, shown, Interruption())
    return {"logits": evaluation.logits, "labels": evaluation.labels}


def test_a_network_is_found_within_its_wrapper(tmp_path):
    network = nn.Linear(2, 2)
    assert distributed.unwrap(network) is network
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        assert distributed.unwrap(nn.parallel.DistributedDataParallel(network)) is network
    finally:
        dist.destroy_process_group()


def test_only_statistics_are_averaged_over_the_processes():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = distributed.wrap(models.build("under25k"), CPU)
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        statistics = [buffer for m in norms for buffer in (m.running_mean, m.running_var)]
        assert list(map(id, model.averaged)) == list(map(id, statistics))
    finally:
        dist.destroy_process_group()


# -------------------------------------------------------------------------------- the processes


def interrupt_after(monkeypatch, step):
    """SIGTERM reaches one process alone, after that step."""
    call = epochs.Monitor.__call__

    def monitor(self, loss):
        if self.run.scheduler.last_epoch == step:
            os.kill(os.getpid(), signal.SIGTERM)
        call(self, loss)

    monkeypatch.setattr(epochs.Monitor, "__call__", monitor)


def watch_weights(monkeypatch):
    """The factors on the loss of each batch, epoch by epoch, once there are any."""
    watched, take_steps = [], epochs.take_steps

    def watch(*arguments, loss_weights, **options):
        watched.append(list(loss_weights))
        return take_steps(*arguments, loss_weights=watched[-1], **options)

    monkeypatch.setattr(epochs, "take_steps", watch)
    return watched


def run_train(port, *flags):
    """The exit status of train.py."""
    os.environ["MASTER_PORT"] = str(port)
    try:
        utils.run_script(lambda: train.main([str(flag) for flag in flags]), data.DataError)
    except SystemExit as end:
        return end.code
    return 0


def work(rank, folder, ports):
    """What each of the two processes does."""
    folder = Path(folder)
    torch.set_num_threads(1)
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(ports.pop()),
        **dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)),
        **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), "2"),
    }
    with open(folder / f"{rank}.txt", "w", buffering=1) as said:
        sys.stdout = sys.stderr = said
        found = {}
        with distributed.process_group(CPU):
            found["plain"] = trained(norm=False, epochs=3)
            found["norm"] = trained(norm=True, epochs=3)
            found["one step"] = trained_for_one_step()
            found["evaluated"] = evaluated()
            found["highest"] = distributed.highest(10.0 + rank)
            found["signal"] = int(distributed.highest(signal.SIGTERM if rank else 0))
            found["broadcast"] = distributed.broadcast({"from": rank})
        with pytest.MonkeyPatch.context() as monkeypatch:
            hurry(monkeypatch, SHOWN)
            resumed = folder / "resumed"
            with monkeypatch.context() as watching:
                found["weights"] = watch_weights(watching)
                found["whole"] = run_train(ports.pop(), *FLAGS, "--output", folder / "whole")
            with monkeypatch.context() as interrupting:
                if rank == 1:
                    interrupt_after(interrupting, 6)
                found["interrupted"] = run_train(ports.pop(), *FLAGS, "--output", resumed)
            if rank == 0:
                shutil.copytree(resumed, folder / "interrupted")
            last = resumed / "last.safetensors"
            found["resumed"] = run_train(ports.pop(), "--resume", last, "--device", "cpu")
            found["refused"] = run_train(ports.pop(), *FLAGS, "--output", folder / "whole")
        torch.save(found, folder / f"{rank}.pt")


def trained_for_one_step():
    """BatchNorm's statistics after one forward pass over parts of 4 and 3 images."""
    model = distributed.wrap(network(norm=True), CPU).train()
    images, _ = next(iter(loader(distributed.rank(), distributed.world_size())))
    model(images)
    return distributed.unwrap(model).state_dict()


def new_store():
    return torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """The folder of what the processes made, and what each of them found."""
    folder = tmp_path_factory.mktemp("job")
    stores = [new_store() for _ in range(5)]  # as torchrun has one a job
    ports = [store.port for store in stores]
    context = torch.multiprocessing.spawn(work, (str(folder), ports), 2, join=False)
    deadline = time.monotonic() + 300
    while not context.join(timeout=5):
        assert time.monotonic() < deadline
    return folder, [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def same(one, other):
    """Whether nested content is equal to the last bit."""
    digests = [checkpoints.checksum(*checkpoints.encode({"content": c})) for c in (one, other)]
    return digests[0] == digests[1]


# ------------------------------------------------------------------------------------ the parts


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("shuffle", [True, False])
def test_parts_are_the_batch(world_size, shuffle):
    whole = loader(shuffle=shuffle)
    parts = [loader(rank, world_size, shuffle=shuffle) for rank in range(world_size)]
    for shown in (whole, *parts):
        shown.set_epoch(3, first_batch=1)
        assert (len(shown), shown.images, shown.batch_size) == (3, IMAGES, BATCH)
    weights = zip(*(part.loss_weights() for part in parts), strict=True)
    for (images, labels), *batches, weight in zip(whole, *parts, weights, strict=True):
        sizes = [len(part) for part, _ in batches]
        assert max(sizes) - min(sizes) <= 1 and sizes[0] > 0
        assert torch.equal(torch.cat([part for part, _ in batches]), images)
        assert torch.equal(torch.cat([part for _, part in batches]), labels)
        expected = [size * world_size / len(labels) for size in sizes]
        assert list(weight) == pytest.approx(expected) and sum(weight) == pytest.approx(world_size)


def test_fewer_images_in_a_batch_than_processes():
    with pytest.raises(data.DataError, match="--batch-size 2: choose 3 or more"):
        loader(0, 3, batch_size=2)


# --------------------------------------------------------------------------- two against one


@pytest.mark.slow
def test_two_processes_train_as_one(job):
    """Without BatchNorm, for on CPUs each process normalises its own part. Parts are uneven, and
    one is empty; were the parts' gradients averaged as they are, this would be off by percents."""
    _, (first, _) = job
    expected, found = trained(norm=False, epochs=3), first["plain"]
    for name in ("model", "ema"):
        for key, value in expected[name].items():
            torch.testing.assert_close(found[name][key], value, rtol=1e-10, atol=1e-12)
    for row, other in zip(found["metrics"], expected["metrics"], strict=True):
        assert (row["correct"], row["total"]) == (other["correct"], IMAGES)
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["plain", "norm", "one step", "evaluated", "highest", "broadcast"])
def test_both_processes_have_the_same(job, what):
    """Weights, BatchNorm's statistics, their moving average, metrics, predictions."""
    _, (first, second) = job
    assert same(first[what], second[what])
    if what == "norm":
        values = [*first[what]["model"].values(), *first[what]["ema"].values()]
        assert all(value.isfinite().all() for value in values)
        assert not same(first[what]["model"], first[what]["ema"])


@pytest.mark.slow
def test_statistics_are_weighted_by_images(job):
    """Of the first BatchNorm, the mean over uneven parts is the mean over the batch."""
    _, (first, _) = job
    found, expected = first["one step"], trained_for_one_step()
    torch.testing.assert_close(found["1.running_mean"], expected["1.running_mean"], rtol=1e-10,
                               atol=1e-12)  # fmt: skip
    assert not torch.equal(found["1.running_mean"], torch.zeros(4))
    torch.testing.assert_close(found["1.running_var"], expected["1.running_var"], rtol=0.05, atol=0)


@pytest.mark.slow
def test_an_evaluation_is_that_of_one_process(job):
    _, (first, _) = job
    expected = evaluated()
    assert torch.equal(first["evaluated"]["labels"], noise(IMAGES).labels)
    torch.testing.assert_close(first["evaluated"]["logits"], expected["logits"])
    assert first["highest"] == 11.0 and first["signal"] == signal.SIGTERM
    assert first["broadcast"] == {"from": 0}


# ------------------------------------------------------------------------------------- whole runs


@pytest.mark.slow
def test_a_signal_to_one_stops_both_at_the_same_step(job):
    folder, results = job
    assert [result["interrupted"] for result in results] == [128 + signal.SIGTERM] * 2
    checkpoint = checkpoints.load_checkpoint(folder / "interrupted" / "last.safetensors")
    assert (checkpoint["epoch"], checkpoint["training"]["batch"]) == (1, 2)
    assert checkpoint["training"]["metrics"]["total"] == 2 * 83
    said = (folder / "0.txt").read_text()
    assert "interrupted by SIGTERM: everything is saved" in said
    assert "torchrun --nproc-per-node=2 train.py --resume" in said


def comparable(path):
    """A checkpoint without what the clock says."""
    checkpoint = checkpoints.load_checkpoint(path)
    for row in checkpoint["history"]:
        del row["seconds"], row["images_per_second"]
    del checkpoint["training"]["seconds"]
    return checkpoint


@pytest.mark.slow
def test_a_run_weighs_uneven_parts(job):
    """Of 83 images, 42 and 41 of them; of one, itself and nothing."""
    weights = [result["weights"] for result in job[1]]
    assert weights == [[[84 / 83] * 3 + [2.0]] * 2, [[82 / 83] * 3 + [0.0]] * 2]


@pytest.mark.slow
def test_a_resume_by_as_many_processes_is_exact(job):
    """With dropout, that each of them draws for itself."""
    folder, results = job
    assert [(result["whole"], result["resumed"]) for result in results] == [(0, 0)] * 2
    whole, resumed = (
        comparable(folder / name / "last.safetensors") for name in ("whole", "resumed")
    )
    assert same(whole, resumed)
    random, (other,) = whole["training"]["random"]["cpu"], whole["training"]["random"]["others"]
    assert not torch.equal(random, other["cpu"])
    assert not [name for name in whole["state_dict"] if name.startswith("module")]
    assert [round(row["train_accuracy"] * SHOWN, 6) % 1 for row in whole["history"]] == [0, 0]


@pytest.mark.slow
def test_a_resume_by_one_process(job, tmp_path, monkeypatch, capsys):
    folder, _ = job
    shutil.copytree(folder / "interrupted", tmp_path / "run")
    hurry(monkeypatch, SHOWN)
    train.main(["--resume", str(tmp_path / "run" / "last.safetensors")])
    assert f" {SHOWN} images to train on" in capsys.readouterr().out
    resumed = checkpoints.load_checkpoint(tmp_path / "run" / "last.safetensors")
    whole = checkpoints.load_checkpoint(folder / "whole" / "last.safetensors")
    assert "others" not in resumed["training"]["random"]
    assert resumed["history"][0]["eval_loss"] == whole["history"][0]["eval_loss"]
    for row, other in zip(resumed["history"], whole["history"], strict=True):
        assert row["learning_rate"] == other["learning_rate"]
        assert row["train_loss"] == pytest.approx(other["train_loss"], rel=0.1)
    assert resumed["training"]["step"] == 8


@pytest.mark.slow
def test_only_the_main_process_speaks(job):
    folder, results = job
    assert [result["refused"] for result in results] == [2, 2]
    first, second = ((folder / f"{rank}.txt").read_text() for rank in range(2))
    assert "Epoch 2/2" in first and "whole already holds a run" in first
    assert second == ""


# ---------------------------------------------------------------------------------------- torchrun


def process_of_rank(rank, parent):
    """The process of that rank that torchrun, the process `parent`, started; None before it."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) != parent:
                continue
            if f"RANK={rank}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                return int(folder.name)
        except OSError:  # it has ended meanwhile
            continue
    return None


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes as Linux does")
@pytest.mark.parametrize("rank", [1, 0])
def test_a_process_that_dies_ends_the_job(rank, tmp_path, program):
    """One line says why and how to go on, and one process goes on from the last checkpoint."""
    output = tmp_path / "run"
    flags = [*FLAGS, "--epochs", "1", "--checkpoint-minutes", "0", "--output", str(output)]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    job = subprocess.Popen(
        [*command, str(ROOT / "train.py"), *flags],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 180
        while not (output / "last.safetensors").exists():
            assert job.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(process_of_rank(rank, job.pid), signal.SIGKILL)
        out, err = job.communicate(timeout=120)
    except BaseException:
        job.terminate()  # torchrun ends the others
        job.communicate()
        raise
    assert job.returncode != 0 and "Epoch 1/1" not in out
    (line,) = [line for line in err.splitlines() if line.startswith("train.py: error: ")]
    assert "another process of this training ended" in line and "is intact" in line
    assert (
        f"torchrun --nproc-per-node=2 {ROOT / 'train.py'} --resume {output / 'last.safetensors'}"
        in line
    )
    assert 'train.py", line' not in err  # no traceback of ours
    checkpoint = checkpoints.load_checkpoint(output / "last.safetensors")
    assert checkpoint["training"]["step"] > 0
    assert {"config.json", "augmentation.png"} <= {path.name for path in output.iterdir()}
    status, out, _ = program("train.py", "--resume", output / "last.safetensors", "--device", "cpu")
    assert status == 0 and "Epoch 1/1" in out and (output / "weights.safetensors").exists()


@pytest.mark.slow
def test_two_machines_train_together(tmp_path):
    """As far as one machine can show it: two torchruns, each with its own process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    output = tmp_path / "run"
    nodes = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={node}"]
            + ["--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}"]
            + [str(ROOT / "train.py"), *FLAGS, "--epochs", "1", "--output", str(output)],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in range(2)
    ]
    try:
        said = [node.communicate(timeout=240) for node in nodes]
    except BaseException:
        for node in nodes:
            node.terminate()
        raise
    assert [node.returncode for node in nodes] == [0, 0], said
    assert "Epoch 1/1" in said[0][0] and said[1][0] == ""
    checkpoint = checkpoints.load_checkpoint(output / "last.safetensors")
    assert len(checkpoint["training"]["random"]["others"]) == 1
    assert checkpoint["training"]["step"] == len(checkpoint["history"]) * 25


# --------------------------------------------------------------------------------------- bad input


@pytest.fixture
def launched(monkeypatch):
    """This process, as torchrun would start the second of two."""
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "1")
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    store = new_store()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    handler = signal.getsignal(signal.SIGTERM)
    yield store
    signal.signal(signal.SIGTERM, handler)


def test_a_failure_is_said_once(launched, refused, capfd):
    """By whichever process fails first; what the flags have wrong, by the main one."""
    assert "abacus" in refused("train.py", "--device", "abacus")
    with pytest.raises(SystemExit) as end:
        utils.run_script(lambda: train.main(["--device", "abacus"]))
    assert end.value.code == 2
    with pytest.raises(SystemExit):
        train.main(["--epochs", "many"])
    assert capfd.readouterr() == ("", "")


def test_torchrun_ends_no_process_before_it_says_why(launched, refused, monkeypatch):
    def asks_too_late():
        os.kill(os.getpid(), signal.SIGTERM)
        return True

    signal.signal(signal.SIGTERM, lambda *arguments: pytest.fail("ended"))
    monkeypatch.setattr(distributed, "_is_first_to_fail", asks_too_late)
    assert "abacus" in refused("train.py", "--device", "abacus")


def test_a_device_that_is_no_processs_own(launched, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for device, said in (("cuda:0", "choose cuda"), ("mps", "choose cuda"), ("cuda", "1 GPUs")):
        monkeypatch.setattr(devices, "pick_device", torch.device)
        with pytest.raises(utils.RunError, match=said):
            distributed.pick_device(device)
    assert distributed.pick_device("cpu") == CPU


def test_one_process_needs_none_of_it():
    model = network(norm=True)
    assert distributed.wrap(model, CPU) is model
    assert distributed.total([0.1, 3]) == [0.1, 3] and distributed.mean(0.1) == 0.1
    assert distributed.command() == ["python"] and not torch.distributed.is_initialized()
    assert not distributed.is_lost(RuntimeError("Connection closed by peer"))
