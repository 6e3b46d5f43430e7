"""Sections of the report about refinement: how a model's figures change from round to round."""

from collections.abc import Mapping, Sequence
from typing import Any

from embodied_wm.evaluation.figures import Picture, horizon_chart
from embodied_wm.evaluation.pages_imagination import in_unit, last_step
from embodied_wm.evaluation.report import Headline, Section, Table

_CURVES: Mapping[str, tuple[str, str, float, str]] = {
    "success": (
        "Success at the end of the episode",
        "share of pairs",
        1.0,
        "The oracle is the same planner with MuJoCo as its dynamics.",
    ),
    "spearman": (
        "Rank correlation with physics",
        "Spearman, over a state's candidates",
        1.0,
        "Does imagination sort candidates as physics does? 1 is the same order, 0 is chance.",
    ),
    "elite_regret": (
        "Elite regret",
        "share of the spread",
        1.0,
        "Cost lost by taking imagination's favourite instead of the best candidate; 0 is none.",
    ),
    "optimism": (
        "Optimism of the plan",
        "true minus imagined cost",
        1.0,
        "In the objective's unit, metres where states are read; far above that of random candidates, the planner "
        "exploits the model's mistakes.",
    ),
    "ghost_motion": (
        "Ghost motion at the last step",
        "ghost motion (cm)",
        100.0,
        "How far things that nothing touches seem to move.",
    ),
    "state_error": (
        "Position error at the last step",
        "position error (cm)",
        100.0,
        "Read from imagined latents, against MuJoCo.",
    ),
}
"""Key to a chart's title, what its axis shows, the factor to its unit, and how to read it."""
_BESIDE: Mapping[str, tuple[str, str]] = {
    "spearman": ("planner's candidates alone", "spearman.planner"),
    "elite_regret": ("choosing blindly", "elite_regret_chance"),
    "optimism": ("random candidates", "optimism_random"),
    "state_error": ("assuming nothing moves", "state_error_copy"),
}
"""Key to what is drawn beside it: its name and key."""
_COLUMNS: Mapping[str, tuple[str, float]] = {
    "success": ("success", 1.0),
    "cpg": ("oracle minus model", 1.0),
    "spearman": ("rank correlation", 1.0),
    "elite_regret": ("elite regret", 1.0),
    "optimism": ("optimism", 1.0),
    "ghost_motion": ("ghost motion (cm)", 100.0),
    "state_error": ("position error (cm)", 100.0),
}
"""Key to a column's title and the factor to its unit."""


def _at_end(measure: Mapping[str, Any]) -> Mapping[str, Any]:
    return last_step(measure)[1] if "by_horizon" in measure else measure


def _curve(rounds: Sequence[Mapping[str, Any]], key: str, factor: float) -> dict[str, Any]:
    having = {number: measures for number, measures in enumerate(rounds) if key in measures}
    return {str(number): in_unit(_at_end(measures[key]), factor) for number, measures in having.items()}


def _charts(rounds: Sequence[Mapping[str, Any]]) -> list[Picture]:
    pictures = []
    for key, (title, ylabel, factor, caption) in _CURVES.items():
        series = {"model": _curve(rounds, key, factor)}
        references = ()
        if key == "success" and "success.oracle" in rounds[0]:
            oracle = rounds[0]["success.oracle"]
            series["oracle"] = {str(number): oracle for number in range(len(rounds))}
            references = ("oracle",)
        elif key in _BESIDE:
            name, other = _BESIDE[key]
            beside = _curve(rounds, other, factor)
            series |= {name: beside} if beside else {}
            references = (name,)
        if series["model"]:
            pictures.append(
                horizon_chart(
                    series, title=title, ylabel=ylabel, xlabel="round", caption=caption, references=references
                )
            )
    return pictures


def refinement_sections(rounds: Sequence[Mapping[str, Any]], collected: Sequence[Mapping[str, int]]) -> list[Section]:
    """Return what a page shows of a refinement.

    Args:
        rounds: Measures after each round, of PROTOCOL's keys; round 0 is the model that was given.
        collected: What the run's store held when each was trained: "episodes", "branches", "rows".
    """
    columns = [key for key in _COLUMNS if key in rounds[0]]
    rows = [
        [
            f"round\N{NO-BREAK SPACE}{number}",
            store["episodes"],
            store["branches"],
            *(in_unit(_at_end(measures[key]), _COLUMNS[key][1]) if key in measures else None for key in columns),
        ]
        for number, (measures, store) in enumerate(zip(rounds, collected, strict=True))
    ]
    return [
        Section(
            title="Round after round",
            text="In each round the model's own planner makes episodes in MuJoCo, several of its candidates are "
            "carried out from the same states, and the predictor and the readouts are fine-tuned on them beside the "
            "old episodes. States, starts and goals of the measures are the same in every round, and none of them is "
            "trained on. Bands are 95% intervals; round 0 is the model that was given.",
            pictures=_charts(rounds),
        ),
        Section(
            title="Figures of the rounds",
            text="Curves over the imagined steps are taken at their last step. Each round's own pages, with films, "
            "stand in its folder.",
            table=Table(
                columns=["", "episodes", "branches", *(_COLUMNS[key][0] for key in columns)],
                rows=rows,
                units=["", "", "", *("%" if key in ("success", "cpg") else "" for key in columns)],
            ),
        ),
    ]


def refinement_headline(rounds: Sequence[Mapping[str, Any]]) -> list[Headline]:
    """Return the last round's key figures."""
    last, number = rounds[-1], len(rounds) - 1
    return [
        Headline(label=f"success after round {number}", value=last["success"], unit="%"),
        Headline(label="success before", value=rounds[0]["success"], unit="%"),
        Headline(label="oracle minus model", value=last["cpg"], unit="%", better="lower"),
        Headline(label="rank correlation with physics", value=last["spearman"], target=0.85),
        Headline(label="elite regret", value=last["elite_regret"], better="lower", target=0.1),
    ]
