"""The network, the index and the threads that answer requests."""
