"""Coverage-guided fuzzing of what reads bytes from strangers, or of those a machine may have damaged."""
