"""Tensors of evaluated samples, collected batch by batch and gathered on the first process."""

import numpy as np
import torch
from torch import Tensor

from supercm_lightning.utils.collectives import gather_objects


class SampleTable:
    """Columns with one row per sample: tensors of a batch are added, and gathered once from all processes."""

    def __init__(self) -> None:
        self._batches: list[dict[str, Tensor]] = []

    def add(self, index: Tensor | None, **columns: Tensor) -> None:
        """Adds tensors of a batch, (n, …), moved to the host, with the position of each sample in its set, if known."""
        columns = {name: value.detach().cpu() for name, value in columns.items()}
        if index is not None:
            columns["index"] = index.cpu()
        self._batches.append(columns)

    def gather(self) -> dict[str, Tensor]:
        """Concatenates the samples of all processes and forgets them.

        With an index, samples are sorted by it and each stands there once; without, they are in the order of the ranks.
        Every process must call it; those but the first get an empty dictionary.
        """
        batches, self._batches = self._batches, []
        own = {name: torch.cat([batch[name] for batch in batches]) for name in (batches[0] if batches else ())}
        shards = [shard for shard in gather_objects(own) if shard]
        columns = {name: torch.cat([shard[name] for shard in shards]) for name in (shards[0] if shards else ())}
        if "index" in columns:
            first = torch.from_numpy(np.unique(columns["index"].numpy(), return_index=True)[1])
            columns = {name: value[first] for name, value in columns.items()}
        return columns
