"""What check-sass.py reads from compiled kernels: see its documentation."""
