"""The data contract between the stages: config base, errors, schemas, shards, manifests, tokenizer fingerprints.

Imports no project code, no torch and no ray, so that every stage can depend on it wherever that stage runs.
"""
