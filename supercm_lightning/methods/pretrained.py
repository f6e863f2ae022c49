"""Models as folders of plain files, in the layout of the Hugging Face Hub, and their way there and back."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file
from torch import Tensor

from supercm_lightning.utils.checkpoints import PRETRAINED, hub
from supercm_lightning.utils.options import SuperCMError

if TYPE_CHECKING:
    from supercm_lightning.methods.prediction import Predicting

CARD = """---
library_name: supercm-lightning
tags: [{tags}]
---
# {method}

```python
from supercm_lightning import {method}
model = {method}.from_pretrained("hf://OWNER/NAME")  # or the path of this folder
```

"""


def save_pretrained(model: "Predicting", folder: str | Path) -> Path:
    """Writes `model.safetensors`, `config.json` and `README.md`, the card of the run.

    Args:
        model: A model that was loaded from a checkpoint or a run.
        folder: Where to write; made if missing.

    Raises:
        SuperCMError: If the model was not loaded from a checkpoint, or an option is no plain value.
    """
    state = model.prepared().state
    method, folder = type(model).__name__, Path(folder).expanduser()
    tensors = {name: value.cpu().clone().contiguous() for name, value in model.state_dict().items()}
    measured: Mapping[str, Tensor] = state.get("measured") or {}
    tensors |= {f"measured:{name}": value.contiguous() for name, value in measured.items()}
    options = {name: value for name, value in model.hparams.items() if not name.startswith("_")}
    content = {"class_path": f"{type(model).__module__}.{type(model).__qualname__}", "options": options}
    content["data"] = {name: state.get(name) for name in ("class_names", "preprocessing")}
    try:
        text = json.dumps(content, indent=2)
    except TypeError as error:
        raise SuperCMError(f"save_pretrained: an option is no plain value ({error}).") from error
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / PRETRAINED[0], metadata={"format": "pt"})
    (folder / PRETRAINED[1]).write_text(text, encoding="utf-8")
    card = CARD.format(method=method, tags="image-classification, semi-supervised-learning") + model.card
    (folder / PRETRAINED[2]).write_text(card, encoding="utf-8")
    return folder


def push_to_hub(folder: Path, name: str, private: bool) -> str:
    """Uploads such a folder as `OWNER/NAME`; gives its address."""
    api = hub().HfApi()
    api.create_repo(name, private=private, exist_ok=True)
    return str(api.upload_folder(repo_id=name, folder_path=folder, allow_patterns=list(PRETRAINED)))
