"""Names of clusters, from a few samples whose class is known."""

import csv
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from supercm_lightning.data.sources.names import normalized
from supercm_lightning.utils.options import MissingFileError, SuperCMError
from supercm_lightning.utils.text import cell_text


def name_clusters(
    examples: str | Path, files: Sequence[str], clusters: Sequence[int], num_clusters: int
) -> tuple[list[str], list[str]]:
    """Gives each cluster the name that most of its examples have; of equally many the one that comes first.

    The examples are a table in CSV with the columns `file`, perhaps the end of a path alone, and `class`; `files` and
    `clusters` are those of each sample. A table that lacks a column, and a file that is none of the samples, or
    several, are errors. The result is the name of each cluster, empty where it has no example, and notes on clusters
    without a name, on those with examples of several classes, and on classes that are split over several clusters.
    """
    path = Path(examples).expanduser()
    if not path.is_file():
        raise MissingFileError(f"names={path}: no such file. Expected a table with the columns file and class.")
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            # A table may be filled in only in part.
            rows = [row for row in csv.DictReader(stream) if row.get("file") and row.get("class")]
    except UnicodeDecodeError as error:
        raise SuperCMError(f"names={path}: no table in UTF-8 ({error}).") from error
    if not rows:
        raise SuperCMError(f"names={path}: no table with the columns file and class.")
    ends, whole = defaultdict[str, list[int]](list), defaultdict[str, list[int]](list)
    for number, file in enumerate(files):
        name = normalized(file).replace(os.sep, "/")
        whole[name].append(number)
        parts = name.split("/")
        for start in range(len(parts)):
            ends["/".join(parts[start:])].append(number)
    of_cluster = defaultdict[int, Counter[str]](Counter)
    of_class = defaultdict[str, Counter[int]](Counter)
    for row in rows:
        wanted = normalized(cell_text(row["file"])).replace(os.sep, "/")
        found = whole.get(wanted) or ends.get(wanted, [])
        if len(found) != 1:
            what = f"{len(found)} of the samples; give more of its path" if found else "none of the samples"
            raise SuperCMError(f"names={path}: {row['file']} is {what}.")
        of_cluster[clusters[found[0]]][row["class"]] += 1
        of_class[row["class"]][clusters[found[0]]] += 1
    names = [of_cluster[k].most_common(1)[0][0] if k in of_cluster else "" for k in range(num_clusters)]
    unnamed = ", ".join(str(number) for number, name in enumerate(names) if not name)
    notes = [f"{num_clusters - names.count('')} of {num_clusters} clusters have a name; without: {unnamed or 'none'}."]
    for cluster, found_names in sorted(of_cluster.items()):
        if len(found_names) > 1:
            notes.append(f"Cluster {cluster}, called {names[cluster]}, has examples of {_counts(found_names)}.")
    for name, places in of_class.items():
        if len(places) > 1:
            notes.append(f"{name} is split over clusters {_counts(places)}.")
    return names, notes


def _counts(counts: "Counter[str] | Counter[int]") -> str:
    return ", ".join(f"{name} ({count})" for name, count in counts.most_common())
