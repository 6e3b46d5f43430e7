"""Pictures made of frames: film strips (SVG around crisp PNG frames) and looping animations (WebP)."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK = "#1c2024"
MUTED = "#68707c"
DIFFERENCE_FULL_SCALE = 96
"""Mean absolute difference of a pixel, in levels of 255, that is drawn darkest."""
_DIFFERENCE_COLOURS = np.array([[252, 252, 250], [251, 200, 128], [226, 94, 60], [122, 22, 72], [24, 8, 32]])
_STRIP_WIDTH, _MAX_COLUMNS, _MAX_FRAME_WIDTH = 1040, 10, 136
_GREY = (126, 134, 145, 255)
CONTACT_MARK = "\u25cf"
"""Ends the label of a step with a contact; animations draw it, as Pillow's font has no such sign."""


class PictureError(ValueError):
    """Say that a picture cannot be drawn from what was given."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Hold one encoded picture and the words around it.

    Attributes:
        title: Short title.
        caption: One or two sentences that say how to read it; they are its alternative text, too.
        kind: How `data` is encoded.
        data: The encoded picture.
        wide: Whether it wants the page's full width.
    """

    title: str
    caption: str
    kind: Literal["png", "svg", "webp"]
    data: bytes
    wide: bool = False


def _check_frames(name: str, frames: np.ndarray) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or len(frames) == 0:
        raise PictureError(
            f"{name}: got shape {frames.shape} of {frames.dtype}; expected uint8 frames [T, height, width, 3], T >= 1."
        )


def difference(real: np.ndarray, imagined: np.ndarray) -> np.ndarray:
    """Return the absolute difference of frames [T, h, w, 3] as colours: white is none, dark is much."""
    _check_frames("real", real)
    _check_frames("imagined", imagined)
    if real.shape != imagined.shape:
        raise PictureError(f"real has shape {real.shape}, imagined {imagined.shape}; expected the same.")
    levels = np.abs(real.astype(np.int16) - imagined.astype(np.int16)).mean(axis=-1)
    position = np.clip(levels / DIFFERENCE_FULL_SCALE, 0, 1) * (len(_DIFFERENCE_COLOURS) - 1)
    stops = np.arange(len(_DIFFERENCE_COLOURS))
    channels = [np.interp(position, stops, _DIFFERENCE_COLOURS[:, c]) for c in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def _png_uri(frame: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def film_rows(
    rows: Sequence[tuple[str, Sequence[np.ndarray | None]]], *, labels: Sequence[str], title: str, caption: str = ""
) -> Picture:
    """Draw rows of frames above each other, one column per step; long strips continue below.

    Args:
        rows: Name and frames (uint8 [h, w, 3], or None for an empty cell) of each row.
        labels: Label of each column, such as "t+1".
        title: Title of the picture.
        caption: How to read it.
    """
    for name, frames in rows:
        if len(frames) != len(labels):
            raise PictureError(f"Row {name!r} has {len(frames)} frames for {len(labels)} labels; expected one each.")
        for frame in frames:
            if frame is not None:
                _check_frames(f"row {name!r}", frame[None])
    names = list(labels)
    first = next((frame for _, frames in rows for frame in frames if frame is not None), None)
    if first is None:
        raise PictureError("Got no frames; expected at least one.")
    bands = [band.tolist() for band in np.array_split(np.arange(len(labels)), -(-len(labels) // _MAX_COLUMNS))]
    gap, text, columns = 6, 22, max(len(band) for band in bands)
    width = min(_MAX_FRAME_WIDTH, (_STRIP_WIDTH + gap) // columns - gap)
    height = round(width * first.shape[0] / first.shape[1])
    band_height = len(rows) * (text + height + gap) + text + 24
    total_width, total_height = columns * (width + gap) - gap, len(bands) * band_height - 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{total_width}" height="{total_height}" '
        f'viewBox="0 0 {total_width} {total_height}" font-family="sans-serif" font-size="12.5">'
    ]
    for b, band in enumerate(bands):
        for r, (name, frames) in enumerate(rows):
            top = b * band_height + r * (text + height + gap) + text
            parts.append(f'<text x="0" y="{top - 7}" fill="{INK}" font-weight="600">{escape(name)}</text>')
            for c, t in enumerate(band):
                frame = frames[t]
                if frame is not None:
                    parts.append(
                        f'<image x="{c * (width + gap)}" y="{top}" width="{width}" height="{height}" '
                        f'preserveAspectRatio="none" style="image-rendering: pixelated" href="{_png_uri(frame)}"/>'
                    )
        for c, t in enumerate(band):
            only_first = all(frames[t] is None for _, frames in rows[1:])
            depth = 1 if only_first else len(rows)
            x, y = c * (width + gap) + width / 2, b * band_height + depth * (text + height + gap) + text - 8
            parts.append(f'<text x="{x:g}" y="{y}" fill="{MUTED}" text-anchor="middle">{escape(names[t])}</text>')
    parts.append("</svg>")
    return Picture(title=title, caption=caption, kind="svg", data="".join(parts).encode(), wide=True)


def film_strip(
    real: np.ndarray,
    imagined: np.ndarray,
    *,
    labels: Sequence[str],
    title: str = "Imagined and real",
    caption: str = "",
    num_context: int = 0,
    goal: np.ndarray | None = None,
) -> Picture:
    """Draw real frames, imagined frames and their difference above each other.

    Args:
        real: Rendered or recorded frames, uint8 [T, h, w, 3].
        imagined: Decoded imagined frames, uint8 [T, h, w, 3].
        labels: Label of each step.
        title: Title of the picture.
        caption: How to read it; a sentence about the difference is added.
        num_context: Leading frames that the model was given; they have no difference.
        goal: Goal image uint8 [h, w, 3], drawn as a last column.
    """
    apart = list(difference(real, imagined))
    rows: list[tuple[str, list[np.ndarray | None]]] = [
        ("Real", list(real)),
        ("Imagined", list(imagined)),
        ("Difference", [None if t < num_context else frame for t, frame in enumerate(apart)]),
    ]
    columns = list(labels)
    if goal is not None:
        columns.append("goal")
        for name, frames in rows:
            frames.append(goal if name == "Real" else None)
    note = f"Difference: white is none, darkest is {DIFFERENCE_FULL_SCALE} of 255 levels or more."
    return film_rows(rows, labels=columns, title=title, caption=f"{caption} {note}".strip())


def looping(
    real: np.ndarray,
    imagined: np.ndarray,
    *,
    labels: Sequence[str] | None = None,
    title: str = "Imagined and real, in motion",
    caption: str = "",
    frames_per_second: float = 5,
    height_px: int = 256,
) -> Picture:
    """Animate real, imagined and difference side by side, with a pause at the end, for ever.

    Args:
        real: Frames, uint8 [T, h, w, 3].
        imagined: Frames, uint8 [T, h, w, 3].
        labels: Label of each step; t = 0, 1, ... if None.
        title: Title of the picture.
        caption: How to read it.
        frames_per_second: Speed.
        height_px: Height of a frame on the page; frames grow by a whole factor, without smoothing.
    """
    apart = difference(real, imagined)
    steps = [f"t = {t}" for t in range(len(real))] if labels is None else list(labels)
    if len(steps) != len(real):
        raise PictureError(f"Got {len(steps)} labels for {len(real)} frames; expected one each.")
    factor = max(1, round(height_px / real.shape[1]))
    gap, text, bar = 10, 30, 4
    height, width = real.shape[1] * factor, real.shape[2] * factor
    font = ImageFont.load_default(size=20)
    canvases = []
    for t, step in enumerate(steps):
        canvas = Image.new("RGBA", (3 * width + 2 * gap, height + 2 * text + bar), (0, 0, 0, 0))
        draw = ImageDraw.Draw(canvas)
        for column, (name, frames) in enumerate((("real", real), ("imagined", imagined), ("difference", apart))):
            left = column * (width + gap)
            draw.text((left, 2), name, fill=_GREY, font=font)
            canvas.paste(Image.fromarray(frames[t]).resize((width, height), Image.Resampling.NEAREST), (left, text))
        words, top = step.rstrip(CONTACT_MARK), text + height + bar + 5
        draw.text((0, top), words, fill=_GREY, font=font)
        if words != step:
            left = draw.textlength(words, font=font)
            draw.ellipse((left, top + 7, left + 10, top + 17), fill=_GREY)
        right = round((canvas.width - 1) * (t + 1) / len(steps))
        draw.rectangle((0, text + height + 3, right, text + height + 2 + bar - 1), fill=_GREY)
        canvases.append(canvas)
    buffer = io.BytesIO()
    durations = [round(1000 / frames_per_second)] * len(canvases)
    durations[-1] += 900
    canvases[0].save(
        buffer,
        format="WEBP",
        save_all=True,
        append_images=canvases[1:],
        duration=durations,
        loop=0,
        lossless=True,
        method=3,
    )
    return Picture(title=title, caption=caption, kind="webp", data=buffer.getvalue(), wide=True)
