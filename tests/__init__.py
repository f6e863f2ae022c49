"""A package, so that worker processes can import the functions they run."""
