"""The choice of precision, from fake processors and from this one."""

import pytest
import torch

from workbench import precision
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
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda flags: fast)
    chosen, why = preferred_precision()
    assert chosen == "32-true"
    assert ("about half the time with --trainer.precision bf16-mixed" in why) is fast
    assert ("many times slower" in why) is not fast


@pytest.mark.parametrize("ampere, expected", [(True, "bf16-mixed"), (False, "16-mixed")])
def test_a_gpu_trains_in_what_its_hardware_has(monkeypatch, ampere, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: ampere or including_emulation)
    assert preferred_precision()[0] == expected
