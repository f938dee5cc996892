"""Models that others publish, small: what `core.trace_layers` reads of them, and what pruning keeps."""
