"""The embedded handwriting `strokes`: its vector file, its looks, how fast it is made and how well it is read."""
