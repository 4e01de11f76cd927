"""The intermediate representation: types, nodes and graphs, what they must fulfil, how they print."""
