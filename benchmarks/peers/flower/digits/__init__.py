"""The federation of benchmarks/flower_peers.py as a Flower app: the same graph, weights, rows and order."""
