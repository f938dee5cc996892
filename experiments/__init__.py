"""Runnable studies: `python -m experiments.<name> --help` says what each one measures and takes."""
