"""Studies that are kept de-identified with their predictions: saving by rule, queries, cases, export.

What they are for is comparing versions later, on what this site really sent. See ``docs/saved-studies.md``.
"""
