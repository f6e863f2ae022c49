"""`python -m supercm_lightning` is the command `supercm`."""

import sys

from supercm_lightning.utils.overview import answer


def main(args: list[str] | None = None) -> None:
    """The console script, which imports torch for what needs it alone."""
    if (text := answer(sys.argv[1:] if args is None else args)) is not None:
        print(text)
        sys.exit()
    from supercm_lightning import cli

    cli.main(args)


if __name__ == "__main__":
    main()
