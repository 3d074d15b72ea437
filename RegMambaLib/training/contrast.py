"""How bright each structure is: T1-like tables by label number, and tables of any contrast made from them."""

from __future__ import annotations

import numpy as np

from RegMambaLib.training.anatomy import RIM_FAR, RIM_MIDDLE, RIM_NEAR, SULCAL_CSF

RIMS = (RIM_NEAR, RIM_MIDDLE, RIM_FAR)
CSF_LABELS = (4, 5, 14, 15, 24, 43, 44, 72, SULCAL_CSF, *RIMS)
# Brightness of a structure in T1 between grey (0) and white matter (1); what is not listed counts as grey, a
# little above cortex. Set by eye in the usual order of T1.
_WHITENESS = {
    **dict.fromkeys((2, 41), 1.0),
    **dict.fromkeys((3, 42), 0.0),
    **dict.fromkeys((7, 46), 0.9),
    **dict.fromkeys((8, 47), 0.05),
    **dict.fromkeys((10, 49), 0.5),
    **dict.fromkeys((11, 50), 0.1),
    **dict.fromkeys((12, 51), 0.25),
    **dict.fromkeys((13, 52), 0.7),
    **dict.fromkeys((17, 53, 18, 54), 0.05),
    **dict.fromkeys((26, 58), 0.15),
    **dict.fromkeys((28, 60), 0.75),
    16: 0.8,
    85: 0.6,
    **dict.fromkeys((25, 57), 0.6),
}
_OTHER_WHITENESS = 0.3
# FreeSurfer numbers of a structure on the left and on the right.
SIDES = (
    *((2, 41), (3, 42), (4, 43), (5, 44), (7, 46), (8, 47), (10, 49), (11, 50), (12, 51), (13, 52)),
    *((17, 53), (18, 54), (25, 57), (26, 58), (28, 60)),
)
# Of images of any contrast: share that is T1-like, and share that is T1-like turned upside down, as T2 is.
_AS_T1, _AS_T2 = 0.3, 0.3


def t1_table(grey: float, csf: float) -> np.ndarray:
    """Mean intensity of every label number, float64 (256,): white matter 1, background 0, no shell outside."""
    table = np.full(256, grey + _OTHER_WHITENESS * (1 - grey))
    for label, whiteness in _WHITENESS.items():
        table[label] = grey + whiteness * (1 - grey)
    table[list(CSF_LABELS)] = csf
    table[list(RIMS)] = 0.0
    table[0] = 0.0
    return table


def other_contrast(rng: np.random.Generator, table: np.ndarray) -> np.ndarray:
    """A table that tells the same structures apart in another way; what is 0 stays 0.

    As in SynthSeg and SynthMorph every structure may have any brightness, the same on both sides of the body;
    but half of what a user has looks like T1 or T2, so these make a good part.
    """
    kind = rng.random()
    if kind < _AS_T1:
        return table
    if kind < _AS_T1 + _AS_T2:
        # The darkest tissue is not black: that is the background.
        dark = rng.uniform(0.05, 0.4)
        out = dark + (1 - dark) * np.maximum(1 - table, 0) ** rng.uniform(0.6, 1.4)
    else:
        out = rng.uniform(0.05, 1.0, table.size)
        for left, right in SIDES:
            out[right] = out[left] + 0.05 * rng.standard_normal()
        out[list(CSF_LABELS)] = out[CSF_LABELS[0]]
    return np.where(table > 0, np.clip(out, 0.03, 1.0), 0.0)
