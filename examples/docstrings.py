"""Texts with labels that every machine with this package has: what SciPy's public functions do, and of which
subpackage each is. Names of functions and subpackages are taken out, else they would tell.
"""

import importlib
import inspect
import re

import numpy as np

CLASSES = (
    "cluster fft integrate interpolate linalg ndimage optimize signal sparse spatial special stats".split()
)
PARTS = {
    "cluster": ["cluster.hierarchy", "cluster.vq"],
    "signal": ["signal", "signal.windows"],
    "sparse": ["sparse", "sparse.linalg", "sparse.csgraph"],
    "spatial": ["spatial", "spatial.distance", "spatial.transform"],
    "stats": ["stats", "stats.qmc"],
}


def texts_and_labels():
    """Each text once, and the number of its class."""
    found = {}
    for label, name in enumerate(CLASSES):
        for part in PARTS.get(name, [name]):
            module = importlib.import_module(f"scipy.{part}")
            for public in sorted(module.__all__):
                item = getattr(module, public, None)
                text = described(inspect.getdoc(item) or "", public) if callable(item) else ""
                if len(text.split()) >= 4:
                    found.setdefault(text, label)
    return list(found), np.array(list(found.values()), np.int32)


def described(doc, name):
    """The text before the list of parameters, without signatures and names."""
    text = re.split(r"\n(?:Parameters|Attributes|Methods|Returns)\n-", doc)[0]
    text = re.sub(rf"(?m)^{re.escape(name)}\(.*(?:\n\s.*)*", "", text)
    text = re.sub(r":\w+:|[`*\\]", "", text)
    words = "|".join(map(re.escape, sorted({name, "scipy", *CLASSES}, key=len, reverse=True)))
    return " ".join(re.sub(rf"(?i)\b(?:{words})\b[.]?", "", text).split())


def split(labels, shots, seed):
    """Rows of texts: `shots` of each class to train on, other ones for each seed; 96 to validate; 240 to test."""
    order = np.random.default_rng(0).permutation(len(labels))
    valid, test, pool = order[:96], order[96:336], order[336:]
    mine = np.random.default_rng(seed).permutation(pool)
    return np.concatenate([mine[labels[mine] == label][:shots] for label in range(len(CLASSES))]), valid, test


if __name__ == "__main__":
    texts, labels = texts_and_labels()
    print(f"{len(texts)} texts of {len(CLASSES)} classes")
    for label, name in enumerate(CLASSES):
        rows = np.flatnonzero(labels == label)
        print(f"  {name:<12}{len(rows):>4}  {texts[rows[0]][:80]}")
