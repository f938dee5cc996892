"""The algorithms, a few lines each on `BaseUpdater`."""
