"""What `kvbench peers` compares, one file each: every adapter is a program of its own, run by the Python of its own
virtual environment, where there may be no kvstore. So they import numpy, `kvbench.rivals` and what they adapt, no more.
"""
