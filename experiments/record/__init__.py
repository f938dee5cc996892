"""What every study leaves behind, and the loop that leaves it: one folder for a study, one for each of its runs."""
