"""The published rows that need an accelerator: what to type, what each takes, and what of it is here."""
