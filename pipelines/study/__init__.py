"""Studies: named grids of trainings over the same shards, with a table and a figure each."""

STUDIES = {
    "table1": "the design choices of the paper's Table 1, each changed alone",
    "lambda": "the weights of the fusion and the feedback loss (Fig. 5)",
    "tau": "the threshold of the selection",
    "selector": "what the selection network sees and what trains it",
    "align": "alignment, tail, and entries per position",
    "data": "the gain over ct, by unique text and passes over it",
    "sources": "the number of candidates (Fig. 1)",
    "efficiency": "steps and tokens to the baselines' final perplexity (Fig. 4)",
    "selection": "every candidate's weight while training (Fig. 6)",
    "recipe": "every method at its own best of a declared space (recipe.space), on test text",
}
"""Every study and what it shows."""
