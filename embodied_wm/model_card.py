"""Model card: what a saved model was trained on, for how long, what was measured of it, and where it ends.

The card's facts stand in the checkpoint (`card` in config.json); README.md beside the weights is written from them,
with the metadata that the Hugging Face Hub reads (https://huggingface.co/docs/hub/model-cards). A benchmark adds its
figures to both, and never touches the weights. A README.md that somebody else wrote (it lacks `MARK`) is left alone.
"""

import fcntl
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from torch import Tensor
from yaml import YAMLError

from embodied_wm import checkpoint

README = "README.md"
MARK = "<!-- Written by embodied-wm, and written anew with every figure; remove this line to keep what you edit. -->"
TAGS = ("world-model", "robotics", "latent-actions", "diffusion", "planning")
LIBRARY, TASK = "embodied-wm", "robotics"
OWN_METADATA = ("library_name", "pipeline_tag", "tags", "model-index", "model_name")

SHOWN: Mapping[str, tuple[str, ...]] = {
    "imagination": (
        "spearman", "elite_regret", "elite_regret_chance", "psnr", "psnr_copy", "psnr_ceiling", "state_error",
        "ghost_motion", "optimism", "contact_f1",
    ),
    "planning": (
        "success", "success_any", "final_cost_m", "cpg", "success.oracle", "success.random", "seconds_per_decision",
    ),
    "latent_actions": ("r2", "delta_psnr", "delta_psnr_shuffled", "code_bits", "code_bits_used"),
    "speed": ("decisions_per_second", "seconds_per_decision"),
}  # fmt: skip
"""Kind of report to its figures that a card shows; curves over the horizon are shown at their last step."""
HEADLINE = "success"
"""What a report of planning holds of the model itself; baselines alone say nothing of it."""


def figures_of(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the entries of a card that a report makes: one for each task it measured.

    Args:
        report: What report.json holds.
    """
    config = report["run"]["config"]
    objective = config.get("objective", {}).get("kind", "")
    settings = {
        "planner": str(config.get("planner", {}).get("_target_", "")).rpartition(".")[2],
        "objective": objective if isinstance(objective, str) else "mixed",
    }
    entries = []
    for task, measures in report["tasks"].items():
        chosen = {key: _last(measures[key]) for key in SHOWN.get(report["kind"], ()) if key in measures}
        if chosen and (report["kind"] != "planning" or HEADLINE in chosen):
            entries.append(
                {
                    "kind": report["kind"],
                    "task": task,
                    **{key: value for key, value in settings.items() if value},
                    "seed": report["run"]["seed"],
                    "revision": report["run"]["revision"],
                    "checkpoint": report["run"]["checkpoint"],
                    "measures": chosen,
                }
            )
    return entries


def add_figures(folder: Path, report: Mapping[str, Any]) -> list[str]:
    """Add a report's figures to the card of the model in a folder; the weights are not touched.

    Figures of the same kind, task, planner and objective are replaced, unless the earlier ones rest on more samples;
    figures of other weights are dropped.

    Args:
        folder: The model's folder.
        report: What report.json holds.

    Returns:
        One line for each entry that was not taken, saying why.

    Raises:
        CheckpointError: If the folder holds no model of ours, or cannot be written.
    """
    refused = []
    with _one_writer(folder):
        described = checkpoint.read_description(folder)
        kept = [
            entry
            for entry in described["card"].get("figures", [])
            if entry["checkpoint"] == report["run"]["checkpoint"]
        ]
        for entry in figures_of(report):
            same = next((other for other in kept if _about(other) == _about(entry)), None)
            if same is not None and _samples(same) > _samples(entry):
                refused.append(
                    f"the card keeps its earlier figures of {' '.join(_about(entry))}: they rest on {_samples(same)} "
                    f"samples, these on {_samples(entry)}"
                )
                continue
            kept = [other for other in kept if other is not same] + [entry]
        described["card"]["figures"] = sorted(kept, key=_about)
        checkpoint.write_json(folder / "config.json", described)
        write_readme(folder)
    return refused


def write_readme(folder: Path, metadata: Mapping[str, Any] | None = None) -> None:
    """Write README.md of a model folder from what else it holds, unless somebody else wrote the one that is there.

    Args:
        folder: The model's folder.
        metadata: Further metadata for the Hub, such as {"license": "mit"}; what an earlier card had of that kind stays.

    Raises:
        CheckpointError: If the folder holds no model of ours, or cannot be written.
    """
    path, further = folder / README, dict(metadata or {})
    if path.is_file():
        text = path.read_text(encoding="utf-8", errors="replace")
        if MARK not in text:
            return
        further = _added_by_hand(text) | further
    described = checkpoint.read_description(folder)
    sizes = part_sizes(checkpoint.read_tensors(folder / "model.safetensors"))
    checkpoint.write_text(path, str(model_card(described, sizes, further)))


def part_sizes(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return part of the model to the numbers in its tensors."""
    sizes: dict[str, int] = {}
    for name, tensor in tensors.items():
        part = name.split(".")[0]
        sizes[part] = sizes.get(part, 0) + tensor.numel()
    return dict(sorted(sizes.items()))


def _added_by_hand(text: str) -> dict[str, Any]:
    """Return the metadata of an earlier card that are not made from the model, such as its license."""
    try:
        found = ModelCard(text, ignore_metadata_errors=True).data.to_dict()
    except (ValueError, YAMLError):
        return {}
    return {key: value for key, value in found.items() if key not in OWN_METADATA}


def model_card(
    described: Mapping[str, Any], part_sizes: Mapping[str, int], metadata: Mapping[str, Any] | None = None
) -> ModelCard:
    """Return the card of a model.

    Args:
        described: What config.json holds: "config", "embodiment" and "card".
        part_sizes: Part of the model to the numbers in its tensors.
        metadata: Further metadata for the Hub, such as {"license": "mit"}.
    """
    embodiment, card = described["embodiment"], described["card"]
    figures = card.get("figures", [])
    name = f"World-action model of {embodiment['robot']}"
    data = ModelCardData(
        library_name=LIBRARY,
        pipeline_tag=TASK,
        tags=sorted({*TAGS, _slug(embodiment["robot"])}),
        model_name=name,
        eval_results=[result for entry in figures for result in _results(entry)] or None,
        **dict(metadata or {}),
    )
    sections = [
        f"# {name}",
        MARK,
        _summary(described, part_sizes),
        _use(described),
        _training(card, embodiment),
        _figures(figures),
        _limits(described),
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")


def without_places(card: Mapping[str, Any]) -> dict[str, Any]:
    """Return a card without this machine's folders, to be given to others: local paths become names."""
    shared = dict(card) | _without_folder(card)
    if "refinement" in card:
        shared["refinement"] = [note | _without_folder(note) for note in card["refinement"]]
    return shared


def _without_folder(noted: Mapping[str, Any]) -> dict[str, str]:
    """Return the store that was noted, by its name alone where it lay on this machine."""
    store = str(noted.get("store", "://"))
    return {} if "://" in store else {"store": Path(store).name}


def _summary(described: Mapping[str, Any], part_sizes: Mapping[str, int]) -> str:
    config, embodiment = described["config"], described["embodiment"]
    height, width = _frame_size(config)
    total = sum(part_sizes.values())
    parts = ", ".join(f"{part} {count:,}" for part, count in part_sizes.items() if count > 0.01 * total)
    names = ", ".join(embodiment["action_names"]) or "unnamed"
    felt = f"- feels: `{config['proprioception']}`\n" if config.get("proprioception") else ""
    has_policy = config.get("goal_policy", {}).get("width")
    policy = "- proposes ways to a goal, around which planners search\n" if has_policy else ""
    return (
        "Imagines, in a compact latent space, what a robot's camera will see after candidate actions; a planner picks "
        "the action whose imagined future is best.\n\n"
        f"- robot or task: {embodiment['robot']}\n"
        f"- sees: `{embodiment['camera']}`, {height}x{width}, {embodiment['fps']:g} frames a second\n"
        f"{felt}"
        f"- acts: {embodiment['action_size']} numbers ({names})\n"
        f"- reads from latents: {', '.join(embodiment['readouts']) or 'nothing'}\n"
        f"{policy}"
        f"- numbers in its tensors: {total:,} ({parts})"
    )


def _frame_size(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return height and width of a frame, all cameras side by side."""
    height, width = config["tokenizer"]["image_size"]
    return height, width * config["tokenizer"].get("cameras", 1)


def _use(described: Mapping[str, Any]) -> str:
    height, width = _frame_size(described["config"])
    size = described["embodiment"]["action_size"]
    names, _ = described["embodiment"]["readouts"].get(described["config"].get("proprioception", ""), ((), ()))
    felt = f", proprioception=torch.zeros(3, {len(names)})" if names else ""
    return (
        "## Use\n\n"
        "```python\n"
        "import torch\n"
        "from embodied_wm.world_model import WorldModel\n\n"
        'model = WorldModel.from_pretrained("FOLDER or OWNER/NAME")\n'
        f"frames = torch.zeros(3, {height}, {width}, 3, dtype=torch.uint8)  # the last frames, oldest first\n"
        f"context = model.prefill(frames, torch.zeros(2, {size}){felt})  # and the actions between them\n"
        f"candidates = torch.zeros(64, 8, {size})\n"
        "latents = model.imagine(context, candidates, generator=torch.Generator().manual_seed(0))\n"
        "imagined = model.decode(latents)\n"
        "```"
    )


def _training(card: Mapping[str, Any], embodiment: Mapping[str, Any]) -> str:
    facts = {
        "episodes": _count(card, "episodes"),
        "of them with action labels": _count(card, "labelled_episodes"),
        "held out": _count(card, "held_out_episodes"),
        "frames": _count(card, "rows"),
        "store": _name(card.get("store")),
        "fingerprint of the store": card.get("fingerprint"),
        "where they come from": _plain(card.get("source")),
        "seed": card.get("seed"),
    }
    if card.get("rows"):
        facts["frames"] = f"{card['rows']:,} ({card['rows'] / embodiment['fps'] / 60:.1f} minutes of experience)"
    lines = [f"- {key}: {value}" for key, value in facts.items() if value not in (None, "")]
    seconds, metrics, steps = (card.get(key, {}) for key in ("seconds", "metrics", "steps"))
    rows = [
        [name, str(steps.get(name, "")), f"{seconds.get(name, 0):,.0f}", _numbers(metrics.get(name, {}))]
        for name in seconds
    ]
    if rows:
        lines += ["", _table(("stage", "steps", "seconds", "at its end"), rows)]
    lines += [
        f"\nRefined afterwards, round {note['round']}: on {note['episodes']:,} episodes of its own planner and "
        f"{note['branches']:,} branches from their states ({note['rows']:,} frames), {note['predictor_steps']:,} steps "
        "of the predictor."
        for note in card.get("refinement", [])
    ]
    return "## Training\n\n" + ("\n".join(lines) or "Nothing was noted.")


def _figures(figures: Sequence[Mapping[str, Any]]) -> str:
    head = "## Figures\n\n"
    if not figures:
        return head + (
            "None yet: this model has not been judged against physics. `embodied-wm benchmark imagination` and "
            "`embodied-wm benchmark planning` measure it and write their figures here."
        )
    parts = []
    for entry in figures:
        made = ", ".join(f"{key} {entry[key]}" for key in ("planner", "objective", "seed") if key in entry)
        measures = entry["measures"]
        rows = [[key, *_estimate(measures[key])] for key in SHOWN[entry["kind"]] if key in measures]
        revision = f", revision {entry['revision'][:12]}" if entry.get("revision") else ""
        parts.append(
            f"### {entry['kind'].replace('_', ' ')} of {entry['task']}\n\n"
            f"`embodied-wm benchmark {entry['kind']}` ({made}{revision}):\n\n"
            + _table(("figure", "value", "95% interval", "samples"), rows)
        )
    return head + "\n\n".join(parts)


def _limits(described: Mapping[str, Any]) -> str:
    config, embodiment, card = (described[key] for key in ("config", "embodiment", "card"))
    experience = f"{card['episodes']:,} episodes of " if card.get("episodes") else ""
    views = "those cameras" if config["tokenizer"].get("cameras", 1) > 1 else "that one camera"
    lines = [
        f"It knows {experience}{embodiment['robot']} as {views} saw them: another view, light, object or robot "
        "is outside of what it was trained on, and it does not say so by itself.",
        _forgets(config["predictor"]),
        *_keeps_still(config["predictor"]),
        "Imagined futures can be wrong and look right. A planner searches for actions whose imagined outcome is good, "
        "and so finds the model's mistakes: trust `elite_regret`, `ghost_motion` and `cpg`, not films.",
        "What it reads from latents (positions, contacts) is a fit to simulated or recorded values, with the errors "
        "above.",
        "It has no notion of safety: nothing keeps an imagined or planned action from being harmful.",
    ]
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _forgets(predictor: Mapping[str, Any]) -> str:
    """Say what a predictor remembers."""
    window, memory = predictor["window"], predictor.get("memory", 0)
    if memory:
        return f"It sees the last {window} frames, and remembers {memory} of those before: the rest is forgotten."
    return f"It remembers {window} frames: what left that window and is out of sight is forgotten."


def _keeps_still(predictor: Mapping[str, Any]) -> list[str]:
    """Say what a predictor takes for rest, if anything."""
    least = max(predictor.get("shrinkage", 0.0), predictor.get("stillness", 0.0))
    slow = f"What moves more slowly than about {least:g} times what is usual is imagined to stand still."
    return [slow] if least else []


def _last(measure: Mapping[str, Any]) -> dict[str, Any]:
    """Return an estimate; of a curve over the horizon its last step, with the step's number."""
    if "by_horizon" not in measure:
        return dict(measure)
    step = max(measure["by_horizon"], key=int)
    return {**measure["by_horizon"][step], "horizon": int(step)}


def _about(entry: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(entry.get(key, "")) for key in ("kind", "task", "planner", "objective"))


def _samples(entry: Mapping[str, Any]) -> int:
    """Return the samples of an entry's first figure; decisions, or bits of a code, are counted otherwise."""
    return next(entry["measures"][key]["n"] for key in SHOWN[entry["kind"]] if key in entry["measures"])


def _results(entry: Mapping[str, Any]) -> Iterator[EvalResult]:
    """Yield what the Hub's metadata say of an entry's figures."""
    for key, measure in entry["measures"].items():
        if measure["value"] is not None:
            at = f" at h = {measure['horizon']}" if "horizon" in measure else ""
            yield EvalResult(
                task_type=TASK,
                task_name=entry["kind"].replace("_", " "),
                dataset_type=f"{LIBRARY}/{_slug(entry['task'])}",
                dataset_name=entry["task"],
                metric_type=key,
                metric_name=f"{key}{at}",
                metric_value=measure["value"],
            )


def _estimate(measure: Mapping[str, Any]) -> tuple[str, str, str]:
    at = f" (h = {measure['horizon']})" if "horizon" in measure else ""
    ends = measure["ci95"]
    return (
        ("undefined" if measure["value"] is None else f"{measure['value']:.4g}") + at,
        f"{ends[0]:.4g} to {ends[1]:.4g}" if ends else "",
        f"{measure['n']:,}",
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _numbers(metrics: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value:.4g}" for key, value in metrics.items() if isinstance(value, int | float))


def _plain(value: Any) -> str:
    """Write JSON values as words, on one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items() if item not in (None, "", [], {}))
    if isinstance(value, list):
        return " and ".join(_plain(item) for item in value)
    return "" if value is None else _name(str(value))


def _name(place: Any) -> str:
    """Return the name at the end of a local path, and anything else as it is."""
    text = "" if place is None else str(place)
    return Path(text).name if text.startswith(("/", "~", "./", "../")) else text


def _count(card: Mapping[str, Any], key: str) -> str:
    return f"{card[key]:,}" if isinstance(card.get(key), int) else ""


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "unknown"


@contextmanager
def _one_writer(folder: Path) -> Iterator[None]:
    """Let benchmarks that end at the same moment write one after the other; leaves no file behind."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise checkpoint.CheckpointError(
            f"{folder} is no folder that can be opened ({error}); give the folder that `embodied-wm train` wrote."
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


__all__ = ["MARK", "README", "add_figures", "figures_of", "model_card", "part_sizes", "without_places", "write_readme"]
