"""The command `supercm-features`: frozen features of a folder of images, by any model of timm or of this package."""

from supercm_lightning.data.image_features import extract_features
from supercm_lightning.tools.arguments import parse
from supercm_lightning.utils.parser import errors_in_one_line


@errors_in_one_line()
def main(args: list[str] | None = None) -> None:
    """The console script, with arguments without the program's name, or those of the process."""
    options = parse(extract_features, args, skip=("trainer",), prog="supercm-features")
    extract_features(**options)
