"""FedJAX's side of federated learning: optimizers, algorithms, backends and data in its interfaces."""
