"""Two versions of a model held against each other, and against the truth, on the same studies.

::

    cases -> scores of both versions (kept as they come) -> truth -> figures -> verdict -> report

:mod:`gateway.comparison.run` is the whole of it. Figures come from :mod:`evaluation`; nothing is estimated here.
"""
