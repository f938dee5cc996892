"""Hostile clients in federated averaging: what one and two of ten do to the model, under every rule of aggregation."""
