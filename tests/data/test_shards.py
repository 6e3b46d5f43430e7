import os
import threading

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec

from embodied_wm.data import layout
from embodied_wm.data.arrays import open_array, write_rows
from embodied_wm.data.files import LocalFiles
from embodied_wm.data.layout import StoreError
from embodied_wm.data.shards import ArrayReader

COMPRESSORS = {
    "default": layout.COMPRESSORS,
    "version of 2026": (ZstdCodec(level=1, checksum=True),),  # what stores were first written with
    "none": (),
    "checksum alone": (Crc32cCodec(),),
    "zstd and checksum": (ZstdCodec(level=3), Crc32cCodec()),
    "blosc": (BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle"),),
    "gzip": (GzipCodec(level=1), Crc32cCodec()),
}


def make_array(folder, *, dtype="float32", row_shape=(3,), chunk_rows=4, compressors=layout.COMPRESSORS, num_rows=0):
    group = zarr.open_group(folder, mode="a", zarr_format=3)
    layout.create_array(group, "x", dtype, row_shape, chunk_rows, compressors)
    rows = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 200, (num_rows, *row_shape)).astype(dtype)
    for start in range(0, num_rows, 301):
        write_rows(open_array(group, "x", str(folder)), start, rows[start : start + 301])
    return group, rows


def make_reader(group, folder):
    return ArrayReader(open_array(group, "x", str(folder)), LocalFiles(str(folder)), "x", str(folder))


@pytest.mark.parametrize("dtype", ["uint8", "float64", "bool"])
@pytest.mark.parametrize("name", COMPRESSORS)
def test_reads_what_zarr_reads(tmp_path, name, dtype):
    rows_in_shard = 4 * layout.CHUNKS_PER_SHARD
    group, rows = make_array(
        tmp_path, dtype=dtype, row_shape=(2, 3), compressors=COMPRESSORS[name], num_rows=rows_in_shard + 90
    )
    array = group["x"]
    assert isinstance(array, zarr.Array)
    np.testing.assert_array_equal(np.asarray(array[:]), rows)
    reader = make_reader(group, tmp_path)
    for start, stop in [(0, len(rows)), (rows_in_shard - 3, rows_in_shard + 5), (8, 12), (9, 10), (5, 5), (7, 23)]:
        found = reader.read(start, stop)
        assert found.dtype == rows.dtype
        np.testing.assert_array_equal(found, rows[start:stop])


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_an_error_or_harmless(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    group, rows = make_array(folder, num_rows=50, compressors=layout.COMPRESSORS)
    shard = folder / "x/c/0/0"
    content = bytearray(shard.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    shard.write_bytes(content)
    try:
        found = make_reader(group, folder).read(0, 50)
    except StoreError as error:
        assert "x/c/0/0" in str(error)  # noqa: PT017 - a byte that is not used may change without harm
    else:
        np.testing.assert_array_equal(found, rows)


def test_a_replaced_shard_is_noticed_while_threads_read(tmp_path):
    group, rows = make_array(tmp_path, num_rows=40)
    more = np.concatenate([rows, rows[::-1], rows])
    reader = make_reader(group, tmp_path)
    wrong, stop = [], threading.Event()

    def read():
        while not stop.is_set():
            start = int(np.random.default_rng().integers(0, 30))
            if (reader.read(start, start + 10) != rows[start : start + 10]).any():
                wrong.append(start)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for start in range(40, 120, 8):
            write_rows(open_array(group, "x", str(tmp_path)), start, more[start : start + 8])
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong
    np.testing.assert_array_equal(make_reader(group, tmp_path).read(0, 120), more)


def test_no_file_stays_open(tmp_path):
    group, _ = make_array(tmp_path, num_rows=20)
    reader = make_reader(group, tmp_path)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(20):
        reader.read(0, 20)
    (tmp_path / "x/c/0/0").write_bytes(b"short")
    for _ in range(20):
        with pytest.raises(StoreError, match="less than its index"):
            reader.read(0, 20)
    after = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    assert after == before


def test_an_array_of_another_layout_is_refused(tmp_path):
    group = zarr.open_group(tmp_path, mode="a", zarr_format=3)
    group.create_array("x", shape=(10, 4), dtype="f4", chunks=(2, 2))
    with pytest.raises(StoreError, match=r"array 'x' is not laid out .*whole rows in shards"):
        make_reader(group, tmp_path)
