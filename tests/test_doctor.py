"""The report on this machine, and what it says of machines that ail."""

import importlib.metadata
import subprocess
import sys
from collections import namedtuple

import psutil
import pytest
import torch

from workbench import doctor, gradient_equivalence, machine
from workbench.doctor import OK, PROBLEM, WARNING
from workbench.main import main


def lines(check):
    return {finding.subject: finding for finding in doctor._all_of([check])}


def test_this_machine_trains(capfd):
    assert main(["doctor"]) == 0
    out = capfd.readouterr().out
    assert PROBLEM not in out and "\nThis machine can train" in out
    for subject in ("python", "torch", "lightning", "precision", "cpu", "bfloat16 on the cpu", "memory", "disk"):
        assert f"  {subject:<22} " in out
    assert out.count("two steps on ") >= 1 and "loss" in out
    for way in ("chunked", "2 processes", "2 processes, chunked"):
        assert f"      ok  {way:<22} gradient equals one pass to " in out


def test_without_the_self_test():
    found = subprocess.run(
        [sys.executable, "-m", "workbench", "doctor", "--self_test", "false"], capture_output=True, text=True
    )
    assert found.returncode == 0 and found.stderr == ""
    assert "extra demo" in found.stdout and "two steps" not in found.stdout and "gradient" not in found.stdout


def test_every_precision_of_this_machine_is_tried():
    found = lines(doctor._precisions)
    assert {"fp32", "bf16-mixed"} <= found.keys() if not torch.cuda.is_available() else {"fp32"} <= found.keys()
    assert {finding.mark for finding in found.values()} == {OK}


def test_packages_that_are_absent_or_of_a_wrong_version(monkeypatch):
    def version(package, real=importlib.metadata.version):
        if package == "optuna":
            raise importlib.metadata.PackageNotFoundError(package)
        return "2.6.2" if package == "lightning" else real(package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = lines(doctor._versions)
    assert (found["optuna"].mark, found["optuna"].text) == (PROBLEM, "missing: pip install 'optuna>=4.2'")
    assert found["lightning"].mark == PROBLEM and found["lightning"].text.startswith(
        "2.6.2, and <2.7,>=2.6.4 is needed"
    )
    assert found["torch"].mark == OK
    assert "pytest" not in found and "emoji" not in found


def test_extras(monkeypatch):
    def version(package, real=importlib.metadata.version):
        if package in ("emoji", "h5py"):
            raise importlib.metadata.PackageNotFoundError(package)
        return real(package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = lines(doctor._extras)
    assert found["extra demo"].mark == WARNING
    assert found["extra demo"].text.startswith("emoji missing or too old: pip install 'clip-workbench[demo]'")
    assert found["extra dev"].mark == OK and "h5py missing" in found["extra dev"].text


def test_a_checkout_that_was_not_installed(monkeypatch):
    monkeypatch.setattr(doctor, "_DISTRIBUTION", "no-such-distribution")
    assert lines(doctor._versions)["no-such-distribution"].mark == WARNING


def test_slow_bfloat16_is_warned_of(monkeypatch):
    monkeypatch.setattr(doctor, "_seconds_of_a_product", lambda dtype: 40.0 if dtype == torch.bfloat16 else 1.0)
    finding = lines(doctor._cpu)["bfloat16 on the cpu"]
    assert finding.mark == WARNING and "takes 40.0 times as long" in finding.text and "32-true" in finding.text


def test_the_containers_limits(monkeypatch):
    monkeypatch.setattr(machine, "cpu_quota", lambda cgroup: 1.5)
    monkeypatch.setattr(machine, "memory_limit", lambda cgroup: 1 << 30)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    finding = lines(doctor._cpu)["cpu limit"]
    assert finding.mark == WARNING and "set OMP_NUM_THREADS=1" in finding.text
    finding = lines(doctor._room)["memory"]
    assert finding.mark == WARNING and "the container's limit is 1.0 GiB" in finding.text


@pytest.mark.parametrize("gib, shared, disk", [(100, OK, OK), (1, OK, WARNING), (0.05, WARNING, PROBLEM)])
def test_room(monkeypatch, gib, shared, disk):
    usage = namedtuple("usage", "free")
    memory = namedtuple("memory", "available total")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage(gib * 2**30))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory(16 << 30, 32 << 30))
    found = lines(doctor._room)
    assert found["disk"].mark == disk
    assert "shared memory" not in found or found["shared memory"].mark == shared
    assert found["memory"].mark == OK and "16.0 of 32.0 GiB free" in found["memory"].text


def test_a_driver_that_torch_cannot_use(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    finding = lines(doctor._devices)["gpu"]
    assert finding.mark == WARNING and "this torch was built without CUDA" in finding.text


@pytest.mark.parametrize("losses", [(4.0, 4.1), (4.0, float("nan")), (float("nan"), 3.0)])
def test_training_that_does_not_learn(monkeypatch, losses):
    monkeypatch.setattr(doctor, "_two_steps", lambda device, dtype: losses)
    assert {finding.mark for finding in lines(doctor._precisions).values()} == {PROBLEM}


def test_a_precision_that_computes_something_else(monkeypatch):
    monkeypatch.setattr(doctor, "_two_steps", lambda device, dtype: (4.0, 3.0) if dtype is None else (4.2, 3.0))
    found = lines(doctor._precisions)
    assert found["fp32"].mark == OK
    assert {finding.mark for name, finding in found.items() if name != "fp32"} == {PROBLEM}


def test_another_gradient(monkeypatch):
    errors = {"chunked": {"image tower": 1e-7, "logit_scale": 3.0}, "2 processes": {"image tower": 1e-5}}
    monkeypatch.setattr(gradient_equivalence, "relative_errors", lambda: errors)
    found = lines(doctor._gradients)
    assert found["chunked"].mark == PROBLEM and "3.0e+00" in found["chunked"].text
    assert found["2 processes"].mark == OK


def test_a_check_that_fails_is_a_problem_and_the_others_go_on(monkeypatch, capsys):
    def _devices():
        raise RuntimeError("the driver is gone\nand more")
        yield

    monkeypatch.setattr(doctor, "_devices", _devices)
    assert doctor.doctor(self_test=False) == 1
    out = capsys.readouterr().out
    assert f" {PROBLEM}  {'devices':<22} RuntimeError: the driver is gone\n" in out
    assert "extra demo" in out and "1 of " in out and "would break training" in out
