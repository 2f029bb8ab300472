"""Networks by reference: the network, its weights, its preprocessing."""
