"""gin files for T5X; include one after your own as 'sparse_plugins/t5/configs/<name>.gin'."""
