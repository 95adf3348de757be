"""Files behind any path, and what keeps them whole.

Storage on local disks and object stores, folders that appear atomically, locks, and marks of finished pieces.
"""
