"""Sending a run's results to the Hugging Face hub: `uploads` says what would be sent and refuses what must not be,
`push` sends it.
"""
