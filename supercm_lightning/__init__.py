"""Learning from few labels, across domains, or with none, in PyTorch Lightning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from supercm_lightning.public import *  # noqa: F403
    from supercm_lightning.public import __all__ as __all__
else:

    def __getattr__(name: str) -> Any:
        """Imports the public names when one is asked for; `supercm --help` needs no torch."""
        if name == "__all__" or not name.startswith("__"):
            public = import_module("supercm_lightning.public")
            globals().update({each: vars(public)[each] for each in ("__all__", *public.__all__)})
        if name not in globals():
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return globals()[name]

    def __dir__() -> list[str]:
        """The public names, for completion."""
        return sorted({*globals(), *__getattr__("__all__")})
