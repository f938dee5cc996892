"""Federated handwriting, dense and sparse: accuracy of FedAvg under each sparsity algorithm."""
