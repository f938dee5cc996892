"""Runnable studies: `python -m experiments.<name> --help` says what each one measures and takes.

`harness` is what all of them stand on, `common` what families of them share, and `registry` has a row for each.
"""
