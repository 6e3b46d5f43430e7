"""The page of a store: self-contained, showing the frames and the figures that are in the store."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

from embodied_wm import cli
from embodied_wm.data.store import EpisodeStore, StoreError
from embodied_wm.evaluation.contact_sheet import spread, write_contact_sheet
from embodied_wm.evaluation.figures import PictureError, column_ranges, length_histogram
from embodied_wm.types import Episode, FeatureSpec

WIDE = 400


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    """Return a store of five episodes, two cameras of different sizes, and columns of every kind."""
    specs = {
        "observation.images.wide": FeatureSpec(dtype="uint8", shape=(100, WIDE, 3)),
        "observation.images.small": FeatureSpec(dtype="uint8", shape=(8, 8, 3)),
        "action": FeatureSpec(dtype="float32", shape=(14,), names=tuple("abcdefghijklmn")),
        "observation.state": FeatureSpec(dtype="float64", shape=(2,), names=("<x>", "y"), units=("m", "1")),
        "next.done": FeatureSpec(dtype="bool", shape=()),
    }
    metadata = {"robot": "arm & hand", "tasks": ["push <it>."]}
    path = tmp_path_factory.mktemp("sheet") / "five.zarr"
    with EpisodeStore.create(path, features=specs, fps=5, metadata=metadata) as made:
        for number in range(5):
            rows = 4 + number
            rng = np.random.default_rng(number)
            level = (np.arange(rows) * 10 + number)[:, None, None, None].astype(np.uint8)
            action = rng.uniform(-1, 1, (rows, 14)).astype(np.float32)
            action[:, 13] = 3
            state = rng.uniform(0, 2, (rows, 2))
            state[0, 1] = np.nan
            made.append(
                [
                    Episode(
                        features={
                            "observation.images.wide": np.broadcast_to(level, (rows, 100, WIDE, 3)),
                            "observation.images.small": np.broadcast_to(level + 100, (rows, 8, 8, 3)),
                            "action": action,
                            "observation.state": state,
                            "next.done": np.zeros(rows, dtype=bool),
                        },
                        info={"task": "push <it>."},
                    )
                ]
            )
    return EpisodeStore.open(path)


def pictures_in(page: str) -> list[np.ndarray]:
    """Return the frames of a page, in order."""
    encoded = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) for text in encoded]


def test_the_page_shows_first_middle_and_last_frames_of_every_camera(store: EpisodeStore, tmp_path: Path) -> None:
    page = write_contact_sheet(store, tmp_path / "new" / "sheet.html").read_text(encoding="utf-8")
    frames = pictures_in(page)
    lengths = [4, 5, 6, 7, 8]
    expected = [
        [10 * row + n for n, row in enumerate(rows)]
        for rows in zip(*[(0, t // 2, t - 1) for t in lengths], strict=True)
    ]
    levels = [level for row in expected for level in row]
    assert [int(frame.mean()) for frame in frames] == levels + [level + 100 for level in levels]
    assert frames[0].shape == (68, 272, 3)  # large frames are shown small
    assert frames[-1].shape == (8, 8, 3)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["sheet.html"]


def test_the_page_is_self_contained_and_says_what_is_in_the_store(store: EpisodeStore, tmp_path: Path) -> None:
    page = write_contact_sheet(store, tmp_path / "sheet.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=\"(?!data:|#)|url\((?!#)|https?://", page)
    assert "<it>" not in page
    assert "arm &amp; hand. Tasks: push &lt;it&gt;." in page
    text = re.sub(r"<[^>]+>", " ", page)
    for words in (
        "five.zarr",
        "4 to 8 rows",
        "5 per second",
        "0.8 to 1.6 s",
        "8 x 8 pixels",
        "action, a to l",
        "float64",
    ):
        assert words in text, words
    assert "1 columns that never change are not drawn" in text
    state = store.read("observation.state", 0, store.num_frames)
    row = re.search(r"observation\.state  &lt;x&gt; \(m\)(.*?)</tr>", page)
    assert row is not None
    values = [float(value) for value in re.findall(r'data value="([^"]+)"', row.group(1))]
    x = state[:, 0]
    assert values == [x.mean(), x.std(), x.min(), x.max(), 0]
    row = re.search(r"observation\.state  y(.*?)</tr>", page)
    assert row is not None
    assert re.findall(r'data value="([^"]+)"', row.group(1))[-1] == "5"  # one NaN an episode


def test_episodes_are_spread_and_equal_lengths_need_no_chart(tiny_store: Path, tmp_path: Path) -> None:
    assert spread(100, 5) == [0, 25, 50, 74, 99]
    assert spread(3, 20) == [0, 1, 2]
    page = write_contact_sheet(EpisodeStore.open(tiny_store), tmp_path / "s.html", num_episodes=3).read_text()
    assert len(pictures_in(page)) == 9
    assert re.findall(r"episode \d", page) == ["episode 0", "episode 2", "episode 5"]
    assert f"Every episode has {tiny.ROWS} rows" in page
    assert "Episode lengths" not in page


def test_a_store_without_cameras_has_a_page_too(tmp_path: Path) -> None:
    with EpisodeStore.create(
        tmp_path / "s.zarr", features={"flag": FeatureSpec(dtype="bool", shape=())}, fps=1
    ) as made:
        with pytest.raises(ValueError, match="holds no episode"):
            write_contact_sheet(made, tmp_path / "s.html")
        made.append([Episode(features={"flag": np.ones(3, dtype=bool)})])
    page = write_contact_sheet(EpisodeStore.open(tmp_path / "s.zarr"), tmp_path / "s.html").read_text()
    assert "Every episode has 3 rows" in page
    assert "Ranges" not in page


def test_damaged_data_is_named_and_no_page_is_left(tmp_path: Path) -> None:
    path = tiny.write_store(tmp_path / "s.zarr")
    (shard,) = [file for file in (path / tiny.CAMERA / "c").rglob("*") if file.is_file()]
    shard.unlink()
    with pytest.raises(StoreError, match=f"{tiny.CAMERA}/c/0.*missing"):
        write_contact_sheet(EpisodeStore.open(path), tmp_path / "s.html")
    assert not list(tmp_path.glob("s.html*"))


def test_the_verb_writes_it(tiny_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(tiny_store), "out=page.html", "episodes=2"]) == 0
    assert "wrote page.html" in capsys.readouterr().out
    assert len(pictures_in(Path("page.html").read_text())) == 6


@pytest.mark.parametrize(
    ("options", "words"), [(["out=page.png"], "ends in .html"), (["out=p.html", "episodes=0"], "expected at least 1")]
)
def test_the_verb_used_wrongly(
    tiny_store: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["inspect", str(tiny_store), *options]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not list(Path().glob("p*"))


def test_pages_are_of_stores_alone(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(tiny_checkpoint), "out=p.html"]) == 2
    assert "is a checkpoint" in " ".join(capsys.readouterr().err.split())


def test_charts_say_what_they_cannot_draw() -> None:
    with pytest.raises(PictureError, match="expected \\[N\\]"):
        length_histogram(np.zeros(0), fps=1)
    with pytest.raises(PictureError, match="at least one"):
        column_ranges([], title="none")
    with pytest.raises(PictureError, match="at least one value"):
        column_ranges([("a", np.zeros(0))], title="none")
    drawn = column_ranges([("a", np.array([2.0])), ("b", np.array([-1.5, 7.25]))], title="two").data.decode()
    assert all(number in drawn for number in (">2<", "-1.5", "7.25"))
