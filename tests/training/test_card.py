"""What a model's card says of its training: which labels were used, and where the episodes come from, in short."""

import json
from pathlib import Path

import pytest
import tiny

from embodied_wm.data.edit import merge_stores
from embodied_wm.data.store import EpisodeStore
from embodied_wm.family import Family
from embodied_wm.training.card import short_source
from embodied_wm.training.labels import labelled_of_card
from embodied_wm.training.together import RobotStore, train_together
from embodied_wm.training.train import Trainer, train_world_model

IMPORTED = {
    "format": "lerobot",
    "version": "v3.0",
    "name": "owner/name",
    "info": {"readme": "x" * 20_000, "features": {}},
    "task_numbers": list(range(300)),
    "statistics": {"action": {"mean": [0.0] * 7}},
    "image_size": [64, 64],
    "camera": None,
    "description": "x" * 1000,
}
SHORT = {"format": "lerobot", "version": "v3.0", "name": "owner/name", "image_size": [64, 64], "camera": None}


def test_a_card_keeps_the_short_values_of_a_source() -> None:
    assert short_source(None) is None
    assert short_source(IMPORTED) == SHORT
    part = {"name": "a.zarr", "fingerprint": "00", "metadata": {"robot": "arm", "cameras": {}, "source": IMPORTED}}
    kept = {"name": "a.zarr", "fingerprint": "00", "metadata": {"robot": "arm", "source": SHORT}}
    assert short_source({"kind": "merge", "of": [part] * 40}) == {"kind": "merge", "of": [kept] * 40}


def test_the_card_of_imported_and_merged_episodes_is_small(tmp_path: Path) -> None:
    for name, seeds in (("a", range(3)), ("b", range(3, 6))):
        metadata = {"robot": "dot", "source": IMPORTED}
        with EpisodeStore.create(tmp_path / name, features=tiny.features(), fps=10.0, metadata=metadata) as store:
            store.append([tiny.episode(seed) for seed in seeds])
    merged = merge_stores([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    model = train_world_model(merged, tiny.MODEL, tiny.training(1), tmp_path / "run", seed=0, stages=["tokenizer"])
    assert len(json.dumps(model.card["source"])) < 1000
    assert [each["metadata"]["source"] for each in model.card["source"]["of"]] == [SHORT, SHORT]


def test_a_card_tells_whose_labels_were_used(tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = EpisodeStore.open(tiny_store)
    used: list[list[int]] = []
    original = Trainer.label

    def label(self: Trainer, members: list[int]) -> None:
        used.append(list(members))
        original(self, members)

    monkeypatch.setattr(Trainer, "label", label)
    config = tiny.training(1, labelled_fraction=0.4)
    model = train_world_model(store, tiny.MODEL, config, tmp_path / "run", seed=7, stages=["tokenizer", "readouts"])
    assert labelled_of_card(model.card) == set(used[0])
    assert len(used[0]) == 2
    robots, stages = {"dot": RobotStore(store=store)}, ["goal_policy"]
    for name in ("", "labelled_seed"):  # cards of earlier releases have the seed alone
        model.card.pop(name, None)
        before = Family({"dot": model})
        later = train_together(
            robots, tiny.MODEL, config, tmp_path / f"a{name}", seed=8, stages=stages, start_from=before
        )
        assert later.for_robot("dot").card["seed"] == 8
        assert labelled_of_card(later.for_robot("dot").card) == set(used[0]) != set(used[-1])
