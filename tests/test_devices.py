"""Device and precision: what does not work falls back, or is refused in one line."""

import os

import pytest
import torch

from benchmarks import fake_cuda
from training import devices, engine
from utils import RunError

CPU = torch.device("cpu")
NO_KERNEL = "CUDA error: no kernel image is available for execution on the device\nCUDA kernel ..."


@pytest.fixture
def without(monkeypatch):
    """Let the tiny step fail in some precisions, on a device that ought to have all three."""

    def fail(*names):
        take_tiny_step = devices.take_tiny_step

        def step(device, precision):
            if precision in [devices.PRECISIONS[name] for name in names]:
                raise RuntimeError("GET was unable to find an engine\nmore of it")
            return take_tiny_step(device, torch.float32)

        monkeypatch.setattr(devices, "candidates", lambda device: ["bf16", "fp16", "fp32"])
        monkeypatch.setattr(devices, "take_tiny_step", step)

    return fail


def test_devices():
    assert devices.pick_device("cpu") == CPU
    assert devices.pick_device("auto").type in ("cpu", "cuda", "mps")
    for name in ("abacus", "cuda:99", "meta", "privateuseone", ""):
        with pytest.raises(RunError, match="not usable"):
            devices.pick_device(name)


def test_a_device_without_kernels_is_refused(monkeypatch, refused):
    def fail(device):
        raise RuntimeError(NO_KERNEL)

    monkeypatch.setattr(devices, "run_kernel", fail)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    said = refused("train.py", "--data", "sample")
    assert "device 'cuda' is not usable here" in said and "no kernel image" in said
    assert "--device cpu" in said


def test_questions_about_the_gpu_are_about_the_chosen_one(monkeypatch):
    chosen = []
    monkeypatch.setattr(devices, "run_kernel", lambda device: None)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for name in ("cuda:1", "cuda", "cpu"):
        devices.pick_device(name)
    assert chosen == [torch.device("cuda:1")]


def test_a_gpu_comes_before_mps_and_mps_before_the_cpu(monkeypatch):
    monkeypatch.setattr(devices, "run_kernel", lambda device: None)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    for module, there, picked in (
        (torch.cuda, False, "cpu"),
        (torch.backends.mps, True, "mps"),
        (torch.cuda, True, "cuda"),
    ):
        monkeypatch.setattr(module, "is_available", lambda there=there: there)
        assert devices.pick_device("auto").type == picked


def test_only_hardware_that_has_bf16_tries_it(monkeypatch):
    features = {}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features, raising=False)
    assert devices.candidates(CPU) == devices.candidates(torch.device("mps")) == ["fp32"]
    features["avx512_bf16"] = True
    assert devices.candidates(CPU) == ["bf16", "fp32"]
    for emulated, in_hardware, names in (
        (True, False, ["fp16", "fp32"]),
        (True, True, ["bf16", "fp16", "fp32"]),
    ):
        answers = {True: emulated, False: in_hardware}
        monkeypatch.setattr(
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation=True, answers=answers: answers[including_emulation],
        )
        assert devices.candidates(torch.device("cuda")) == names


def test_precisions():
    assert devices.pick_precision("auto", CPU) in ("fp32", "bf16")
    assert devices.pick_precision("bf16", CPU) == "bf16"
    for name in ("fp16", "fp8"):
        with pytest.raises(RunError, match=name):
            devices.pick_precision(name, CPU)
    with pytest.raises(RunError, match="fp16 needs a CUDA device"):
        devices.pick_precision("fp16", torch.device("mps"))


@pytest.mark.parametrize(
    "failing, left", [((), "bf16"), (["bf16"], "fp16"), (["bf16", "fp16"], "fp32")]
)
def test_what_fails_falls_back_with_a_line_each(without, capsys, failing, left):
    without(*failing)
    assert devices.pick_precision("auto", CPU) == left
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(failing)
    for name, line in zip(failing, lines, strict=True):
        assert f"precision {name} does not work on device 'cpu' (GET was unable" in line
    assert not lines or lines[-1].endswith(f"trying {left}")


def test_a_precision_asked_for_that_fails_is_refused(without, refused):
    without("bf16")
    said = refused("train.py", "--data", "sample", "--device", "cpu", "--precision", "bf16")
    assert "precision bf16 does not work on device 'cpu' (GET was unable to find an engine)" in said


def test_where_no_precision_works_none_is_picked(without):
    without(*devices.PRECISIONS)
    with pytest.raises(RunError, match="fp32 does not work"):
        devices.pick_precision("auto", CPU)


def test_a_gpu_whose_cudnn_lacks_a_convolution_does_without_cudnn(monkeypatch, capsys):
    def why_not(device, precision):
        return "no engine" if torch.backends.cudnn.enabled else None

    monkeypatch.setattr(torch.backends.cudnn, "enabled", True)
    monkeypatch.setattr(devices, "candidates", lambda device: ["fp16", "fp32"])
    monkeypatch.setattr(devices, "why_not", why_not)
    assert devices.pick_precision("auto", torch.device("cuda")) == "fp16"
    assert not torch.backends.cudnn.enabled
    assert [line.split(": ")[-1] for line in capsys.readouterr().err.splitlines()] == [
        "trying fp32",
        "trying fp16 without cuDNN, slowly",
    ]


LACKS_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory:\n2"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:97] data. DefaultCPUAllocator: not enough memory"),
    RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, other allocations: 1 GB)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
)


@pytest.mark.parametrize("error", LACKS_MEMORY, ids=["CUDA", "CPU", "Windows", "MPS", "cuBLAS"])
def test_out_of_memory_is_one_line(monkeypatch, refused, tmp_path, error):
    def fail(*arguments, **options):
        raise error

    for name in ("train_epoch", "evaluate"):
        monkeypatch.setattr(engine, name, fail)
    flags = ["--data", "sample", "--device", "cpu", "--output", tmp_path / "run"]
    assert "out of memory: choose a smaller --batch-size" in refused("train.py", *flags)
    flags += ["--checkpoint", "checkpoints/under25k.safetensors"]
    assert "device 'cpu' is out of memory: choose another --device" in refused("test.py", *flags)


def test_no_free_memory_says_nothing_about_a_precision(monkeypatch, refused):
    def take_tiny_step(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")

    monkeypatch.setattr(devices, "take_tiny_step", take_tiny_step)
    said = refused("test.py", "--checkpoint", "checkpoints/under25k.safetensors", "--device", "cpu")
    assert "device 'cpu' is out of memory: choose another --device" in said


def test_a_loss_that_is_no_number_is_a_failure(monkeypatch):
    monkeypatch.setattr(devices, "take_tiny_step", lambda device, precision: float("nan"))
    assert devices.why_not(CPU, torch.float32) == "a loss of nan"


def test_trying_out_draws_no_random_numbers():
    state = torch.get_rng_state()
    assert 1 < devices.take_tiny_step(CPU, torch.float32) < 5
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
@pytest.mark.parametrize("precision", devices.PRECISIONS.values())
def test_the_tiny_step_has_all_of_it_on_the_device(precision):
    """With fake CUDA tensors: an operation on tensors of two devices would be an error."""
    with fake_cuda.fake_cuda() as watch:
        devices.take_tiny_step(fake_cuda.CUDA, precision)
        operations = {name for counts in watch.step.operations.values() for name in counts}
        assert operations >= {"convolution", "baddbmm", "_fused_sgd_"}


def test_the_random_state_comes_back():
    torch.rand(7)
    state = devices.random_state(CPU)
    assert state["cuda"] == []
    expected = torch.rand(5)
    torch.manual_seed(99)
    devices.set_random_state(state, CPU)
    assert torch.equal(torch.rand(5), expected)


def test_a_gpus_own_random_state_comes_back(monkeypatch):
    device, restored = torch.device("cuda", 1), []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.tensor([device.index]))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *args: restored.append(args))
    devices.set_random_state(devices.random_state(device), device)
    assert restored == [(torch.tensor([1]), device)]
    devices.set_random_state(devices.random_state(CPU), device)  # has none to restore
    assert len(restored) == 1


def test_deterministic_settings(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    for name, value in (("deterministic", False), ("benchmark", True)):
        monkeypatch.setattr(torch.backends.cudnn, name, value)
    try:
        devices.make_deterministic()
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
        assert not torch.utils.deterministic.fill_uninitialized_memory
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        devices.take_tiny_step(CPU, torch.float32)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True
