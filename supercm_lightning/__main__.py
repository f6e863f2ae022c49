"""`python -m supercm_lightning` is the command `supercm`."""

from supercm_lightning.cli import main

if __name__ == "__main__":
    main()
