"""Image classifiers, dense and sparse: residual networks and vision Transformers."""
