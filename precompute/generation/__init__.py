"""Text that the sources write themselves: they go on from beginnings of the corpus."""
