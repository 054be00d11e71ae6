"""The import directions of the packages: who may know whom."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("data", "envs", "policy")

# Prefix of a module -> prefixes of our own modules that it may import; the longest prefix counts.
# What is not listed under policy is an entry, and may import everything.
MAY_IMPORT = {
    "data": ("data",),
    "envs": ("envs",),
    "policy.types": ("data.types",),
    "policy.nets": ("policy.nets",),
    "policy.diffusion": ("policy.diffusion", "policy.types"),
    "policy.sampling": ("policy.sampling", "policy.types", "policy.diffusion"),
    "policy.guidance": ("policy.guidance", "policy.types"),
    "policy.model": ("policy.types", "policy.diffusion", "data"),
    "policy.checkpoint": ("policy.state_tree", "data"),
    "policy.checkpoint_save": (
        "policy.checkpoint",
        "policy.state_tree",
        "policy.durable",
        "data",
    ),
    "policy.checkpoint_doctor": ("policy.checkpoint", "policy.sampler_fit", "data"),
    "policy.durable": (),
    "policy.state_tree": (),
    "policy.ema": (),
    "policy.metrics": ("policy.durable",),
    "policy.statistics": (),
    "policy.rl": (
        "policy.rl",
        "policy.types",
        "policy.diffusion",
        "policy.sampling",
        "policy.model",
        "policy.ranks",
        "data",
    ),
    "policy.ranks": (),
    "policy.tick": (
        "policy.diffusion",
        "policy.guidance",
        "policy.model",
        "policy.replay",
        "policy.sampling",
        "policy.types",
        "policy.witness",
    ),
    "policy.packaged.manifest": ("data.types",),
    "policy.packaged.machine": (),
    "policy.packaged.graphs": ("policy.packaged",),
    "policy.packaged.agent": (
        "policy.packaged",
        "policy.planning",
        "policy.sampling.carry",
        "policy.streams",
        "policy.types",
        "data.types",
    ),
    "policy.control": ("policy.control", "policy.types", "data.types"),
    "policy.serving": ("policy.serving", "policy.types", "policy.control", "data.types"),
    "policy": PACKAGES,
}
# Only entries know the configuration.
KNOWS_HYDRA = "policy"


def starts_with(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


def rule(module: str) -> str:
    return max((p for p in MAY_IMPORT if starts_with(module, p)), key=len)


def imported(source: str) -> set[str]:
    """All modules that a source names in import statements, those within functions included."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def violations(module: str, source: str) -> list[str]:
    """What the source of `module` imports against the rules."""
    allowed = rule(module)
    found = []
    for name in sorted(imported(source)):
        ours = any(starts_with(name, package) for package in PACKAGES)
        if ours and not any(starts_with(name, prefix) for prefix in MAY_IMPORT[allowed]):
            found.append(f"{module} imports {name}")
        if name.split(".")[0] in ("hydra", "omegaconf") and allowed != KNOWS_HYDRA:
            found.append(f"{module} imports {name}: only entries know the configuration")
    return found


MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_what_it_may(module):
    assert violations(module, MODULES[module].read_text()) == []


def test_a_forbidden_import_is_found():
    assert violations("data.store", "import policy.model")
    assert violations("policy.nets.unet1d", "from policy.diffusion import step")
    assert violations("policy.sampling.x", "def f():\n    from hydra import compose")
    assert violations("envs.pillar.env", "import data.types")
    assert not violations("policy.train", "import hydra\nfrom envs.vector import make_vec")
