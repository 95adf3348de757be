"""The trainer: streams aligned shards and trains the target together with the adaptive selection network (ASN).

Needs neither ray nor datasets. Imports only `contract` of the project.
"""
