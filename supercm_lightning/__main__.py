"""`python -m supercm_lightning` is the command `supercm`."""

import sys

from supercm_lightning.utils.overview import answer


def main() -> None:
    """The console script, which imports torch for what needs it alone."""
    if (text := answer(sys.argv[1:])) is not None:
        print(text)
        return
    from supercm_lightning.cli import main

    main()


if __name__ == "__main__":
    main()
