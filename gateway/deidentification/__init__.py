"""What :mod:`gateway.deidentify` is made of: the tables, the rules for values, and the streams inside pixel data.

``profile`` says what is done to an attribute, ``values`` what a kept value may look like, ``streams`` and ``icc`` clean
what is embedded, ``keys`` guards the site key.
"""
