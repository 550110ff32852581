"""The tasks that come with this package, one file each: ``task`` in NAME.py is what ``env.task = "NAME"`` means."""
