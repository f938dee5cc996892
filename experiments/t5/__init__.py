"""T5 1.1 by span corruption, dense and sparse."""
