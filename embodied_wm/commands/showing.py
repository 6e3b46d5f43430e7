"""Opens a finished page for the person at the screen, where there is one."""

import os
import sys
import webbrowser
from pathlib import Path


def has_screen() -> bool:
    """Tell whether a person sits before a graphical screen: a terminal, and a display that a browser can use."""
    is_desktop = sys.platform in ("darwin", "win32")
    return sys.stdout.isatty() and (is_desktop or any(os.environ.get(key) for key in ("DISPLAY", "WAYLAND_DISPLAY")))


def show_page(page: Path, wanted: bool) -> None:
    """Open a page in the browser if that is wanted and there is a screen; scripts and remote shells see nothing."""
    if wanted and has_screen():
        webbrowser.open(page.resolve().as_uri())
