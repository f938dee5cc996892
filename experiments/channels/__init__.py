"""What channels are worth once they leave: quality against measured time and bytes."""
