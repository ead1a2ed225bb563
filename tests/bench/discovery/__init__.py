"""How well the search for pivotal tokens works: on planted traces beside other methods, and on the bundled model."""
