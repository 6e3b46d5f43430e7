"""Command line: `embodied-wm VERB [name=value ...]`; the only module, beside scripts, that knows Hydra.

Exit codes: 0 done, 1 the run failed, 2 the command line is wrong, 130 stopped by Ctrl-C (training: or SIGTERM).
"""

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rich.console import Console

from embodied_wm.commands import options, pages
from embodied_wm.commands.errors import FULL_DISK, UsageError
from embodied_wm.commands.interrupts import EXIT_CODE, one_interrupt
from embodied_wm.near_names import nearest
from embodied_wm.ranges import is_number

HELP = ("-h", "--help", "help")
KINDS: Mapping[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list",
}

# Threads of torch that wait must sleep and not spin: on a busy machine spinning costs three times the speed.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    show_traceback = "--traceback" in arguments
    arguments = [argument for argument in arguments if argument != "--traceback"]
    console, errors = Console(), Console(stderr=True)
    try:
        with one_interrupt():
            return _dispatch(arguments, console)
    except UsageError as error:
        if show_traceback:
            errors.print_exception()
        hint = f"Options and an example: {pages.PROGRAM} {' '.join([*_command(arguments), '--help'])}"
        pages.problem(errors, str(error), hint)
        return 2
    except KeyboardInterrupt as stop:
        errors.print(f"\nStopped by {str(stop) or 'Ctrl-C'}. What was finished is kept.")
        return EXIT_CODE
    except (ValueError, RuntimeError, OSError) as error:
        if show_traceback:
            errors.print_exception()
        pages.problem(errors, _message(error), "" if show_traceback else "Where: add --traceback")
        return 1
    except Exception as error:
        errors.print_exception()
        pages.problem(
            errors, f"unexpected {type(error).__name__}: {error}. This is a fault of the program; please report it."
        )
        return 1


def _message(error: Exception) -> str:
    """Return what an error says, and what to do where the system reports a full disk."""
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.errno in FULL_DISK:
        return f"the disk is full, or a limit on file sizes is reached ({text}). What was finished is kept; free space"
    return text


def _command(arguments: Sequence[str]) -> list[str]:
    """Return the valid verb, and measure, that the arguments begin with."""
    if not arguments or arguments[0] not in options.VERBS:
        return []
    is_measure = arguments[0] == "benchmark" and len(arguments) > 1 and arguments[1] in options.MEASURES
    return list(arguments[: 2 if is_measure else 1])


def _dispatch(arguments: list[str], console: Console) -> int:
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    if not arguments or arguments[0] in HELP:
        pages.welcome(console)
        return 0
    if arguments[0] == "--version":
        console.print(_version(), highlight=False)
        return 0
    verb, rest = arguments[0], arguments[1:]
    if verb not in options.VERBS:
        raise UsageError(f"there is no verb {verb!r}{nearest(verb, options.VERBS)}")
    measure = None
    if verb == "benchmark":
        if not rest or rest[0] in HELP:
            pages.benchmark(console)
            return 0 if rest else 2
        measure, rest = rest[0], rest[1:]
        if measure not in options.MEASURES:
            raise UsageError(f"there is no measure {measure!r}{nearest(measure, options.MEASURES)}")
    name = options.config_name(verb, measure)
    overrides = [argument for argument in rest if argument not in HELP]
    if len(overrides) < len(rest):
        composed, choices = compose_config(name, read_overrides(verb, overrides))
        pages.verb(console, name, flat_values(composed), choices)
        return 0
    return _run(verb, name, overrides)


def _run(verb: str, name: str, overrides: Sequence[str]) -> int:
    from omegaconf import OmegaConf

    from embodied_wm.commands import verbs
    from embodied_wm.commands.joining import open_run
    from embodied_wm.commands.run import with_earlier

    given = verbs.with_newest(verb, read_overrides(verb, overrides))
    chosen = verbs.with_start(verb, with_earlier(verb, given))
    composed, choices = compose_config(name, chosen)
    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        meanings = options.meanings(name, choices)
        raise UsageError("give " + " and ".join(f"{key}=... ({meanings.get(key, '')})" for key in missing))
    config_yaml = OmegaConf.to_yaml(composed, resolve=True)
    config = instantiate_config(composed)
    if isinstance(seed := config.get("seed"), int) and seed < 0:
        raise UsageError(f"seed={seed}: expected 0 or more")
    if "run_dir" not in config:  # verbs that only look at something
        verbs.LOOK[verb](config, Console())
        return 0
    with open_run(name, config) as run:
        run.start(
            " ".join([pages.PROGRAM, *_command([verb, name.removeprefix("benchmark_")]), *overrides]),
            config_yaml,
            [f"{key}={value}" for key, value in chosen.items()],
        )
        run.console.print(f"run folder: [cyan]{run.folder}[/]", soft_wrap=True)
        code = verbs.RUN[name](config, run) or 0
        run.console.print(f"done: [cyan]{run.folder}[/]", soft_wrap=True)
    return code


def read_overrides(verb: str, arguments: Sequence[str]) -> dict[str, str]:
    """Return option or group to its text, from `name=value` arguments."""
    result: dict[str, str] = {}
    further: list[str] = []
    for argument in arguments:
        if argument.startswith("-"):
            raise UsageError(f"there is no flag {argument}; options are written name=value")
        if not re.match(r"\w[\w.]*=", argument) and verb in options.POSITIONAL:
            if options.POSITIONAL[verb] in result and verb in options.FURTHER:
                further.append(argument)
                continue
            argument = f"{options.POSITIONAL[verb]}={argument}"
        if "=" not in argument:
            raise UsageError(f"{argument!r}: options are written name=value")
        key, value = argument.split("=", 1)
        if not re.fullmatch(r"[\w.]+", key):
            raise UsageError(f"{key!r} is no name of an option; options are written name=value")
        result[key] = value
    if further:
        result[options.FURTHER[verb]] = json.dumps(further)
    return result


def compose_config(name: str, overrides: Mapping[str, str]) -> tuple[Any, dict[str, str]]:
    """Return the composed configuration, and the choice of every group.

    Raises:
        UsageError: An unknown option, group or choice, or a value of the wrong kind.
    """
    from hydra import compose, initialize_config_module
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    used_groups = options.choices_of(name, {})
    for _ in range(2):  # a choice (demo=lerobot) may bring groups of its own, or lose some
        used_groups = options.choices_of(name, {key: v for key, v in overrides.items() if key in used_groups})
    chosen = [f"{key}={value}" for key, value in overrides.items() if key in used_groups]
    try:
        with initialize_config_module("configs", version_base="1.3"):
            base = compose(name, overrides=chosen)
            values = {
                key: _checked_value(key, value, base, used_groups)
                for key, value in overrides.items()
                if key not in used_groups
            }
            plain = [f"{key}={value}" for key, value in values.items() if key not in options.groups()]
            composed = compose(name, overrides=[*chosen, *plain])
            for key in values.keys() & options.groups().keys():  # Hydra would look for the group of that name
                OmegaConf.update(composed, key, _parse(values[key]).value())
            return composed, used_groups
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(str(error)) from error


def _checked_value(key: str, text: str, base: Any, used_groups: Mapping[str, str]) -> str:
    """Return the value as Hydra reads it; a text that is no Hydra value, such as an odd path, is quoted.

    The same holds for the elements of a list, such as [~/a.zarr].
    """
    from hydra.core.override_parser.types import ValueType
    from hydra.errors import HydraException

    flat = flat_values(base)
    if key not in flat:
        inside = [option for option in flat if option.startswith(f"{key}.")]
        if inside:
            raise UsageError(f"{key} is a group of options; set one of them: {', '.join(inside)}")
        raise UsageError(f"there is no option {key!r} here{nearest(key, [*flat, *used_groups])}")
    default = flat[key]
    if isinstance(default, str) or default is None:
        quoted = _quote(text)
        if isinstance(default, str) and not text.startswith("${"):
            return quoted
    else:
        quoted = text
    try:
        text = _quote_elements(text)
        parsed = _parse(text)
    except HydraException as error:
        if quoted != text:
            return quoted
        how = ". An element with signs such as ' or , stands in quotes of its own: [\"it's.zarr\"]"
        raise UsageError(f"{key}={text}: expected {KINDS[type(default)]}{how * isinstance(default, list)}") from error
    if parsed.value_type != ValueType.ELEMENT:
        if quoted != text:
            return quoted
        raise UsageError(f"{key}={text}: one value at a time; lists are written [1,2]")
    _check_kind(key, text, parsed.value(), default)
    return text


def _parse(text: str) -> Any:
    """Return a value as Hydra's grammar reads it.

    Raises:
        HydraException: It is none.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(f"value={text}")


def _quote(text: str) -> str:
    """Return a text in quotes; Hydra reads a backslash as itself, unless a quote follows."""
    return "'" + re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text) + "'"


def _quote_elements(text: str) -> str:
    """Return a plain list with those elements in quotes that Hydra could not read; any other text as it stands."""
    from hydra.errors import HydraException

    found = re.fullmatch(r"\s*\[([^][{}'\"]*)\]\s*", text)
    try:
        _parse(text)
        return text
    except HydraException:
        if found is None:
            return text
    elements = []
    for element in map(str.strip, found[1].split(",")):
        try:
            _parse(element)
            elements.append(element)
        except HydraException:
            elements.append(_quote(element))
    return f"[{','.join(elements)}]"


def _check_kind(key: str, text: str, value: Any, default: Any) -> None:
    if default is None or isinstance(default, str) or text.startswith("${"):
        return
    fits = is_number(value) if isinstance(default, float) else type(value) is type(default)
    if not fits:
        example = f", such as {'[1,2]' if default == [] else pages.show_value(default)}"
        raise UsageError(f"{key}={text}: expected {KINDS[type(default)]}{example}")


def flat_values(config: Any) -> dict[str, Any]:
    """Return dotted option to value; "???" where one must be given."""
    from omegaconf import OmegaConf

    def walk(node: Mapping[str, Any], prefix: str) -> None:
        for key, value in node.items():
            if isinstance(value, Mapping):
                walk(value, f"{prefix}{key}.")
            elif key != "_target_":
                result[f"{prefix}{key}"] = value

    result: dict[str, Any] = {}
    walk(OmegaConf.to_container(config, resolve=True), "")  # type: ignore[arg-type]
    return result


def instantiate_config(config: Any) -> dict[str, Any]:
    """Return plain values, with the dataclasses that `_target_` names.

    Raises:
        UsageError: A dataclass refuses its values.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return instantiate(config, _convert_="all")
    except InstantiationException as error:
        place = re.search(r"full_key: (\S+)", str(error))
        where = f"{place.group(1)}: " if place else ""
        cause = error.__cause__
        if isinstance(cause, ValueError):
            raise UsageError(f"{where}{cause}") from error
        if isinstance(cause, TypeError):  # such as a word where a number is compared
            why = f"{where}one of its values is of another kind than its setting wants ({cause})"
            raise UsageError(f"{why}; --help shows the kinds") from error
        raise RuntimeError(f"{where}{cause or error}") from error


def _version() -> str:
    try:
        return f"{pages.PROGRAM} {version('embodied-wm')}"
    except PackageNotFoundError:
        return f"{pages.PROGRAM} (not installed)"


if __name__ == "__main__":
    sys.exit(main())
