"""What :mod:`gateway.deidentify` is made of.

``options`` is what a site chooses. ``profile`` says what is done to an attribute, by the tables and the
``allow_list``; ``copying`` does it. ``values``, ``terms``, ``codes``, ``dates``, ``text`` and ``content`` say what a
kept value may look like and what becomes of others; ``pseudonyms`` are made from the site key, which ``keys`` guards.
``pixel_data``, ``streams``, ``icc``, ``graphics`` and ``clean_pixels`` clean what is no text. ``evidence`` and
``changes`` tell what was done.
"""
