"""Where the files of a store lie: in a folder of this machine, or behind a URL with a cache of bounded size here.

A remote shard is fetched whole when one of its rows is first read, and read from the cache from then on: a training
visits all rows sooner or later, and a shard is some megabytes at most. A file in the cache is named after the URL and
what the server says of the object (size, ETag, time), so an object that changed is fetched again, and several
processes share the cache.
"""

import hashlib
import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fsspec

from embodied_wm.data.layout import StoreError

_PARTIAL = ".partial"
_ABANDONED_NS = 3600 * 10**9  # a partial file this old was left by a process that was killed


def default_cache_folder() -> Path:
    """Return the folder of the cache: `embodied_wm` in $XDG_CACHE_HOME, or else in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "embodied_wm"


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Say where files of remote stores are kept, and how much of them.

    Attributes:
        folder: The cache's folder, made when it is absent.
        max_bytes: Size of all files in it, beyond which those that were not used for longest are deleted. A reading
            process keeps the file it needs, so a cache smaller than one shard works too.
    """

    folder: Path = field(default_factory=default_cache_folder)
    max_bytes: int = 20 * 2**30


class LocalFiles:
    """Open the files of a local store."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def open(self, key: str) -> int:
        """Return a descriptor for reading the file `key`.

        Raises:
            FileNotFoundError: There is no such file.
        """
        return os.open(f"{self._folder}/{key}", os.O_RDONLY)

    def num_bytes(self) -> int:
        """Return the size of all files."""
        return sum(part.stat().st_size for part in Path(self._folder).rglob("*") if part.is_file())


class CachedFiles:
    """Open the files of a store behind a URL, through the cache. Threads may share one."""

    def __init__(self, url: str, config: CacheConfig) -> None:
        self._url = url.rstrip("/")
        self._config = config
        self._file_system, self._root = fsspec.url_to_fs(self._url)
        self._lock = threading.Lock()
        self._fetching: dict[str, threading.Lock] = {}
        self._cached: dict[str, tuple[Path, int | None]] = {}
        try:
            config.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"The cache for remote stores, {config.folder}, cannot be made: {error}. Give another folder "
                "(CacheConfig, or the environment variable XDG_CACHE_HOME)."
            ) from error

    def open(self, key: str) -> int:
        """Return a descriptor for reading the file `key`, fetching it when it is not in the cache.

        Raises:
            FileNotFoundError: There is no such object.
            StoreError: The server could not be reached or refused, or the cache could not be written.
        """
        with self._lock:
            fetching = self._fetching.setdefault(key, threading.Lock())
        with fetching:
            if key not in self._cached:
                self._cached[key] = self._place(key)
            path, size = self._cached[key]
            with suppress(FileNotFoundError):
                file = os.open(path, os.O_RDONLY)
                status = os.fstat(file)
                if size in (None, status.st_size):
                    # The time of the last use; not every file system keeps it by itself.
                    os.utime(file, ns=(time.time_ns(), status.st_mtime_ns))
                    return file
                os.close(file)  # cut short when the machine went down
            return self._fetch(key, path)

    def num_bytes(self) -> int:
        """Return the size of all objects, as the server tells it; none is fetched.

        Raises:
            StoreError: The server could not be reached or refused.
        """
        return int(self._ask("du", ""))

    def _place(self, key: str) -> tuple[Path, int | None]:
        """Return where this version of an object belongs in the cache, and its size where the server tells it."""
        described: Mapping[str, Any] = self._ask("info", key)
        text = f"{self._url}\n{key}\n{sorted((name, str(value)) for name, value in described.items())}"
        name = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        return self._config.folder / name, described.get("size")

    def _fetch(self, key: str, path: Path) -> int:
        content: bytes = self._ask("cat_file", key)
        partial = path.with_name(f"{uuid.uuid4().hex}{_PARTIAL}")
        file = -1
        try:
            # Open before it has its name, so that no other process can delete it first.
            file = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            with open(file, "wb", closefd=False) as target:
                target.write(content)
            partial.replace(path)
        except OSError as error:
            if file >= 0:
                os.close(file)
            partial.unlink(missing_ok=True)
            raise StoreError(
                f"{self._url}/{key} could not be put into the cache {self._config.folder}: {error}. Free space or give "
                "another folder (CacheConfig, or the environment variable XDG_CACHE_HOME)."
            ) from error
        with self._lock:
            self._evict(path)
        return file

    def _ask(self, method: str, key: str) -> Any:
        try:
            return getattr(self._file_system, method)(f"{self._root}/{key}".rstrip("/"))
        except FileNotFoundError:
            raise
        except Exception as error:  # the backends' errors have no base in common
            raise StoreError(
                f"{self._url}/{key} could not be fetched ({type(error).__name__}: {error}). Check the network, the "
                "address and the credentials, and run again: what is in the cache is not fetched again."
            ) from error

    def _evict(self, newest: Path) -> None:
        """Delete what was not used for longest until the cache fits its bound; never the newest file."""
        files = sorted(_used_sizes(self._config.folder))
        total = sum(size for _, size, _ in files)
        for used, size, path in files:
            if total <= self._config.max_bytes:
                break
            being_written = path.endswith(_PARTIAL) and time.time_ns() - used < _ABANDONED_NS
            if path != str(newest) and not being_written:
                Path(path).unlink(missing_ok=True)
                total -= size


def prepare_protocol(url: str) -> None:
    """Let fsspec (and so zarr) open URLs of this kind: by its own backend, or by obstore where that is missing.

    Raises:
        StoreError: Nothing that is installed reads such URLs.
    """
    protocol = url.split("://", 1)[0]
    try:
        fsspec.get_filesystem_class(protocol)
    except (ImportError, ValueError) as error:
        if find_spec("obstore") is None:
            raise StoreError(
                f"Reading {url} needs a package that is not installed: {error}. `pip install 'embodied-wm[remote]'` "
                "reads s3://, gs:// and az://; other kinds need the fsspec package that reads them."
            ) from error
        import obstore.fsspec

        try:
            obstore.fsspec.register(protocol)
        except ValueError as unknown:
            raise StoreError(f"Nothing that is installed reads {url}: {unknown}; {error}.") from unknown


def _used_sizes(folder: Path) -> Iterator[tuple[int, int, str]]:
    """Yield (time of last use in ns, bytes, path) of the files in the cache."""
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                status = entry.stat()
                yield status.st_atime_ns, status.st_size, entry.path
