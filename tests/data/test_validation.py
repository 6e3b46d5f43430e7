"""Each check on a small store with exactly that fault, and a store without fault, which gives none."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from embodied_wm import cli
from embodied_wm.data.lerobot import import_lerobot
from embodied_wm.data.store import EpisodeStore, StoreError
from embodied_wm.data.validation import Finding, ValidationReport, validate_store
from embodied_wm.types import Episode, FeatureSpec
from sim.collect import collect, features
from sim.tasks import get_task

CAMERA = "observation.images.top"
SIZE, ROWS, EPISODES = 24, 40, 16
FEATURES = {
    CAMERA: FeatureSpec(dtype="uint8", shape=(SIZE, SIZE, 3)),
    "observation.state": FeatureSpec(dtype="float32", shape=(2,), names=("x", "y"), units=("px", "px")),
    "action": FeatureSpec(dtype="float32", shape=(2,), names=("vx", "vy")),
    "timestamp": FeatureSpec(dtype="float64", shape=()),
}

type Rows = dict[str, np.ndarray]
type Fault = Callable[[list[Rows]], object]


def moving_dot(seed: int) -> Rows:
    """Return an episode in which the action is the velocity of a soft dot, and now and then changes."""
    rng = np.random.default_rng(seed)
    actions = np.repeat(rng.uniform(-1, 1, (ROWS // 4, 2)), 4, axis=0) + rng.normal(0, 0.2, (ROWS, 2))
    places = np.empty((ROWS, 2))
    place = rng.uniform(6, SIZE - 6, 2)
    for row in range(ROWS):
        places[row] = place
        inward = np.where(place < 4, 1, np.where(place > SIZE - 4, -1, 0))
        actions[row] = np.where(inward != 0, inward * np.abs(actions[row]), actions[row])
        place = place + actions[row]
    grid = np.arange(SIZE)
    x, y = np.exp(-0.5 * ((grid - places[:, [0]]) / 2) ** 2), np.exp(-0.5 * ((grid - places[:, [1]]) / 2) ** 2)
    grey = 20 + 220 * y[:, :, None] * x[:, None, :]
    frames = np.repeat(grey[..., None], 3, axis=-1).astype(np.uint8)
    return {
        CAMERA: frames,
        "observation.state": places.astype(np.float32),
        "action": actions.astype(np.float32),
        "timestamp": np.arange(ROWS) / 10,
    }


def write(path: Path, episodes: list[Rows], **specs: FeatureSpec) -> Path:
    with EpisodeStore.create(path, features={**FEATURES, **specs}, fps=10) as store:
        store.append([Episode(features=rows, info={"seed": seed}) for seed, rows in enumerate(episodes)])
    return path


def validated(tmp_path: Path, fault: Fault | None = None) -> ValidationReport:
    episodes = [moving_dot(seed) for seed in range(EPISODES)]
    if fault is not None:
        fault(episodes)
    return validate_store(write(tmp_path / "s.zarr", episodes))


def only(report: ValidationReport) -> Finding:
    assert len(report.findings) == 1, [(f.check, f.episode, f.row, f.message) for f in report.findings]
    return report.findings[0]


def test_a_clean_store_gives_nothing(tmp_path):
    calls: list[tuple[int, int]] = []
    path = write(tmp_path / "s.zarr", [moving_dot(seed) for seed in range(EPISODES)])
    report = validate_store(path, progress=lambda done, total: calls.append((done, total)))
    assert report.findings == []
    assert calls[-1] == (EPISODES * ROWS, EPISODES * ROWS)
    assert (report.num_episodes, report.num_rows, report.num_errors) == (EPISODES, EPISODES * ROWS, 0)
    (alignment,) = report.alignments
    assert (alignment.feature, alignment.best_lag, alignment.is_certain) == (CAMERA, 0, True)
    assert alignment.explained[0] > 0.5
    assert report.fingerprint == EpisodeStore.open(path).fingerprint()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(tmp_path, value):
    def fault(episodes: list[Rows]) -> None:
        episodes[3]["observation.state"][7:9, 1] = value

    found = only(validated(tmp_path, fault))
    assert (found.check, found.severity, found.feature) == ("not_finite", "error", "observation.state")
    assert (found.episode, found.row, found.num_rows) == (3, 7, 2)
    assert f"column 1 is {value}" in found.message
    assert "delete_episodes" in found.advice


def test_a_spike(tmp_path):
    def fault(episodes: list[Rows]) -> None:
        episodes[5]["observation.state"][20, 0] += 60

    found = only(validated(tmp_path, fault))
    assert (found.check, found.severity, found.feature) == ("jump", "warning", "observation.state")
    assert (found.episode, found.row, found.num_rows) == (5, 20, 2)
    assert "column 0 (x)" in found.message


def test_a_leap_that_stays_and_an_angle_that_wraps(tmp_path):
    def leap(episodes: list[Rows]) -> None:
        episodes[5]["observation.state"][30:, 1] -= 50

    found = only(validated(tmp_path, leap))
    assert (found.check, found.episode, found.row, found.num_rows) == ("jump", 5, 30, 1)
    assert "wraps" not in found.message
    episodes = [moving_dot(seed) for seed in range(EPISODES)]
    for number, rows in enumerate(episodes):
        rows["angle"] = (np.linspace(0, 3, ROWS) + 0.05 * number).astype(np.float32)
    episodes[4]["angle"] = ((np.linspace(2, 5, ROWS) + np.pi) % (2 * np.pi) - np.pi).astype(np.float32)
    path = write(tmp_path / "angle.zarr", episodes, angle=FeatureSpec(dtype="float32", shape=()))
    found = only(validate_store(path))
    assert (found.check, found.feature, found.episode) == ("jump", "angle", 4)
    assert "2 pi" in found.message


def test_movements_that_start_late_and_buttons_are_no_jumps(tmp_path):
    episodes = [moving_dot(seed) for seed in range(EPISODES)]
    ramp = np.concatenate([[0.01, 0.1, 0.5, 0.5, 0.1, 0.01]])
    for number, rows in enumerate(episodes):
        other = np.random.default_rng(number).normal(0, 1e-4, (ROWS, 3))
        rows["observation.state"][20:24, 0] += [0, 3, 0, 2]  # a fast joint that jitters
        if number == 2:
            other[10:16, 0] += np.cumsum(ramp)  # a joint that moves once, smoothly
            other[16:, 0] += ramp.sum()
        other[:, 1] = number % 5 == 0 and np.arange(ROWS) > 12  # a gripper that is opened or shut
        other[5, 2] += 2e-3  # noise of a column that hardly moves beside the others
        rows["other"] = other
    path = write(tmp_path / "s.zarr", episodes, other=FeatureSpec(dtype="float64", shape=(3,)))
    assert validate_store(path).findings == []


def test_constant_columns(tmp_path):
    def resting(episodes: list[Rows]) -> None:
        for rows in episodes:
            rows["action"][:, 1] = 0.5

    found = only(validated(tmp_path, resting))
    assert (found.check, found.severity, found.feature, found.episode) == ("constant", "warning", "action", None)
    assert "1 (vy)" in found.message
    assert "0 (vx)" not in found.message


def test_actions_that_are_all_the_same_break_training(tmp_path):
    def unrecorded(episodes: list[Rows]) -> None:
        for rows in episodes:
            rows["action"][:] = 0

    found = only(validated(tmp_path, unrecorded))
    assert (found.check, found.severity, found.feature) == ("constant", "error", "action")


@pytest.mark.parametrize(
    ("change", "row", "message"),
    [
        (lambda times: times.__setitem__(9, times[8] - 0.01), 9, "goes from 0.8 to 0.79"),
        (lambda times: times.__setitem__(slice(20, None), times[20:] + 1.5), 20, "gap of 1.6 s"),
        (lambda times: times.__imul__(1.2), None, "8.33 rows per second, the store 10"),
    ],
)
def test_timestamps(tmp_path, change, row, message):
    found = only(validated(tmp_path, lambda episodes: change(episodes[6]["timestamp"])))
    assert (found.check, found.severity, found.episode, found.row) == ("timestamp", "warning", 6, row)
    assert message in found.message


@pytest.mark.parametrize(("level", "word"), [(0, "black"), (255, "white"), (90, "one colour")])
def test_blank_frames(tmp_path, level, word):
    def fault(episodes: list[Rows]) -> None:
        episodes[2][CAMERA][11:13] = level

    found = only(validated(tmp_path, fault))
    assert (found.check, found.severity, found.feature) == ("blank_frames", "warning", CAMERA)
    assert (found.episode, found.row, found.num_rows) == (2, 11, 2)
    assert word in found.message


def test_frames_of_even_brightness_are_not_blank(tmp_path):
    def fault(episodes: list[Rows]) -> None:
        stripes = np.where(np.arange(SIZE)[:, None] % 2 == 0, [200, 0, 100], [0, 200, 100])
        episodes[2][CAMERA][5] = stripes  # every pixel is as bright as the others

    assert validated(tmp_path, fault).findings == []


def test_an_episode_that_is_all_black_breaks_training(tmp_path):
    def fault(episodes: list[Rows]) -> None:
        episodes[2][CAMERA][:] = 0

    report = validated(tmp_path, fault)
    assert [(f.check, f.severity, f.episode) for f in report.findings] == [
        ("blank_frames", "error", 2),
        ("frozen_frames", "error", 2),
    ]


def test_frozen_frames(tmp_path):
    def hung(episodes: list[Rows]) -> None:
        episodes[8][CAMERA][15:22] = episodes[8][CAMERA][15]

    found = only(validated(tmp_path, hung))
    assert (found.check, found.severity, found.feature) == ("frozen_frames", "warning", CAMERA)
    assert (found.episode, found.row, found.num_rows) == (8, 15, 6)


def test_a_camera_that_hangs_for_a_whole_episode_breaks_training(tmp_path):
    def hung(episodes: list[Rows]) -> None:
        episodes[8][CAMERA][:] = episodes[8][CAMERA][0]

    found = only(validated(tmp_path, hung))
    assert (found.check, found.severity, found.episode) == ("frozen_frames", "error", 8)


def test_a_robot_at_rest_is_neither_frozen_nor_duplicated(tmp_path):
    def resting(episodes: list[Rows]) -> None:
        for rows in episodes[3:5]:
            slow = np.linspace(1, 0, 5)[:, None]
            for name in (CAMERA, "observation.state"):
                rows[name][10:] = rows[name][10]
            rows["action"][10:15] *= slow
            rows["action"][15:] = 0

    assert validated(tmp_path, resting).findings == []


def test_rows_written_twice(tmp_path):
    def twice(episodes: list[Rows]) -> None:
        for name in (CAMERA, "observation.state", "action"):
            rows = episodes[9][name]
            rows[13:] = np.concatenate([rows[12:13], rows[13:-1]])

    found = only(validated(tmp_path, twice))
    assert (found.check, found.severity) == ("duplicated_rows", "warning")
    assert (found.episode, found.row, found.num_rows) == (9, 13, 1)
    assert "observation.state" in found.feature
    assert "timestamp" not in found.feature


def test_rows_that_repeat_other_rows(tmp_path):
    def pasted(episodes: list[Rows]) -> None:
        episodes[12] = {name: rows.copy() for name, rows in episodes[7].items()}
        for name in (CAMERA, "observation.state", "action"):
            episodes[15][name][4:14] = episodes[1][name][20:30]

    report = validated(tmp_path, pasted)
    repeats = [found for found in report.findings if found.check == "repeated_rows"]
    assert [(f.episode, f.row, f.num_rows) for f in repeats] == [(12, 0, ROWS), (15, 4, 10)]
    assert "whole episode repeats episode 7 from row 0" in repeats[0].message
    assert "10 rows repeat episode 1 from row 20" in repeats[1].message


def test_damaged_chunks_are_named_and_the_rest_is_still_checked(tmp_path):
    episodes = [moving_dot(seed) for seed in range(EPISODES)]
    episodes[3]["observation.state"][7, 1] = np.nan
    path = write(tmp_path / "s.zarr", episodes)
    (shard,) = [file for file in (path / "action" / "c").rglob("*") if file.is_file()]
    shard.write_bytes(shard.read_bytes()[:50])
    report = validate_store(path)
    assert {f.check for f in report.findings} == {"damaged", "not_finite"}
    damaged = [f for f in report.findings if f.check == "damaged"]
    assert {f.episode for f in damaged} == set(range(EPISODES))
    assert all(f.severity == "error" and f.feature == "action" and "action/c/0" in f.message for f in damaged)


@pytest.mark.parametrize(("shift", "severity"), [(1, "error"), (-1, "warning"), (-2, "warning")])
def test_actions_that_do_not_line_up_with_frames(tmp_path, shift, severity):
    def shifted(episodes: list[Rows]) -> None:
        for rows in episodes:
            rows["action"] = np.roll(rows["action"], shift, axis=0)

    report = validated(tmp_path, shifted)
    found = only(report)
    assert (found.check, found.severity, found.feature) == ("misaligned", severity, f"action, {CAMERA}")
    assert (report.alignments[0].best_lag, report.alignments[0].is_certain) == (-shift, True)
    assert ("late" if shift > 0 else "early") in found.advice


def test_actions_without_effect_are_not_called_misaligned(tmp_path):
    def unrelated(episodes: list[Rows]) -> None:
        for number, rows in enumerate(episodes):
            rows["action"] = np.random.default_rng(number).uniform(-1, 1, (ROWS, 2)).astype(np.float32)

    report = validated(tmp_path, unrelated)
    assert report.findings == []
    assert report.alignments[0].best_lag is None


def test_position_targets_and_stores_without_camera(tmp_path):
    specs = {name: FEATURES[name] for name in ("observation.state", "action")}
    for name, late in (("right", 0), ("late", 1)):
        episodes = []
        for rows in map(moving_dot, range(EPISODES)):
            target = rows["observation.state"] + rows["action"]  # reached one row later
            episodes.append({"observation.state": rows["observation.state"], "action": np.roll(target, late, axis=0)})
        with EpisodeStore.create(tmp_path / f"{name}.zarr", features=specs, fps=10) as store:
            store.append([Episode(features=rows) for rows in episodes])
        report = validate_store(tmp_path / f"{name}.zarr")
        (alignment,) = report.alignments
        assert (alignment.feature, alignment.best_lag) == ("observation.state", -late)
        assert [f.check for f in report.findings] == ["misaligned"] * late


def test_nothing_to_validate(tmp_path):
    with pytest.raises(StoreError, match="No such episode store"):
        validate_store(tmp_path / "missing.zarr")
    EpisodeStore.create(tmp_path / "s.zarr", features=FEATURES, fps=10).close()
    with pytest.raises(StoreError, match="holds no episode"):
        validate_store(tmp_path / "s.zarr")


def test_the_verb_says_it_with_its_exit_code_and_a_file(tmp_path, capsys):
    episodes = [moving_dot(seed) for seed in range(EPISODES)]
    write(tmp_path / "clean.zarr", episodes)
    episodes[2][CAMERA][11:13] = 0
    write(tmp_path / "warned.zarr", episodes)
    episodes[3]["action"][5, 0] = np.nan
    write(tmp_path / "broken.zarr", episodes)
    assert cli.main(["validate", "clean.zarr", "strict=true"]) == 0
    assert "0 findings that break training, 0 warnings" in capsys.readouterr().out
    assert cli.main(["validate", "warned.zarr"]) == 0
    assert cli.main(["validate", "warned.zarr", "strict=true"]) == 1
    capsys.readouterr()
    assert cli.main(["validate", "broken.zarr", "run_dir=run"]) == 1
    page = capsys.readouterr().out
    for word in ("not finite", "action", "column 0 is nan", "blank frames", "1 findings that break training"):
        assert word in page
    report = json.loads(Path("run/validate.json").read_text())
    assert (report["num_errors"], report["num_warnings"]) == (1, 1)
    assert report["findings"][0]["check"] == "not_finite"
    assert (report["findings"][0]["episode"], report["findings"][0]["row"]) == (3, 5)


@pytest.mark.render
@pytest.mark.parametrize("name", ["reach", "push"])
def test_collected_stores_are_clean(tmp_path, name):
    task = get_task(name)
    specs = {
        feature: FeatureSpec(dtype=dtype, shape=shape, names=names, units=units)
        for feature, (dtype, shape, names, units) in features(task, 32).items()
    }
    with EpisodeStore.create(tmp_path / "s.zarr", features=specs, fps=task.fps) as store:
        episodes = collect(name, num_episodes=40, seed=0, image_size=32, num_workers=1)
        store.append([Episode(features=episode["features"], info=episode["info"]) for episode in episodes])
    report = validate_store(tmp_path / "s.zarr")
    assert report.findings == []
    assert report.alignments[0].best_lag == 0


@pytest.mark.slow
def test_real_robots(tmp_path, shared_data):
    import_lerobot(shared_data / "cr5_banana_v21_first8", tmp_path / "cr5.zarr", image_size=(96, 128))
    report = validate_store(tmp_path / "cr5.zarr")
    assert {(f.check, f.severity) for f in report.findings} == {("timestamp", "warning")}  # its clock is the wall's
    assert (report.alignments[0].best_lag, report.alignments[0].is_certain) == (0, True)
    import_lerobot(shared_data / "gr1_sim_picknplace_v20", tmp_path / "gr1.zarr", image_size=(64, 64))
    report = validate_store(tmp_path / "gr1.zarr")
    # Fingers and legs rest, and the recorded actions do leap where the policy takes over at row 6.
    assert {(f.check, f.severity) for f in report.findings} == {("constant", "warning"), ("jump", "warning")}
    assert {f.row for f in report.findings if f.check == "jump"} == {6}
    assert report.alignments[0].best_lag is None
