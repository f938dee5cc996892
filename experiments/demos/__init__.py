"""Demonstrations: they train a little and show what came of it; no study is stored of them."""
