"""Runnable studies: `python -m experiments.<name> --help` says what each one measures and takes.

Each is built on three floors: `record` writes and reads rows, `tables` makes Markdown and pictures of them, and `study`
is the loop that trains.
"""
