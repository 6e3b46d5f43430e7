"""The shape of the project itself: import direction, file sizes, no loose ends."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("embodied_wm", "planners", "sim", "configs")
TOP_LEVEL = {
    *PACKAGES, "tests", "scripts", "pyproject.toml", "README.md", "RESULTS.md", "LICENSE", ".gitignore",
    ".python-version", ".pre-commit-config.yaml", ".ci", "constraints.txt", ".git",
}  # fmt: skip
MAX_LINES = 450
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
EVERYTHING = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "scripts").rglob("*"))]

# Module prefixes that join all the packages, and so may import them.
JOINS_ALL = ("embodied_wm.evaluation", "embodied_wm.commands", "embodied_wm.cli")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_inside(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(f"{prefix}.")


def imports(path: Path) -> Iterator[str]:
    """Yield every module that a file imports, at the top or inside functions, relative imports resolved."""
    own = module_name(path)
    package = own if path.name == "__init__.py" else own.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


IMPORTS = {module_name(path): set(imports(path)) for path in SOURCES}


def importers(prefix: str) -> set[str]:
    return {module for module, names in IMPORTS.items() if any(is_inside(name, prefix) for name in names)}


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("sim", ("embodied_wm", "planners", "configs", "torch", "hydra", "omegaconf")),
        ("planners", ("embodied_wm", "sim", "configs", "mujoco", "gymnasium", "hydra", "omegaconf")),
        ("configs", ("embodied_wm", "sim", "planners")),
    ],
)
def test_packages_at_the_bottom_import_nothing_of_ours(package: str, forbidden: tuple[str, ...]) -> None:
    found = {
        f"{module} imports {name}"
        for module, names in IMPORTS.items()
        if is_inside(module, package)
        for name in names
        if any(is_inside(name, prefix) for prefix in forbidden)
    }
    assert not found


@pytest.mark.parametrize("joined", ["sim", "planners", "mujoco", "gymnasium", *JOINS_ALL])
def test_only_evaluation_and_the_command_line_join_the_packages(joined: str) -> None:
    joining = {
        m for m in importers(joined) if not any(is_inside(m, prefix) for prefix in (*JOINS_ALL, "sim", "planners"))
    }
    assert not joining


def test_nothing_below_the_command_line_imports_it() -> None:
    above = importers("embodied_wm.commands") | importers("embodied_wm.cli")
    assert not {m for m in above if not is_inside(m, "embodied_wm.commands") and not is_inside(m, "embodied_wm.cli")}


def test_only_the_command_line_knows_hydra() -> None:
    assert importers("hydra") | importers("omegaconf") <= {"embodied_wm.cli"}


def test_only_its_folder_knows_lerobot() -> None:
    assert all(is_inside(module, "embodied_wm.data.lerobot") for module in importers("lerobot") | importers("pyarrow"))


def test_import_direction_sees_imports_inside_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "sim").mkdir()
    file = tmp_path / "sim" / "late.py"
    file.write_text("def f():\n    from . import env\n    import torch.nn as nn\n    from planners.base import Plan\n")
    assert {"sim.env", "torch.nn", "planners.base"} <= set(imports(file))


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_files_stay_short(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{lines} lines; split the file at a concept"


def test_no_loose_ends() -> None:
    marks = re.compile(
        r"\b(TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b|Not" r"ImplementedError|from __future__ import annot" r"ations"
    )
    texts = [path for path in EVERYTHING if path.is_file() and path.suffix in (".py", ".sh")]
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in texts
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if marks.search(line)
    ]
    assert not found


def test_every_module_is_used() -> None:
    named_in_configs = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "configs").rglob("*.yaml"))
    imported = {name for module, names in IMPORTS.items() for name in names if name != module}
    entry_points = {"embodied_wm.cli", "embodied_wm.evaluation.imagined_env"}  # the second is for people's own code
    entry_points |= {"embodied_wm.evaluation.tokenizers", "sim.segments"}  # of scripts/study_tokenizer.py
    unused = {
        module
        for path in SOURCES
        if path.name != "__init__.py"
        and (module := module_name(path)) not in imported | entry_points
        and f"{module}." not in named_in_configs
    }
    assert not unused


def test_top_level_is_the_agreed_one() -> None:
    ignored = {line.strip().strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()}
    found = {
        path.name
        for path in ROOT.iterdir()
        if path.name not in ignored and not any(path.match(pattern) for pattern in ignored if pattern)
    }
    assert found <= TOP_LEVEL


def test_no_path_of_one_machine() -> None:
    private = re.compile(r"/(?:work|root|home)/\w+|/t" r"mp/c\b")
    for path in [*EVERYTHING, *(ROOT / "configs").rglob("*.yaml"), ROOT / "pyproject.toml", ROOT / "constraints.txt"]:
        if path.is_file() and path.suffix not in (".pyc", ".png", ".webp", ".npz", ".npy"):
            assert not private.search(path.read_text(encoding="utf-8")), path


def test_shape_annotations_are_checked_while_tests_run() -> None:
    from planners.objectives import StepWeights

    StepWeights().reduce(torch.zeros(2, 3))
    with pytest.raises(TypeCheckError):
        StepWeights().reduce(torch.zeros(2, 3, 4))
