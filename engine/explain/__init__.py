"""What was found in every weight, what was chosen and why: as data, as text, as a page, as if pruned."""
