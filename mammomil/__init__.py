"""Weakly supervised mammography: GMIC and the dual-branch network, to learn from and to train.

Not a medical device. Nothing here may be used to diagnose, screen or treat people.
"""

__version__ = "0.2.0"
