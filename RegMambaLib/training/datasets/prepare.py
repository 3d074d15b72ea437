"""The path all data sets share: check, orient, align, resample, scale, write, and finish with the manifest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...io.atomic import staged_file, writing
from ...version import __version__
from .case import RECORDS, Job, by, fingerprint, prepare_case, record_of
from .manifest import FORMAT, MANIFEST, VERSION, Manifest, manifest_from_dict
from .registry import DataSet
from .source import RawCase, Source
from .tables import LabelTable
from .volumes import Axes, direction_from_labels, read_label_volume, read_volume, size_of

Progress = Callable[[str, float], None]


def prepare_data_set(
    name: str,
    known: DataSet,
    source: Source,
    out: Path,
    *,
    table: LabelTable | None = None,
    workers: int = 1,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Prepare every case of a data set into a folder, and write its manifest last.

    Stopped at any point, the folder holds whole cases and no manifest; the same call goes on where it stopped.

    Args:
        name: of the data set, kept in the manifest.
        known: its line in the registry.
        source: what was found, with the preparation wanted.
        out: folder for images/, labels/ and manifest.json; new, empty, or begun by the same call.
        table: names of the labels; None: values that occur are named "label 1" and so on.
        workers: processes.
        overwrite: begin anew in a folder that was prepared in another way.
        progress: called with (stage, share done); may raise to cancel.

    Raises:
        InputError: two cases of one id, a missing or damaged file, one of another size than the others, unknown label
            values, or `out` holds something else.
    """
    tell = progress or (lambda stage, share: None)
    _check_ids(source.cases)
    _check_atlas(source)
    size = _check_sizes(source, tell)
    axes = None if source.headers else _axes(source, table)
    digest = _digest(name, source, table, axes)
    _claim(out, digest, overwrite)
    jobs = [_job(case, source, out, axes, table, size) for case in source.cases]
    done = {job.case.id: record for job in jobs if (record := _finished(job)) is not None}
    waiting = [job for job in jobs if job.case.id not in done]
    tell("prepare", len(done) / len(jobs))
    for record in _run(waiting, workers):
        done[record["id"]] = record
        tell("prepare", len(done) / len(jobs))
    raw = _manifest(name, known, source, table, [done[job.case.id] for job in jobs])
    with staged_file(out / MANIFEST, overwrite=True) as part, writing(out / MANIFEST):
        part.write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
    return manifest_from_dict(raw, out)


def _check_ids(cases: Sequence[RawCase]) -> None:
    seen: dict[str, RawCase] = {}
    for case in cases:
        # File systems that ignore case would merge the two.
        other = seen.setdefault(case.id.lower(), case)
        if other is not case:
            raise InputError(f"{other.image} and {case.image} would both be the case {case.id}; rename one of them.")


def _check_atlas(source: Source) -> None:
    ids = [case.id for case in source.cases]
    if source.atlas is None and source.preparation.linear != "none":
        raise InputError(f"There is no atlas to align to; name one with --atlas, by the id of a case such as {ids[0]}.")
    if source.atlas is not None and source.atlas not in ids:
        raise InputError(f"The atlas {source.atlas!r} is no case; give the id of one, such as {ids[0]}.")


def _check_sizes(source: Source, tell: Progress) -> tuple[int, int, int] | None:
    """Look at every file's header; returns the size that all images have, None where it is free."""
    sizes: dict[str, tuple[int, int, int] | None] = {}
    for n, case in enumerate(source.cases):
        tell("check", n / len(source.cases))
        sizes[case.id] = size_of(case.image)
        of_labels = size_of(case.labels) if case.labels else None
        if of_labels not in (None, sizes[case.id]) and (source.one_size or not source.headers):
            raise InputError(
                f"{case.labels} is {by(of_labels)} voxels and its image {case.image} {by(sizes[case.id])}; "
                "download the data set again."
            )
    tell("check", 1.0)
    counted = [size for size in sizes.values() if size is not None]
    if not source.one_size:
        return None
    if not counted:  # pickles: the others are compared with the first as they are read
        return read_volume(source.cases[0].image).GetSize()
    usual = max(set(counted), key=counted.count)
    for case in source.cases:
        if sizes[case.id] not in (None, usual):
            raise InputError(
                f"{case.image} is {by(sizes[case.id])} voxels, and the others are {by(usual)}; is it a file of this "
                "data set?"
            )
    return usual


def _axes(source: Source, table: LabelTable | None) -> Axes:
    """How the volumes lie, from the structures of the first label map; one spacing where all have one size."""
    labels = next((case.labels for case in source.cases if case.labels), None)
    if table is None or not table.landmarks or labels is None:
        raise InputError(
            "The volumes have no usable headers, and their orientation is found from label maps; give some."
        )
    image = read_label_volume(labels)
    direction = direction_from_labels(image, table.landmarks, str(labels))
    return Axes(direction, image.GetSpacing() if source.one_size else None)


def _digest(name: str, source: Source, table: LabelTable | None, axes: Axes | None) -> str:
    """What a prepared case depends on besides its own files."""
    names = sorted(table.kept(source.preparation.every_label)) if table else None
    atlas = source.atlas if source.preparation.linear != "none" else None
    parts = [name, source.layout, asdict(source.preparation), atlas, names, axes and asdict(axes), VERSION]
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _claim(out: Path, digest: str, overwrite: bool) -> None:
    """Make `out` ours, or go on with what the same call began there."""
    state = out / RECORDS / "settings.json"
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not state.is_file())):
        raise InputError(f"{out} holds other files; choose a new folder for the prepared data.")
    if state.is_file():
        same = json.loads(state.read_text(encoding="utf-8")).get("settings") == digest
        if not same and not overwrite:
            raise InputError(
                f"{out} was prepared in another way or from another layout; choose a new folder, or add --overwrite."
            )
        if overwrite:
            for name in ("images", "labels", RECORDS):
                shutil.rmtree(out / name, ignore_errors=True)
            (out / MANIFEST).unlink(missing_ok=True)
    if not state.is_file():
        with staged_file(state, overwrite=True) as part:
            part.write_text(json.dumps({"settings": digest}), encoding="utf-8")


def _job(
    case: RawCase,
    source: Source,
    out: Path,
    axes: Axes | None,
    table: LabelTable | None,
    size: tuple[int, int, int] | None,
) -> Job:
    atlas = None
    align_by = case
    if source.preparation.linear != "none":
        atlas = next(other for other in source.cases if other.id == source.atlas)
        if source.together:  # one transform for all images of a subject, found on the modality of the atlas
            mates = [other for other in source.cases if other.subject == case.subject]
            align_by = next((other for other in mates if other.modality == atlas.modality), case)
    every = source.preparation.every_label
    return Job(
        case=case,
        preparation=source.preparation,
        folder=out,
        axes=axes,
        size=size,
        atlas=atlas,
        align_by=align_by,
        known=frozenset(table.names) if table else None,
        kept=frozenset(table.kept(every)) if table else None,
    )


def _finished(job: Job) -> dict[str, Any] | None:
    """The record of a case that an earlier call finished, if its sources and results are still as they were."""
    try:
        record = json.loads(record_of(job.folder, job.case.id).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    entry = record.get("entry", {})
    files = [job.folder / entry[part] for part in ("image", "labels") if entry.get(part)]
    whole = record.get("source") == fingerprint(job.case) and files and all(path.is_file() for path in files)
    # Split and subject follow from names and options, not from the volumes.
    return entry | {"subject": job.case.subject, "split": job.case.split} if whole else None


def _run(jobs: Sequence[Job], workers: int) -> Iterator[dict[str, Any]]:
    if workers <= 1 or len(jobs) <= 1:
        yield from map(prepare_case, jobs)
        return
    # Processes, not threads: the linear stage sets ITK's number of threads for its whole process.
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(prepare_case, job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _manifest(
    name: str, known: DataSet, source: Source, table: LabelTable | None, entries: list[dict[str, Any]]
) -> dict[str, Any]:
    values = sorted({value for entry in entries for value in entry["label_values"]})
    names = table.kept(source.preparation.every_label) if table else {value: f"label {value}" for value in values}
    return {
        "format": FORMAT,
        "version": VERSION,
        "name": name,
        "title": known.title,
        "licence": known.licence,
        "citation": known.citation,
        "kind": source.kind,
        "modalities": source.modalities,
        "atlas": source.atlas,
        "shape": _shared(entries, "shape"),
        "spacing": _shared(entries, "spacing"),
        "label_names": {str(value): text for value, text in names.items()},
        "label_source": table.source if table else "",
        "pairs": {split: [list(pair) for pair in pairs] for split, pairs in source.pairs.items()},
        "preparation": {"layout": source.layout, "program": __version__, **asdict(source.preparation)},
        "cases": sorted(entries, key=lambda entry: entry["id"]),
    }


def _shared(entries: list[dict[str, Any]], part: str) -> list[float] | None:
    first = entries[0][part]
    return first if all(entry[part] == first for entry in entries) else None
