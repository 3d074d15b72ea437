"""`regmamba data`: make a data set ready for training and evaluation, check it, list it, pair it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from .options import Json, Overwrite, Quiet

if TYPE_CHECKING:
    from ..training.datasets.source import Source

app = typer.Typer(
    name="data", help="Make data sets ready for training and evaluation, and check them.", no_args_is_help=True
)
Name = Annotated[str, typer.Argument(metavar="SET", help="lpba40, ixi, oasis, abdomen-ct, sr-reg, folder or bids.")]
Prepared = Annotated[Path, typer.Argument(metavar="PREPARED", help="Prepared folder, or its manifest.json.")]
_USUAL = "Usual for the set where not given"
_OWN = "Images of your own (folder, bids)"


@app.command(no_args_is_help=True)
def prepare(
    name: Name,
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="Folder of the set as its owners distribute it.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make; a stopped run goes on there.")],
    shape: Annotated[
        str | None, typer.Option(metavar="S,P,L", help="Voxels to crop or pad to.", rich_help_panel=_USUAL)
    ] = None,
    spacing: Annotated[
        str | None, typer.Option(metavar="S,P,L", help="mm to resample to; one number for all.", rich_help_panel=_USUAL)
    ] = None,
    linear: Annotated[
        str | None,
        typer.Option(
            metavar="none|rigid|similarity|affine", help="Align to the atlas, on its grid.", rich_help_panel=_USUAL
        ),
    ] = None,
    atlas: Annotated[
        str | None, typer.Option(metavar="CASE", help="Case to align to and to pair with.", rich_help_panel=_USUAL)
    ] = None,
    window: Annotated[
        str | None, typer.Option(metavar="LOW,HIGH", help="HU that become 0 and 1, for CT.", rich_help_panel=_USUAL)
    ] = None,
    all_labels: Annotated[
        bool, typer.Option("--all-labels", help="Keep every named label, not only those the papers evaluate.")
    ] = False,
    label_table: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE", help="Names of the labels: dkt31, freesurfer, ... or JSON.", rich_help_panel=_OWN
        ),
    ] = None,
    modality: Annotated[str | None, typer.Option(help="MR, T1, CT, ...", rich_help_panel=_OWN)] = None,
    images: Annotated[
        str | None, typer.Option(metavar="ENDING", help="Ending of images; BIDS suffix.", rich_help_panel=_OWN)
    ] = None,
    labels: Annotated[
        str | None, typer.Option(metavar="ENDING", help="Ending of label maps; BIDS desc.", rich_help_panel=_OWN)
    ] = None,
    split: Annotated[
        str, typer.Option(metavar="TRAIN,VAL,TEST", help="Shares of the subjects.", rich_help_panel=_OWN)
    ] = "0.7,0.1,0.2",
    seed: Annotated[int, typer.Option(min=0, help="Of drawing the splits.", rich_help_panel=_OWN)] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Prepare a data set: orient, align, crop or resample, scale intensities, write images, labels and a manifest.

    Files that are missing or of a wrong size are named before anything is written. A run that was stopped goes on
    where it stopped; finished cases are kept.
    """
    from ..training.datasets.prepare import prepare_data_set
    from ..training.datasets.registry import data_set, find_source
    from ..training.datasets.source import Options
    from ..training.datasets.tables import load_table
    from .progress import Stages

    known = data_set(name)
    shares = _numbers(split, "--split", 3)
    if sum(shares) <= 0 or min(shares) < 0:
        raise InputError(f"--split {split} cannot be shares of the subjects; give for example 0.7,0.1,0.2.")
    if source.resolve() in (out.resolve(), *out.resolve().parents):
        raise InputError(f"{out} lies in {source}, where a later run would take it for data; choose a folder outside.")
    options = Options(modality, images, labels, (shares[0], shares[1], shares[2]), seed)
    if label_table and not known.own:
        raise InputError(f"{name} has its own label names; --label-table is for folder and bids.")
    table_name = label_table or known.labels
    table = load_table(table_name) if table_name else None
    found = _with(find_source(name, source, options), shape, spacing, linear, atlas, window, all_labels)
    if name == "bids":
        from ..training.datasets.bids import description

        licence, citation = description(source)
        known = replace(known, licence=licence, citation=citation)
    with Stages(quiet=quiet) as progress:
        manifest = prepare_data_set(
            source.resolve().name if known.own else name,
            known,
            found,
            out,
            table=table,
            workers=workers,
            overwrite=overwrite,
            progress=progress,
        )
    if not quiet:
        counts = ", ".join(f"{len(manifest.split(part))} {part}" for part in ("train", "val", "test", "atlas"))
        print(f"Prepared {manifest.name} ({found.layout}): {counts}; {out / 'manifest.json'}.")
        if manifest.shape is None:
            print("The cases differ in size; give --shape (and --spacing) for training in batches.")


@app.command(no_args_is_help=True)
def verify(prepared: Prepared, quiet: Quiet = False) -> None:
    """Check a prepared folder against its manifest: files, shapes, spacings, checksums, label names."""
    from ..training.datasets.verify import verify_data_set
    from .progress import Stages

    with Stages(quiet=quiet) as progress:
        wrong = verify_data_set(prepared, lambda share: progress("verify", share))
    for sentence in wrong:
        print(sentence)
    if wrong:
        raise InputError(f"{prepared} has {len(wrong)} faults, listed above; prepare it again with --overwrite.")
    if not quiet:
        print(f"{prepared} is as its manifest says.")


@app.command("list")
def list_sets(
    prepared: Annotated[
        Path | None, typer.Argument(metavar="[PREPARED]", help="Prepared folder whose cases to list.")
    ] = None,
    json: Json = False,
) -> None:
    """List the data sets that can be prepared, or the cases of a prepared one."""
    from .output import print_json

    rows = _known_sets() if prepared is None else _cases(prepared)
    if json:
        print_json(rows)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*rows[0]) if rows else Table()
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console(highlight=False).print(table)


@app.command(no_args_is_help=True)
def pairs(
    prepared: Prepared,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="CSV to write.")],
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    kind: Annotated[
        str | None,
        typer.Option(
            metavar="inter-subject|atlas|from-atlas|intra-subject|listed", help="Which pairs; the set's usual ones."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Number of pairs to draw at random.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw.")] = 0,
    modalities: Annotated[str | None, typer.Option(metavar="FIXED,MOVING", help="CT,MR for instance.")] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write pairs of a prepared data set as the CSV that `evaluate` reads."""
    from ..training.datasets.manifest import load_manifest, write_pairs

    two = modalities.split(",") if modalities else None
    if two is not None and len(two) != 2:
        raise InputError(f"--modalities takes two, not {modalities!r}; give for example CT,MR.")
    manifest = load_manifest(prepared)
    chosen = manifest.pairs(split, kind, limit, seed, modalities=(two[0], two[1]) if two else None)
    write_pairs(chosen, output, overwrite=overwrite)
    if not quiet:
        print(f"Wrote {len(chosen)} pairs to {output}.")


def _with(
    source: Source,
    shape: str | None,
    spacing: str | None,
    linear: str | None,
    atlas: str | None,
    window: str | None,
    every: bool,
) -> Source:
    """`source` with what was asked for instead of the usual preparation."""
    changes: dict[str, Any] = {"every_label": every}
    if shape is not None:
        changes["shape"] = tuple(int(n) for n in _numbers(shape, "--shape", 3))
    if spacing is not None:
        changes["spacing"] = _numbers(spacing, "--spacing", 3)
    if window is not None:
        changes["window"] = _numbers(window, "--window", 2)
        if changes["window"][0] >= changes["window"][1]:
            raise InputError(f"--window {window} is empty; give the lower value first, such as -200,500.")
    if min(changes.get("shape", (1,))) < 1 or min(changes.get("spacing", (1.0,))) <= 0:
        raise InputError("--shape and --spacing must be greater than 0; give for example 160,192,160 and 1.")
    if linear is not None:
        if linear not in ("none", "rigid", "similarity", "affine"):
            raise InputError(f"--linear cannot be {linear!r}; use none, rigid, similarity or affine.")
        changes["linear"] = linear
    return replace(source, preparation=replace(source.preparation, **changes), atlas=atlas or source.atlas)


def _numbers(text: str, option: str, count: int) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) == 1 and option == "--spacing":
        values *= count
    if len(values) != count:
        raise InputError(f"{option} takes {count} numbers, not {text!r}; separate them by commas.")
    return values


def _known_sets() -> list[dict[str, Any]]:
    from ..training.datasets.registry import DATA_SETS

    return [{"set": name, "what": known.title, "licence": known.licence} for name, known in DATA_SETS.items()]


def _cases(prepared: Path) -> list[dict[str, Any]]:
    from ..training.datasets.manifest import load_manifest

    return [
        {
            "id": case.id,
            "subject": case.subject,
            "split": case.split,
            "modality": case.modality,
            "labels": "no" if case.labels is None else "yes",
        }
        for case in load_manifest(prepared).cases
    ]
