"""Distillation: the loss, the teachers, and that a run goes on with those that it began with;
weights to start from."""

import functools
import hashlib
import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from fakes import released

import models
from stress.life import digest, interrupted_after
from training import checkpoint as checkpoints
from training import distributed, figures, report, run_folder
from training.loss import Loss
from training.teacher import load_teacher
from training.weights import WeightsFile, find_weights

CPU = torch.device("cpu")
FLAGS = "--model baseline --data sample --device cpu --batch-size 16 --epochs 2 --mixup 0.3".split()
GENERATOR = torch.Generator()


def random(*shape, seed=0):
    return torch.randn(shape, generator=GENERATOR.manual_seed(seed))


def save(path, seed, **changes):
    """A checkpoint of the baseline, whose dropout is at work in training, and fresh weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = models.build("baseline").eval()
    content = released("baseline", network.state_dict(), **changes)
    checkpoints.save_checkpoint(path, content)
    return network


@pytest.fixture
def teachers(tmp_path):
    """Two files with weights."""
    paths = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    for seed, path in enumerate(paths):
        save(path, seed)
    return paths


@pytest.fixture
def train(monkeypatch, program, few_images):
    """train.py on few images, without figures."""
    for name in ("draw", "draw_augmentation", "draw_curves"):
        monkeypatch.setattr(figures, name, lambda *arguments: None)
    monkeypatch.setattr(report, "summary", lambda *arguments: "")
    return functools.partial(program, "train.py")


def last(folder):
    return checkpoints.load_checkpoint(folder / run_folder.LAST)


# ---------------------------------------------------------------------------------------- the loss


@pytest.mark.parametrize("mixed", [False, True])
def test_the_loss_is_the_formula(mixed):
    images, logits, answers = random(4, 3, 8, 8), random(4, 10, seed=1), random(4, 10, seed=2)
    labels = torch.tensor([3, 0, 9, 3])
    shares = F.one_hot(labels, 10).float().lerp(torch.full((4, 10), 0.1), 0.2 if mixed else 0.0)

    def teacher(seen):
        assert seen is images  # the very ones
        return answers

    loss = Loss(label_smoothing=0.1, teacher=teacher, share=0.7, temperature=3.0)
    value = loss(images, logits, shares if mixed else labels)
    expected = 0.0
    for z, t, y in zip(logits.double(), answers.double(), shares.double(), strict=True):
        y = 0.9 * y + 0.1 / 10
        entropy = -(y * (z.exp() / z.exp().sum()).log()).sum()
        q, p = (torch.exp(x / 3) / torch.exp(x / 3).sum() for x in (z, t))
        expected += 0.3 * entropy + 0.7 * 9 * (p * (p / q).log()).sum()
    assert value.item() == pytest.approx(expected.item() / 4, rel=1e-5)


def test_without_a_teacher_the_loss_is_cross_entropy_bit_for_bit():
    images, logits, labels = random(6, 3, 8, 8), random(6, 10), torch.arange(6)
    value = Loss(0.1, None, share=0.5, temperature=7.0)(images, logits, labels)
    assert torch.equal(value, F.cross_entropy(logits, labels, label_smoothing=0.1))


def test_a_process_without_an_image_asks_no_teacher():
    loss = Loss(teacher=lambda images: pytest.fail("asked"))
    logits = random(0, 10).requires_grad_()
    value = loss(random(0, 3, 8, 8), logits, torch.empty(0, dtype=torch.int64))
    value.backward()
    assert value == 0 and logits.grad.shape == (0, 10)


# ------------------------------------------------------------------------------------ the teachers


def test_each_teacher_answers_for_its_part_of_the_batch(tmp_path):
    paths = [tmp_path / "a", tmp_path / "b"]
    first, second = (save(path, seed) for seed, path in enumerate(paths))
    images = random(5, 3, 32, 32)
    teacher = load_teacher(find_weights(paths, "--teacher", "val"), CPU)
    with torch.no_grad():
        expected = torch.cat([first(images[:3]), second(images[3:])])
        alone = first(images[:1])
    answer = teacher(images)
    torch.testing.assert_close(answer, expected)
    assert not answer.requires_grad
    assert torch.equal(answer, teacher(images))  # no dropout, no statistics that move
    torch.testing.assert_close(teacher(images[:1]), alone)  # nothing is left for the second
    assert load_teacher((), CPU) is None


def test_the_processes_give_their_longer_parts_to_different_teachers(tmp_path, monkeypatch):
    """So that each teacher answers for the same share of the images, however small the parts."""
    paths = [tmp_path / name for name in "abc"]
    networks = [save(path, seed) for seed, path in enumerate(paths)]
    files, images = find_weights(paths, "--teacher", "val"), random(1, 3, 32, 32)
    for rank in range(4):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        with torch.no_grad():
            torch.testing.assert_close(load_teacher(files, CPU)(images), networks[rank % 3](images))


def test_a_teacher_that_knows_mirrors_answers_as_its_network(network, weights):
    teacher = load_teacher(find_weights([weights], "--teacher", "val"), CPU)
    images = random(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(teacher(images), network(images))


def test_what_cannot_teach_is_refused(refused, tmp_path, teachers):
    (tmp_path / "text").write_text("no checkpoint")
    save(tmp_path / "classes", 0, classes=list("abcdefghij"))
    save(tmp_path / "pixels", 0, normalization={"mean": [0.5] * 3, "std": [0.5] * 3})
    said = {"missing": "no checkpoint at", "text": "is damaged", "classes": "the classes of"}
    for name, words in {**said, "pixels": "the normalization of"}.items():
        flags = [*FLAGS, "--output", tmp_path / "run", "--teacher", teachers[0], tmp_path / name]
        line = refused("train.py", *flags)
        assert "--teacher" in line and words in line and str(tmp_path / name) in line
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_knows_the_images_to_score_on_is_said_to(tmp_path, capsys):
    both = {"source": "cifar10", "train_split": "train+val", "eval_split": "test"}
    save(tmp_path / "both", 0, data=both)
    find_weights([tmp_path / "both"], "--teacher", "val")
    assert "both was trained on val: scores on it will be too high" in capsys.readouterr().err
    find_weights([tmp_path / "both"], "--teacher", "test")
    assert not capsys.readouterr().err


# ----------------------------------------------------------------------------------------- the run


@pytest.mark.slow
def test_a_teacher_is_kept_by_its_digest_and_resumed_exactly(train, tmp_path, teachers):
    flags = [*FLAGS, "--teacher", *teachers]
    status, out, err = train(*flags, "--output", tmp_path / "a")
    assert (status, err) == (0, "")
    assert f"\nTeacher  {teachers[0]}, {teachers[1]}\n" in out
    seen = {"source": "sample", "train_split": "train"}
    kept = [
        {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), **seen}
        for path in teachers
    ]
    assert json.loads((tmp_path / "a" / "config.json").read_text())["teachers"] == kept
    assert last(tmp_path / "a")["training"]["settings"]["teachers"] == kept
    with interrupted_after(2):
        status, out, _ = train(*flags, "--output", tmp_path / "b")
    assert status == 143
    command = out.splitlines()[-1].split()
    assert train(*command[2:])[0] == 0  # the command that was printed
    assert digest(last(tmp_path / "b")) == digest(last(tmp_path / "a"))


def test_a_teacher_teaches(train, tmp_path, teachers):
    states = []
    for name, flags in (("a", []), ("b", ["--teacher", teachers[0]]), ("c", ["--distillation=0"])):
        assert train(*FLAGS, *flags, "--output", tmp_path / name)[0] == 0
        states.append(last(tmp_path / name)["state_dict"]["fc.weight"])
    assert not torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])  # settings of a teacher that is not there


@pytest.mark.slow
def test_another_teacher_is_refused_and_nothing_is_lost(train, refused, tmp_path, teachers):
    one, two = teachers
    run = tmp_path / "run"
    with interrupted_after(2):
        train(*FLAGS, "--teacher", one, "--output", run)
    before = (run / run_folder.LAST).read_bytes()
    line = refused("train.py", "--resume", run, "--teacher", two)
    assert "--teacher cannot change with --resume" in line and str(one) in line
    refused("train.py", "--resume", run, "--teacher", one, two)
    shutil.copy(one, tmp_path / "moved")
    shutil.copy(two, one)
    assert "is not the file that the run began with" in refused("train.py", "--resume", run)
    one.unlink()
    assert f"--teacher: no checkpoint at {one}; if it has moved" in refused(
        "train.py", "--resume", run
    )
    assert (run / run_folder.LAST).read_bytes() == before
    assert train("--resume", run, "--teacher", tmp_path / "moved")[0] == 0
    kept = last(run)["training"]["settings"]["teachers"]
    assert [WeightsFile(**file) for file in kept] == list(
        find_weights([tmp_path / "moved"], "--teacher", "val")
    )


def test_a_run_without_a_teacher_goes_on_without_one(train, refused, tmp_path, teachers):
    with interrupted_after(2):
        train(*FLAGS, "--output", tmp_path / "run")
    line = refused("train.py", "--resume", tmp_path / "run", "--teacher", teachers[0])
    assert "the run began with no teacher" in line


# ------------------------------------------------------------------------- weights to start from


def test_a_training_starts_from_the_weights(train, tmp_path, teachers):
    _, path = teachers  # of another seed than the run's
    start = checkpoints.load_checkpoint(path)["state_dict"]
    for name, flags in (("a", ["--weights", path]), ("b", [])):
        flags = [*FLAGS, "--learning-rate=1e-9", "--ema-decay=0.9", *flags]
        code, out, _ = train(*flags, "--output", tmp_path / name)
        assert code == 0 and (f"\nWeights  {path}\n" in out) == (name == "a")
        kept = last(tmp_path / name)
        for state in (kept["state_dict"], kept["training"]["model"]):  # the average, the network
            same = [
                torch.allclose(state[key], start[key], rtol=0, atol=1e-6)
                for key in start
                if key.endswith("weight") and start[key].dim() == 4
            ]
            assert all(same) if name == "a" else not any(same)


def test_weights_whose_scores_are_lost_end_the_run_before_it_is_saved(
    train, refused, tmp_path, teachers
):
    """Training takes BatchNorm's statistics from the batch; the evaluation takes those kept."""
    content = checkpoints.load_checkpoint(teachers[0])
    next(v for name, v in content["state_dict"].items() if "running_var" in name).fill_(-1e9)
    checkpoints.save_checkpoint(teachers[0], content)
    flags = [*FLAGS, "--weights", teachers[0], "--output", tmp_path / "run"]
    line = refused("train.py", *flags)
    assert "the loss became nan by epoch 1" in line
    assert not list((tmp_path / "run").glob("*.safetensors"))


def test_the_weights_to_start_from_are_not_overwritten(refused, tmp_path, teachers):
    path = tmp_path / run_folder.WEIGHTS
    teachers[0].rename(path)
    before = path.read_bytes()
    line = refused("train.py", *FLAGS, "--weights", path, "--output", tmp_path)
    assert "already holds a run" in line and path.read_bytes() == before


def test_the_summary_is_that_of_the_weights(program, refused, teachers):
    status, out, _ = program("train.py", "--summary", "--weights", teachers[0])
    assert status == 0 and "112,966" in out
    assert "no checkpoint at" in refused("train.py", "--summary", "--weights", "nowhere")


def test_a_run_that_started_from_weights_resumes_exactly_without_them(train, tmp_path, teachers):
    flags = [*FLAGS, "--weights", teachers[0]]
    assert train(*flags, "--output", tmp_path / "a")[0] == 0
    with interrupted_after(3):
        train(*flags, "--output", tmp_path / "b")
    teachers[0].unlink()
    assert train("--resume", tmp_path / "b", "--device", "cpu")[0] == 0
    assert digest(last(tmp_path / "a")) == digest(last(tmp_path / "b"))
