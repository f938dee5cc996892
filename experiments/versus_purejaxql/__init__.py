"""The same PQN by purejaxql and by this package's own loop: what it learns, and what a step costs."""
