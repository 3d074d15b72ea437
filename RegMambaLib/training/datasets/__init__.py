"""Data sets: from what their owners distribute to one folder with a manifest.

`manifest` is what training and evaluation read, `registry` the table of known sets, `lpba40`, `ixi`, `oasis`,
`abdomen_ct`, `sr_reg`, `folder` and `bids` know one layout each, `prepare` is the path they share, `verify`
checks a prepared folder, `labels` holds the names of label values.
"""

from __future__ import annotations

from .manifest import Case, Manifest, load_manifest

__all__ = ["Case", "Manifest", "load_manifest"]
