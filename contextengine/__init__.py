"""ContextEngine puts the right context in front of a live conversation's model at the right moment."""

__version__ = "0.1.0"
