"""What every test can use: the shared real data, quiet threads, and shape checks while tests run."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch and numpy are imported

import pytest
from jaxtyping import install_import_hook

# Shape annotations of tensors are checked in tests alone; this must come before the packages are imported.
# `commands` and `cli` are left out: they name types that they import only when they run.
CHECKED = (
    "planners",
    *(f"embodied_wm.{part}" for part in ("data", "tokenizer", "predictor", "training", "evaluation")),
)
_HOOK = install_import_hook([*CHECKED, "embodied_wm.heads", "embodied_wm.world_model"], "shape_checks.check")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real datasets are absent (expected beside the repository, in shared/data)")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small store of a moving dot; do not change it."""
    import tiny

    return tiny.write_store(tmp_path_factory.mktemp("tiny") / "dot.zarr")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small saved model; copy it before damaging it."""
    import tiny

    folder = tmp_path_factory.mktemp("tiny") / "model"
    tiny.make_model().save(folder)
    return folder


@pytest.fixture(autouse=True)
def _in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # what a test writes by a relative path, such as runs/, stays out of the repository


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu_tests = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_tests:
        import torch

        if not torch.cuda.is_available():
            for item in gpu_tests:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
