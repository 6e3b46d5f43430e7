"""The command line as a person meets it: pages, errors, exit codes, run folders."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny

from embodied_wm import cli
from embodied_wm.commands import options, verbs
from embodied_wm.commands.errors import UsageError
from embodied_wm.commands.run import Run, newest_run
from embodied_wm.data.layout import VERSION
from embodied_wm.data.store import EpisodeStore, StoreError
from embodied_wm.training.interrupts import Terminated
from embodied_wm.types import Episode, FeatureSpec

COMMANDS = [[verb] for verb in options.VERBS if verb != "benchmark"] + [["benchmark", m] for m in options.MEASURES]


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def spoken(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    return re.sub(r"\s+", " ", out + err)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["help"], ["-h"]])
def test_the_first_page_names_every_verb_and_what_to_do_next(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 0
    page = spoken(capsys)
    assert all(verb in page for verb in options.VERBS)
    assert "embodied-wm demo demo=lerobot source=FOLDER" in page


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_of_every_verb(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*command, "--help"]) == 0
    page = spoken(capsys)
    manual = options.manual("_".join(command))
    assert manual.title in page
    assert manual.example in page
    composed, choices = cli.compose_config("_".join(command), {})
    assert all(key in page for key in cli.flat_values(composed))
    assert all(choice in page for group in choices for choice in options.groups()[group])


def test_help_never_cuts_a_name(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for command in (["train"], ["demo"], ["benchmark", "planning"], ["benchmark", "imagination"]):
        assert cli.main([*command, "--help"]) == 0
        page = capsys.readouterr().out
        composed, _ = cli.compose_config("_".join(command), {})
        assert [key for key in cli.flat_values(composed) if f"  {key}" not in page] == []
        assert "\u2026" not in page


def test_help_of_a_choice_shows_its_own_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "planner=random_shooting", "--help"]) == 0
    page = spoken(capsys)
    assert "random_shooting (chosen)" in page
    assert "planner.num_elites" not in page


def test_help_loads_nothing_heavy(repository: Path) -> None:
    code = (
        "import sys; from embodied_wm import cli; status = cli.main(['train', '--help']); "
        "sys.exit(status or bool({'torch', 'mujoco', 'zarr', 'matplotlib', 'lerobot'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=repository, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("colect", ["no verb 'colect'", "did you mean collect", "benchmark"]),
        ("--verbose", ["no verb '--verbose'"]),
        ("collect --workers=3", ["no flag --workers=3", "name=value"]),
        ("collect task=pusch out=x", ["no such task", "did you mean push", "reach"]),
        ("collect task=push,reach out=x", ["one task at a time", "reach", "push"]),
        ("collect out=x episods=3", ["no option 'episods'", "did you mean episodes"]),
        ("collect episodes=3", ["give out=...", "folder of the store"]),
        ("collect out=x episodes=three", ["expected a whole number", "400"]),
        ("collect out=x episodes=2.5", ["expected a whole number"]),
        ("collect out=x episodes=true", ["expected a whole number"]),
        ("collect out=x episodes=1,2", ["one value at a time"]),
        ("collect out=x episodes=0", ["episodes=0: expected at least 1"]),
        ("collect out=x rows=1", ["rows=1: expected at least 2"]),
        ("collect out=x workers=0", ["workers=0: expected at least 1"]),
        ("collect out=x task.image_size=-1", ["task.image_size=-1: expected at least 1"]),
        ("collect out=x task.name=juggle", ["juggle", "reach", "push"]),
        ("collect out=x task.image_size", ["'task.image_size'", "name=value"]),
        ("collect out=x policy=dance", ["dance", "play"]),
        ("collect out=x variation=[ligt]", ["unknown factor of variation 'ligt'", "light", "friction"]),
        ("collect out=x variation=light", ["expected a list"]),
        ("collect out=x task=gym id=Puser-v5", ["no Gymnasium environment 'Puser-v5'", "Pusher-v5"]),
        ("collect out=x task=gym id=CartPole-v1", ["CartPole-v1 has no MuJoCo state"]),
        ("collect out=x task=gym id=Pusher-v5 task.camera=wrist", ["wrist", "default", "workspace"]),
        ("import source=x out=y image_size=64", ["expected a list"]),
        ("import source=x out=y strict=maybe", ["expected true or false"]),
        ("plan planner=cme checkpoint=x", ["no such planner", "did you mean cem", "random_shooting"]),
        ("plan planner.num_elites=1 checkpoint=x", ["planner", "num_elites=1", "between 2 and"]),
        ("plan planner=random_shooting planner.num_elites=1 checkpoint=x", ["no option 'planner.num_elites'"]),
        ("plan objective.weights=3 checkpoint=x", ["is a group of options", "objective.weights.terminal"]),
        ("inspect nowhere", ["nowhere", "no such file or folder"]),
        ("inspect", ["give path=..."]),
        ("validate", ["give path=..."]),
        ("validate x strict=1", ["expected true or false"]),
        ("edit operation=merge out=x", ["give sources=[...]"]),
        ("benchmark plan", ["no measure 'plan'", "did you mean planning"]),
        ("benchmark planning task=reach", ["give checkpoint=..."]),
        ("benchmark planning dynamics=oracle checkpoint=x", ["no option 'checkpoint'"]),
        ("benchmark imagination checkpoint=x imagination.context=0", ["imagination: ", "context=0", "at least 1"]),
        ("benchmark imagination checkpoint=x imagination.num_candidates=4", ["num_candidates=4", "a multiple of 3"]),
        ("benchmark speed checkpoint=x speed.context_frames=[4,0]", ["context_frames=[4, 0]", "at least 1"]),
        ("imagine checkpoint=x data.path=y device=3 horizon=a", ["horizon=a", "whole number"]),
        ("train data.path=x resume=true", ["needs run_dir"]),
        ("train data.path=x model.tokenizer.image_size=[48]", ["model.tokenizer: image_size=[48]: expected [height"]),
        ("train data.path=x model.tokenizer.image_size=[64,64,3]", ["image_size=[64, 64, 3]: expected [height,width]"]),
        ("train data.path=x model.tokenizer.token_grid=[2]", ["token_grid=[2]: expected [rows,columns]"]),
        ("train data.path=x model.tokenizer.channels=[]", ["channels=[]: expected one number for each stage"]),
        ("train data.path=x model.latent_actions.history=0", ["history=0: expected at least 1"]),
        ("train run_dir=x resume=true", ["run_dir=x holds no run to continue", "Check the name"]),
        ("collect out=y run_dir=x resume=true", ["no option 'resume'"]),
        ("edit operation=merge out=x sources=[it's.zarr]", ["expected a list", 'in quotes of its own: ["it\'s.zarr"]']),
    ],
)
def test_a_wrong_command_line_says_what_is_valid(
    line: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main(line.split())
    page = spoken(capsys)
    assert code in (1, 2)
    by_the_simulator = ("policy=dance", "juggle", "[ligt]", "task=gym")
    assert code == 2 or any(part in line for part in by_the_simulator)
    assert all(word in page for word in words), page
    assert "Traceback" not in page
    assert not list(Path().glob("x*"))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("train data.path=nowhere.zarr", ["No such episode store", "nowhere.zarr", "embodied-wm collect"]),
        ("import nowhere out=x.zarr", ["nowhere", "meta/info.json"]),
        ("demo demo=lerobot source=nowhere context_frames=0", ["context=0", "at least 1"]),
        ("report nowhere", ["nowhere", "report.json"]),
        ("plan checkpoint=nowhere", ["nowhere"]),
    ],
)
def test_a_failed_run_is_one_readable_message(line: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(line.split()) == 1
    page = spoken(capsys)
    assert all(word in page for word in words), page
    assert "Traceback" not in page
    assert cli.main([*line.split(), "--traceback"]) == 1
    assert "Traceback" in spoken(capsys)


def test_the_log_of_a_failed_run_keeps_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "data.path=nowhere.zarr", "run_dir=mine"]) == 1
    log = Path("mine/log.txt").read_text()
    assert "Traceback" in log
    assert "StoreError" in log
    assert "embodied-wm train data.path=nowhere.zarr" in log
    assert "path: nowhere.zarr" in Path("mine/config.yaml").read_text()


def test_odd_paths_are_taken_as_they_stand(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a, b", "it's (one)", "x=1", "[1,2]", "ünï", "null", "{a", "9", "true", r"back\slash", "end\\"):
        assert cli.main(["inspect", f"path={name}"]) == 2
        assert f"path={name}: no such file" in spoken(capsys)


def test_run_folders_never_collide() -> None:
    folders = []
    for _ in range(4):
        with Run("benchmark_speed", run_dir=None) as run:
            folders.append(run.folder)
            (run.folder / "report.json").write_text("{}")
    assert len(set(folders)) == 4
    assert all(folder.parent == Path("runs/benchmark/speed").resolve() for folder in folders)
    assert newest_run(Path("runs/benchmark/speed")).resolve() == folders[-1]


def test_the_latest_run_is_one_that_made_something(capsys: pytest.CaptureFixture[str]) -> None:
    runs = [Path("runs/imagine") / f"2026-01-0{day}_00-00-00" for day in (1, 2, 3, 4)]
    assert cli.main(["report", "runs/imagine/LATEST"]) == 2
    assert "there is no run in runs/imagine yet" in spoken(capsys)
    for run in runs:
        run.mkdir(parents=True)
    assert cli.main(["report", "runs/imagine/LATEST"]) == 2
    page = spoken(capsys)
    assert "none of the 4 runs in runs/imagine has a report.json or a model yet" in page
    assert f"{runs[3]}/log.txt" in page
    (runs[0] / "report.json").write_text("{}")
    (runs[1] / "model").mkdir()
    assert newest_run(Path("runs/imagine")) == runs[1]
    (runs[2] / "robots" / "push" / "model").mkdir(parents=True)
    assert newest_run(Path("runs/imagine")) == runs[2]


def test_paths_in_lists_are_taken_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    sources = "[~/a.zarr, b (1).zarr,s3://c/d.zarr,x:y~,7]"
    composed, _ = cli.compose_config("edit", {"operation": "merge", "out": "x", "sources": sources})
    assert list(composed.sources) == ["~/a.zarr", "b (1).zarr", "s3://c/d.zarr", "x:y~", 7]
    composed, _ = cli.compose_config("import", {"source": "x", "out": "x", "cameras": "[top(1)]", "episodes": "[1,2]"})
    assert (list(composed.cameras), list(composed.episodes)) == (["top(1)"], [1, 2])
    tiny.write_store(tmp_path / "a.zarr")
    assert cli.main(["edit", "operation=merge", "sources=[~/a.zarr]", "out=b.zarr"]) == 0


def test_stores_are_named_by_numbers_too() -> None:
    tiny.write_store(Path("7"))
    assert cli.main(["edit", "operation=merge", "sources=[7]", "out=b.zarr"]) == 0


def test_a_run_of_robots_resumes_after_its_stores_have_moved_under_their_names() -> None:
    text = "data: {{path: {}}}\ntogether: {{stores: [{}]}}\n"
    with Run("train", run_dir="mine") as run:
        run.start("command", text.format("a/push.zarr", "a/cr5.zarr"), [])
    with Run("train", run_dir="mine", resume=True) as run:
        run.start("command", text.format("b/push.zarr", "file:///b/cr5.zarr"), [])
        for stores in (("b/push.zarr", "b/gr1.zarr"), ("b/cr5.zarr", "b/push.zarr"), ("b/push.zarr", "")):
            with pytest.raises(UsageError, match=r"robots push, cr5, now .*keep their names"):
                run.start("command", text.format(*stores), [])


def test_a_used_run_folder_is_not_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine").mkdir()
    Path("mine/results").write_text("precious")
    assert cli.main(["train", "data.path=x", "run_dir=mine"]) == 2
    assert "resume=true" in spoken(capsys)
    assert [path.name for path in Path("mine").iterdir()] == ["results"]


def test_ctrl_c_ends_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(config: object, run: Run) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(verbs.RUN, "collect", interrupted)
    assert cli.main(["collect", "out=x", "run_dir=mine"]) == 130
    assert "Stopped" in spoken(capsys)
    assert "KeyboardInterrupt" in Path("mine/log.txt").read_text()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, Terminated])
def test_a_stopped_training_says_how_it_goes_on(
    kind: type[KeyboardInterrupt], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(config: object, run: Run) -> None:
        raise kind("SIGTERM")

    monkeypatch.setitem(verbs.RUN, "train", stopped)
    assert cli.main(["train", "data.path=x", "run_dir=mine"]) == 130
    assert f"to go on: embodied-wm train run_dir={Path('mine').resolve()} resume=true" in spoken(capsys)


def test_an_error_of_the_program_shows_where(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(config: object, run: Run) -> None:
        raise KeyError("gone")

    monkeypatch.setitem(verbs.RUN, "collect", broken)
    assert cli.main(["collect", "out=x"]) == 1
    page = spoken(capsys)
    assert "Traceback" in page
    assert "unexpected KeyError" in page


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    features = {
        "observation.images.top": FeatureSpec(dtype="uint8", shape=(8, 8, 3)),
        "action": FeatureSpec(dtype="float32", shape=(2,), names=("left", "right"), units=("m", "rad")),
    }
    rng = np.random.default_rng(0)
    store = EpisodeStore.create(tmp_path / "s.zarr", features=features, fps=5.0, metadata={"robot": "toy"})
    for rows in (4, 6):
        action = rng.normal(size=(rows, 2)).astype(np.float32)
        store.append(
            [Episode(features={"observation.images.top": np.zeros((rows, 8, 8, 3), np.uint8), "action": action})]
        )
    store.close()
    return tmp_path / "s.zarr"


def test_inspect_a_store(store_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(store_path)]) == 0
    page = spoken(capsys)
    for word in ("10 at 5 per second", "4 to 6", "toy", "(8, 8, 3)", "left, right", "m, rad", "minimum"):
        assert word in page
    mean = EpisodeStore.open(store_path).read("action", 0, 10)[:, 0].mean()
    assert f"{mean:.3g}" in page


@pytest.mark.parametrize(
    "line",
    [
        "inspect {}",
        "inspect {} out=page.html",
        "validate {}",
        "edit operation=merge sources=[{}] out=new.zarr",
        "train data.path={}",
        "collect out={}",
    ],
)
def test_a_store_of_a_newer_version_is_refused_and_stays_as_it_is(
    store_path: Path, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    header = store_path / "zarr.json"
    root = json.loads(header.read_text())
    root["attributes"]["embodied_wm"] |= {"version": VERSION + 1, "features": "of another form"}
    header.write_text(json.dumps(root))
    before = {path: path.read_bytes() for path in store_path.rglob("*") if path.is_file()}
    assert cli.main(line.format(store_path).split()) == 1
    page = spoken(capsys)
    for words in (f"store version {VERSION + 1}", "newer than this program's", f"reads version {VERSION}", "Use the"):
        assert words in page
    assert before.items() <= {path: path.read_bytes() for path in store_path.rglob("*") if path.is_file()}.items()
    assert not Path("new.zarr").exists()
    assert not Path("page.html").exists()


def test_inspect_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    from safetensors.torch import save_file

    folder = tmp_path / "run" / "model"
    folder.mkdir(parents=True)
    save_file({"tokenizer.w": torch.zeros(3, 5), "tokenizer.b": torch.zeros(5)}, folder / "weights.safetensors")
    (folder / "config.json").write_text(json.dumps({"width": 32, "card": {"dataset": "abc"}}))
    assert cli.main(["inspect", str(folder.parent)]) == 0
    page = spoken(capsys)
    for word in ("card.dataset abc", "width 32", "tokenizer 2 20 80 B"):
        assert word in page


@pytest.mark.parametrize("text", ["", "not safetensors at all"])
def test_inspect_a_damaged_checkpoint(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "weights.safetensors").write_text(text)
    assert cli.main(["inspect", str(tmp_path)]) == 2
    assert "damaged" in spoken(capsys)


def test_inspect_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(tmp_path)]) == 2
    assert "neither an episode store" in spoken(capsys)
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "info.json").write_text("{}")
    assert cli.main(["inspect", str(tmp_path)]) == 2
    assert f"embodied-wm import source={tmp_path}" in spoken(capsys)


@pytest.mark.render
def test_collect_then_continue_equals_collecting_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    common = ["collect", "rows=6", "workers=1", "task.image_size=16"]
    assert cli.main([*common, "episodes=2", "out=a.zarr"]) == 0
    assert cli.main([*common, "episodes=5", "out=a.zarr"]) == 0
    assert cli.main([*common, "episodes=5", "out=b.zarr"]) == 0
    parts, whole = EpisodeStore.open("a.zarr"), EpisodeStore.open("b.zarr")
    assert parts.num_episodes == whole.num_episodes == 5
    for name in whole.features:
        np.testing.assert_array_equal(parts.read(name, 0, 30), whole.read(name, 0, 30))
    capsys.readouterr()
    assert cli.main([*common, "episodes=4", "out=a.zarr"]) == 0
    assert "nothing to do" in spoken(capsys)
    assert cli.main([*common, "episodes=9", "out=a.zarr", "seed=1"]) == 2
    assert "was collected with seed=0, not seed=1" in spoken(capsys)


def finished_episodes(path: Path) -> int:
    try:
        return EpisodeStore.open(path).num_episodes
    except StoreError:  # not there yet, or being made at this moment
        return 0


@pytest.mark.render
def test_ctrl_c_while_collecting_leaves_a_usable_store(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "embodied_wm.cli", "collect", "out=s.zarr", "episodes=100000", "rows=4"]
    command += ["task.image_size=8"]
    process = subprocess.Popen(
        command, start_new_session=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    try:
        deadline_s = time.monotonic() + 60
        while time.monotonic() < deadline_s and not finished_episodes(Path("s.zarr")):
            time.sleep(0.1)
        for _ in range(3):  # a terminal's Ctrl-C reaches the workers too, and people press it more than once
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.05)
        _, errors = process.communicate(timeout=30)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 130
    assert "Stopped" in errors
    assert "Traceback" not in errors
    store = EpisodeStore.open("s.zarr")
    assert store.num_episodes >= 20
    assert len(store.episode(store.num_episodes - 1).features["action"]) == 4
