"""The vocabulary map: for every source token the target token that receives its probability (MinED).

Exact edit distances, and the search for the nearest of many tokens that makes them affordable.
"""
