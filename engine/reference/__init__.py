"""What graphs mean, in plain NumPy: the oracle of tests."""
