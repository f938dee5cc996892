"""Files that anyone may have written: arrays and values that are checked before they are taken."""
