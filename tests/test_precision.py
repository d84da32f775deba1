"""The choice of precision, from fake processors and from this one."""

from pathlib import Path

import pytest
import torch
import yaml

from workbench import cli, precision
from workbench.main import main
from workbench.precision import cpu_flags, cpu_has_bf16, preferred_precision

CPUINFO = {
    "Zen 4": ("vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx2 avx512f avx512_bf16 clzero\nbugs\t\t: spectre\n", True),
    "Sapphire Rapids": ("flags\t\t: fpu avx512f amx_bf16 avx512_fp16 amx_tile\n", True),
    "Haswell": ("flags\t\t: fpu sse4_2 avx avx2 fma\nbugs\t\t: avx512_bf16\n", False),
    "Skylake-X": ("model name\t: avx512_bf16\nflags\t\t: fpu avx2 avx512f avx512bw\n", False),
    "Neoverse V1": ("Features\t: fp asimd sve i8mm bf16 dgh\n", True),
    "Cortex-A72": ("Features\t: fp asimd evtstrm aes\n", False),
    "no such file": ("", False),
}


@pytest.mark.parametrize("cpuinfo, expected", CPUINFO.values(), ids=CPUINFO)
def test_bf16_hardware_is_read_from_the_flags(cpuinfo, expected):
    assert cpu_has_bf16(cpu_flags(cpuinfo)) is expected


@pytest.mark.parametrize("fast", [True, False])
def test_a_cpu_trains_in_fp32_and_says_why(monkeypatch, fast):
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda flags: fast)
    chosen, why = preferred_precision(on_gpu=False)
    assert chosen == "32-true"
    assert ("about half the time with --trainer.precision bf16-mixed" in why) is fast
    assert ("many times slower" in why) is not fast


@pytest.mark.parametrize("ampere, expected", [(True, "bf16-mixed"), (False, "16-mixed")])
def test_a_gpu_trains_in_what_its_hardware_has(monkeypatch, ampere, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: ampere or including_emulation)
    assert preferred_precision(on_gpu=True)[0] == expected


def run(*options):
    quickstart = Path(__file__).parent.parent / "experiments" / "quickstart.yaml"
    tiny = ["--model.init_args.architecture", "tiny-vit", "--trainer.max_steps", "1", "--trainer.callbacks", "[]"]
    unmeasured = ["--trainer.limit_val_batches", "0"]
    assert main(["fit", "--config", str(quickstart), *tiny, *unmeasured, *options]) == 0
    return yaml.safe_load(max(Path("runs/quickstart").glob("*/config.yaml")).read_text())["trainer"]["precision"]


@pytest.mark.parametrize("options", [[], ["--trainer.accelerator", "cpu"]], ids=["auto", "cpu"])
def test_a_run_takes_the_machines_precision_and_keeps_it_in_its_config(monkeypatch, options):
    asked = []

    def preferred(on_gpu):
        asked.append(on_gpu)
        return "bf16-mixed", "a test says so"

    monkeypatch.setattr(cli, "preferred_precision", preferred)
    assert run(*options) == "bf16-mixed"
    assert asked == [torch.cuda.is_available() and not options]


@pytest.mark.parametrize("fast", [True, False])
def test_emulated_bf16_is_warned_of(monkeypatch, recwarn, fast):
    monkeypatch.setattr(cli, "this_cpu_has_bf16", lambda: fast)
    assert run("--trainer.precision", "bf16-mixed", "--trainer.accelerator", "cpu") == "bf16-mixed"
    said = [str(warning.message) for warning in recwarn if "emulated on this CPU" in str(warning.message)]
    assert len(said) == (0 if fast else 1)
