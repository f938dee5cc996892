"""From scores to masks: exact counts, exact top k, in every structure, without a sort."""
