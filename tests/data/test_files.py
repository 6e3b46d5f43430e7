"""Stores behind URLs: fsspec's own backends, and a real S3 server on loopback."""

import json
import re
import shutil

import numpy as np
import pytest

from embodied_wm import cli
from embodied_wm.data.files import CacheConfig, default_cache_folder
from embodied_wm.data.loader import WindowLoader
from embodied_wm.data.store import EpisodeStore, StoreError
from embodied_wm.types import Episode, FeatureSpec

CAMERA = "observation.images.top"
FEATURES = {
    CAMERA: FeatureSpec(dtype="uint8", shape=(32, 32, 3)),
    "action": FeatureSpec(dtype="float32", shape=(2,)),
}
ROWS = 600  # in an episode; a shard of this camera holds 1024 rows


def make_episode(number):
    rng = np.random.default_rng(number)
    return Episode(
        features={
            CAMERA: rng.integers(0, 256, (ROWS, 32, 32, 3), dtype=np.uint8),
            "action": rng.normal(size=(ROWS, 2)).astype(np.float32),
        },
        info={"number": number},
    )


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    path = tmp_path_factory.mktemp("local") / "s.zarr"
    with EpisodeStore.create(path, features=FEATURES, fps=10, metadata={"robot": "dot"}) as store:
        store.append([make_episode(number) for number in range(4)])
    return path


def shard_sizes(path):
    return sorted(file.stat().st_size for file in (path / CAMERA / "c").rglob("*") if file.is_file())


def cached(folder):
    return {file.name: file.stat().st_size for file in folder.iterdir()}


def assert_trains_alike(remote, local, memory_budget_bytes=0):
    loaders = [
        WindowLoader(
            store,
            episodes=range(4),
            length=16,
            batch_size=8,
            features=list(FEATURES),
            seed=0,
            memory_budget_bytes=memory_budget_bytes,
        )
        for store in (remote, EpisodeStore.open(local))
    ]
    for step, batch, expected in zip(range(6), loaders[0].iterate(), loaders[1].iterate(), strict=False):
        for name, rows in expected.items():
            np.testing.assert_array_equal(batch[name], rows, err_msg=f"step {step}")


def test_a_store_behind_a_url_reads_like_a_local_one(local, tmp_path):
    cache = CacheConfig(folder=tmp_path / "cache")
    remote = EpisodeStore.open(f"file://{local}", cache=cache)
    assert remote.fingerprint() == EpisodeStore.open(local).fingerprint()
    assert dict(remote.episode(2).info) == {"number": 2}
    assert_trains_alike(remote, local)
    assert set(shard_sizes(local)) <= set(cached(cache.folder).values())
    assert not [name for name in cached(cache.folder) if name.endswith(".partial")]


def test_what_is_cached_is_not_fetched_again(local, tmp_path, monkeypatch):
    from fsspec.implementations.local import LocalFileSystem

    cache = CacheConfig(folder=tmp_path / "cache")
    EpisodeStore.open(f"file://{local}", cache=cache).episode(0)
    fetched = []
    cat_file = LocalFileSystem.cat_file
    monkeypatch.setattr(
        LocalFileSystem, "cat_file", lambda self, path, **k: fetched.append(path) or cat_file(self, path, **k)
    )
    EpisodeStore.open(f"file://{local}", cache=cache).episode(0)
    assert not [path for path in fetched if "/c/" in path]


def test_the_cache_keeps_its_bound_and_what_was_used_last(local, tmp_path):
    largest = shard_sizes(local)[-1]
    cache = CacheConfig(folder=tmp_path / "cache", max_bytes=int(1.5 * largest))
    remote = EpisodeStore.open(f"file://{local}", cache=cache)
    for start in (0, 1100, 2100, 0, 2100):
        remote.read(CAMERA, start, start + 16)
        assert sum(cached(cache.folder).values()) <= cache.max_bytes
    assert shard_sizes(local)[0] in cached(cache.folder).values(), "the shard that was used last"
    tiny = CacheConfig(folder=tmp_path / "tiny", max_bytes=1)
    assert_trains_alike(EpisodeStore.open(f"file://{local}", cache=tiny), local)
    assert len(cached(tiny.folder)) == 1


def test_a_changed_store_is_fetched_anew_and_a_spoilt_file_is_mended(local, tmp_path):
    path = tmp_path / "s.zarr"
    shutil.copytree(local, path)
    cache = CacheConfig(folder=tmp_path / "cache")
    before = EpisodeStore.open(f"file://{path}", cache=cache)
    np.testing.assert_array_equal(before.read(CAMERA, 2390, 2400), make_episode(3).features[CAMERA][-10:])
    with EpisodeStore.open(path, mode="a") as store:
        store.append([make_episode(4)])
    remote = EpisodeStore.open(f"file://{path}", cache=cache)
    np.testing.assert_array_equal(remote.read(CAMERA, 2400, 3000), make_episode(4).features[CAMERA])
    for file in cache.folder.iterdir():
        file.write_bytes(file.read_bytes()[:100])  # as after a crash of the machine
    np.testing.assert_array_equal(remote.read(CAMERA, 2400, 3000), make_episode(4).features[CAMERA])


def test_appending_behind_a_url(tmp_path):
    cache = CacheConfig(folder=tmp_path / "cache")
    EpisodeStore.create(f"file://{tmp_path}/s.zarr", features=FEATURES, fps=10).close()
    with EpisodeStore.open(f"file://{tmp_path}/s.zarr", mode="a", cache=cache) as store:
        for number in range(3):
            store.append([make_episode(number)])
            np.testing.assert_array_equal(store.episode(number).features[CAMERA], make_episode(number).features[CAMERA])


def test_clear_errors(local, tmp_path):
    cache = CacheConfig(folder=tmp_path / "cache")
    with pytest.raises(StoreError, match="not an episode store"):
        EpisodeStore.open(f"file://{tmp_path}/missing.zarr", cache=cache)
    with pytest.raises(StoreError, match=r"(?s)nosuch://a/b.*"):
        EpisodeStore.open("nosuch://a/b", cache=cache)
    shutil.copytree(local, tmp_path / "s.zarr")
    (tmp_path / f"s.zarr/{CAMERA}/c/0/0/0/0").unlink()
    store = EpisodeStore.open(f"file://{tmp_path}/s.zarr", cache=cache)
    with pytest.raises(StoreError, match=f"rows 3 to 4 of array '{CAMERA}' need {CAMERA}/c/0/0/0/0, which is missing"):
        store.read(CAMERA, 3, 5)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot be made.*XDG_CACHE_HOME"):
        EpisodeStore.open(f"file://{local}", cache=CacheConfig(folder=tmp_path / "file" / "cache"))


def test_the_cache_lies_where_the_system_wants_it(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / "embodied_wm"


@pytest.fixture(scope="module")
def s3_server():
    """Serve S3 on loopback; let clients of this process find it."""
    pytest.importorskip("obstore", reason="obstore, which reads s3://, is not installed")
    server_module = pytest.importorskip("moto.server", reason="moto[server], an S3 server for tests, is not installed")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "false",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield environment["AWS_ENDPOINT_URL"]
    server.stop()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_training_from_s3(s3_server, local, tmp_path, capsys, monkeypatch):
    import urllib.request

    import obstore

    urllib.request.urlopen(urllib.request.Request(f"{s3_server}/robots", method="PUT")).close()
    bucket = obstore.store.from_url("s3://robots")  # type: ignore[attr-defined]
    for file in sorted(local.rglob("*")):
        if file.is_file():
            obstore.put(bucket, f"sets/s.zarr/{file.relative_to(local)}", file.read_bytes())
    cache = CacheConfig(folder=tmp_path / "cache", max_bytes=8 * 2**20)
    remote = EpisodeStore.open("s3://robots/sets/s.zarr", cache=cache)
    assert remote.metadata == {"robot": "dot"}
    assert remote.fingerprint() == EpisodeStore.open(local).fingerprint()
    assert_trains_alike(remote, local)
    assert sum(cached(cache.folder).values()) <= cache.max_bytes
    with pytest.raises(StoreError, match=r"s3://robots/sets/other.zarr is not an episode store"):
        EpisodeStore.open("s3://robots/sets/other.zarr", cache=cache)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "verbs"))
    assert cli.main(["inspect", "s3://robots/sets/s.zarr", f"out={tmp_path}/s.html"]) == 0
    size = sum(file.stat().st_size for file in local.rglob("*") if file.is_file())
    shown = re.search(r"size +([\d.]+) MB", capsys.readouterr().out)
    assert shown is not None
    assert float(shown[1]) == pytest.approx(size / 1e6, rel=1e-3)
    assert cli.main(["validate", "s3://robots/sets/s.zarr", f"run_dir={tmp_path}/validate"]) == 0
    assert json.loads((tmp_path / "validate" / "validate.json").read_text())["path"] == "s3://robots/sets/s.zarr"
    merge = ["edit", "operation=merge", f"sources=[s3://robots/sets/s.zarr,{local}]", f"out={tmp_path}/m.zarr"]
    assert cli.main([*merge, f"run_dir={tmp_path}/edit"]) == 0
    assert EpisodeStore.open(tmp_path / "m.zarr").num_episodes == 2 * remote.num_episodes
