"""Read rows straight out of the shard files of a store's arrays.

A shard is chunks, one after the other, and at its end an index of (offset, size) pairs with a checksum, as the
`sharding_indexed` codec of zarr's specification says. Reading it here, with one `pread` for neighbouring chunks and
each chunk decompressed straight into the caller's rows, is several times faster for windows than going through zarr:
15,956 windows of 16 frames a second of processor time at 64x64 (zarr's own pipeline 553, the Rust pipeline zarrs
1,556), 6,173 at 128x128 (383 and 1,046); `scripts/bench_loader.py pipelines` prints them. `pread` and the
decompression release the GIL, so threads read in parallel. A file is opened for each read, which costs some
microseconds: nothing is held open however many shards there are, and a shard that a writer has replaced is told by
its identity.
"""

import os
from collections.abc import Callable
from typing import Any, Protocol

import google_crc32c
import numcodecs.blosc
import numcodecs.gzip
import numcodecs.zstd
import numpy as np
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, ZstdCodec
from zarr.core.metadata import ArrayV3Metadata

from embodied_wm.data.layout import StoreError

REPAIR = "Restore the file from a copy, or collect or import the data again."

_MAX_INDICES = 4096  # of 4 KiB each for frames
_CHECKSUM_BYTES = 4
_ABSENT = 2**64 - 1
_DECODERS: dict[type, Callable[[Any, Any], Any]] = {
    BloscCodec: numcodecs.blosc.decompress,
    ZstdCodec: numcodecs.zstd.decompress,
    GzipCodec: numcodecs.gzip.GZip().decode,
}


class Files(Protocol):
    """Give the files of a store, wherever it lies."""

    def open(self, key: str) -> int:
        """Return a descriptor for reading the file `key`, such as "action/c/0/0"; the caller closes it.

        Raises:
            FileNotFoundError: There is no such file.
            OSError: It cannot be had.
        """
        ...


class ArrayReader:
    """Read rows of one array that `layout.create_array` made. Threads may share one."""

    def __init__(self, array: zarr.Array, files: Files, name: str, where: str) -> None:
        """Take the layout from the array's metadata.

        Raises:
            StoreError: The array is not sharded along its rows, or compressed in a way that is not known here.
        """
        self._files = files
        self._name = name
        self._where = where
        self._num_rows = int(array.shape[0])
        self._row_shape = tuple(int(size) for size in array.shape[1:])
        self._dtype = np.dtype(array.dtype)
        codecs = array.metadata.codecs if isinstance(array.metadata, ArrayV3Metadata) else ()
        inner = codecs[0].codecs if len(codecs) == 1 and isinstance(codecs[0], ShardingCodec) else ()
        self._has_checksum = bool(inner) and isinstance(inner[-1], Crc32cCodec)
        compressors = inner[1 : -1 if self._has_checksum else None]
        known = len(compressors) < 2 and all(type(codec) in _DECODERS for codec in compressors)
        whole_rows = array.shards is not None and array.chunks[1:] == array.shards[1:] == array.shape[1:]
        if not (inner and isinstance(inner[0], BytesCodec) and known and whole_rows) or array.shards is None:
            raise StoreError(
                f"{where}: array {name!r} is not laid out as this program writes it: expected whole rows in shards, "
                f"with no compression, Blosc, zstd or gzip, got codecs {codecs}. The store was changed by another "
                "program; collect or import the data again."
            )
        self._decompress = _DECODERS[type(compressors[0])] if compressors else None
        self._chunk_rows = int(array.chunks[0])
        self._shard_rows = int(array.shards[0])
        self._indices: dict[int, tuple[tuple[int, ...], np.ndarray]] = {}

    def read(self, start: int, stop: int) -> np.ndarray:
        """Read rows [start, stop): [stop - start, *row shape].

        Raises:
            StoreError: A shard is missing, truncated or damaged; the message names array, rows and file.
        """
        rows = np.empty((stop - start, *self._row_shape), dtype=self._dtype)
        self.read_into(rows, start)
        return rows

    def read_into(self, rows: np.ndarray, start: int) -> None:
        """Fill contiguous `rows`, [N, *row shape], with the rows from `start` on.

        Raises:
            StoreError: As `read` does.
        """
        stop = start + len(rows)
        if stop > self._num_rows:
            raise StoreError(
                f"{self._where}: array {self._name!r} has {self._num_rows} rows, {stop} are committed. {REPAIR}"
            )
        first = start
        while first < stop:
            shard = first // self._shard_rows
            end = min(stop, (shard + 1) * self._shard_rows)
            key = f"{self._name}/c/{shard}{'/0' * len(self._row_shape)}"
            try:
                self._read_part(rows[first - start : end - start], key, shard, first - shard * self._shard_rows)
            except FileNotFoundError as error:
                raise StoreError(
                    f"{self._where}: rows {start} to {stop - 1} of array {self._name!r} need {key}, which is missing. "
                    f"{REPAIR}"
                ) from error
            except StoreError:
                raise
            except (RuntimeError, ValueError, OSError) as error:
                raise StoreError(
                    f"{self._where}: rows {start} to {stop - 1} of array {self._name!r} cannot be read from {key}: a "
                    f"chunk is truncated or damaged ({type(error).__name__}: {error}). {REPAIR}"
                ) from error
            first = end

    def _read_part(self, rows: np.ndarray, key: str, shard: int, start: int) -> None:
        """Fill `rows` from one shard; `start` counts from the shard's first row."""
        stop = start + len(rows)
        chunks = range(start // self._chunk_rows, (stop - 1) // self._chunk_rows + 1)
        file = self._files.open(key)
        try:
            spans = self._index(file, shard)[chunks.start : chunks.stop].tolist()
            begin = min(offset for offset, _ in spans)
            content = memoryview(_read_bytes(file, begin, max(offset + size for offset, size in spans)))
        finally:
            os.close(file)
        for chunk, (offset, size) in zip(chunks, spans, strict=True):
            encoded = content[offset - begin : offset - begin + size]
            first = chunk * self._chunk_rows
            low, high = max(start, first), min(stop, first + self._chunk_rows)
            if high - low == self._chunk_rows:
                self._decode(encoded, rows[low - start : high - start])
            else:
                whole = np.empty((self._chunk_rows, *self._row_shape), dtype=self._dtype)
                self._decode(encoded, whole)
                rows[low - start : high - start] = whole[low - first : high - first]

    def _decode(self, encoded: memoryview, rows: np.ndarray) -> None:
        data = _without_checksum(encoded) if self._has_checksum else encoded
        target = rows.reshape(-1).view(np.uint8)
        if self._decompress is None:
            target[:] = np.frombuffer(data, dtype=np.uint8)
        else:
            self._decompress(data, target)

    def _index(self, file: int, shard: int) -> np.ndarray:
        """Return [chunks, 2] uint64, the offset and size of each chunk, read once for each version of the file."""
        status = os.fstat(file)
        identity = (status.st_ino, status.st_size, status.st_mtime_ns)
        known = self._indices.get(shard)
        if known is not None and known[0] == identity:
            return known[1]
        end = status.st_size - _CHECKSUM_BYTES - 16 * (self._shard_rows // self._chunk_rows)
        if end < 0:
            raise ValueError(f"it has {status.st_size} bytes, which is less than its index")
        content = _read_bytes(file, end, status.st_size)
        index = np.frombuffer(_without_checksum(memoryview(content)), dtype="<u8").reshape(-1, 2)
        present = index[index[:, 0] != _ABSENT]
        if (present.sum(axis=1) > end).any():
            raise ValueError("its index points beyond its end")
        if len(self._indices) >= _MAX_INDICES:
            self._indices.clear()
        self._indices[shard] = (identity, index)
        return index


def _read_bytes(file: int, start: int, stop: int) -> bytes:
    content = os.pread(file, stop - start, start) if stop < _ABSENT else b""
    if len(content) != stop - start:
        raise ValueError(f"bytes {start} to {stop} were expected, {len(content)} of them are there")
    return content


def _without_checksum(data: memoryview) -> memoryview:
    """Check and cut off the CRC-32C at the end."""
    body = data[:-_CHECKSUM_BYTES]
    found = int.from_bytes(data[-_CHECKSUM_BYTES:], "little")
    if google_crc32c.value(bytes(body)) != found:
        raise ValueError("its checksum does not match")
    return body
