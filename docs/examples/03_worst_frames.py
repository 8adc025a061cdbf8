"""Read the table of scores and name the frames that are worst.

python docs/examples/03_worst_frames.py data/subjects/demo/evaluation
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq


def main(evaluation: Path) -> None:
    table = pq.read_table(evaluation / "frames.parquet")
    head = pc.and_(pc.equal(table["region"], "head"), pc.equal(table["metric"], "psnr"))
    scores = table.filter(head).sort_by("value")
    values = scores["value"].to_numpy()
    print(f"{len(values)} pictures, {values.mean():.2f} dB, spread {np.std(values):.2f}")
    for row in scores.slice(0, 3).to_pylist():
        where = "{sequence}, timestep {timestep}, camera {camera}".format(**row)
        print(f"{row['value']:.2f} dB: {where}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
