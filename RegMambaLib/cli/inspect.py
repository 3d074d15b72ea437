"""`regmamba inspect`: what the network makes of a pair, level by level."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from .options import Assignments, Json, Overwrite, Preset, Quiet, resolve_settings, setting

OUTPUTS = ("features.png", "votes.png", "votes.json")


def inspect(
    fixed: Annotated[Path, typer.Argument(metavar="FIXED", help="Image that stays: file or DICOM folder.")],
    moving: Annotated[Path, typer.Argument(metavar="MOVING", help="Image to align to it.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the pictures.")],
    affine: Annotated[str | None, setting("affine")] = None,
    weights: Annotated[str | None, setting("weights")] = None,
    device: Annotated[str | None, setting("device")] = None,
    threads: Annotated[int | None, setting("threads")] = None,
    preset: Preset = None,
    assignments: Assignments = None,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show what the network sees in a pair: its feature maps, and how its scan directions vote, at every level.

    Runs the linear stage and the network as `register` does, without refinement. Writes features.png (the maps of
    FeatMamba and MatchMamba), votes.png and votes.json (the weight of each direction).
    """
    settings = replace(
        resolve_settings(preset, assignments or [], affine=affine, weights=weights, device=device, threads=threads),
        iterations=(),
        uncertainty=False,
    )
    from ..evaluation.figures import check_matplotlib
    from ..io.atomic import staged
    from ..io.images import read_image
    from .output import print_json, to_json
    from .progress import Stages

    check_matplotlib()
    with staged(output, OUTPUTS, overwrite=overwrite) as folder:
        images = read_image(fixed), read_image(moving)
        with Stages(quiet=quiet) as stages:
            from ..evaluation.features import feature_figure, vote_figure, watched
            from ..registration.contrast import SIDES
            from ..registration.pipeline import register

            with watched() as insights:
                found = register(*images, settings=settings, progress=stages)
        if not insights:
            unasked = "with auto, none is where an image shows a piece of something larger"
            unasked = unasked if settings.weights == "auto" else "no weights were wanted"
            reason = found.details.get("network_skipped", unasked)
            raise InputError(f"The network was not asked about this pair: {reason}; choose other weights or images.")
        carried = found.details["network_carried"]
        insight = insights[SIDES.index(carried) if carried else 0]  # the answer that was taken
        votes = {f"level {level}": insight.votes_of_level(level) for level in insight.levels}
        report = {"weights": found.details["weights"], "votes": votes}
        (folder / "features.png").write_bytes(feature_figure(insight))
        (folder / "votes.png").write_bytes(vote_figure(insight))
        (folder / "votes.json").write_text(to_json(report), encoding="utf-8")
    if json:
        print_json(report)
    elif not quiet:
        for level, weights_of in votes.items():
            print(f"{level}:", ", ".join(f"{name} {weight:.3f}" for name, weight in weights_of.items()))
        print(f"Wrote {output}.")
