"""What code that was compiled on one machine needs of another one."""

import platform
from collections.abc import Mapping
from pathlib import Path

import torch

# How instruction sets that a compiler may use by itself are called in /proc/cpuinfo. There are
# other flags, which a virtual machine may have or not.
INSTRUCTION_SETS = (
    *("sse", "ssse", "avx", "fma", "f16c", "bmi", "abm", "lzcnt", "movbe", "popcnt", "adx"),
    *("aes", "vaes", "pclmul", "vpclmul", "gfni", "sha_ni", "amx", "3dnow"),
)


def processor(device: str = "cpu") -> dict:
    """This machine's processor: its kind, what torch makes of it, and its instruction sets.

    Args:
        device: "cuda" for its GPU besides.
    """
    gpu = {"gpu": _gpu()} if device == "cuda" else {}
    return gpu | {
        "system": platform.system(),
        "machine": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "features": _features(platform.machine()),
    }


def lacking(made_for: Mapping) -> str:
    """Why this machine cannot run code that was compiled for another processor; "" if it can.

    Args:
        made_for: `processor` of the machine that compiled it.
    """
    here = processor()
    for entry in ("system", "machine"):
        if here[entry] != made_for.get(entry):
            return f"it was made for {made_for.get(entry)}, this is {here[entry]}"
    missing = sorted(set(made_for.get("features", ())) - set(here["features"]))
    if missing:
        return f"its code uses {', '.join(missing)}, which this processor lacks"
    if not here["features"] and here["capability"] != made_for.get("capability"):
        return (
            f"it was made for a processor with {made_for.get('capability')}, this one has "
            f"{here['capability']}"
        )
    kernels_for = made_for.get("gpu")
    if kernels_for and kernels_for != _gpu():
        return (
            f"its kernels are for a GPU of compute capability {kernels_for}, "
            f"here is {_gpu() or 'none'}"
        )
    return ""


def _gpu() -> str:
    """Compute capability of the GPU, such as "9.0"; "" where there is none."""
    if not torch.cuda.is_available():
        return ""
    return "{}.{}".format(*torch.cuda.get_device_capability())


def _features(machine: str) -> list[str]:
    """Instruction sets, sorted; none where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    found = next((line for line in lines if line.startswith(("flags", "Features"))), ":")
    names = found.partition(":")[2].split()
    is_known = machine in ("x86_64", "AMD64")
    return sorted(n for n in names if n.startswith(INSTRUCTION_SETS) or not is_known)
