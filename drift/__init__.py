"""Is today like the reference? Acquisition findings, drift tests and alarms, from plain arrays and values.

This package never reads a data set, a picture or a model. Importing it loads neither torch nor alibi-detect.
"""
