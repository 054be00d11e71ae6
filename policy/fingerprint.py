"""What a result depends on besides the code's own settings: versions and machine."""

import os
import platform
from importlib import metadata
from pathlib import Path

import torch

PACKAGES = ("cadence", "torch", "mujoco", "gymnasium", "zarr", "numpy", "gym-pusht", "metaworld")


def fingerprint() -> dict[str, str]:
    """Versions of Python and of the packages that are installed, and the machine's kind."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        **versions,
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": str(os.cpu_count()),
        "torch_threads": str(torch.get_num_threads()),
        "torch_cpu": torch.backends.cpu.get_cpu_capability(),
    }


def device_name(device: torch.device) -> str:
    """The name of a device, of the processor as far as the system tells it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    # Two of one name may differ in what a virtual machine lets through.
    kinds = ("model name", "flags", "Features", "CPU part")
    about = sorted({line for line in lines if line.startswith(kinds)})
    return " ".join([platform.machine(), platform.processor(), *about])
