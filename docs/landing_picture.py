"""Make the landing picture and print its caption: ``python docs/landing_picture.py`` (minutes, one core).

The picture in README.md and docs/index.md is what ``isodiff demo`` (``make demo``) leaves with its defaults, and the caption
says what it measured. So this runs the demo in a folder that is thrown away, keeps its UMAP as ``docs/_static/umap.png``
and prints the numbers; whoever makes a new picture puts the caption into both files, whatever it says.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

PICTURE = Path(__file__).parent / "_static" / "umap.png"


def caption(table: pd.DataFrame) -> str:
    """Say what ``metrics.csv`` of the demo says about the forest, in the words below the picture."""
    rows = table[(table["metric"] == "random_forest_auc") & (table["group"] == "all")].set_index("space")
    value = {
        space: "{value:.2f} (95% interval {lower:.2f} to {upper:.2f})".format(**row) for space, row in rows.iterrows()
    }
    floor = rows["floor"].map("{:.2f}".format)
    n_real, n_fake = (int(rows[name].iloc[0]) for name in ("n_real", "n_generated"))
    return (
        f"*`make demo`, simulated data, seed 0: {n_real} held-out and {n_fake} generated cells. A random forest tells them "
        f"apart with AUC {value['features']} on features and {value['pcs']} on principal components; "
        f"two halves of the held-out cells with {floor['features']} and {floor['pcs']}.*"
    )


def main() -> None:
    """Run the demo, keep the picture, print the caption."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", "from isd.cli import main; main()", "demo", "--out", folder]
        subprocess.run(command, check=True, stdout=sys.stderr)
        shutil.copyfile(Path(folder) / "umap.png", PICTURE)
        print(caption(pd.read_csv(Path(folder) / "metrics.csv")))
    print(f"{PICTURE.name}: {PICTURE.stat().st_size / 1000:.0f} kB", file=sys.stderr)


if __name__ == "__main__":
    main()
