"""Stage 4: held-out perplexity, benchmark tasks, knowledge interference, and the report."""
