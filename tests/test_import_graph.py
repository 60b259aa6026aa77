"""Imports follow the arrows: configuration flows down, data flows right, nothing reads upward."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vlmkit

ROOT = Path(vlmkit.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
ENTRY_POINTS = {
    *("train", "generate", "convert", "parity", "inspect", "stats", "recipe", "replay", "plan"),
    *("evaluate", "compare", "serve"),
}
NEVER = {  # folder -> what its files must not import
    "vision": (
        "language",
        "fusion",
        "temporal",
        "data",
        "models",
        "losses",
        "training",
        "checkpoint",
    ),
    "language": (
        "vision",
        "fusion",
        "temporal",
        "data",
        "models",
        "losses",
        "training",
        "checkpoint",
    ),
    "fusion": ("language", "temporal", "data", "models", "losses", "training", "checkpoint"),
    "position": ("vision", "language", "fusion", "temporal", "data", "models", "training"),
    "temporal": ("vision", "language", "fusion", "position", "data", "models", "training"),
    "losses": ("vision", "data", "models", "training", "checkpoint", "fusion"),
    "data": ("vision", "language", "fusion", "models", "losses", "training", "checkpoint"),
    "inspection": ("vision", "language", "fusion", "models", "losses", "training", "checkpoint"),
    "serving": ("losses", "training", "checkpoint", "evaluation", "plugins"),
    "plugins": ("losses", "training", "evaluation", "serving"),
    "models": ("data", "losses", "training", "evaluation"),
    "checkpoint": ("training", "evaluation", "losses"),
}


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("hydra", {"build.py"}),
        ("omegaconf", {"build.py", "runs.py", "job.py", *(f"{name}.py" for name in ENTRY_POINTS)}),
    ],
)
def test_components_never_see_a_config(package, allowed):
    users = {
        str(path.relative_to(ROOT))
        for path in FILES
        if package in {name.split(".")[0] for name in imports(path)}
    }
    assert users <= allowed
    assert "build.py" in users


@pytest.mark.parametrize("folder", sorted(NEVER))
def test_folders_do_not_read_upward(folder):
    forbidden = tuple(f"vlmkit.{name}" for name in NEVER[folder])
    for path in (ROOT / folder).rglob("*.py"):
        bad = {n for n in imports(path) if n.startswith(forbidden) or n == "vlmkit.build"}
        assert not bad, f"{path.relative_to(ROOT)} imports {sorted(bad)}"


def test_components_do_not_import_transformers():
    for path in FILES:
        if path.stem != "parity":
            assert "transformers" not in {name.split(".")[0] for name in imports(path)}, path


def test_importing_the_package_is_light():
    heavy = {"torch", "timm", "decord", "lightning", "hydra", "transformers", "matplotlib"}
    code = f"import sys, vlmkit; print(sorted(set(sys.modules) & {heavy!r}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_public_names_exist():
    for name in vlmkit.__all__:
        assert callable(getattr(vlmkit, name)), name
    with pytest.raises(AttributeError, match="no attribute 'lod_run'"):
        _ = vlmkit.lod_run


def test_no_file_is_a_dumping_ground():
    long = {
        str(p.relative_to(ROOT)): n for p in FILES if (n := len(p.read_text().splitlines())) > 400
    }
    assert set(long) <= {"assets/build.py"}, long
    assert not any(path.stem == "utils" for path in FILES)
