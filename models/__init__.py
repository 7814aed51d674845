"""What a model version is and how it runs: card, registry, pixels, preprocessing, session, prediction.

Knows nothing of peers, disks that receive, or clocks; imports none of ``gateway``, ``drift``, ``xai``.
"""
