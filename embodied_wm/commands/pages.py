"""The help pages, for people: what it is, what to do next, the verbs, and the options of each."""

from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from embodied_wm.commands import options

PROGRAM = "embodied-wm"
LONGEST_IN_TABLE = 34
"""Where an option's name is longer, each option has lines of its own: a name that is cut cannot be copied."""
WHAT_IT_IS = (
    "A world-action model that imagines the next frames of a robot in a small latent space, plans with what it "
    "imagines, and is checked against MuJoCo. It learns from MuJoCo tasks and from LeRobot datasets, on a laptop's CPU "
    "or on GPUs."
)
NEXT_STEPS = (
    (f"{PROGRAM} plan task=push checkpoint=pretrained", "plan with a model that ships, and film it; some seconds"),
    (f"{PROGRAM} demo", "collect, train, plan, check against physics; 6 to 15 minutes"),
    (f"{PROGRAM} demo demo=lerobot source=FOLDER", "the same for your own LeRobot episodes"),
    (f"{PROGRAM} VERB --help", "one step at a time: options and an example"),
)


def welcome(console: Console) -> None:
    """Print the page of the whole program."""
    console.print(Text(PROGRAM, style="bold cyan"), Text(" VERB [name=value ...]\n"), sep="")
    console.print(Padding(WHAT_IT_IS, (0, 0, 1, 0)))
    _heading(console, "What to do next")
    for command, meaning in NEXT_STEPS:  # a line each: a command that is cut cannot be copied
        console.print(Text(f"  {command}", style="green"), soft_wrap=True)
        console.print(Text(f"      {meaning}"), soft_wrap=True)
    console.print()
    _pairs(console, "Verbs", ((verb, _title(verb)) for verb in options.VERBS), "cyan")
    _pairs(
        console,
        "Everywhere",
        (
            ("--help", "a verb's options, groups and an example"),
            ("--traceback", "show where an error came from"),
            ("--version", "print the version"),
        ),
        "cyan",
    )
    console.print(
        "Each run writes its configuration, log and results to [cyan]runs/VERB/DATE-TIME[/] (or run_dir=FOLDER)."
    )


def benchmark(console: Console) -> None:
    """Print the page of the benchmark verb, which lists the measures."""
    console.print(Text(f"{PROGRAM} benchmark", style="bold cyan"), Text(" MEASURE [name=value ...]\n"), sep="")
    console.print(Padding(_title("benchmark") + ".", (0, 0, 1, 0)))
    rows = ((m, options.manual(options.config_name("benchmark", m)).title.rstrip(".")) for m in options.MEASURES)
    _pairs(console, "Measures", rows, "cyan")
    _example(console, options.manual("benchmark_planning").example)
    console.print(f"Options of one measure: [cyan]{PROGRAM} benchmark planning --help[/]")


def verb(console: Console, name: str, values: Mapping[str, Any], choices: Mapping[str, str]) -> None:
    """Print the page of one verb.

    Args:
        console: Where to.
        name: Config file of the verb.
        values: Dotted option to its default.
        choices: Config group to the choice that the defaults belong to.
    """
    page = options.manual(name)
    command = name.replace("benchmark_", "benchmark ")
    console.print(Text(f"{PROGRAM} {command}", style="bold cyan"), Text(" [name=value ...]\n"), sep="")
    console.print(Padding(Text(f"{page.title} {page.text}"), (0, 0, 1, 0)))
    _example(console, page.example)
    if choices:
        _groups(console, choices, options.choices_of(name, {}))
    meanings = options.meanings(name, choices)
    own = {key: value for key, value in values.items() if key.split(".")[0] not in choices}
    _options(console, "Options", own, meanings)
    for group, choice in choices.items():
        inside = {key: value for key, value in values.items() if key.split(".")[0] == group}
        if inside:
            _options(console, f"Options of {group}={choice}", inside, meanings)


def show_value(value: Any) -> str:
    """Return a default as one types it on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(show_value(item) for item in value)}]"
    return "required" if value == "???" else str(value)


def _title(name: str) -> str:
    if name == "benchmark":
        return f"Measure a world model: {', '.join(options.MEASURES)}"
    return options.manual(name).title.rstrip(".")


def _heading(console: Console, text: str) -> None:
    console.print(Text(text, style="bold"))


def _pairs(console: Console, heading: str, rows: Iterable[tuple[str, str]], style: str) -> None:
    _heading(console, heading)
    table = Table.grid(padding=(0, 2))
    for left, right in rows:
        table.add_row(Text(f"  {left}", style=style, no_wrap=True), Text(right))
    console.print(table)
    console.print()


def _example(console: Console, example: str) -> None:
    _heading(console, "Example")
    console.print(Text(f"  {example}\n", style="green"), soft_wrap=True)


def _groups(console: Console, choices: Mapping[str, str], defaults: Mapping[str, str]) -> None:
    _heading(console, "Groups: one choice of each")
    table = Table.grid(padding=(0, 2))
    for group, chosen in choices.items():
        note = "default" if chosen == defaults.get(group, chosen) else "chosen"
        names = [f"[bold]{c}[/] ({note})" if c == chosen else c for c in options.groups().get(group, ())]
        table.add_row(Text(f"  {group}=", style="cyan", no_wrap=True), ", ".join(names) or chosen)
    console.print(table)
    console.print()


def _options(console: Console, heading: str, values: Mapping[str, Any], meanings: Mapping[str, str]) -> None:
    _heading(console, heading)
    if max(map(len, values), default=0) > LONGEST_IN_TABLE:
        for key, value in values.items():
            console.print(Text(f"  {key}", style="cyan") + Text(f"={show_value(value)}"), soft_wrap=True)
            console.print(Padding(Text(meanings.get(key, "")), (0, 0, 0, 6)))
        console.print()
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim", padding=(0, 1))
    table.add_column("  name", style="cyan", no_wrap=True)
    table.add_column("default", overflow="fold")
    table.add_column("meaning", ratio=1, overflow="fold")
    for key, value in values.items():
        shown = show_value(value)
        default = Text(shown, style="bold yellow" if shown == "required" else "")
        table.add_row(Text(f"  {key}"), default, Text(meanings.get(key, "")))
    console.print(table)
    console.print()


def problem(console: Console, message: str, hint: str = "") -> None:
    """Print an error: what is wrong, and what to do."""
    body = Text(message)
    if hint:
        body.append(f"\n{hint}", style="dim")
    if console.is_terminal:
        console.print(Panel(body, title="error", title_align="left", border_style="red", expand=False))
    else:
        console.print(Text("error: ") + body, soft_wrap=True)
