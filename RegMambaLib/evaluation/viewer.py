"""The slice viewer of a report: layers over the fixed image, to fade, to check against it, to page through."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..spatial.grid import Grid
from ..spatial.jacobian import jacobian_determinant
from .encode import Colour, data_uri, jpeg, palette_png
from .page import element, escape
from .slices import Slices, cut, grey, line_cover, line_distance, outlines, sampler, view_grid

if TYPE_CHECKING:
    import SimpleITK as sitk

SLICES = 15
"""Slices in each orientation."""
QUALITY = 72
# Determinant 1/2 and below, 1, 2 and above; and <= 0.
_SMALLER, _SAME, _LARGER, _FOLD = (33, 90, 205), (238, 238, 238), (200, 40, 35), (255, 214, 0)
_DARK, _BRIGHT = (20, 14, 54), (252, 253, 191)  # uncertainty
_FIXED_LINE, _MOVED_LINE = (79, 209, 255), (255, 168, 0)
_GRID_LINE = (120, 235, 150)
_STEPS = 6  # of opacity of an antialiased line


@dataclass(frozen=True)
class Shown:
    """What a viewer shows. All transforms go from fixed to moving space, LPS mm.

    Attributes:
        transform: what was found; before: where the moving image lay (None: as its file says).
        displacement: (3, k, j, i) voxels of `grid`, what the transform does beside its linear part.
        uncertainty: (k, j, i) mm on `grid`.
    """

    fixed: sitk.Image
    moving: sitk.Image
    transform: sitk.Transform
    displacement: np.ndarray
    grid: Grid
    before: sitk.Transform | None = None
    fixed_labels: sitk.Image | None = None
    moving_labels: sitk.Image | None = None
    uncertainty: np.ndarray | None = None


@dataclass(frozen=True)
class _Layer:
    """One thing to lay over the fixed image: for each orientation its strip of slices, beside one another."""

    name: str
    title: str
    opacity: int  # percent at first
    strips: list[bytes]
    legend: str = ""


def viewer(shown: Shown, count: int = SLICES) -> str:
    """HTML of the viewer, with `count` slices in each orientation."""
    view = view_grid(shown.fixed)
    views = cut(view, count)
    fixed = _grey_strips(views, grey(shown.fixed, "fixed"), None)
    layers = list(_layers(shown, views, line_distance(view)))
    panels = "".join(_panel(view, strip, layers, n) for n, (view, strip) in enumerate(zip(views, fixed, strict=True)))
    return element("div", _controls(layers) + element("div", panels, cls="panels"), cls="viewer", role="group")


def _layers(shown: Shown, views: list[Slices], distance: int) -> Iterable[_Layer]:
    moving = grey(shown.moving, "moving")
    yield _Layer("moved", "moved image", 50, _grey_strips(views, moving, shown.transform))
    yield _Layer("before", "moving image before", 50, _grey_strips(views, moving, shown.before))
    lines = [
        palette_png(_strip([_steps(cover) for cover in covers]), _fading(_GRID_LINE))
        for covers in (line_cover(view, distance, shown.displacement, shown.grid) for view in views)
    ]
    yield _Layer("grid", "deformed grid", 100, lines, f"A regular grid of {distance} mm, deformed as the moving image.")
    determinant = shown.grid.image(jacobian_determinant(shown.displacement))
    strips = _strips(views, sampler(determinant, default=1.0), lambda p: _jpeg(volume_colours(p)))
    yield _Layer("volume", "change of volume", 65, strips, _volume_legend())
    if shown.uncertainty is not None:
        top = float(np.quantile(shown.uncertainty, 0.999)) or 1.0

        def colours(strip: np.ndarray) -> bytes:
            return _jpeg(_blend(_DARK, _BRIGHT, np.clip(strip / top, 0, 1)))

        strips = _strips(views, sampler(shown.grid.image(shown.uncertainty)), colours)
        yield _Layer("uncertainty", "uncertainty", 65, strips, _bar((_DARK, _BRIGHT), ("0", f"{top:.2g} mm")))
    if shown.fixed_labels is not None and shown.moving_labels is not None:
        strips = list(_label_strips(shown.fixed_labels, shown.moving_labels, shown.transform, views))
        legend = _key(_FIXED_LINE, "fixed") + _key(_MOVED_LINE, "moved") + _key((255, 255, 255), "both")
        yield _Layer("labels", "label outlines", 100, strips, legend)


def overlay(shown: Shown) -> bytes:
    """A JPEG of the three middle slices, a row each: fixed, moving before, moved, and moved with the deformed grid."""
    moving = grey(shown.moving, "moving")
    columns = (grey(shown.fixed, "fixed"), None), (moving, shown.before), (moving, shown.transform)
    rows = []
    whole = view_grid(shown.fixed)
    for view in cut(whole, 1):
        pictures = [np.repeat(view.pictures(sampler(*column))[0][..., None], 3, 2) for column in columns]
        cover = next(line_cover(view, line_distance(whole), shown.displacement, shown.grid))[..., None]
        pictures.append(pictures[-1] * (1 - cover) + np.array(_GRID_LINE) * cover)
        rows.append(_strip(pictures))
    width = max(row.shape[1] for row in rows)
    return _jpeg(np.concatenate([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows]))


def volume_colours(determinant: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 of Jacobian determinants, fixed to moving: how large moving tissue is against the fixed tissue.

    Blue where it has half the volume or less, white where the same, red where twice or more, yellow where it folds.
    """
    change = np.clip(np.log2(np.maximum(determinant, 1e-6)), -1, 1)
    colours = np.where(
        (change < 0)[..., None],
        _blend(_SAME, _SMALLER, np.maximum(-change, 0)),
        _blend(_SAME, _LARGER, np.maximum(change, 0)),
    )
    return np.where((determinant <= 0)[..., None], np.array(_FOLD, np.uint8), colours)


def _strip(pictures: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(pictures, axis=1)


def _strips(
    views: list[Slices], sample: Callable[[Grid], np.ndarray], encode: Callable[[np.ndarray], bytes]
) -> list[bytes]:
    return [encode(_strip(view.pictures(sample))) for view in views]


def _grey_strips(views: list[Slices], image: sitk.Image, transform: sitk.Transform | None) -> list[bytes]:
    return _strips(views, sampler(image, transform), _jpeg)


def _jpeg(picture: np.ndarray) -> bytes:
    return jpeg(np.clip(np.rint(picture), 0, 255).astype(np.uint8), QUALITY)


def _blend(low: tuple[int, int, int], high: tuple[int, int, int], share: np.ndarray) -> np.ndarray:
    return np.rint(np.array(low) + share[..., None] * (np.array(high) - np.array(low))).astype(np.uint8)


def _steps(cover: np.ndarray) -> np.ndarray:
    return np.rint(cover * (_STEPS - 1)).astype(np.uint8)


def _fading(colour: tuple[int, int, int]) -> list[Colour]:
    return [(*colour, round(255 * step / (_STEPS - 1))) for step in range(_STEPS)]


def _label_strips(
    fixed: sitk.Image, moving: sitk.Image, transform: sitk.Transform, views: list[Slices]
) -> Iterable[bytes]:
    palette: list[Colour] = [(0, 0, 0, 0), (*_FIXED_LINE, 255), (*_MOVED_LINE, 255), (255, 255, 255, 255)]
    samples = sampler(fixed, labels=True), sampler(moving, transform, labels=True)
    for view in views:
        edges = [_strip([outlines(p) for p in view.pictures(sample)]) for sample in samples]
        yield palette_png((edges[0] + 2 * edges[1].astype(np.uint8)).astype(np.uint8), palette)


def _controls(layers: list[_Layer]) -> str:
    choices = "".join(
        f'<label><input type="radio" name="layer" value="{layer.name}" data-opacity="{layer.opacity}"'
        f"{' checked' if n == 0 else ''}> {escape(layer.title)}</label>"
        for n, layer in enumerate(layers)
    )
    legends = "".join(
        element("p", layer.legend, cls="legend", data_layer=layer.name, hidden=True) for layer in layers if layer.legend
    )
    return (
        f'<fieldset class="layers"><legend>Over the fixed image</legend>{choices}</fieldset>'
        '<div class="blend"><label class="fade"><span>fixed</span>'
        '<input type="range" class="opacity" min="0" max="100" value="50" aria-label="Fade from fixed to overlay">'
        "<span>overlay</span></label>"
        '<label><input type="checkbox" class="checker"> checkerboard</label></div>'
        f"{legends}"
    )


def _panel(view: Slices, fixed: bytes, layers: list[_Layer], number: int) -> str:
    height, width = view.size
    count, middle = len(view.grids), len(view.grids) // 2
    pictures = f'<div class="slice base" style="background-image:url({data_uri(fixed)})"></div>' + "".join(
        f'<div class="slice over{"" if n == 0 else " off"}" data-layer="{layer.name}" '
        f'style="background-image:url({data_uri(layer.strips[number])})"></div>'
        for n, layer in enumerate(layers)
    )
    marks = "".join(
        f'<b class="mark {side}">{mark}</b>'
        for side, mark in zip(("left", "right", "top", "bottom"), view.orientation.marks, strict=True)
    )
    name = view.orientation.name
    style = f"aspect-ratio:{width}/{height};--count:{count};--slice:{middle}"
    places = " ".join(f"{place:.0f}" for place in view.places)
    return (
        f'<figure style="--ratio:{width / height:.4f}"><div class="stack" style="{style}" role="img" '
        f'aria-label="{name} slice">{pictures}{marks}</div>'
        f'<figcaption><label>{name}<input type="range" class="page" min="0" max="{count - 1}" value="{middle}" '
        f'data-places="{places}" aria-label="{name} slice"></label><output></output></figcaption></figure>'
    )


def _css(colour: tuple[int, int, int]) -> str:
    return f"rgb({colour[0]} {colour[1]} {colour[2]})"


def _bar(colours: Iterable[tuple[int, int, int]], marks: Iterable[str]) -> str:
    gradient = ", ".join(map(_css, colours))
    spans = "".join(f"<span>{escape(mark)}</span>" for mark in marks)
    return f'<span class="bar" style="background:linear-gradient(to right, {gradient})"></span>' + element(
        "span", spans, cls="ticks"
    )


def _key(colour: tuple[int, int, int], text: str) -> str:
    return f'<span class="key"><i style="background:{_css(colour)}"></i>{escape(text)}</span>'


def _volume_legend() -> str:
    bar = _bar((_SMALLER, _SAME, _LARGER), ("half", "twice"))
    return f"Volume of the moving against the fixed tissue, linear part left out: {bar}{_key(_FOLD, 'folded')}"
