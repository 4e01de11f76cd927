"""From a finished graph to the tables, the code and the weights of a model file."""
