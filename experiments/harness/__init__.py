"""What every study leaves behind: a folder for it, one for each of its runs, and how they are written and read."""
