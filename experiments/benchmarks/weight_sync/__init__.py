"""What it costs to bring a learner's weights to those who act, against other ways to send them."""
