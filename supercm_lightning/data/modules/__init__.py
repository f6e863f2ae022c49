"""Data modules: they combine a source, a split and transforms."""
