"""Shortest ways among boxes: exact where geometry says so, never shorter than the straight line."""

import numpy as np
import pytest

from sim.geodesic import Geodesics

WALL = np.array([[0.0, 0.1, 0.01, 0.1]])  # from (0, 0) to the upper edge, 2 cm thick
RADIUS_M = 0.02


@pytest.fixture(scope="module")
def ways():
    return Geodesics(WALL, radius_m=RADIUS_M, half_size_m=0.2)


def test_without_walls_it_is_the_straight_line():
    empty = Geodesics(np.array([[9.0, 9.0, 0.1, 0.1]]), radius_m=RADIUS_M, half_size_m=0.2)
    points = np.random.default_rng(0).uniform(-0.19, 0.19, size=(200, 2))
    goal = np.array([0.033, -0.051])
    straight = np.linalg.norm(points - goal, axis=-1)
    found = empty.distance(points, goal)
    assert (found >= straight).all()
    assert (found <= 1.04 * straight + 0.006).all()


def test_round_a_wall_it_is_the_taut_string(ways):
    start, goal = np.array([-0.1, 0.1]), np.array([0.1, 0.1])
    # round the wall's lower end, 2 cm away from its corners (0.01, 0): two straight parts, two arcs, one flat part
    reach = np.hypot(0.09, 0.1)
    tangent = np.sqrt(reach**2 - RADIUS_M**2)
    arc = RADIUS_M * (np.pi / 2 - (np.arctan2(0.09, 0.1) - np.arcsin(RADIUS_M / reach)))
    taut = 2.0 * (tangent + arc) + 0.02
    found = float(ways.distance(start, goal))
    assert taut - 0.004 <= found <= 1.05 * taut
    assert found == pytest.approx(float(ways.distance(goal, start)), abs=0.004)


def test_walking_down_the_distance_arrives_without_touching_the_wall(ways):
    place, goal = np.array([-0.08, 0.15]), np.array([0.09, 0.12])
    compass = 0.01 * np.stack([np.cos(np.arange(32) * np.pi / 16), np.sin(np.arange(32) * np.pi / 16)], axis=-1)
    before = float(ways.distance(place, goal))
    slimmer = Geodesics(WALL, radius_m=RADIUS_M - 0.008, half_size_m=0.2)  # a step may cut a corner
    for _ in range(80):
        place = place + compass[np.argmin(ways.distance(place + compass, goal))]
        assert slimmer.is_free(place)
        if np.linalg.norm(place - goal) < 0.012:
            break
    assert np.linalg.norm(place - goal) < 0.012
    assert before > 0.3


def test_a_goal_inside_a_wall_counts_as_the_place_beside_it(ways):
    inside = np.array([0.0, 0.1])
    assert np.isfinite(ways.distance(np.array([[-0.1, 0.1], [0.1, 0.1]]), inside)).all()


def test_the_disc_does_not_fit_into_or_near_a_wall(ways):
    assert not ways.is_free(np.array([[0.0, 0.1], [0.025, 0.1], [0.0, -0.015]])).any()
    assert ways.is_free(np.array([[0.031, 0.1], [0.0, -0.021], [0.19, 0.19]])).all()


def test_the_border_is_read_in_single_precision_too(ways):
    """Places that a model imagines are float32, and may lie on the border or beyond it."""
    points = np.array([[0.2, 0.2], [0.31, -0.4], [-0.2, 0.2], [0.2, 0.05]])
    goal = np.array([0.1, 0.1])
    np.testing.assert_allclose(ways.distance(points.astype(np.float32), goal), ways.distance(points, goal), rtol=1e-5)
