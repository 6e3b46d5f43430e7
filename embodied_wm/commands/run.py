"""One run of a verb: its folder, and a console that keeps a log of what it shows."""

import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Self, TextIO

import yaml
from rich.console import Console
from rich.control import Control
from rich.text import Text

from embodied_wm.commands.errors import FULL_DISK, UsageError

LOG_WIDTH = 120
RUN_NAME = re.compile(r"(\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d)(?:-(\d+))?")

OVERRIDES = "overrides.yaml"
"""File of a run: the options that were given, one `name=value` each, as Hydra keeps them."""

RESUMABLE = ("train", "refine", "demo")
"""Verbs that go on in a used folder, which therefore belongs to one of their runs at a time."""

FREE = (
    "resume",
    "run_dir",
    "data.path",
    "together.stores",
    "source",
    "collect.workers",
    "report",
    "rounds",
    "trainer.compute.",
    "trainer.watch.",
    "trainer.keep.save_every_s",
    "trainer.keep.max_spikes",
)
"""Beginnings of options in which a resumed run may differ; that data and source are the same, fingerprints tell."""

OUTPUTS = ("report.json", "model", "robots/*/model")
"""What of a run's folder shows that there is something to look at or to go on from."""


class LoggingConsole(Console):
    """Prints to the terminal, and plainly to a log file; redraws of progress bars stay out of the log."""

    def __init__(self, log: TextIO, **options: Any) -> None:
        super().__init__(**options)
        self._log_console = Console(file=log, width=LOG_WIDTH, no_color=True, force_terminal=False, highlight=False)
        self._log_file = log

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as rich does, to both places."""
        super().print(*objects, **options)
        if objects and not any(isinstance(o, Control) for o in objects):
            self.log_only(*objects)

    def log_only(self, *objects: Any) -> None:
        """Print to the log file alone."""
        self._log_console.print(*objects)
        self._log_file.flush()


class Run:
    """Owns the folder of one run; use it as a context manager.

    The folder of a verb that can be resumed is locked before anything in it changes.

    Raises:
        UsageError: The folder cannot be used.
        TrainingError: Another run is going on in it.

    Attributes:
        folder: Where everything of this run goes.
        console: Where to print; a copy goes to log.txt.
        resumed: Whether the folder held an earlier run that this one continues.
        leads: Whether this process is the one that writes; where several train together, the others are silent.
    """

    def __init__(self, name: str, *, run_dir: str | None, resume: bool = False, joins: Path | None = None) -> None:
        self.name, self.leads = name, joins is None
        self.folder, self.resumed = _make_folder(name, run_dir, resume) if joins is None else (joins, resume)
        with ExitStack() as held:
            log = self.folder / "log.txt" if self.leads else Path(os.devnull)
            with _writing(self.folder):
                self._log = held.enter_context(log.open("a", encoding="utf-8"))
            if self.leads and name in RESUMABLE:
                from embodied_wm.training.folder import owned

                held.enter_context(owned(self.folder))
            self._held = held.pop_all()
        self.console = LoggingConsole(self._log, quiet=not self.leads)
        self._handler = logging.StreamHandler(self._log)
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s: %(message)s"))

    def start(self, command: str, config_yaml: str, overrides: Sequence[str]) -> None:
        """Write the resolved configuration, the overrides that led to it (`name=value`) and the head of the log.

        Raises:
            UsageError: The folder holds a run of another configuration, or cannot be written.
        """
        if not self.leads:
            return
        if self.resumed:
            self._check_same(config_yaml)
        with _writing(self.folder):
            (self.folder / "config.yaml").write_text(config_yaml, encoding="utf-8")
            unfinished = self.folder / f"{OVERRIDES}.part"
            unfinished.write_text(yaml.safe_dump(list(overrides)), encoding="utf-8")
            unfinished.replace(self.folder / OVERRIDES)  # at once: processes that join a resumed run read it too
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        self.console.log_only(Text(f"{now}  {command}"))  # as it stands: brackets in a command are no markup
        self.console.log_only(f"python {sys.version.split()[0]} on {sys.platform}")

    def _check_same(self, config_yaml: str) -> None:
        earlier = self.folder / "config.yaml"
        if not earlier.is_file():
            raise UsageError(f"resume=true: {self.folder} holds no config.yaml, so no run to continue")
        texts = earlier.read_text(encoding="utf-8"), config_yaml
        before, now = (flat_options(yaml.safe_load(text)) for text in texts)
        robots = _robots(before)
        if robots != _robots(now):
            raise UsageError(
                f"resume=true: the run in {self.folder} trains the robots {', '.join(robots) or 'of one store'}, now "
                f"{', '.join(_robots(now)) or 'of one store'}. A robot is named as its store: stores may move, but "
                "keep their names and order"
            )
        # What the earlier run does not name, the release that began it did not have.
        other = [key for key in before if not key.startswith(FREE) and before[key] != now.get(key)]
        if other:
            changes = ", ".join(f"{key}={before.get(key)} (now {now.get(key)})" for key in sorted(other)[:5])
            raise UsageError(
                f"resume=true: the run in {self.folder} has {changes}; resume it with the same options "
                f"(its config.yaml), or start a new run"
            )

    def __enter__(self) -> Self:
        """Send log messages to the log file."""
        logging.getLogger().addHandler(self._handler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, frames: TracebackType | None
    ) -> None:
        """Write how the run ended, and close the log."""
        logging.getLogger().removeHandler(self._handler)
        if kind is not None and issubclass(kind, KeyboardInterrupt) and self.name in RESUMABLE:  # SIGTERM's is its own
            self.console.print(f"to go on: embodied-wm {self.name} run_dir={self.folder} resume=true", soft_wrap=True)
        try:
            with self._held:
                if kind is not None:
                    self._log.write(f"ended by {kind.__name__}: {error}\n")
                    _write_traceback(self._log, error)
                self._log.write(f"{datetime.now().astimezone().isoformat(timespec='seconds')}  end\n")
        except OSError:
            if kind is None:
                raise
            # The disk is full: the run's own error, which is on its way, must not be hidden by this one.


def with_earlier(verb: str, overrides: Mapping[str, str]) -> dict[str, str]:
    """Return the overrides (option to text), for a run that is resumed before them those that it was begun with.

    Raises:
        UsageError: There is no run to resume.
    """
    if verb not in RESUMABLE or overrides.get("resume", "").lower() != "true" or "run_dir" not in overrides:
        return dict(overrides)
    folder = Path(overrides["run_dir"]).expanduser()
    if not (folder / "config.yaml").is_file():  # said before options are missed that the run was begun with
        raise UsageError(
            f"resume=true: run_dir={overrides['run_dir']} holds no run to continue (no config.yaml). Check the "
            "name, or begin one without resume=true"
        )
    earlier = folder / OVERRIDES
    if not earlier.is_file():  # a run of a release that kept none
        return dict(overrides)
    chosen = yaml.safe_load(earlier.read_text(encoding="utf-8"))
    return dict(override.split("=", 1) for override in chosen) | dict(overrides)


def newest_run(parent: Path) -> Path:
    """Return the newest run folder, in a folder such as runs/train, of those that hold what a run makes.

    Raises:
        UsageError: There is no run, or none that came so far.
    """
    found = [(match, run) for run in parent.glob("*") if (match := RUN_NAME.fullmatch(run.name))]
    runs = [run for _, run in sorted(found, key=lambda pair: (pair[0][1], int(pair[0][2] or 1)), reverse=True)]
    if not runs:
        raise UsageError(f"there is no run in {parent} yet")
    made = (run for run in runs if any(any(run.glob(output)) for output in OUTPUTS))
    newest = next(made, None)
    if newest is None:
        raise UsageError(
            f"none of the {len(runs)} runs in {parent} has a report.json or a model yet: they failed, were stopped or "
            f"are going on. How the newest one ended stands in {runs[0] / 'log.txt'}"
        )
    return newest


def _write_traceback(log: TextIO, error: BaseException | None) -> None:
    if error is not None:
        log.writelines(traceback.format_exception(error))


def _robots(options: Mapping[str, Any]) -> list[str]:
    """Return the names of the robots that are trained together, from flat options; none for one store alone."""
    stores = options.get("together.stores") or []
    return [PurePosixPath(str(store)).stem for store in (options["data.path"], *stores)] if stores else []


def flat_options(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return dotted option to value."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat_options(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Say of a folder that the body cannot write which one it is and what to do; a full disk is told elsewhere."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL_DISK:
            raise
        raise UsageError(
            f"{folder} cannot be written: {error}. Give run_dir=FOLDER that can be written, or make it so"
        ) from error


def _make_folder(name: str, run_dir: str | None, resume: bool) -> tuple[Path, bool]:
    """Make the run's folder; two runs in one second get two folders."""
    if run_dir is not None:
        folder = Path(run_dir).expanduser()
        with _writing(folder):
            if folder.exists() and not folder.is_dir():
                raise UsageError(f"run_dir={run_dir} is a file; give a folder that is new or empty")
            used = folder.is_dir() and any(folder.iterdir())
            if used and not resume:
                raise UsageError(
                    f"run_dir={run_dir} holds files, which are not overwritten. Give another folder, or remove this one"
                    + (", or continue it with resume=true" if name in RESUMABLE else "")
                )
            if resume and not used:
                raise UsageError(f"resume=true: run_dir={run_dir} holds no run to continue")
            folder.mkdir(parents=True, exist_ok=True)
        return folder.resolve(), used
    if resume:
        raise UsageError("resume=true needs run_dir=FOLDER, the run to continue")
    parent = Path("runs", *name.split("_", 1)) if name.startswith("benchmark_") else Path("runs", name)
    stem = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    with _writing(parent.absolute()):
        parent.mkdir(parents=True, exist_ok=True)
        for suffix in ("", *(f"-{n}" for n in range(2, 1000))):
            folder = parent / f"{stem}{suffix}"
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder.resolve(), False
    raise UsageError(f"{parent} holds 999 runs of this second; give run_dir=FOLDER")
