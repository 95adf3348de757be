"""Corpus -> chunks -> top-k next-token distributions of every source. Imports only `contract` of the project."""
