"""Ways to run the clients of a round: many batches in one call, many clients at once, many devices, many processes."""
