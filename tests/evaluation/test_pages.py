"""Pages made of real results: a tiny untrained model on reach, judged, planned with and shown."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import known
import numpy as np
import pytest
import torch
from rich.console import Console

from embodied_wm.data.store import EpisodeStore
from embodied_wm.embodiment import Embodiment
from embodied_wm.evaluation import pages
from embodied_wm.evaluation.branches import BranchConfig
from embodied_wm.evaluation.dataset import DatasetJudged, judge_dataset
from embodied_wm.evaluation.imagination import Judged, judge_imagination
from embodied_wm.evaluation.imagine import imagine_episode
from embodied_wm.evaluation.judged import JudgedWorldModel, ObjectiveKind
from embodied_wm.evaluation.lineup import PlanningSetup
from embodied_wm.evaluation.pages_imagination import step_labels
from embodied_wm.evaluation.pages_refinement import refinement_sections
from embodied_wm.evaluation.plan_once import plan_once
from embodied_wm.evaluation.planning import Episodes, measure_agents
from embodied_wm.evaluation.report import Section, run_record, write_report
from embodied_wm.evaluation.statistics import bootstrap_mean, by_horizon, estimate
from embodied_wm.predictor.config import PredictorConfig
from embodied_wm.predictor.transformer import TransformerConfig
from embodied_wm.tokenizer.frames import FrameTokenizerConfig
from embodied_wm.types import Episode, FeatureSpec
from embodied_wm.world_model import WorldModel, WorldModelConfig
from planners.cem import CEM
from planners.control import Control
from planners.objectives import StepWeights
from sim.collect import collect, features
from sim.tasks import get_task

CAMERA = "observation.images.top"
ROWS = 12
PLANNER = CEM(horizon=2, num_candidates=8, num_iterations=1, num_elites=4, num_kept=1)
REACH = get_task("reach")


@pytest.fixture(scope="module")
def world_model() -> WorldModel:
    torch.manual_seed(0)
    config = WorldModelConfig(
        tokenizer=FrameTokenizerConfig(channels=(8, 8, 8, 8)),
        predictor=PredictorConfig(transformer=TransformerConfig(width=32, depth=1, num_heads=2, hidden=48)),
    )
    quantities = (REACH.quantity_names, REACH.quantity_units)
    body = Embodiment(camera=CAMERA, action_size=2, readouts={"sim.quantities": quantities}, robot="reach")
    return WorldModel(config, body).eval()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EpisodeStore]:
    specs = {
        name: FeatureSpec(dtype=dtype, shape=shape, names=names, units=units)
        for name, (dtype, shape, names, units) in features(REACH, 64, "top").items()
    }
    path = tmp_path_factory.mktemp("store") / "reach.zarr"
    episodes = collect("reach", num_episodes=3, seed=5, num_workers=1, num_rows=ROWS)
    with EpisodeStore.create(path, features=specs, fps=REACH.fps, metadata={"robot": "reach"}) as made:
        made.append([Episode(features=episode["features"], info=episode["info"]) for episode in episodes])
        yield made


@pytest.fixture(scope="module")
def judged(world_model: WorldModel) -> Judged:
    return judge_imagination(
        REACH,
        JudgedWorldModel(world_model, REACH, objective="latent", weights=StepWeights()),
        PLANNER,
        BranchConfig(num_branch_points=2, num_candidates=6, horizon=2),
        weights=StepWeights(),
        seed=0,
        console=quiet(),
    )


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def cells(section: Section) -> dict[str, list]:
    """Return the row of every name in a section's table."""
    assert section.table is not None
    assert all(len(row) == len(section.table.columns) for row in section.table.rows)
    return {row[0]: list(row[1:]) for row in section.table.rows}


def test_imagination_sections_show_films_errors_and_costs(judged: Judged, tmp_path: Path) -> None:
    sections = pages.imagination_sections(REACH, judged)
    films, errors, costs, missing = sections
    assert {"ghost_motion", "contact_f1"} <= cells(missing).keys()  # nothing to touch, and nothing that could move
    assert [picture.kind for picture in films.pictures] == ["webp", "svg", "svg"]
    assert sum("Worst of 2 states" in picture.caption for picture in films.pictures) == 1
    assert [picture.title.split(" by")[0] for picture in errors.pictures] == ["Position error", "PSNR", "SSIM"]
    assert errors.text.endswith("Frames are compared for one in 6 of the candidates.")
    assert "12 points" in costs.pictures[0].caption
    rows = cells(costs)
    assert rows["elite regret"][0] == judged.measures["elite_regret"]
    back = judged.measures["stability"]
    assert rows["there and back (cm)"][0]["value"] == pytest.approx(100 * back["value"])
    assert all(row[1] for row in rows.values())
    path = write_report(
        tmp_path, kind="imagination", run=run_record({}, 0), tasks={"reach": judged.measures}, sections=sections
    )
    page, report = path.with_suffix(".html").read_text(), json.loads(path.read_text())
    figures = report["tasks"]["reach"]
    for value in (figures["spearman_true"]["value"], figures["psnr"]["by_horizon"]["2"]["value"]):
        assert f'<data value="{value!r}">' in page


def test_the_worst_case_is_the_worst(judged: Judged) -> None:
    """A future that was imagined without any error is never the one called worst."""
    assert judged.imagined_frames is not None
    mixed = judged.imagined_frames.copy()
    mixed[0] = judged.true_frames[0]
    films = pages.imagination_sections(REACH, replace(judged, imagined_frames=mixed))[0]
    worst = next(picture for picture in films.pictures if picture.title == "Worst case")
    assert "60.0 dB" not in worst.caption
    assert any("60.0 dB" in picture.caption for picture in films.pictures)


def test_a_figure_is_explained_before_its_parts(judged: Judged) -> None:
    measures = {"ghost_motion.box": {"by_horizon": {"2": estimate(0.1, None, 1)}}}
    mixed = replace(judged, measures=measures | {"ghost_motion": measures["ghost_motion.box"]} | judged.measures)
    section = next(s for s in pages.imagination_sections(REACH, mixed) if s.title == "Would a planner choose right?")
    assert section.table is not None
    names = [row[0] for row in section.table.rows]
    assert names.index("ghost motion (cm)") < names.index("ghost motion (cm), box")


def test_one_branch_point_is_enough(judged: Judged) -> None:
    assert judged.imagined_frames is not None
    single = replace(
        judged,
        **{
            name: getattr(judged, name)[:1]
            for name in ("imagined_costs", "physical_costs", "imagined_frames", "true_frames", "contacts", "starts")
        },
    )
    assert len(pages.imagination_sections(REACH, single)[0].pictures) == 2


def episodes(success: list[bool], *, filmed: bool) -> Episodes:
    """Return episodes of five steps that end in success or not."""
    reached = np.array(success)
    count = len(reached)
    frames = np.zeros((min(count, 6), 6, 64, 64, 3), np.uint8)
    return Episodes(
        success=reached,
        success_any=reached,
        steps_to_success=np.where(reached, 3, 6),
        final_cost_m=np.where(reached, 0.01, 0.2),
        films=frames if filmed else np.zeros((0,)),
        goals=frames[:, 0] if filmed else np.zeros((0,)),
    )


def test_planning_sections_name_agents_and_films() -> None:
    runs = {
        "random": episodes([False] * 8, filmed=False),
        "oracle": episodes([True] * 8, filmed=False),
        "model": episodes([False, True, True, False, True, True, True, True], filmed=True),
    }
    seconds = {"model": np.array([0.05, 0.06, 0.07]), "oracle": np.array([0.01, 0.02])}
    measures = measure_agents(runs, seconds, planned_steps=64, seed=0)
    rates, films = pages.planning_sections(REACH, runs, measures)
    rows = cells(rates)
    assert list(rows) == ["world model", "MuJoCo oracle", "random actions"]
    assert rows["world model"][0] == measures["success"]
    assert rows["world model"][2]["value"] == pytest.approx(100 * measures["final_cost_m"]["value"])
    assert rows["world model"][4] == pytest.approx(60.0)
    assert rows["random actions"][3:] == [None, None, None]
    assert "100% of the episodes, in imagination in 75%" in rates.text
    assert "plans at each of 30 steps" in rates.text
    chunks, _ = pages.planning_sections(REACH, runs, measures, replan_every=3)
    assert "plans once every 3 of 30 steps" in chunks.text
    assert measures["candidate_steps_per_decision"]["value"] == 64
    assert "candidate_steps_per_decision" not in measure_agents(runs, seconds, planned_steps=64, seed=0, budget_ms=9)
    titles = [picture.title for picture in films.pictures]
    assert titles == ["Episode 1: goal missed", "Episode 2: goal reached", "Episode 3: goal reached"]


def test_planning_sections_without_a_model_have_no_films() -> None:
    runs = {"zero": episodes([False] * 2, filmed=False)}
    sections = pages.planning_sections(REACH, runs, measure_agents(runs, {}, planned_steps=1, seed=0))
    assert len(sections) == 1
    assert "oracle" not in sections[0].text


def test_latent_action_and_speed_sections() -> None:
    found = {"r2": estimate(0.9, [0.8, 1.0], 5), "success": estimate(1.0, None, 1)}
    assert next(iter(cells(pages.latent_action_section(found)).values()))[0] == found["r2"]
    row = {
        "context": 4,
        "num_steps": 1,
        "cached_seconds": estimate(0.01, [0.009, 0.011], 5),
        "uncached_seconds": estimate(0.04, [0.03, 0.05], 5),
        "candidate_steps_per_second": 12800.0,
        "speed_up": 4.0,
        "utilisation": 0.5,
        "relative_difference": 1e-7,
    }
    speed = {"matmul_flops": 5e10, "imagine": [row | {"num_candidates": 16}, row | {"num_candidates": 64}]}
    section = pages.speed_section(speed)
    first = next(iter(cells(section).values()))
    assert first[0]["value"] == pytest.approx(10.0)
    assert first[2:] == ["4.0 ×", 12800, "0.50", "1.0e-07"]  # noqa: RUF001
    assert len(section.pictures) == 1
    assert not pages.speed_section({**speed, "imagine": speed["imagine"][:1]}).pictures


def test_what_one_round_could_not_measure_stays_empty() -> None:
    """Where every candidate moves the object there is no ghost motion, and a refinement must not end there."""
    shared = {key: bootstrap_mean([0.1, 0.2], seed=0) for key in ("success", "cpg", "spearman", "elite_regret")}
    ghost = {"ghost_motion": by_horizon(np.ones((2, 3)), seed=0)}
    collected = {"episodes": 0, "branches": 0, "rows": 0}
    table = refinement_sections([shared | ghost, shared, shared | ghost], [collected] * 3)[1].table
    assert table is not None
    place = list(table.columns).index("ghost motion (cm)")
    assert [row[place] and row[place]["value"] for row in table.rows] == [100.0, None, 100.0]


def test_training_section_draws_stages_in_order(tmp_path: Path) -> None:
    lines = [
        {"stage": "predictor", "step": 20, "loss": 0.5},
        {"stage": "tokenizer", "step": 20, "loss": 9.0},
        {"stage": "tokenizer", "step": 20, "loss": 1.0},  # the same step again, after resuming
        {"stage": "tokenizer", "step": 40, "loss": -0.1},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"stage": "pred')
    section = pages.training_section({"a": tmp_path})
    assert [picture.title for picture in section.pictures] == ["Stage tokenizer", "Stage predictor"]
    assert "1 broken line" in section.text
    with pytest.raises(ValueError, match=r"metrics\.jsonl is missing"):
        pages.training_section({"a": tmp_path / "elsewhere"})
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds no line with a stage"):
        pages.training_section({"a": tmp_path})


@pytest.fixture(scope="module")
def dataset_judged(world_model: WorldModel, store: EpisodeStore) -> DatasetJudged:
    return judge_dataset(
        world_model, store, [1, 2], context=2, horizon=3, starts_per_episode=3, seed=0, console=quiet()
    )


def test_dataset_is_judged_against_copy_and_ceiling(
    dataset_judged: DatasetJudged, world_model: WorldModel, store: EpisodeStore
) -> None:
    assert set(dataset_judged.measures) == {
        *(f"{key}{ending}" for key in ("psnr", "ssim") for ending in ("", "_copy", "_ceiling")),
        "psnr_over_copy",
        "latent_mse",
    }
    gain, imagined, copied = (
        dataset_judged.measures[key]["by_horizon"]["3"] for key in ("psnr_over_copy", "psnr", "psnr_copy")
    )
    assert gain["value"] == pytest.approx(imagined["value"] - copied["value"])
    assert gain["ci95"][0] <= gain["value"] <= gain["ci95"][1]
    assert list(dataset_judged.measures["psnr"]["by_horizon"]) == ["1", "2", "3"]
    assert dataset_judged.measures["psnr"]["by_horizon"]["1"]["n"] == 6
    again = judge_dataset(
        world_model, store, [1, 2], context=2, horizon=3, starts_per_episode=3, seed=0, console=quiet()
    )
    assert again.measures == dataset_judged.measures
    assert len(dataset_judged.films) == 4
    assert {film.title.split(",")[0] for film in dataset_judged.films[:2]} == {"Episode 1", "Episode 2"}
    for real, imagined, num_context, _ in dataset_judged.films:
        assert np.array_equal(real[:num_context], imagined[:num_context])
        assert len(real) == len(imagined) == 5


def test_dataset_films_are_what_the_store_holds(dataset_judged: DatasetJudged, store: EpisodeStore) -> None:
    film = dataset_judged.films[0]
    episode, start = (int(word) for word in film.title.replace(",", "").split() if word.isdigit())
    assert np.array_equal(film.real, store.episode(episode).features[CAMERA][start : start + 5])


def test_dataset_sections(dataset_judged: DatasetJudged) -> None:
    films, errors = pages.dataset_imagination_sections(replace(dataset_judged, skipped=[7]))
    assert "too short: episodes 7" in films.text
    assert [picture.kind for picture in films.pictures] == ["webp", "webp", "svg", "svg", "svg", "svg"]
    assert cells(errors)["PSNR (dB)"][0] == dataset_judged.measures["psnr"]["by_horizon"]["1"]


def test_episodes_too_short_are_skipped_or_refused(world_model: WorldModel, store: EpisodeStore) -> None:
    settings = {"context": 2, "starts_per_episode": 1, "seed": 0, "console": quiet()}
    with pytest.raises(ValueError, match=rf"none of the episodes \[0, 2\] has {ROWS + 1} rows"):
        judge_dataset(world_model, store, [0, 2], horizon=ROWS - 1, **settings)
    whole = judge_dataset(world_model, store, [0], horizon=ROWS - 2, **settings)
    assert whole.measures["psnr"]["by_horizon"]["1"]["n"] == 1
    with pytest.raises(ValueError, match="horizon=0"):
        judge_dataset(world_model, store, [0], horizon=0, **settings)


def test_imagine_episode_writes_a_report(world_model: WorldModel, store: EpisodeStore, tmp_path: Path) -> None:
    console = quiet()
    path = imagine_episode(
        world_model, store, 2, tmp_path, start=1, context_frames=3, horizon=50, seed=0, console=console
    )
    report = json.loads(path.read_text())
    assert list(report["tasks"]["reach"]["psnr"]["by_horizon"]) == [str(h) for h in range(1, ROWS - 4 + 1)]
    assert report["run"]["dataset"] == store.fingerprint()
    assert "report.html" in console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert len(list((tmp_path / "pictures").iterdir())) == 4
    with pytest.raises(ValueError, match=f"has {ROWS} rows: after 3 context frames from row {ROWS - 3} none is left"):
        imagine_episode(
            world_model, store, 0, tmp_path, start=ROWS - 3, context_frames=3, horizon=1, seed=0, console=console
        )


@pytest.mark.parametrize("changes", [{"start": -1}, {"context_frames": 0}, {"horizon": 0}])
def test_nothing_to_see_or_to_imagine_is_refused(
    world_model: WorldModel, store: EpisodeStore, tmp_path: Path, changes: dict[str, int]
) -> None:
    settings = {"start": 0, "context_frames": 2, "horizon": 2, "seed": 0} | changes
    ((name, value),) = changes.items()
    with pytest.raises(ValueError, match=f"{name}={value}.*at least 1 frame each"):
        imagine_episode(world_model, store, 0, tmp_path, **settings, console=quiet())
    assert not list(tmp_path.iterdir())


def test_stores_of_another_camera_are_refused(store: EpisodeStore, world_model: WorldModel, tmp_path: Path) -> None:
    other = WorldModel(world_model.config, replace(world_model.embodiment, camera="observation.images.wrist"))
    with pytest.raises(ValueError, match=r"the model wants 'observation\.images\.wrist'"):
        imagine_episode(other, store, 0, tmp_path, start=0, context_frames=2, horizon=2, seed=0, console=quiet())


def setup_of(objective: ObjectiveKind) -> PlanningSetup:
    """Return how one episode of reach is planned."""
    return PlanningSetup(task="reach", planner=PLANNER, objective=objective, weights=StepWeights())


@known.OF_ANOTHER_TASK
def test_plan_once_refuses_a_model_of_another_task(
    world_model: WorldModel, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    other = WorldModel(world_model.config, replace(world_model.embodiment, **changes))
    with pytest.raises(ValueError, match=f"the model {message}.*Use a checkpoint that was trained on reach"):
        plan_once(other, setup_of("latent"), seed=0, run_dir=tmp_path, console=quiet())
    assert not any(tmp_path.iterdir())


@pytest.mark.render
def test_plan_once_shows_one_episode(world_model: WorldModel, tmp_path: Path) -> None:
    console = quiet()
    path = plan_once(world_model, setup_of("state"), seed=3, run_dir=tmp_path, console=console)
    report = json.loads(path.read_text())
    found = report["tasks"]["reach"]
    assert found["seconds_per_decision"]["n"] == REACH.episode_steps
    reached = found["final_cost_m"]["value"] <= REACH.tolerance_m
    assert found["success"]["value"] == float(reached)
    assert report["summary"].startswith("Goal reached" if reached else "Goal missed")
    assert report["headline"][0]["value"]["value"] == pytest.approx(100 * found["final_cost_m"]["value"])
    assert [len(section["pictures"]) for section in report["sections"]] == [2, 2, 1, 1]
    assert "expected at plan" in (tmp_path / report["sections"][2]["pictures"][0]["file"]).read_text()


@pytest.mark.render
def test_plan_once_shows_chunks_that_are_planned_while_others_run(world_model: WorldModel, tmp_path: Path) -> None:
    planner = CEM(horizon=10, num_candidates=6, num_iterations=2, num_elites=2, num_kept=1)
    control = Control(replan_every=5, asynchronous=True, budget_ms=60e3)
    setup = replace(setup_of("latent"), planner=planner, control=control)
    path = plan_once(world_model, setup, seed=3, run_dir=tmp_path, console=quiet())
    report = json.loads(path.read_text())
    found = report["tasks"]["reach"]
    assert found["seconds_per_decision"]["n"] == REACH.episode_steps // 5
    assert found["late_decisions"]["value"] == 0.0
    assert report["sections"][-1]["title"] == "What a decision takes"
    assert len(report["sections"][-1]["pictures"]) == 2


def test_labels_count_from_the_last_given_frame() -> None:
    assert step_labels(2, 2) == ["given, t-1", "given, t", "t+1", "t+2"]
    assert step_labels(1, 2, [False, True]) == ["given, t", "t+1", "t+2 \u25cf"]
