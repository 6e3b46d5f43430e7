"""Every configuration composes, instantiates, and explains each of its keys."""

import dataclasses
import importlib
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from embodied_wm import cli
from embodied_wm.commands import options
from embodied_wm.training.train import STAGES, TrainConfig
from scripts.sizes import GPU_MEMORY, MODELS, size_of

FOLDER = Path(__file__).resolve().parents[1] / "configs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
FILES = sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob("*.yaml"))


def variants() -> list[tuple[str, dict[str, str]]]:
    """Return every config with its defaults, and with every other choice of each of its groups."""
    found: list[tuple[str, dict[str, str]]] = []
    for name in NAMES:
        defaults = options.choices_of(name, {})
        found.append((name, {}))
        found += [
            (name, {group: choice})
            for group, default in defaults.items()
            for choice in options.groups().get(group, ())
            if choice != default
        ]
    return found


def required(name: str, chosen: dict[str, str]) -> dict[str, str]:
    composed, _ = cli.compose_config(name, chosen)
    return {key: "some/folder" for key, value in cli.flat_values(composed).items() if value == "???"}


@pytest.mark.parametrize(
    ("name", "chosen"), variants(), ids=lambda v: v if isinstance(v, str) else "-".join(v.values())
)
def test_composes_instantiates_and_explains_its_options(name: str, chosen: dict[str, str]) -> None:
    composed, choices = cli.compose_config(name, chosen | required(name, chosen))
    config = cli.instantiate_config(composed)
    assert chosen.items() <= choices.items()
    assert all(not isinstance(value, str) or "${" not in value for value in cli.flat_values(composed).values())
    assert set(config) == set(composed)
    meanings = options.meanings(name, choices)
    assert not [key for key in cli.flat_values(composed) if len(meanings.get(key, "")) < 5]


@pytest.mark.parametrize("name", FILES)
def test_every_key_says_what_it_means(name: str) -> None:
    text = options.source_text(name)
    leaves = {key for key, _ in options.comments(text)}
    missing = {key for key, meaning in options.comments(text) if len(meaning) < 5 and not is_folder(key, leaves)}
    assert not missing
    assert options.manual(name).title.endswith(".")


def is_folder(key: str, keys: set[str]) -> bool:
    return any(other.startswith(f"{key}.") for other in keys)


@pytest.mark.parametrize("model", MODELS)
def test_the_batches_of_every_model_fit_a_gpu(model: str) -> None:
    size = size_of(model, MODELS[model])
    assert size.trainer.predictor.batch_size <= size.fitting_windows(GPU_MEMORY)
    assert size.trainer.distillation.batch_size == size.trainer.predictor.batch_size
    assert size.trainer.self_forcing.batch_size == size.trainer.predictor.batch_size


def test_large_models_see_as_many_windows_a_step_as_small_ones() -> None:
    def trainer(name: str) -> TrainConfig:
        return cli.instantiate_config(cli.compose_config("train", {"trainer": name, "data.path": "none"})[0])["trainer"]

    def whole(config: TrainConfig) -> TrainConfig:
        stages = {name: getattr(config, name) for name in STAGES}
        return dataclasses.replace(
            config,
            **{
                name: dataclasses.replace(stage, batch_size=stage.batch_size * stage.accumulate, accumulate=1)
                for name, stage in stages.items()
            },
        )

    assert whole(trainer("gpu_large")) == whole(trainer("gpu"))


def targets(node: Any, path: str = "") -> list[tuple[str, dict[str, Any]]]:
    if not isinstance(node, dict):
        return []
    own = [(node["_target_"], node)] if "_target_" in node else []
    return own + [found for key, value in node.items() for found in targets(value, f"{path}.{key}")]


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith(("model/", "trainer/"))])
def test_yaml_and_dataclass_have_the_same_fields(name: str) -> None:
    for target, node in targets(yaml.safe_load(options.source_text(name))):
        module, _, attribute = target.rpartition(".")
        described = getattr(importlib.import_module(module), attribute)
        assert dataclasses.is_dataclass(described), f"{target} is no dataclass"
        assert vars(described)["__dataclass_params__"].frozen, f"{target} is not frozen"
        assert set(node) - {"_target_", "defaults"} == {field.name for field in dataclasses.fields(described)}, target


@pytest.mark.parametrize("name", NAMES)
def test_the_example_of_every_verb_is_a_valid_command(name: str) -> None:
    program, verb, *rest = shlex.split(options.manual(name).example)
    measure = rest.pop(0) if verb == "benchmark" else None
    assert (program, options.config_name(verb, measure)) == ("embodied-wm", name)
    composed, _ = cli.compose_config(name, cli.read_overrides(verb, rest))
    assert not [key for key, value in cli.flat_values(composed).items() if value == "???"]


@pytest.mark.parametrize("name", NAMES)
def test_every_run_has_a_seed_and_a_folder(name: str) -> None:
    keys = set(cli.flat_values(cli.compose_config(name, {})[0]))
    if name in ("inspect", "report"):
        assert "run_dir" not in keys
    else:
        assert "run_dir" in keys
        assert "seed" in keys or name in ("import", "export", "validate", "edit")
