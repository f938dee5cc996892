"""What every study stands on: settings, a loop that trains, folders that are written and read, and tables of them.

A study is its settings, its task and a row in `experiments.registry`. Settings are a dataclass from which the command
line is made; the task is a function from settings to a `Plan`, whose cells are trained once with each seed; the row
names a `Layout`, which says what the columns of `results.csv` mean. Everything else is here.
"""
