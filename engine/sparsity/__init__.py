"""The zeros of a weight: what they look like, what they must cost, how they got there."""
