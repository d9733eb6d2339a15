"""How many workers each pool should have: figures in, numbers out, and how Serve is made to ask. docs/autoscaling.md."""
